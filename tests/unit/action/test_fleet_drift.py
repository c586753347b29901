# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_drift in a real play: it reads the results of all hosts, and writes its report whole."""

from __future__ import annotations

import json


def look(path=None):
    keep = {"ansible.builtin.set_fact": {"mac_host_checked": "{{ {'failed': true, 'msg': 'too old'} }}"}}
    arguments = {"roles": {"macs": ["mac_host"]}, **({"path": str(path)} if path else {})}
    tell = {"lmfleet.mac.fleet_drift": arguments, "run_once": True, "register": "report"}
    show = {"ansible.builtin.debug": {"msg": "{{ report.drift | map(attribute='host') | join(' and ') }}"}}
    return [{**keep, "when": "inventory_hostname == 'mac-2'"}, tell, show]


def test_every_host_is_in_the_report(controller, inventory, tmp_path):
    path = tmp_path / "report.json"
    run = controller(inventory, look(path))
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0, output
    assert "mac-1 and mac-2" in output
    report = json.loads(path.read_text())
    assert (report["format"], report["as_declared"], report["hosts"]) == (1, False, ["mac-1", "mac-2"])
    assert [entry["problem"] for entry in report["drift"]] == ["was not looked at", "cannot be looked at: too old"]
    assert [file.name for file in tmp_path.iterdir() if "report" in file.name] == ["report.json"]


def test_a_report_that_cannot_be_written(controller, inventory, tmp_path):
    run = controller(inventory, look(tmp_path / "nowhere" / "report.json"))
    output = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "The report cannot be written to" in output and "No such file or directory" in output
