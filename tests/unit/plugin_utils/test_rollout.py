# SPDX-License-Identifier: GPL-3.0-or-later
"""The order of a roll-out: batches, and what they leave of each model group."""

from __future__ import annotations

import random

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout import (
    INTERRUPTING,
    Change,
    Deployment,
    Policy,
    amount,
    plan_rollout,
)


def fleet(hosts, groups=("g",), instances=("a",), **more):
    return [
        Deployment(f"{host}-{instance}-{group}", group, host, instance, **more)
        for host in hosts
        for instance in instances
        for group in groups
    ]


def restarts(hosts, instances=("a",), action="restart"):
    return [Change(host, instance, action, "changed: port") for host in hosts for instance in instances]


def order(rollout):
    return [[f"{change.host}/{change.instance}" for change in batch.changes] for batch in rollout.batches]


MACS = [f"m{number}" for number in range(1, 7)]


def test_a_canary_then_batches_that_leave_all_but_one_mac_of_each_group():
    rollout = plan_rollout(fleet(MACS), restarts(MACS), Policy(batch=3), 6)
    assert order(rollout) == [[f"{host}/a"] for host in MACS]
    assert [batch.left for batch in rollout.batches] == [{"g": 5}] * 6
    assert rollout.batches[0].paused == ["m1-a-g"]


def test_macs_of_different_groups_go_together():
    deployments = fleet(MACS[:3], ["x"]) + fleet(MACS[3:], ["y"])
    rollout = plan_rollout(deployments, restarts(MACS), Policy(batch=2), 6)
    assert order(rollout) == [["m1/a"], ["m2/a", "m4/a"], ["m3/a", "m5/a"], ["m6/a"]]
    assert rollout.batches[1].left == {"x": 2, "y": 2}
    assert order(plan_rollout(deployments, restarts(MACS), Policy(batch=2, canary=False), 6))[0] == ["m1/a", "m4/a"]


def test_a_promised_capacity_allows_more_at_once():
    rollout = plan_rollout(fleet(MACS), restarts(MACS), Policy(batch="50%", min_capacity="50%"), 6)
    assert order(rollout) == [["m1/a"], ["m2/a", "m3/a", "m4/a"], ["m5/a", "m6/a"]]
    strict = plan_rollout(fleet(MACS), restarts(MACS), Policy(batch="50%", min_capacity=4), 6)
    assert [len(batch.hosts) for batch in strict.batches] == [1, 2, 2, 1]


@pytest.mark.parametrize("nothing", ["0", 0])
def test_where_nothing_is_promised_all_go_at_once(nothing):
    rollout = plan_rollout(fleet(MACS), restarts(MACS), Policy(batch="100%", min_capacity=nothing, canary=False), 6)
    assert order(rollout) == [[f"{host}/a" for host in MACS]]
    assert rollout.batches[0].left == {"g": 0}


def test_a_single_mac_changes_one_instance_after_the_other():
    rollout = plan_rollout(fleet(["m1"], instances="ab"), restarts(["m1"], "ab"), Policy(), 1)
    assert order(rollout) == [["m1/a"], ["m1/b"]] and rollout.batches[0].left == {"g": 1}


def test_a_group_with_a_single_deployment_needs_a_word():
    deployments = [*fleet(MACS[:2]), *fleet(["m3"], ["alone"])]
    refused = plan_rollout(deployments, restarts(MACS[:3]), Policy(), 3)
    assert refused.batches == [] and len(refused.problems) == 1
    assert "model group alone: to change a on m3 leaves 0 of 1" in refused.problems[0]
    assert "lmfleet_allow_downtime: true" in refused.problems[0]
    allowed = plan_rollout(deployments, restarts(MACS[:3]), Policy(batch=3, allow_downtime=True), 3)
    assert order(allowed) == [["m1/a"], ["m2/a"], ["m3/a"]] and allowed.batches[2].left == {"alone": 0}


def test_what_does_not_serve_is_no_capacity_and_costs_none():
    deployments = [*fleet(["m1"]), *fleet(["m2"], serving=False)]
    assert "leaves 0 of 1 serving" in plan_rollout(deployments, restarts(["m1"]), Policy(), 2).problems[0]
    rollout = plan_rollout(deployments, restarts(["m2"]), Policy(), 2)
    assert rollout.batches[0].paused == ["m2-a-g"] and rollout.batches[0].left == {"g": 1}


