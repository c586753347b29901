# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether every instance of a fleet serves exactly what the inventory declares, asked of LM Studio itself."""

from __future__ import annotations

import json
import urllib.request

from fleet_under_test import Fleet

ROOT = "/Users/admin/.lmfleet"


def declared(fleet: Fleet, host: str) -> dict[str, dict]:
    """Return instance name to {"port", "models": identifier to its load settings} of one Mac, by the inventory."""
    catalogue = fleet.variables["all"]["lmfleet_models"]
    of_host = fleet.hosts["all"]["children"]["macs"]["hosts"][host]
    instances = of_host.get("lmfleet_instances", fleet.variables["macs"]["lmfleet_instances"])
    return {
        instance["name"]: {
            "port": instance["port"],
            "models": {
                entry["name"] + ("" if copy == 1 else f"-{copy}"): {
                    **catalogue[entry["name"]].get("load", {}),
                    **entry.get("load", {}),
                }
                for entry in instance["models"]
                for copy in range(1, entry.get("copies", 1) + 1)
            },
        }
        for instance in instances
    }


def served(fleet: Fleet, host: str, port: int) -> dict[str, dict]:
    """Return identifier to settings of what the server at a port has loaded, by /api/v1/models."""
    address = fleet.hosts["all"]["children"]["macs"]["hosts"][host]["ansible_host"]
    of_host = fleet.hosts["all"]["children"]["macs"]["hosts"][host]
    names = [name for name, instance in declared(fleet, host).items() if instance["port"] == port]
    token = of_host.get("lmfleet_api_tokens", {}).get(names[0], "none")
    request = urllib.request.Request(
        f"http://{address}:{port}/api/v1/models", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        models = json.load(answer)["models"]
    return {loaded["id"]: loaded["config"] for model in models for loaded in model["loaded_instances"]}


def lms(fleet: Fleet, host: str, instance: str, *words: str) -> str:
    """Return what `lms` prints for one instance and no other."""
    home = f"{ROOT}/instances/{instance}"
    program = json.loads(fleet.on(host, f"cat {home}/instance.json"))["lms"]
    environment = f"HOME={home} LMS_API_SERVER_INFO_PATH={home}/.lmstudio/.internal/http-server.json"
    return fleet.on(host, f"/usr/bin/env {environment} {program} {' '.join(words)}")


def listed(fleet: Fleet, host: str, instance: str) -> dict[str, dict]:
    """Return identifier to entry of `lms ps --json`."""
    return {entry["identifier"]: entry for entry in json.loads(lms(fleet, host, instance, "ps", "--json"))}


def assert_as_declared(fleet: Fleet, *hosts: str) -> None:
    """Assert that both ways to ask agree with the inventory, on every instance of these Macs, or of all."""
    for host in hosts or fleet.hosts["all"]["children"]["macs"]["hosts"]:
        instances = declared(fleet, host)
        assert sorted(fleet.on(host, f"ls {ROOT}/instances").split()) == sorted(instances), host
        for name, instance in instances.items():
            where = f"{host}/{name}"
            by_http, by_lms = served(fleet, host, instance["port"]), listed(fleet, host, name)
            assert set(by_http) == set(by_lms) == set(instance["models"]), where
            for identifier, load in instance["models"].items():
                http, ps = by_http[identifier], by_lms[identifier]
                assert ps["ttlMs"] is None, f"{where}: {identifier}"
                for setting, at_lms in (("context_length", "contextLength"), ("parallel", "parallel")):
                    if setting in load:
                        assert http[setting] == ps[at_lms] == load[setting], f"{where}: {identifier}: {setting}"
                if "flash_attention" in load:
                    assert http["flash_attention"] == load["flash_attention"], f"{where}: {identifier}"
