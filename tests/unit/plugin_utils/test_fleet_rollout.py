# SPDX-License-Identifier: GPL-3.0-or-later
"""What fleet_rollout makes of the results of modules; how batches are made up is in test_rollout.py."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout import Policy, from_results


def need(name="a", action="restart", interrupted=("m",), **more):
    return {"name": name, "action": action, "why": "changed", "ready": True, "tuning": False} | {
        "interrupted": list(interrupted),
        **more,
    }


def deployment(host, instance="a", model="m"):
    return {"id": f"{host}-{instance}-{model}", "model_group": "g", "host": host, "instance": instance}


def run(needs, registered=None, paused=(), unreachable=(), **policy):
    """Plan for Macs with one declared instance; `registered` are the ids that the gateway has."""
    declared = [deployment(host) for host in needs]
    groups = dict.fromkeys(registered or [entry["id"] for entry in declared], "g")
    pauses = paused if isinstance(paused, dict) else {name: {"operator": {}} for name in paused}
    return from_results(needs, declared, [{"groups": groups, "paused": pauses}], Policy(**policy), unreachable)


def hosts(result):
    return [batch["hosts"] for batch in result["batches"]]


def test_nothing_to_do():
    result = run({"m1": [need(action="nothing", interrupted=())]})
    assert (result["batches"], result["rows"]) == ([], [])


def test_what_interrupts_nothing_comes_first_and_together():
    quiet = [need("b", "start", ())]
    result = run({"m1": [need(action="live"), *quiet], "m2": quiet, "m3": [need("b", "nothing", (), tuning=True)]})
    assert hosts(result) == [{"m1": ["b"], "m2": ["b"], "m3": ["b"]}, {"m1": ["a"]}]
    assert result["batches"][0]["paused"] == []
    last = result["batches"][1]
    assert (last["paused"], last["left"]) == (["m1-a-m"], {"g": 2})
    assert last["busy"] == {"m1": [{"name": "a", "models": [{"identifier": "m"}]}]}
    assert [1, "m3", "b", "write", "a tuning file differs", "", ""] in result["rows"]
    assert [2, "m1", "a", "live", "changed", "m", "g: 2"] in result["rows"]


@pytest.mark.parametrize("action", ["remove", "restart"])
def test_a_new_instance_waits_for_what_another_of_its_mac_gives_up(action):
    new = need("new", "start", ())
    result = run({"m1": [need(action=action), new], "m2": [new]})
    assert hosts(result) == [{"m2": ["new"]}, {"m1": ["a"]}, {"m1": ["new"]}]
    assert [batch["paused"] for batch in result["batches"]] == [[], ["m1-a-m"], []]


def test_one_mac_after_the_other():
    assert hosts(run({host: [need()] for host in ("m1", "m2", "m3")})) == [{"m1": ["a"]}, {"m2": ["a"]}, {"m3": ["a"]}]


def test_what_is_paused_does_not_serve():
    refused = run({"m1": [need()], "m2": [need(action="nothing", interrupted=())]}, paused=["m2-a-m"])
    assert "lmfleet_allow_downtime: true" in refused["problems"][0]
    allowed = run({"m1": [need()], "m2": []}, paused=["m2-a-m"], allow_downtime=True)
    assert hosts(allowed) == [{"m1": ["a"]}]


LEFT = {"rollout": {"reason": "it is being changed"}}


def test_what_a_cut_off_run_left_paused_comes_first_and_serves_again():
    needs = {"m1": [need()], "m2": [need()], "m3": [need(action="nothing", interrupted=())]}
    result = run({"m1": [need()], "m2": [need()]}, paused={"m2-a-m": LEFT})
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}]
    assert [batch["left"] for batch in result["batches"]] == [{"g": 1}, {"g": 1}]
    both = run(needs, paused={"m2-a-m": LEFT, "m3-a-m": LEFT})
    assert hosts(both) == [{"m3": ["a"]}, {"m2": ["a"]}, {"m1": ["a"]}]
    assert both["batches"][0]["paused"] == ["m3-a-m"]
    assert both["rows"][1][3:5] == ["resume", "a run that was cut off has paused it"]
    assert both["batches"][2]["left"] == {"g": 2}


def test_what_a_cut_off_run_left_down_is_put_right_before_others_are_touched():
    needs = {"m1": [need()], "m2": [need(interrupted=())]}
    result = run(needs, paused={"m2-a-m": LEFT})
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}]
    assert result["batches"][0]["paused"] == ["m2-a-m"]


def test_pauses_of_others_stay_what_they_are():
    refused = run({"m1": [need()], "m2": [need()]}, paused={"m2-a-m": {**LEFT, "operator": {}}})
    assert "model group g: to change a on m1" in refused["problems"][0]


def test_what_cannot_be_reached_does_not_serve():
    needs = {"m1": [need()], "m2": [need(action="nothing", interrupted=())]}
    assert run(needs)["problems"] == []
    assert "lmfleet_allow_downtime: true" in run(needs, unreachable=["m2"])["problems"][0]


def test_the_first_mac_that_is_interrupted_goes_ahead_of_the_others():
    needs = {"m1": [need(), need("new", "start", ())], "m2": [need(action="live")], "m3": [need("b", "start", ())]}
    batches = run(needs)["batches"]
    assert [batch["canary"] for batch in batches] == [False, True, False, False]
    assert batches[1]["title"] == "Batch 2 of 4: m1 (a restart)"
    assert batches[1]["replaced"] == {"m1": ["a"]}
    assert batches[1]["out"] == {"m1": ["m1-a-m"]}
    assert not any(batch["canary"] for batch in run(needs, canary=False)["batches"])
    alone = run({"m1": [need()], "m2": [need(action="nothing", interrupted=())]})["batches"]
    assert [batch["canary"] for batch in alone] == [False], "there is no other one to go ahead of"


def test_what_is_removed_is_paused_and_forgotten():
    needs = {"m1": [need("old", "remove", ("m",))], "m2": [need(action="nothing", interrupted=())]}
    result = run(needs, registered=["m1-old-m", "m2-a-m"])
    assert result["batches"][0]["removed"] == result["batches"][0]["paused"] == ["m1-old-m"]


def test_an_instance_that_is_not_ready_is_waited_for():
    result = run({"m1": [need(action="nothing", interrupted=(), ready=False)]})
    assert hosts(result) == [{"m1": ["a"]}]
    assert result["rows"][1][3:5] == ["wait", "it is not ready"]


def test_a_gateway_that_has_nothing_yet():
    result = run({"m1": [need()]}, registered=["other-a-m"])
    assert result["batches"][0]["paused"] == []


def test_a_policy_that_makes_no_sense():
    with pytest.raises(ValueError, match="'x' is neither"):
        run({"m1": [need()]}, batch="x")
