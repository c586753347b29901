# SPDX-License-Identifier: GPL-3.0-or-later
"""The instances of one Mac: the three ways to scale, changes, drift, faults. Each ends in the declared state."""

from __future__ import annotations

import json
import random
import time

import pytest

from as_declared import assert_as_declared, lms, look
from fleet_under_test import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

HOMES = "/Users/admin/.lmfleet/instances"
AGENTS = "/Users/admin/Library/LaunchAgents"


@pytest.fixture(scope="module")
def mac(tmp_path_factory):
    """One Mac with two instances. The gateway is another one, which is never up: no run is for it."""
    fleet = Fleet(tmp_path_factory.mktemp("inventory"))
    macs = fleet.hosts["all"]["children"]["macs"]["hosts"]
    gateway = macs.pop("mac-2")
    macs["mac-1"].pop("lmfleet_instances")
    fleet.hosts["all"]["children"]["gateways"]["hosts"] = {"mac-2": gateway}
    chat = {"name": "pretender"}
    fleet.variables["macs"]["lmfleet_instances"] = [
        {"name": "chat-a", "port": 1234, "models": [chat]},
        {"name": "chat-b", "port": 1235, "models": [{**chat, "copies": 2}, {"name": "pretender-embed"}]},
    ]
    fleet.sandbox("down")
    fleet.sandbox("up", "1")
    run(fleet).succeeded()
    yield fleet
    fleet.sandbox("down")


def run(fleet: Fleet, *arguments: str):
    return fleet.play("--limit", "mac-1", *arguments)


def restored(fleet: Fleet) -> None:
    """Assert that a run succeeds, and that what is loaded is what is declared."""
    run(fleet).succeeded()
    assert_as_declared(fleet, "mac-1")


def converged(fleet: Fleet) -> None:
    """Assert that a run succeeds, that the next changes nothing, and that what is loaded is what is declared."""
    run(fleet).succeeded()
    unchanged(fleet)


def unchanged(fleet: Fleet) -> None:
    assert run(fleet).succeeded().changed == {"mac-1": 0}
    assert_as_declared(fleet, "mac-1")


def daemons(fleet: Fleet) -> dict[str, int]:
    return {name: one["status"]["daemon_pid"] for name, one in look(fleet, "mac-1").items()}


