# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is refused in words, and leaves a fresh Mac as it was."""

from __future__ import annotations

import pytest

from fleet_under_test import NETWORK

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(300)]

INSTANCE = {"name": "a", "port": 1234, "models": [{"name": "pretender"}]}

MISTAKES = {
    "lmfleet_instances": [
        INSTANCE,
        {**INSTANCE, "name": "b"},
        {**INSTANCE, "name": "c", "port": 1235, "models": [{"name": "smolm2"}]},
    ],
    "lmfleet_models": {
        "pretender": {"source": {"url": "http://files/x.gguf"}},
        "smollm2": {"source": {"url": "http://files/y.gguf", "sha256": "0" * 64}},
    },
    "lmfleet_instance": [],
    "litellm_worker": 2,
    "litellm_port": "many",
    "lmstudio_archive": "/nowhere/llmster.tar.gz",
}
SIX = [{**INSTANCE, "name": f"i{number}", "port": 1234 + number} for number in range(6)]
TOLD = [
    "10 problems in the inventory. Nothing has been changed.",
    "litellm_worker: no such variable. Did you mean litellm_workers?",
    "lmfleet_instance: no such variable. Did you mean lmfleet_instances?",
    "litellm_port: must be of type int, not 'many'",
    "lmstudio_archive: /nowhere/llmster.tar.gz: no such file on this controller",
    "lmstudio_archive: /nowhere/llmster.tar.gz.sha512: no such file on this controller",
    "lmfleet_models.pretender: source.sha256 is missing",
    "mac-1: lmfleet_instances: 6 instances, but a Mac can run at most 5",
    "mac-2: lmfleet_instances: port 1234 is used by instance a and instance b",
    "mac-2: lmfleet_instances: port 2234 is used by the status of instance a",
    "mac-2: lmfleet_instances (c): serves the unknown model 'smolm2'. lmfleet_models has: pretender, smollm2.",
]


@pytest.fixture(scope="module")
def fresh(fleet):
    """What is on both Macs."""
    return {host: fleet.files(host) for host in ("mac-1", "mac-2")}


@pytest.fixture(autouse=True)
def untouched(fleet, fresh):
    """Every test here ends with both Macs as they were."""
    yield
    assert {host: fleet.files(host) for host in fresh} == fresh


def test_all_mistakes_of_an_inventory_are_told_at_once(fleet, tmp_path):
    bad = fleet.copy(tmp_path)
    bad.variables["macs"].update(MISTAKES)
    bad.hosts["all"]["children"]["macs"]["hosts"]["mac-1"]["lmfleet_instances"] = SIX
    run = bad.play()
    assert run.code != 0
    run.said(*TOLD)


def test_an_empty_group_of_gateways(fleet, tmp_path):
    bad = fleet.copy(tmp_path)
    bad.hosts["all"]["children"]["gateways"] = {"hosts": {}}
    run = bad.play()
    assert run.code != 0
    run.said("the group gateways is empty")


def test_models_that_cannot_fit_into_the_memory_of_a_mac(fleet, tmp_path):
    bad = fleet.copy(tmp_path)
    bad.variables["all"]["lmfleet_models"]["pretender"]["memory"] = {"weights_mb": 30000}
    run = bad.play()
    assert run.code != 0
    run.said(
        "Not every Mac can run what it is to. Nothing has been changed.",
        "mac-2: at least 63072 MB of GPU memory for models, and it has 49152 MB (3/4 of 65536 MB",
        "chat-b pretender 30000 ? 1024 31024+ weights declared, KV cache (its file is not there yet) not known",
        "lmfleet_memory_policy: warn",
    )


KNOBS = {
    ("mac-1", 'machine="x86_64"'): ["processor of type x86_64", "Apple silicon"],
    ("mac-2", 'macos_version="13.6"'): ["macOS 13.6 is older than 14.0"],
    ("mac-2", "memory_gb=4"): ["4096 MB of memory", "mac_host_min_memory_mb"],
    ("mac-2", "gui_session=false"): ["no session at the screen", "lmfleet_launchd_domain: system"],
}


def test_hosts_that_cannot_serve_stop_the_run_for_all(fleet):
    for host, knob in KNOBS:
        fleet.sandbox("knob", host, knob)
    try:
        run = fleet.play()
    finally:
        for host in ("mac-1", "mac-2"):
            fleet.sandbox("knob", host, "--clear")
    assert run.code != 0
    run.said("This host cannot serve. Nothing has been changed.", *(word for words in KNOBS.values() for word in words))


def test_a_host_that_is_no_mac(fleet, tmp_path):
    bad = fleet.copy(tmp_path)
    bad.hosts["all"]["children"]["macs"]["hosts"]["this-machine"] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "ansible_host": f"{NETWORK}.1",
    }
    run = bad.play()
    assert run.code != 0
    run.said("it runs Linux on", "Only Macs with Apple silicon can serve")


def test_a_port_that_another_program_has(fleet):
    holder = "import socket,time; s=socket.socket(); s.bind(('0.0.0.0',1235)); s.listen(); time.sleep(600)"
    fleet.on("mac-2", f'/bin/sh -c "nohup /usr/bin/python3 -c \\"{holder}\\" >/dev/null 2>&1 & echo $! >/tmp/holder"')
    try:
        run = fleet.play()
    finally:
        fleet.on("mac-2", '/bin/sh -c "kill $(cat /tmp/holder)"')
    assert run.code != 0
    run.said("port 1235, wanted for instance chat-b, is taken by", "pid")


def test_a_wrong_checksum_of_the_archive(fleet, tmp_path):
    bad = fleet.copy(tmp_path)
    bad.variables["macs"]["lmstudio_checksum"] = "sha512:" + "0" * 128
    run = bad.play("--limit", "mac-2")
    assert run.code != 0
    run.said("0" * 128, "darwin-arm64.full.tar.gz")
    assert fleet.on("mac-2", "find /Users/admin/.lmfleet -type f -not -name .lmfleet.lock") == ""
    fleet.on("mac-2", "rm -rf /Users/admin/.lmfleet")


def test_a_wrong_checksum_of_a_model(fleet, tmp_path):
    bad = fleet.copy(tmp_path)
    bad.variables["all"]["lmfleet_models"]["pretender"]["source"]["sha256"] = "0" * 64
    run = bad.play("--limit", "mac-2")
    assert run.code != 0
    run.said("pretender", "0" * 64)
    assert fleet.on("mac-2", "find /Users/admin/.lmfleet/models -type f -path '*pretender/*'") == ""
    fleet.on("mac-2", "rm -rf /Users/admin/.lmfleet")
