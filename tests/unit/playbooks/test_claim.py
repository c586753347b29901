# SPDX-License-Identifier: GPL-3.0-or-later
"""The claim on a fleet, where a gateway is gone, and where another controller has it at one of them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

TASKS = Path(__file__).resolve().parents[3] / "playbooks" / "tasks"
CLAIM = {
    "__rollout_reached": ["mac-1", "mac-2", "mac-3"],
    "__rollout_longest": 60,
    "__gateway_root": "{{ folder }}/{{ gateway }}",
    "fleet_locked": {"controller": "this", "holder": "ada on this"},
}


@pytest.fixture
def claim(controller, inventory, tmp_path):
    """Return a function that takes or gives up the claim, and goes on. mac-2 cannot be reached."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    away = {"ansible_host": "127.0.0.1", "ansible_port": 9}
    inventory["all"]["children"]["macs"]["hosts"].update({"mac-1": here, "mac-2": away, "mac-3": here})
    inventory["all"]["vars"].update(CLAIM, folder=str(tmp_path))
    for name in ("mac-1", "mac-3"):
        (tmp_path / name).mkdir()
    include = {"ansible.builtin.include_tasks": str(TASKS / "claim.yml"), "vars": {"claim": "{{ wanted }}"}}
    tasks = [include, {"ansible.builtin.debug": {"msg": "went on"}, "run_once": True}]
    play = tmp_path / "site.yml"
    play.write_text(json.dumps([{"hosts": "macs", "gather_facts": False, "any_errors_fatal": True, "tasks": tasks}]))

    def claim(state, *arguments):
        run = controller(inventory, play, "-e", json.dumps({"wanted": state}), *arguments)
        output = run.communicate(timeout=60)[0]
        return run.returncode, " ".join(output.split())

    return claim


@pytest.mark.parametrize(("state", "held"), [("present", True), ("absent", False)])
def test_a_gateway_that_is_gone_ends_no_run(claim, tmp_path, state, held):
    code, output = claim(state)
    assert (code, '"msg": "went on"' in output) == (0, True), output
    assert (tmp_path / "mac-1" / "rollout.json").exists() == (tmp_path / "mac-3" / "rollout.json").exists() == held


def claimed_by_ben(path):
    other = {"controller": "that", "holder": "ben on that", "since": time.time(), "until": time.time() + 600}
    path.write_text(json.dumps(other))


def test_another_controller_that_has_it_at_one_gateway_ends_the_run_which_keeps_none(claim, tmp_path):
    claimed_by_ben(tmp_path / "mac-3" / "rollout.json")
    code, output = claim("present")
    assert code != 0
    assert "ben on that has been changing this fleet" in output, output
    assert "No instance has been changed." in output
    assert "went on" not in output
    assert not (tmp_path / "mac-1" / "rollout.json").exists(), output
    assert (tmp_path / "mac-3" / "rollout.json").exists()


def test_a_run_that_loses_it_on_the_way_tells_what_it_has_changed(claim, tmp_path):
    claimed_by_ben(tmp_path / "mac-1" / "rollout.json")
    done = {"__rollout_done": [{"title": "Batch 1 of 2: mac-1 (a restart)"}], "__rollout_cause": "mac-2: broken. "}
    code, output = claim("present", "-e", json.dumps(done))
    assert code != 0
    assert "mac-2: broken. ben on that has been changing this fleet" in output, output
    assert "leaves so: Batch 1 of 2: mac-1 (a restart)" in output
    assert "No instance" not in output
