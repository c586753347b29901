# SPDX-License-Identifier: GPL-3.0-or-later
"""The claim on a fleet, where a gateway is gone, and where another controller has it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

TASKS = Path(__file__).resolve().parents[3] / "playbooks" / "tasks"
CLAIM = {
    "__rollout_reached": ["mac-1", "mac-2"],
    "__rollout_longest": 60,
    "fleet_locked": {"controller": "this", "holder": "ada on this"},
}


@pytest.fixture
def claim(controller, inventory, tmp_path):
    """Return a function that takes or gives up the claim, and goes on. mac-2 cannot be reached."""
    groups = inventory["all"]["children"]
    groups["macs"]["hosts"]["mac-1"].update(ansible_connection="local", ansible_python_interpreter=sys.executable)
    groups["macs"]["hosts"]["mac-2"].update(ansible_host="127.0.0.1", ansible_port=9)
    inventory["all"]["vars"].update(CLAIM, __rollout_root=str(tmp_path))
    include = {"ansible.builtin.include_tasks": str(TASKS / "claim.yml")}
    tasks = [include, {"ansible.builtin.debug": {"msg": "went on"}, "run_once": True}]
    play = tmp_path / "claim.yml"
    play.write_text(json.dumps([{"hosts": "macs", "gather_facts": False, "any_errors_fatal": True, "tasks": tasks}]))

    def claim(state):
        run = controller(inventory, play, "-e", f"claim={state}")
        output = run.communicate(timeout=60)[0]
        return run.returncode, " ".join(output.split())

    return claim


@pytest.mark.parametrize(("state", "held"), [("present", True), ("absent", False)])
def test_a_gateway_that_is_gone_ends_no_run(claim, tmp_path, state, held):
    code, output = claim(state)
    assert (code, '"msg": "went on"' in output) == (0, True), output
    assert (tmp_path / "rollout.json").exists() == held


def test_another_controller_that_has_it_ends_the_run(claim, tmp_path):
    other = {"controller": "that", "holder": "ben on that", "since": time.time(), "until": time.time() + 600}
    (tmp_path / "rollout.json").write_text(json.dumps(other))
    code, output = claim("present")
    assert code != 0
    assert "ben on that has been changing this fleet" in output, output
    assert "went on" not in output
