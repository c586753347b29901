# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is refused in words, and leaves a fresh Mac as it was."""

from __future__ import annotations

import pytest

from fleet_under_test import NETWORK

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(300)]

INSTANCE = {"name": "a", "port": 1234, "models": [{"name": "pretender"}]}

INVENTORIES = {
    "two instances on one port": (
        {"lmfleet_instances": [INSTANCE, {**INSTANCE, "name": "b"}]},
        ["mac-2: lmfleet_instances: port 1234 is used by instance a and instance b"],
    ),
    "more than five instances": (
        {"lmfleet_instances": [{**INSTANCE, "name": f"i{number}", "port": 1234 + number} for number in range(6)]},
        ["mac-2: lmfleet_instances: 6 instances, but a Mac can run at most 5"],
    ),
    "an unknown model": (
        {"lmfleet_instances": [{**INSTANCE, "models": [{"name": "pretnder"}]}]},
        ["mac-2: lmfleet_instances (a): serves the unknown model 'pretnder'", "pretender"],
    ),
    "a model without checksum": (
        {"lmfleet_models": {"pretender": {"source": {"url": "http://files/x.gguf"}}}},
        ["lmfleet_models.pretender: source.sha256 is missing"],
    ),
    "a shared variable misspelt": (
        {"lmfleet_instance": []},
        ["lmfleet_instance: no such variable", "lmfleet_instances"],
    ),
    "a role's variable misspelt": ({"litellm_worker": 2}, ["litellm_worker: no such variable", "litellm_workers"]),
    "an archive that is not there": (
        {"lmstudio_archive": "/nowhere/llmster.tar.gz"},
        ["lmstudio_archive: /nowhere/llmster.tar.gz: no such file on this controller", "tar.gz.sha512: no such"],
    ),
    "a role's variable of the wrong type": (
        {"litellm_port": "many"},
        ["litellm_port: must be of type int, not 'many'"],
    ),
}


@pytest.fixture(scope="module")
def fresh(fleet):
    """What is on both Macs."""
    return {host: fleet.files(host) for host in ("mac-1", "mac-2")}


@pytest.fixture(autouse=True)
def untouched(fleet, fresh):
    """Every test here ends with both Macs as they were."""
    yield
    assert {host: fleet.files(host) for host in fresh} == fresh


@pytest.mark.parametrize(("variables", "words"), INVENTORIES.values(), ids=INVENTORIES)
def test_an_inventory_that_cannot_work(fleet, tmp_path, variables, words):
    bad = fleet.copy(tmp_path)
    bad.variables["macs"].update(variables)
    run = bad.play()
    assert run.code != 0
    run.said("Nothing has been changed", *words)


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
    "an Intel Mac": ('machine="x86_64"', ["processor of type x86_64", "Apple silicon"]),
    "an old macOS": ('macos_version="13.6"', ["macOS 13.6 is older than 14.0"]),
    "little memory": ("memory_gb=4", ["4096 MB of memory", "mac_host_min_memory_mb"]),
    "nobody at the screen": ("gui_session=false", ["no session at the screen", "lmfleet_launchd_domain: system"]),
}


@pytest.mark.parametrize(("knob", "words"), KNOBS.values(), ids=KNOBS)
def test_a_host_that_cannot_serve_stops_the_run_for_all(fleet, knob, words):
    fleet.sandbox("knob", "mac-2", knob)
    try:
        run = fleet.play()
    finally:
        fleet.sandbox("knob", "mac-2", "--clear")
    assert run.code != 0
    run.said("This host cannot serve. Nothing has been changed.", *words)


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
