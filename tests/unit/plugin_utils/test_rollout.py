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


def test_the_first_one_serves_where_any_does():
    """From a Mac that somebody has taken out, nothing is learnt about the change."""
    deployments = [*fleet(MACS[:1], state="held"), *fleet(MACS[1:3])]
    assert order(plan_rollout(deployments, restarts(MACS[:3]), Policy(batch=3), 3))[0] == ["m2/a"]


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
    assert order(refused) == [["m1/a"], ["m2/a"]] and len(refused.problems) == 1
    assert [(batch.hosts, batch.left) for batch in refused.refused] == [(["m3"], {"alone": 0})]
    assert "model group alone: to change a on m3 leaves 0 of 1" in refused.problems[0]
    assert "lmfleet_allow_downtime: true" in refused.problems[0]
    allowed = plan_rollout(deployments, restarts(MACS[:3]), Policy(batch=3, allow_downtime=True), 3)
    assert order(allowed) == [["m1/a"], ["m2/a"], ["m3/a"]] and allowed.batches[2].left == {"alone": 0}


def test_what_does_not_serve_is_no_capacity_and_costs_none():
    deployments = [*fleet(["m1"]), *fleet(["m2"], state="down")]
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


def test_what_is_removed_goes_last_and_serves_no_later_batch():
    deployments = [*fleet(["m1"], declared=False), *fleet(["m2", "m3"])]
    changes = [*restarts(["m1"], action="remove"), *restarts(["m2", "m3"])]
    rollout = plan_rollout(deployments, changes, Policy(min_capacity=1, batch=2), 3)
    assert order(rollout) == [["m2/a"], ["m3/a", "m1/a"]]
    assert [batch.left["g"] for batch in rollout.batches] == [2, 1]
    alone = plan_rollout(
        [*fleet(["m1"], instances="ab", declared=False), *fleet(["m2"])], restarts(["m1"], "ab"), Policy(), 3
    )
    assert [batch.left["g"] for batch in alone.batches] == [1]


def test_removing_a_group_bit_by_bit_is_refused_unless_it_is_no_longer_declared():
    changes = restarts(["m1", "m2"], action="remove")
    gone = fleet(["m1", "m2"], declared=False)
    refused = plan_rollout(gone, changes, Policy(), 2)
    assert "to change a on m2 leaves 0 of 1" in refused.problems[0]
    rollout = plan_rollout(gone, changes, Policy(batch=2, canary=False), 2, {"g"})
    assert order(rollout) == [["m1/a", "m2/a"]] and rollout.batches[0].paused == ["m1-a-g", "m2-a-g"]


@pytest.mark.parametrize("action", ["live", "restart"])
def test_a_model_that_an_instance_gives_up_no_longer_serves(action):
    gone = fleet(MACS, declared=False)
    changes = [Change(host, "a", action, "its models changed", frozenset({f"{host}-a-g"})) for host in MACS]
    refused = plan_rollout(gone, changes, Policy(), 6)
    assert [batch.left["g"] for batch in refused.batches] == [5, 4, 3, 2, 1]
    assert "to change a on m6 leaves 0 of 1" in refused.problems[0]


def test_a_model_that_moves_to_another_instance_serves_there_after_its_batch():
    deployments = [*fleet(MACS, declared=False), *fleet(MACS, instances="b", state="new")]
    changes = [
        change
        for host in MACS
        for change in (
            Change(host, "b", "live", "its models changed", frozenset()),
            Change(host, "a", "live", "its models changed", frozenset({f"{host}-a-g"})),
        )
    ]
    rollout = plan_rollout(deployments, changes, Policy(), 6)
    # What gives up memory does not come after what needs it.
    assert order(rollout) == [[f"{host}/a", f"{host}/b"] for host in MACS]
    assert [batch.left for batch in rollout.batches] == [{"g": 5}] * 6
    assert [batch.added for batch in rollout.batches] == [[f"{host}-b-g"] for host in MACS]
    assert [batch.paused for batch in rollout.batches] == [[f"{host}-a-g"] for host in MACS]
    half = plan_rollout(deployments, changes, Policy("50%", "50%", canary=False), 6)
    assert [batch.left for batch in half.batches] == [{"g": 3}] * 2, "what is new is not promised"


def test_what_adds_comes_before_what_takes_away():
    deployments = [*fleet(["m1"]), *fleet(["m2"], state="new")]
    rollout = plan_rollout(deployments, [*restarts(["m1"]), *restarts(["m2"], action="start")], Policy(), 2)
    assert order(rollout) == [["m2/a"], ["m1/a"]]
    assert rollout.batches[0].added == ["m2-a-g"] and rollout.batches[1].left == {"g": 1}


def test_what_is_down_serves_after_its_turn_only():
    deployments = [*fleet(["m1", "m2"]), *fleet(["m2"], instances="b", state="down")]
    changes = [*restarts(["m1", "m2"]), *restarts(["m2"], "b", action="start")]
    rollout = plan_rollout(deployments, changes, Policy(min_capacity=1), 2)
    assert order(rollout) == [["m2/a", "m2/b"], ["m1/a"]]
    assert [batch.left for batch in rollout.batches] == [{"g": 1}, {"g": 2}]


def test_a_share_to_keep_is_rounded_up():
    strict = plan_rollout(fleet(MACS[:3]), restarts(MACS[:3]), Policy(batch=3, min_capacity="50%", canary=False), 3)
    assert [batch.left["g"] for batch in strict.batches] == [2, 2, 2]


