# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of all three ways to scale: it is as declared, what differs is found by verify.yml and mended by site.yml."""

from __future__ import annotations

import json

import pytest

from as_declared import ROOT, assert_as_declared, lms
from lent_gateway import lent

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

TOKEN = "sk-lm-ABCDEFGH:0123456789abcdefghij"
UNCHANGED = {"mac-1": 0, "mac-2": 0}
AGENTS = "/Users/admin/Library/LaunchAgents"
TUNINGS = ".lmstudio/.internal/user-concrete-model-default-config/lmfleet"

# Several models on one server, several servers on one Mac, several copies of one model on one server.
SCALED = {
    "mac-1": [
        {"name": "many", "port": 1234, "models": [{"name": "pretender"}, {"name": "pretender-embed"}]},
        {"name": "more", "port": 1235, "models": [{"name": "pretender", "load": {"context_length": 2048}}]},
    ],
    "mac-2": [
        {"name": "copies", "port": 1234, "models": [{"name": "pretender", "copies": 3, "load": {"parallel": 2}}]},
        {"name": "one", "port": 1235, "models": [{"name": "pretender-embed"}]},
        {"name": "two", "port": 1236, "models": [{"name": "pretender-embed"}]},
    ],
}


@pytest.fixture(scope="module")
def scaled(fleet):
    """The fleet after a first run of site.yml. It knows what was on the Macs before."""
    fleet.fresh = {host: fleet.files(host) for host in UNCHANGED}
    for host, instances in SCALED.items():
        fleet.hosts["all"]["children"]["macs"]["hosts"][host]["lmfleet_instances"] = instances
    fleet.hosts["all"]["children"]["macs"]["hosts"]["mac-2"]["mac_host_gpu_memory_limit_mb"] = 12000
    fleet.hosts["all"]["children"]["macs"]["hosts"]["mac-2"]["lmfleet_api_tokens"] = {"one": TOKEN}
    fleet.sandbox("knob", "mac-2", f'llmster.api_tokens@one=["{TOKEN}"]')
    with lent(fleet, "mac-1"):
        fleet.first = fleet.play("-v", "--diff").succeeded()
    return fleet


@pytest.fixture
def verify(scaled, tmp_path):
    """Return a function that runs verify.yml and returns the run and its report."""

    def verify(*arguments, fleet=scaled):
        path = tmp_path / "report.json"
        run = fleet.play("-e", f"verify_json={path}", *arguments, playbook="verify.yml")
        return run, json.loads(path.read_text())

    return verify


def places(report):
    """Return host to the set of what is not as declared there."""
    hosts = {host: set() for host in report["hosts"]}
    for entry in report["drift"]:
        hosts[entry["host"]].add((entry["what"].rpartition("/")[2], entry["problem"]))
    return hosts


def touched(fleet, host):
    """Return the files that changed since mark(), but for those that running programs write all the time."""
    running = "-path '*/logs/*' -o -name status.json -o -path '*/registry/applied/*'"
    running += " -o -path '*/.ansible*' -o -name '.sudo_*'"
    found = fleet.on(host, f"find / -xdev -newer /Users/Shared/mark -not ( {running} ) -not -type d", root=True)
    return found.split()


def names(fleet, host):
    """Return the files and folders that reset.yml could remove, but for those that running programs replace."""
    running = "-path '*/logs/*' -o -name 'status.json*' -o -path '*/registry/applied/*' -o -path '*/.ansible*'"
    return sorted(fleet.on(host, f"find /Users/admin /Library -not ( {running} )", root=True).split("\n"))


def boot_out(fleet, host, instance):
    """Unload the job of an instance and wait until it is gone: bootout returns before that."""
    job = f"gui/501/lmfleet.instance.{instance}"
    gone = f"while launchctl print {job} >/dev/null 2>&1; do sleep 0.2; done"
    fleet.on(host, f"/bin/sh -c 'launchctl bootout {job}; {gone}'")


def mark(fleet, host):
    fleet.on(host, "touch /Users/Shared/mark", root=True)


def test_every_instance_serves_what_is_declared(scaled):
    assert_as_declared(scaled)
    assert_set_up(scaled)
    assert scaled.play().succeeded().changed == UNCHANGED
    ids = json.loads(scaled.read("mac-1", f"{ROOT}/gateway/registry/deployments.json"))["deployments"]
    assert len(ids) == 8


