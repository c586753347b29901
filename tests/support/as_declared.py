# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether every instance of a fleet serves exactly what the inventory declares, asked of LM Studio itself."""

from __future__ import annotations

import json

from fleet_under_test import Fleet

ROOT = "/Users/admin/.lmfleet"
#: Settings by what /api/v1/models calls them, to what `lms ps` does, None where it does not show them.
SHOWN = {"context_length": "contextLength", "parallel": "parallel", "flash_attention": None}

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
    asked = urllib.request.Request(url, headers={"Authorization": "Bearer " + (declared.get("api_token") or "none")})
    found[name] = {
        "status": json.load(open(home + "/status.json")),
        "ps": json.loads(ps.stdout),
        "models": json.load(urllib.request.urlopen(asked, timeout=30))["models"],
    }
print(json.dumps(found))
"""


def look(fleet: Fleet, host: str) -> dict:
    """Return what the instances of a Mac say of themselves: instance to {"status", "ps", "models"}."""
    return json.loads(fleet.sandbox("exec", host, "--", "/usr/bin/python3", "-c", _LOOK))


def lms(fleet: Fleet, host: str, instance: str, *words: str) -> str:
    """Return what `lms` prints for one instance and no other."""
    home = f"{ROOT}/instances/{instance}"
    program = json.loads(fleet.read(host, f"{home}/instance.json"))["lms"]
    environment = f"HOME={home} LMS_API_SERVER_INFO_PATH={home}/.lmstudio/.internal/http-server.json"
    return fleet.on(host, f"/usr/bin/env {environment} {program} {' '.join(words)}")


def declared(fleet: Fleet, host: str) -> dict[str, dict]:
    """Return instance to {"port", "models": identifier to its load settings} of one Mac, by the inventory."""
    catalogue = fleet.variables["all"]["lmfleet_models"]
    own = fleet.hosts["all"]["children"]["macs"]["hosts"][host] or {}
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
        for instance in own.get("lmfleet_instances", fleet.variables["macs"].get("lmfleet_instances", []))
    }


def assert_as_declared(fleet: Fleet, *hosts: str) -> None:
    """Assert that both ways to ask agree with the inventory, on every instance of these Macs, or of all.

    Nor do two instances of a Mac share anything.
    """
    for host in hosts or fleet.hosts["all"]["children"]["macs"]["hosts"]:
        found, wanted = look(fleet, host), declared(fleet, host)
        assert set(found) == set(wanted), host
        for name, instance in wanted.items():
            _assert_instance(f"{host}/{name}", found[name], instance)
        for part in ("pid", "daemon_pid", "control_port", "port"):
            values = [one["status"][part] for one in found.values()]
            assert len(set(values)) == len(values), f"{host}: {part} {values}"


def _assert_instance(where: str, found: dict, wanted: dict) -> None:
    assert (found["status"]["state"], found["status"]["port"]) == ("ready", wanted["port"]), f"{where}: {found}"
    by_lms = {entry["identifier"]: entry for entry in found["ps"]}
    by_http = {loaded["id"]: loaded["config"] for model in found["models"] for loaded in model["loaded_instances"]}
    assert set(by_lms) == set(by_http) == set(wanted["models"]), where
    for identifier, settings in wanted["models"].items():
        assert by_lms[identifier]["ttlMs"] is None, f"{where}: {identifier}: {by_lms[identifier]}"
        for setting in SHOWN.keys() & settings.keys():
            shown = {by_http[identifier][setting], settings[setting]}
            if SHOWN[setting]:
                shown.add(by_lms[identifier][SHOWN[setting]])
            assert len(shown) == 1, f"{where}: {identifier}: {setting}: {shown}"