def test_a_share_is_of_what_the_gateways_have_by_then():
    many, few = MACS, MACS[:2]
    deployments = [*fleet(few), *fleet(many[2:], state="new")]
    changes = [*restarts(few), *restarts(many[2:], action="start")]
    grown = plan_rollout(deployments, changes, Policy(batch=6, min_capacity="75%", canary=False), 6)
    assert [batch.left for batch in grown.batches] == [{}, {"g": 5}, {"g": 5}]
    shrunk = plan_rollout(fleet(many, declared=False), restarts(many[1:], action="remove"), Policy(1, "50%"), 6)
    assert [batch.left["g"] for batch in shrunk.batches] == [5, 4, 3, 2, 1]


PORTS = [Change("m1", name, "restart", "changed: port") for name in "ab"]


def test_instances_that_may_want_a_port_of_each_other_go_together_once_downtime_is_accepted():
    deployments = fleet(["m1"], instances="ab")
    assert order(plan_rollout(deployments, PORTS, Policy(allow_downtime=True), 1)) == [["m1/a", "m1/b"]]
    new = [*restarts(["m1"], "c", action="start"), *restarts(["m1"], "a", action="remove")]
    assert order(plan_rollout(fleet(["m1"]), new, Policy(allow_downtime=True), 1)) == [["m1/a", "m1/c"]]
    others = [Change("m1", name, "restart", "its runner has not reported for 31 s") for name in "ab"]
    assert order(plan_rollout(deployments, others, Policy(allow_downtime=True), 1)) == [["m1/a"], ["m1/b"]]


def test_where_instances_of_a_mac_go_one_after_the_other_a_new_one_is_the_last():
    changes = [*restarts(["m1"], "c", action="start"), *restarts(["m1"], "ab")]
    rollout = plan_rollout(fleet(["m1"], instances="ab"), changes, Policy(), 1)
    assert order(rollout) == [["m1/a"], ["m1/b", "m1/c"]]


def test_a_large_fleet_is_planned_at_once():
    many = [f"m{number}" for number in range(200)]
    rollout = plan_rollout(fleet(many, "gh", "abc"), restarts(many, "abc"), Policy(), 200)
    assert len(rollout.batches) == 200


def test_nothing_to_do_is_no_batch():
    assert plan_rollout(fleet(MACS), [], Policy(), 6).batches == []


@pytest.mark.parametrize(("value", "whole", "number"), [(3, 10, 3), ("25%", 10, 2), ("25%", 2, 1), ("100%", 7, 7)])
def test_numbers_and_shares(value, whole, number):
    assert amount(value, whole) == number


@pytest.mark.parametrize("value", [0, "0%", "101%", "-1", "half", "", "2.5"])
def test_amounts_that_make_no_sense(value):
    with pytest.raises(ValueError, match="neither a number from 1 nor a share"):
        amount(value, 10)


def random_fleet(dice, hosts):
    """Return deployments, some gone afterwards, down or new, and changes of most of their instances."""
    deployments, changes = [], []
    for host in hosts:
        for instance in "abc":
            action = dice.choice([*INTERRUPTING, "start", None, None])
            changes += [Change(host, instance, action, "x")] if action else []
            for group in dice.sample("ghi", dice.randint(1, 2)):
                state = dice.choice(["serving"] * 8 + ["down", "held", "new", "paused"])
                wanted = action not in ("remove", "live") or (action == "live" and dice.random() > 0.3)
                deployments.append(Deployment(f"{host}-{instance}-{group}", group, host, instance, state, wanted))
    return deployments, changes


@pytest.mark.parametrize("seed", range(60))
def test_random_fleets_keep_their_promise_and_change_everything_once(seed):
    dice = random.Random(seed)
    hosts = MACS[: dice.randint(1, 6)]
    deployments, changes = random_fleet(dice, hosts)
    policy = Policy(dice.choice([1, 2, "50%"]), dice.choice([None, 1, "30%"]), dice.random() < 0.5)
    rollout = plan_rollout(deployments, changes, policy, len(hosts))
    assert bool(rollout.problems) == bool(rollout.refused)
    done = [change for batch in [*rollout.batches, *rollout.refused] for change in batch.changes]
    assert sorted(done, key=str) == sorted(changes, key=str)
    serving = {one.id for one in deployments if one.state == "serving"}
    known = {one.id for one in deployments if one.state != "new"}
    loud = [batch for batch in rollout.batches if batch.interrupting]
    for batch in rollout.batches:
        if batch in loud:
            assert len(batch.hosts) <= (1 if policy.canary and batch is loud[0] else amount(policy.batch, len(hosts)))
        for group in "ghi":
            members = [one for one in deployments if one.group == group and one.id in serving]
            lost = [one for one in members if one.id in batch.paused]
            if lost and policy.min_capacity is None:
                assert len(lost) < len(members) and len({one.host for one in lost}) == 1
            elif lost:
                whole = sum(one.group == group and one.id in known for one in deployments)
                assert len(members) - len(lost) >= amount(policy.min_capacity, whole, up=True)
        places = {(change.host, change.instance) for change in batch.changes}
        touched = [one for one in deployments if (one.host, one.instance) in places]
        serving = serving - {one.id for one in touched} | {one.id for one in touched if one.stays}
        known = known - {one.id for one in touched} | {one.id for one in touched if one.declared}
