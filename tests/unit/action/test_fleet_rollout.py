# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_rollout with gateways that have not answered; how batches are made up is in plugin_utils."""

from __future__ import annotations

import pytest

INSTANCE = {"name": "a", "tuning": False, "pid": 7, "models": [{"identifier": "m", "key": "k"}]}
NEEDS = {
    "mac-1": [{**INSTANCE, "action": "restart", "why": "w", "ready": False, "interrupted": ["m"]}],
    "mac-2": [{**INSTANCE, "action": "nothing", "why": "", "ready": True, "interrupted": []}],
}
DEPLOYMENTS = [{"id": f"{host}-a-m", "model_group": "m", "host": host, "instance": "a"} for host in NEEDS]
ANSWERED = {"gateway": "mac-1", "groups": {one["id"]: "m" for one in DEPLOYMENTS}, "paused": {}}


@pytest.fixture
def play(controller, inventory):
    def play(*registered, now=(), **options):
        task = {"needs": NEEDS, "deployments": DEPLOYMENTS, "registered": list(registered), **options}
        tasks = [{"lmfleet.mac.fleet_rollout": task, "register": "order"}]
        tasks += [{"ansible.builtin.debug": {"msg": "{{ order.table }}"}}]
        if now:
            again = {**task, "registered": list(now), "next_batch": "{{ order.batches[0] }}"}
            tasks += [{"lmfleet.mac.fleet_rollout": again, "register": "short"}]
            tasks += [{"ansible.builtin.debug": {"msg": "problems: {{ short.problems | join }}."}}]
        run = controller(inventory, tasks)
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


def test_what_cannot_be_done_is_shown_with_the_reason(play):
    code, output = play(ANSWERED, silent=["mac-2-a-m"])
    assert code != 0
    assert "model group m: to change a on mac-1 leaves 0 of 1" in output and "None has been changed." in output
    assert "refused mac-1 a restart w m m: 0" in output


def test_a_batch_is_looked_at_again_before_it_is_taken_out(play):
    code, output = play(ANSWERED, now=[ANSWERED])
    assert code == 0 and "problems: ." in output, output
    held = {"mac-2-a-m": {"operator": {"reason": None}}}
    code, output = play(ANSWERED, now=[{**ANSWERED, "paused": held}])
    assert code == 0 and "problems: model group m: to change a on mac-1 leaves 0 of 1" in output, output