def assert_set_up(fleet):
    """Assert that a Mac has the settings of a server, those of its own, and a limit that lasts."""
    settings = fleet.on("mac-2", "pmset -g custom").split()
    assert [settings[settings.index(name) + 1] for name in ("sleep", "autorestart")] == ["0", "1"]
    assert fleet.on("mac-2", "sysctl -n iogpu.wired_limit_mb") == "12000\n"
    job = fleet.on("mac-2", "launchctl print system/lmfleet.gpu-memory-limit")
    assert "last exit code = 0" in job


def test_a_token_for_an_instance_is_used_and_seen_by_nobody(scaled):
    assert TOKEN not in scaled.first.output
    for host, holders in (
        ("mac-1", {"gateway/registry/deployments.json", "gateway/registry/applied/kept/deployments.json"}),
        ("mac-2", {"instances/one/instance.json"}),
    ):
        files = scaled.on(host, f"grep -rlF {TOKEN} {ROOT} {AGENTS}").split()
        assert {name.removeprefix(f"{ROOT}/") for name in files} == holders
        assert {scaled.on(host, f"stat -c %a {name}").strip() for name in files} == {"600"}
        assert TOKEN not in scaled.on(host, "ps -axwwo args", root=True)


def test_verify_finds_nothing_and_touches_nothing(scaled, verify):
    daemons = lasting_processes(scaled)
    for host in UNCHANGED:
        mark(scaled, host)
    run, report = verify("-e", "verify_probe=true")
    run.succeeded().said("Everything on mac-1, mac-2 is as declared.")
    assert (report["as_declared"], report["drift"], report["paused"]) == (True, [], [])
    assert {host: touched(scaled, host) for host in UNCHANGED} == {"mac-1": [], "mac-2": []}
    assert lasting_processes(scaled) == daemons


def lasting_processes(fleet):
    """Return the runners and daemons of all Macs, without the commands that a runner looks with now and then."""
    processes = [line for host in UNCHANGED for line in fleet.on(host, "ps -axo pid,args", root=True).splitlines()]
    ours = [line for line in processes if ".lmfleet" in line and "/bin/lms " not in line]
    return [line for line in ours if "llmster" in line or "runner" in line]


def test_what_differs_is_found_and_mended(scaled, verify):
    runner = runner_of_gateway(scaled)
    scaled.on("mac-1", f"sed -i '$a # of another version of the collection' {ROOT}/gateway/gateway_runner.py")
    lms(scaled, "mac-1", "many", "load", "pretender", "-y", "--identifier", "mine", "--ttl", "600")
    scaled.on("mac-1", f"sed -i s/Interactive/Background/ {AGENTS}/lmfleet.instance.more.plist")
    scaled.on("mac-1", f"sed -i s/allowed_fails:.1/allowed_fails:\\ 9/ {ROOT}/gateway/current/config.yaml")
    tuning = f"{ROOT}/instances/copies/{TUNINGS}/pretender/fake-llm.gguf.json"
    scaled.on("mac-2", f"sed -i s/4096/8192/ {tuning}")
    boot_out(scaled, "mac-2", "one")
    scaled.on("mac-2", f"rm {ROOT}/models/lmfleet/pretender/fake-llm.gguf")
    scaled.on("mac-2", "pmset -a sleep 10 displaysleep 3", root=True)
    scaled.on("mac-2", "sysctl iogpu.wired_limit_mb=0", root=True)
    run, report = verify()
    assert run.code != 0
    found = places(report)
    assert found["mac-1"] >= {
        ("instance many", "mine is loaded, and not declared"),
        ("instance more", "its property list changed (to do: restart)"),
        (
            "lmfleet.instance.more.plist",
            "has <string>Background</string>, declared is <string>Interactive</string>",
        ),
        ("config.yaml", "has allowed_fails: 9, declared is allowed_fails: 1"),
    }
    assert found["mac-2"] >= {
        ("fake-llm.gguf.json", 'has "value": 8192, declared is "value": 4096'),
        ("instance one", "its launchd job is not loaded (to do: start)"),
        ("instance one", "pretender-embed is not loaded"),
        ("fake-llm.gguf", "is missing"),
        ("settings of the Mac", "differs in 2 lines"),
    }
    assert "gateway_runner.py" in {what for what, _problem in found["mac-1"]}
    assert (runner_of_gateway(scaled)[0], runner_of_gateway(scaled)[1] == runner[1]) == (runner[0], False)
    run.said("mac-1 lmstudio_instances instance many mine is loaded, and not declared", "mac-1, mac-2")

    scaled.play().succeeded()
    lms(scaled, "mac-1", "many", "unload", "mine")
    assert scaled.play().succeeded().changed == UNCHANGED
    assert_as_declared(scaled)
    assert_set_up(scaled)
    assert runner_of_gateway(scaled) == runner
    verify()[0].succeeded()


