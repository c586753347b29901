# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_rollout with gateways that have not answered; how batches are made up is in plugin_utils."""

from __future__ import annotations

import pytest

NEEDS = {
    "mac-1": [{"name": "a", "action": "restart", "why": "w", "ready": False, "tuning": False, "interrupted": ["m"]}],
    "mac-2": [{"name": "a", "action": "nothing", "why": "", "ready": True, "tuning": False, "interrupted": []}],
}
DEPLOYMENTS = [{"id": f"{host}-a-m", "model_group": "m", "host": host, "instance": "a"} for host in NEEDS]
ANSWERED = {"gateway": "mac-1", "groups": {one["id"]: "m" for one in DEPLOYMENTS}, "paused": {}}


@pytest.fixture
def play(controller, inventory):
    def play(*registered):
        task = {"needs": NEEDS, "deployments": DEPLOYMENTS, "registered": list(registered)}
        show = {"ansible.builtin.debug": {"msg": "{{ order.table }}"}}
        run = controller(inventory, [{"lmfleet.mac.fleet_rollout": task, "register": "order"}, show])
        output = " ".join(run.communicate(timeout=60)[0].split())
        return run.returncode, output

    return play


def test_a_gateway_that_answers_with_an_error_stops_the_run(play):
    code, output = play(ANSWERED, {"gateway": "mac-2", "failed": True, "msg": "no such registry"})
    assert code != 0
    assert "mac-2: no such registry" in output and "No instance has been changed" in output


def test_a_gateway_that_cannot_be_reached_is_told_and_left_out(play):
    code, output = play(ANSWERED, {"gateway": "mac-2", "unreachable": True, "msg": "no route to host"})
    assert code == 0, output
    assert "gateway mac-2 cannot be reached" in output and "m: 1" in output


def test_gateways_that_answer_are_no_word_worth(play):
    # Where nothing is interrupted, nobody is asked.
    for registered in (ANSWERED, {"gateway": "mac-1", "skipped": True}):
        code, output = play(registered)
        assert code == 0, output
        assert "cannot be reached" not in output
