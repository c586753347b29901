# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_fit in a real play, with made-up Macs: tables, policies, and Macs that are left in peace."""

from __future__ import annotations

import pytest

PLAN = {"lmfleet.mac.fleet_plan": None, "run_once": True, "register": "fleet"}
FIT = {"lmfleet.mac.fleet_fit": {"hosts": "{{ fleet.hosts }}"}, "register": "fit"}
MEMORY = {"wired_limit_mb": 0, "files": {}, "measured": [], "settled": False, "estimates": {}, "problem": None}
FACTS = {"memory_mb": 16384, "performance_cores": 8, "efficiency_cores": 4}
LARGE = {"weights_mb": 9000, "layers": 32, "kv_heads": 8, "head_dim": 128}


def tell(memory=None, **facts):
    checked = {"facts": {**FACTS, **facts, "memory": {**MEMORY, **(memory or {})}}}
    return {"ansible.builtin.set_fact": {"mac_host_checked": checked}}


@pytest.fixture
def run(controller, inventory):
    """Return a function that plays the tasks and returns exit code and output, in which line breaks do not count."""

    def play(told, **memory):
        inventory["all"]["vars"]["lmfleet_models"]["chat"].update(load={"context_length": 8192}, memory=memory)
        process = controller(inventory, [PLAN, told, FIT])
        output = process.communicate(timeout=60)[0]
        return process.returncode, " ".join(output.split())

    return play


def test_what_cannot_fit_is_refused_with_a_table(run):
    code, output = run(tell(), **LARGE)
    assert code != 0
    assert "Not every Mac can run what it is to. Nothing has been changed." in output
    for mac in ("mac-1", "mac-2"):
        assert f"{mac}: 11048 MB of GPU memory for models, and it has 10922 MB (2/3 of 16384 MB" in output
    assert "chat-a chat 9000 1024 1024 11048 weights declared, KV cache by what is declared" in output
    assert "lmfleet_memory_policy: warn" in output


def test_what_fits_says_nothing(run):
    code, output = run(tell(memory_mb=65536), **LARGE)
    assert code == 0, output
    assert "WARNING" not in output


def test_a_policy_can_be_to_warn(run, inventory):
    inventory["all"]["vars"]["lmfleet_memory_policy"] = "warn"
    code, output = run(tell(), **LARGE)
    assert code == 0, output
    assert "[WARNING]" in output
    assert "mac-1: 11048 MB of GPU memory" in output
    assert "chat-a chat 9000 1024 1024 11048" in output


def test_a_mac_on_which_nothing_changes_is_left_in_peace(run):
    code, output = run(tell({"settled": True}), **LARGE)
    assert code == 0, output
    assert "WARNING" not in output


def test_a_limit_of_the_mac_itself_counts(run):
    code, output = run(tell({"wired_limit_mb": 14000}), **LARGE)
    assert code == 0, output


def test_what_is_not_known_is_a_warning(run):
    code, output = run(tell())
    assert code == 0, output
    assert (
        "weights and KV cache (its file is not there yet) of chat not known and not counted on mac-1, mac-2" in output
    )
    assert output.count("not counted") == 1


def test_threads_of_cores_that_a_mac_does_not_have_are_refused(run, inventory):
    inventory["all"]["vars"]["lmfleet_instances"][0]["models"][0]["load"] = {"cpu_threads": "efficiency_cores"}
    code, output = run(tell(memory_mb=65536, efficiency_cores=0), **LARGE)
    assert code != 0
    assert (
        "mac-1: instance chat-a, model chat: load.cpu_threads is efficiency_cores, and this Mac tells of none" in output
    )


def test_a_useless_record_of_measured_values_is_said(run):
    code, output = run(tell({"problem": "memory.json is not used"}, memory_mb=65536), **LARGE)
    assert code == 0, output
    assert "mac-1: memory.json is not used" in output
