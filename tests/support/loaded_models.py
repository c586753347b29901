# SPDX-License-Identifier: GPL-3.0-or-later
"""What every instance of a Mac has loaded, asked in both ways there are, against what the inventory declares."""

from __future__ import annotations

import json

from fleet_under_test import Fleet

# Runs on the Mac: {instance: {"status", "ps", "models"}}.
_LOOK = """
import json, os, subprocess, urllib.request
found, root = {}, "/Users/admin/.lmfleet/instances/"
for name in sorted(os.listdir(root)):
    home = root + name
    if name.startswith(".") or not os.path.isdir(home):
        continue
    declared = json.load(open(home + "/instance.json"))
    info = home + "/.lmstudio/.internal/http-server.json"
    variables = {"PATH": "/usr/bin:/bin", "HOME": home, "LMS_API_SERVER_INFO_PATH": info}
    command = [declared["lms"], "ps", "--json"]
    ps = subprocess.run(command, env=variables, stdout=subprocess.PIPE, timeout=60, check=True)
    url = "http://%s:%d/api/v1/models" % (declared["address"], declared["port"])
    found[name] = {
        "status": json.load(open(home + "/status.json")),
        "ps": json.loads(ps.stdout),
        "models": json.load(urllib.request.urlopen(url, timeout=30))["models"],
    }
print(json.dumps(found))
"""


def look(fleet: Fleet, host: str) -> dict:
    """Return what the instances of a Mac say of themselves."""
    return json.loads(fleet.sandbox("exec", host, "--", "/usr/bin/python3", "-c", _LOOK))


def declared(fleet: Fleet, host: str) -> dict[str, dict[str, dict]]:
    """Return {instance: {identifier: settings}} as the inventory has it; settings are those that LM Studio shows."""
    own = fleet.hosts["all"]["children"]["macs"]["hosts"][host] or {}
    models = fleet.variables["all"]["lmfleet_models"]
    result: dict[str, dict[str, dict]] = {}
    for instance in own.get("lmfleet_instances", fleet.variables["macs"].get("lmfleet_instances", [])):
        loaded = result.setdefault(instance["name"], {})
        for entry in instance["models"]:
            settings = {**models[entry["name"]].get("load", {}), **entry.get("load", {})}
            shown = {
                name: settings[name] for name in ("context_length", "parallel", "flash_attention") if name in settings
            }
            for copy in range(1, entry.get("copies", 1) + 1):
                loaded[entry["name"] + (f"-{copy}" if copy > 1 else "")] = shown
    return result


def assert_as_declared(fleet: Fleet, *hosts: str) -> None:
    """Assert that `lms ps --json` and `/api/v1/models` of every instance equal the inventory, and nothing is shared."""
    for host in hosts:
        found, wanted = look(fleet, host), declared(fleet, host)
        assert set(found) == set(wanted), host
        for name, expected in wanted.items():
            _assert_instance(f"{host} {name}", found[name], expected)
        for part in ("pid", "daemon_pid", "control_port", "port"):
            values = [one["status"][part] for one in found.values()]
            assert len(set(values)) == len(values), f"{host}: {part} {values}"


def _assert_instance(where: str, found: dict, expected: dict[str, dict]) -> None:
    assert found["status"]["state"] == "ready", f"{where}: {found['status']}"
    listed = {entry["identifier"]: entry for entry in found["ps"]}
    served = {loaded["id"]: loaded["config"] for model in found["models"] for loaded in model["loaded_instances"]}
    assert set(listed) == set(served) == set(expected), where
    for identifier, settings in expected.items():
        assert listed[identifier]["ttlMs"] is None, f"{where} {identifier}: {listed[identifier]}"
        assert settings.items() <= served[identifier].items(), f"{where} {identifier}: {served[identifier]}"
        shown = {"context_length": listed[identifier]["contextLength"], "parallel": listed[identifier]["parallel"]}
        for name in shown.keys() & settings.keys():
            assert shown[name] == settings[name], f"{where} {identifier}: lms ps shows {name} {shown[name]}"