def wait_until(condition, what: str, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s until {what}"
        time.sleep(0.5)


def test_several_models_several_servers_several_copies(mac):
    unchanged(mac)


def test_a_new_instance_leaves_the_others_alone_and_a_removed_one_is_gone(mac, tmp_path):
    before = daemons(mac)
    more = mac.copy(tmp_path)
    more.variables["macs"]["lmfleet_instances"].append(
        {"name": "chat-c", "port": 1236, "models": [{"name": "pretender"}]}
    )
    restored(more)
    after = daemons(mac)
    assert {name: after[name] for name in before} == before
    renamed = more.copy(tmp_path)
    renamed.variables["macs"]["lmfleet_instances"][2]["name"] = "chat-d"
    restored(renamed)
    converged(mac)
    assert daemons(mac) == before
    assert "chat-c" not in mac.on("mac-1", f"ls -a {HOMES} {AGENTS}")
    assert "chat-d" not in mac.on("mac-1", f"ls -a {HOMES} {AGENTS}")
    assert str(after["chat-c"]) not in mac.on("mac-1", "/bin/ps -axo pid=").split()
    assert "fake-llm.gguf" in mac.on("mac-1", "ls -R /Users/admin/.lmfleet/models")


def test_changed_tuning_loads_that_model_anew_and_no_other(mac, tmp_path):
    before = look(mac, "mac-1")
    changed = mac.copy(tmp_path)
    changed.variables["macs"]["lmfleet_instances"][1]["models"][0]["load"] = {"context_length": 3000}
    restored(changed)
    log = mac.read("mac-1", f"{HOMES}/chat-b/logs/runner.log")
    assert log.count("loading pretender from") == 2
    assert log.count("loading pretender-embed from") == 1
    after = look(mac, "mac-1")
    assert [one["status"]["daemon_pid"] for one in after.values()] == [
        one["status"]["daemon_pid"] for one in before.values()
    ]
    restored(mac)


def load_otherwise(fleet: Fleet) -> bool:
    """Load a declared model by hand with other settings; False when the runner was quicker."""
    lms(fleet, "mac-1", "chat-b", "unload", "pretender-2")
    wanted = ("pretender", "-y", "--identifier", "pretender-2", "--parallel", "1", "--ttl", "300")
    try:
        lms(fleet, "mac-1", "chat-b", "load", *wanted)
    except AssertionError as error:
        assert "pretender-2" in str(error)
        return False
    return True


def test_what_somebody_did_to_the_models_by_hand_is_told_or_undone(mac, tmp_path):
    lms(mac, "mac-1", "chat-a", "unload", "pretender")
    wait_until(lambda: load_otherwise(mac), "it was loaded by hand before the runner did")
    run(mac).succeeded()
    unchanged(mac)

    lms(mac, "mac-1", "chat-a", "load", "pretender", "-y", "--identifier", "mine")
    wait_until(lambda: look(mac, "mac-1")["chat-a"]["status"]["unmanaged"], "the runner has seen it")
    told = run(mac).succeeded()
    assert told.changed == {"mac-1": 0}
    told.said("instance chat-a: mine (lmfleet/pretender/fake-llm.gguf) is loaded and not declared")
    purging = mac.copy(tmp_path)
    purging.variables["macs"]["lmstudio_instances_purge"] = True
    converged(purging)
    lms(mac, "mac-1", "chat-a", "load", "pretender", "-y", "--identifier", "mine")
    wait_until(lambda: '"mine"' not in lms(mac, "mac-1", "chat-a", "ps", "--json"), "the runner unloaded it by itself")
    restored(mac)


def test_what_somebody_did_to_the_jobs_by_hand_is_undone(mac):
    uid = mac.on("mac-1", "id -u admin").strip()
    job = f"gui/{uid}/lmfleet.instance.chat-a"
    mac.on("mac-1", f"launchctl disable {job}")
    run(mac, "--check").succeeded().said("chat-a")
    restored(mac)
    assert '"lmfleet.instance.chat-a" => enabled' in mac.on("mac-1", f"launchctl print-disabled gui/{uid}")

    mac.on("mac-1", f"launchctl disable {job}")
    mac.sandbox("exec", "mac-1", "--", "/bin/sh", "-c", f"launchctl bootout {job} || test $? = 36")
    restored(mac)

    mac.on("mac-1", f"sed -i.bak s/Interactive/Background/ {AGENTS}/lmfleet.instance.chat-a.plist")
    mac.on("mac-1", f"rm {AGENTS}/lmfleet.instance.chat-a.plist.bak")
    run(mac, "--check", "--diff").succeeded().said("- <string>Background</string>", "+ <string>Interactive</string>")
    converged(mac)


def test_a_second_daemon_that_shares_the_first_fails_loudly(mac, tmp_path):
    mac.sandbox("knob", "mac-1", "llmster.share@chat-b=true")
    try:
        restarted = mac.copy(tmp_path)
        restarted.variables["macs"]["lmfleet_instances"][1]["port"] = 1245
        restarted.variables["macs"]["lmstudio_instances_ready_timeout"] = 20
        failed = run(restarted)
        assert failed.code != 0, failed.output
        failed.said("instance chat-b", "does not run two daemons side by side", "Declare one instance on this Mac")
    finally:
        mac.sandbox("knob", "mac-1", "llmster.share@chat-b=false")
    restored(mac)


def test_a_model_that_does_not_fit_is_told_and_the_others_serve(mac, tmp_path):
    mac.sandbox("knob", "mac-1", "llmster.load_memory_mb@chat-a=1")
    try:
        changed = mac.copy(tmp_path)
        changed.variables["macs"]["lmfleet_instances"][0]["models"] = [{"name": "pretender", "load": {"parallel": 3}}]
        changed.variables["macs"]["lmstudio_instances_ready_timeout"] = 20
        failed = run(changed)
        assert failed.code != 0
        failed.said("model pretender: load failed:", "insufficient system resources")
        assert look(mac, "mac-1")["chat-b"]["status"]["state"] == "ready"
    finally:
        mac.sandbox("knob", "mac-1", "--clear")
    restored(mac)


def written(fleet: Fleet, path: str) -> str:
    """Return a file of the Mac; "" where it is not there yet."""
    try:
        return fleet.read("mac-1", path)
    except FileNotFoundError:
        return ""


@pytest.fixture
def desktop(mac):
    """LM Studio of the user's own, with a server on port 1240. Returns a function that runs its lms."""
    declared = json.loads(mac.read("mac-1", f"{HOMES}/chat-a/instance.json"))
    info = "/Users/admin/.lmstudio/.internal/http-server.json"
    start = f"HOME=/Users/admin nohup {declared['llmster']} >/dev/null 2>&1 & echo $!"
    pid = mac.sandbox("exec", "mac-1", "--", "/bin/sh", "-c", start).strip()

    def its_lms(*words: str) -> str:
        environment = ("/usr/bin/env", "HOME=/Users/admin", f"LMS_API_SERVER_INFO_PATH={info}")
        return mac.sandbox("exec", "mac-1", "--", *environment, declared["lms"], *words)

    try:
        wait_until(lambda: f'"pid":{pid}' in written(mac, info).replace(" ", ""), "the desktop app runs")
        its_lms("server", "start", "--port", "1240", "--bind", "127.0.0.1")
        yield its_lms
    finally:
        mac.on("mac-1", f"kill -9 {pid}")
        mac.on("mac-1", "rm -r /Users/admin/.lmstudio /Users/admin/.lmstudio-home-pointer")


def test_a_desktop_lm_studio_is_left_alone(mac, desktop, tmp_path):
    def seen() -> tuple:
        find = "find /Users/admin/.lmstudio -not -path *logs* -type f -ls"
        return desktop("daemon", "status", "--json"), desktop("server", "status", "--json"), mac.on("mac-1", find)

    before = seen()
    many = mac.copy(tmp_path)
    instances = many.variables["macs"]["lmfleet_instances"]
    instances += [
        {"name": f"chat-{port}", "port": port, "models": [{"name": "pretender"}]} for port in (1250, 1251, 1240)
    ]
    refused = run(many)
    assert refused.code != 0
    refused.said("5 instances are declared, and 4 can run")
    del instances[3:]
    converged(many)
    assert '"running":true,"port":1240' in before[1].replace(" ", "")
    assert seen() == before


def cut_connections(fleet: Fleet) -> None:
    """End the ssh connections of Ansible at the Mac's side, whatever they are doing."""
    fleet.on("mac-1", "/bin/sh -c 'pkill -KILL -u admin sshd || true'", root=True)


@pytest.mark.timeout(1800)
def test_a_run_killed_anywhere_is_repaired_by_the_next(mac, tmp_path):
    chance = random.Random(20260301)
    for attempt in range(4):
        changed = mac.copy(tmp_path)
        changed.variables["macs"]["lmfleet_instances"][attempt % 2]["models"][0]["load"] = {
            "context_length": 3000 + attempt
        }
        if attempt % 3 == 0:
            changed.variables["macs"]["lmfleet_instances"][1]["port"] = 1300 + attempt
        process = changed.start("--limit", "mac-1")
        time.sleep(chance.uniform(1.0, 8.0))
        if attempt % 4 == 3:
            cut_connections(mac)
            process.communicate()
        else:
            mac.kill(process)
        restored(changed)
    converged(mac)