def test_new_instances_interrupt_nobody():
    changes = restarts(MACS, action="start")
    rollout = plan_rollout(fleet(["m1"]), changes, Policy(batch=6, canary=False), 6)
    assert len(rollout.batches) == 1 and rollout.batches[0].paused == [] and rollout.batches[0].left == {}


def test_only_the_groups_of_the_changed_models_are_paused():
    change = Change("m1", "a", "live", "changed: models", frozenset({"m1-a-x"}))
    rollout = plan_rollout(fleet(MACS, ["x", "y"]), [change], Policy(), 6)
    assert rollout.batches[0].paused == ["m1-a-x"] and rollout.batches[0].left == {"x": 5}


def test_what_was_removed_serves_no_later_batch():
    changes = [*restarts(["m1"], action="remove"), *restarts(["m2", "m3"])]
    rollout = plan_rollout(fleet(["m1", "m2", "m3"]), changes, Policy(min_capacity=1, batch=2), 3)
    assert order(rollout) == [["m1/a"], ["m2/a"], ["m3/a"]]
    assert [batch.left["g"] for batch in rollout.batches] == [2, 1, 1]


def test_removing_a_group_bit_by_bit_is_refused_unless_it_is_no_longer_declared():
    changes = restarts(["m1", "m2"], action="remove")
    refused = plan_rollout(fleet(["m1", "m2"]), changes, Policy(), 2)
    assert "to change a on m2 leaves 0 of 1" in refused.problems[0]
    rollout = plan_rollout(fleet(["m1", "m2"]), changes, Policy(batch=2, canary=False), 2, {"g"})
    assert order(rollout) == [["m1/a", "m2/a"]] and rollout.batches[0].paused == ["m1-a-g", "m2-a-g"]


def test_nothing_to_do_is_no_batch():
    assert plan_rollout(fleet(MACS), [], Policy(), 6).batches == []


@pytest.mark.parametrize(("value", "whole", "number"), [(3, 10, 3), ("25%", 10, 2), ("25%", 2, 1), ("100%", 7, 7)])
def test_numbers_and_shares(value, whole, number):
    assert amount(value, whole) == number


@pytest.mark.parametrize("value", [0, "0%", "101%", "-1", "half", "", "2.5"])
def test_amounts_that_make_no_sense(value):
    with pytest.raises(ValueError, match="neither a number from 1 nor a share"):
        amount(value, 10)


@pytest.mark.parametrize("seed", range(30))
def test_random_fleets_keep_their_promise_and_change_everything_once(seed):
    dice = random.Random(seed)
    hosts, groups = MACS[: dice.randint(1, 6)], ["g", "h", "i"]
    deployments = [
        Deployment(f"{host}-{instance}-{group}", group, host, instance, dice.random() > 0.1)
        for host in hosts
        for instance in "abc"
        for group in dice.sample(groups, dice.randint(1, 2))
    ]
    changes = [
        Change(host, instance, dice.choice([*INTERRUPTING, "start"]), "x")
        for host in hosts
        for instance in "abc"
        if dice.random() < 0.6
    ]
    policy = Policy(dice.choice([1, 2, "50%"]), dice.choice([None, 1, "30%"]), dice.random() < 0.5)
    rollout = plan_rollout(deployments, changes, policy, len(hosts))
    if rollout.problems:
        assert rollout.batches == []
        return
    done = [change for batch in rollout.batches for change in batch.changes]
    assert sorted(done, key=str) == sorted(changes, key=str)
    gone = set()
    for number, batch in enumerate(rollout.batches):
        assert len(batch.hosts) <= (1 if policy.canary and number == 0 else amount(policy.batch, len(hosts)))
        serving = [one for one in deployments if one.serving and one.id not in gone]
        for group in groups:
            members = [one for one in serving if one.group == group]
            lost = [one for one in members if one.id in batch.paused]
            if lost and policy.min_capacity is None:
                assert len(lost) < len(members) and len({one.host for one in lost}) == 1
            elif lost:
                whole = sum(one.group == group for one in deployments)
                assert len(members) - len(lost) >= amount(policy.min_capacity, whole)
        removed = {(change.host, change.instance) for change in batch.changes if change.action == "remove"}
        gone |= {one.id for one in deployments if (one.host, one.instance) in removed}
