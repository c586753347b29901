# SPDX-License-Identifier: GPL-3.0-or-later
"""What site.yml tells at its end."""

from __future__ import annotations

from pathlib import Path

SUMMARY = Path(__file__).resolve().parents[3] / "playbooks" / "templates" / "summary.txt.j2"
SHOW = {
    "ansible.builtin.debug": {"msg": f"{{{{ lookup('ansible.builtin.template', '{SUMMARY}') }}}}"},
    "run_once": True,
}


def test_clients_are_told_an_address_that_they_reach(controller, inventory):
    listening = {"everywhere": "0.0.0.0", "on-six": "::", "named": "0.0.0.0", "one": "fd00::7", "four": "10.0.0.5"}
    fleet = {"gateways": list(listening), "hosts": {"mac-1": {"instances": []}, "mac-2": {"instances": []}}}
    for name, address in listening.items():
        ports = [{"label": "lmfleet.gateway", "address": address, "port": 4000}]
        ports += [{"label": "lmfleet.gateway_tls", "address": "0.0.0.0", "port": 8443}] if name == "on-six" else []
        fleet["hosts"][name] = {"instances": [], "ports": ports}
    hosts = dict.fromkeys(listening)
    hosts["everywhere"] = {"lmfleet_address": "mac.example", "ansible_host": "10.0.0.1"}
    hosts["on-six"] = {"ansible_host": "fd00::1"}
    inventory["all"]["children"]["gateways"]["hosts"] = hosts
    inventory["all"]["vars"].update(
        fleet=fleet, __lmstudio_instances_run={"instances": []}, __gateway_deployments={"changed": False}
    )
    output = controller(inventory, [SHOW]).communicate(timeout=60)[0]
    for line in (
        "http://mac.example:4000/v1 (gateway on everywhere)",
        "http://[fd00::1]:4000/v1 (gateway on on-six)",
        "https://[fd00::1]:8443/v1 (gateway on on-six, with TLS)",
        "http://named:4000/v1 (gateway on named)",
        "http://[fd00::7]:4000/v1 (gateway on one)",
        "http://10.0.0.5:4000/v1 (gateway on four)",
    ):
        assert f"Clients: {line}" in output, output