def runner_of_gateway(fleet):
    """Return the process of the gateway's runner, and what program it is."""
    status = json.loads(fleet.read("mac-1", f"{ROOT}/gateway/status.json"))
    return status["pid"], status["program"]


def test_a_mac_that_cannot_be_reached_is_named_and_hides_no_other(scaled, verify, tmp_path):
    away = scaled.copy(tmp_path / "away")
    away.hosts["all"]["children"]["macs"]["hosts"]["mac-1"]["ansible_port"] = 9
    boot_out(scaled, "mac-2", "two")
    run, report = verify(fleet=away)
    assert run.code != 0
    assert [entry["problem"][:17] for entry in report["drift"] if entry["host"] == "mac-1"] == ["cannot be reached"]
    assert ("instance two", "its launchd job is not loaded (to do: start)") in places(report)["mac-2"]
    run.said("mac-1 mac_host host cannot be reached")
    scaled.on("mac-2", f"launchctl bootstrap gui/501 {AGENTS}/lmfleet.instance.two.plist")
    scaled.wait_until_ready("mac-2", "two")


STRANGERS = [
    f"mkdir -p /Users/admin/.lmstudio/models {ROOT}/models/mine /Users/admin/Documents",
    f"touch /Users/admin/.lmstudio/settings.json {ROOT}/models/mine/a.gguf {ROOT}/notes.txt",
    f"ln -s /Users/admin/Documents {ROOT}/instances/documents",
    "touch /Users/admin/Documents/letter.txt",
    f"cp {AGENTS}/lmfleet.instance.one.plist {AGENTS}/org.example.one.plist",
]


def test_reset_of_one_mac_removes_what_is_ours_and_nothing_else(scaled, tmp_path):
    for command in STRANGERS:
        scaled.on("mac-2", command)
    before = names(scaled, "mac-2")
    mark(scaled, "mac-2")
    run = scaled.play("--limit", "mac-2", playbook="reset.yml")
    assert run.code != 0
    run.said("launchd job gui/501/lmfleet.instance.copies", "run again with -e reset_confirm=yes")
    scaled.play("--limit", "mac-2", "--check", playbook="reset.yml").succeeded()
    assert set(names(scaled, "mac-2")) ^ set(before) == set()
    assert touched(scaled, "mac-2") == []

    pid = scaled.status("mac-2", "copies")["pid"]
    scaled.on("mac-2", f"kill -9 {pid}")  # its llmster is nobody's child now
    confirmed = ("--limit", "mac-2", "-e", "reset_confirm=yes")
    # What is no longer declared goes as well.
    fewer = scaled.copy(tmp_path)
    fewer.hosts["all"]["children"]["macs"]["hosts"]["mac-2"]["lmfleet_instances"].pop()
    assert fewer.play(*confirmed, playbook="reset.yml").succeeded().changed["mac-2"]
    registered = scaled.read("mac-1", f"{ROOT}/gateway/registry/deployments.json")
    assert "mac-1-many-pretender" in registered and "mac-2-" not in registered
    assert scaled.on("mac-2", f"ls {ROOT}").split() == ["models", "models.json", "notes.txt"]
    assert ROOT not in scaled.on("mac-2", "ps -axo args", root=True)
    again = scaled.play(*confirmed, playbook="reset.yml").succeeded()
    assert again.changed == {"mac-2": 0}


def test_reset_of_all_leaves_the_macs_as_they_were(scaled):
    scaled.on("mac-1", f"rm {AGENTS}/lmfleet.instance.more.plist")  # half of it is gone already
    confirmed = ("-e", "reset_confirm=yes", "-e", "reset_models=yes")
    scaled.play(*confirmed, playbook="reset.yml").succeeded()
    assert scaled.files("mac-1") == scaled.fresh["mac-1"]
    assert ROOT not in scaled.on("mac-1", "ps -axo args", root=True)
    left = scaled.files("mac-2")
    for stranger in (
        ".lmstudio/settings.json",
        "models/mine/a.gguf",
        "notes.txt",
        "letter.txt",
        "org.example.one.plist",
    ):
        assert stranger in left
    assert "fake-llm.gguf" not in left
    assert scaled.play(*confirmed, playbook="reset.yml").succeeded().changed == UNCHANGED
