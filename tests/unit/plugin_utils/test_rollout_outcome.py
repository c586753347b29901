# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a part of a roll-out, and what is put back for it."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout_outcome import outcome, to_put_back

GOOD: dict = {}
FAILED = {"failed": True, "msg": "broken for a test"}
UNREACHABLE = {"unreachable": True, "msg": "Failed to connect"}
A, B = "m1-a-x", "m2-a-x"
NEW = "m1-b-x"
DEPLOYMENTS = [
    {"id": f"{host}-{instance}-{model}", "host": host, "instance": instance, "model": model}
    for host, instance, model in (("m1", "a", "x"), ("m2", "a", "x"), ("m1", "b", "x"), ("m1", "a", "y"))
]


def part(**changes):
    """Return a batch of two Macs with a deployment each."""
    return {
        "title": "Batch 1 of 1",
        "hosts": {"m1": ["a"], "m2": ["a"]},
        "replaced": {"m1": ["a"], "m2": ["a"]},
        "busy": {host: [{"name": "a", "models": [{"identifier": "x"}]}] for host in ("m1", "m2")},
        "out": {"m1": [A], "m2": [B]},
        "paused": [A, B],
        "removed": [],
        "given_up": [],
        "added": [],
        "missing": [],
        **changes,
    }


def told(part, m1=None, m2=None, **gateways):
    """Return what came of a part, where nothing else is said: all went well."""
    good = {"idle": GOOD, "run": GOOD, "health": GOOD}
    macs = {"m1": {**good, **(m1 or {})}, "m2": {**good, **(m2 or {})}}
    nothing = {"held": [], "drained": [], "told": [], "answers": [], "back": []}
    return outcome(part, DEPLOYMENTS, macs, {**nothing, **gateways})


def answers(*silent, gateway="g1", of=(A, B)):
    """Return what a gateway heard of the deployments."""
    deployments = [
        {"id": name, "healthy": name not in silent, "problem": "HTTP 503" if name in silent else ""} for name in of
    ]
    failed = {"failed": True, "msg": "some did not answer"} if silent else {}
    return {"gateway": gateway, "deployments": deployments, **failed}


def test_what_answers_gets_requests_again():
    found = told(part(), answers=[answers()])
    assert found["well"]
    assert found["asked"] == found["resumed"] == [A, B]
    assert found["silent"] == found["mute"] == found["untouched"] == {}


def test_a_gateway_that_does_not_pause_keeps_the_part_as_it_is():
    found = told(part(removed=[A], added=[NEW]), held=[{"gateway": "g1", **UNREACHABLE}], answers=[answers()])
    assert found["in_the_way"] == ["g1: it cannot be reached any more."]
    assert not found["well"]
    assert (found["gone"], found["new"]) == ([], [])
    assert found["resumed"] == [A, B], "nothing was changed, so all of it serves as before"


def test_requests_that_do_not_end_are_told_by_gateway():
    found = told(part(), drained=[{"gateway": "g1", **FAILED}])
    assert found["in_the_way"] == ["g1: broken for a test"]
    assert set(found["untouched"]) == {"m1", "m2"}


@pytest.mark.parametrize(
    ("macs", "gateways"),
    [
        ({}, {"drained": [{"gateway": "g1", "busy": {A: 2}, **FAILED}]}),
        ({"m1": {"idle": {"instances": [{"name": "a", "busy": {"x": 2}}], **FAILED}}}, {}),
    ],
)
def test_what_had_requests_in_hand_all_the_time_is_not_asked(macs, gateways):
    """Where each slot has a long request, what is asked would wait behind them."""
    found = told(part(), **macs, **gateways, answers=[answers(of=[B])])
    assert found["asked"] == [B]
    assert sorted(found["resumed"]) == [A, B]
    assert not found["well"]


def test_what_is_busy_elsewhere_and_was_changed_is_asked():
    changed = told(part(), m1={"idle": {"instances": [{"name": "a", "busy": {}}]}}, drained=[{"gateway": "g1"}])
    assert changed["asked"] == [A, B]


@pytest.mark.parametrize("task", ["idle", "run"])
def test_a_mac_that_was_not_changed_keeps_what_was_to_go(task):
    found = told(part(removed=[A, B]), m1={task: FAILED}, answers=[answers(of=[A])])
    assert found["untouched"] == {"m1": "broken for a test"}
    assert found["gone"] == [B]
    assert found["resumed"] == [A]
    assert found["mute"] == {}, "it got back what it had already"


def test_a_mac_that_vanished_is_silent_and_is_not_put_back():
    found = told(part(), m1={"run": UNREACHABLE}, answers=[answers(A)])
    assert found["untouched"] == {"m1": "it cannot be reached any more."}
    assert found["silent"] == {A: "HTTP 503"}
    assert to_put_back([part()], DEPLOYMENTS, found, whole=False, worse=False) == []


def test_only_what_failed_and_does_not_serve_as_before_is_doubtful():
    entry = {"name": "a", "ready": False, "restored": False}
    restored = {**FAILED, "instances": [{**entry, "restored": True}, {**entry, "name": "b", "ready": True}]}
    assert told(part(), m1={"run": restored}, m2={"run": UNREACHABLE})["doubtful"] == [B]
    assert told(part(), m1={"run": {**FAILED, "instances": [entry]}})["doubtful"] == [A, NEW, "m1-a-y"]
    assert told(part(), m1={"run": {"instances": [entry]}})["doubtful"] == []


def test_what_is_new_is_asked_where_the_change_went_well():
    found = told(part(added=[NEW]), answers=[answers(of=[A, B, NEW])])
    assert found["new"] == [NEW]
    assert found["resumed"] == [A, B, NEW]
    assert told(part(added=[NEW]), m1={"run": FAILED})["asked"] == [A, B]


def test_what_some_gateway_did_not_know_is_asked():
    found = told(part(paused=[A], out={"m1": [A]}, missing=[B]), answers=[answers()])
    assert found["asked"] == found["resumed"] == [A, B]


def test_what_an_instance_has_given_up_stays_paused_and_is_not_asked():
    found = told(part(removed=[A], given_up=[A]), answers=[answers()])
    assert (found["gone"], found["asked"], found["resumed"]) == ([], [B], [B])
    assert told(part(removed=[A], given_up=[A]), m1={"run": FAILED}, answers=[answers()])["resumed"] == [A, B]


def test_one_gateway_that_hears_nothing_is_enough():
    found = told(part(), answers=[answers(), answers(B, gateway="g2")])
    assert found["silent"] == {B: "HTTP 503"}
    assert found["resumed"] == [A]
    assert found["mute"] == {"m2": f"{B} does not answer through the gateway: HTTP 503"}


def test_a_gateway_that_cannot_ask_has_no_say_unless_all_are_like_that():
    broken = {"gateway": "g2", "failed": True, "msg": "not ready"}
    assert told(part(), answers=[answers(), broken])["resumed"] == [A, B]
    assert told(part(), answers=[broken])["silent"] == {A: "g2: not ready", B: "g2: not ready"}


def test_what_was_asked_for_another_part_does_not_count():
    assert told(part(), answers=[answers(NEW, of=[NEW])])["well"]


def test_a_gateway_that_was_not_told_is_named():
    found = told(part(), answers=[answers()], back=[{"gateway": "g1", **UNREACHABLE}])
    assert found["behind"] == ["g1: it cannot be reached any more."]
    assert not found["well"]


def test_macs_on_which_something_does_not_answer_get_back_what_they_had():
    batch = part(added=[NEW])
    found = told(batch, m1={"health": FAILED}, answers=[answers(A)])
    assert found["mute"] == {"m1": "broken for a test"}
    [undone] = to_put_back([part(), batch], DEPLOYMENTS, found, whole=False, worse=False)
    assert undone["hosts"] == undone["replaced"] == {"m1": ["a"]}
    assert undone["paused"] == [A]
    assert undone["busy"] == {}, "what does not answer is not waited for"
    assert undone["removed"] == [], "an instance that is new stays"


def test_all_of_it_goes_back_on_request_but_for_what_has_it_already():
    first, last = part(title="Batch 1 of 2", replaced={"m2": ["b"]}), part(title="Batch 2 of 2")
    found = told(last, m2={"run": FAILED}, answers=[answers()])
    undone = to_put_back([first, last], DEPLOYMENTS, found, whole=True, worse=False)
    assert [one["title"] for one in undone] == ["Batch 2 of 2", "Batch 1 of 2"]
    assert [one["hosts"] for one in undone] == [{"m1": ["a"]}, {"m2": ["b"]}]
    assert undone[0]["busy"] == {"m1": [{"name": "a", "models": [{"identifier": "x"}]}]}


def test_a_batch_that_does_worse_goes_back_alone():
    first = part(title="Batch 1 of 2")
    last = part(title="Batch 2 of 2", replaced={"m1": ["a"]}, removed=[B])
    undone = to_put_back([first, last], DEPLOYMENTS, told(last, answers=[answers()]), whole=False, worse=True)
    assert [one["title"] for one in undone] == ["Batch 2 of 2"]
    assert undone[0]["paused"] == [A], "what was removed stays removed"
    assert to_put_back([first, last], DEPLOYMENTS, told(last), whole=False, worse=False) == []


def test_a_model_that_was_exchanged_serves_again_and_the_other_one_goes_after_its_last_request():
    batch = part(removed=[A], given_up=[A], added=["m1-a-y", NEW])
    [undone] = to_put_back([batch], DEPLOYMENTS, told(batch), whole=True, worse=False)
    assert undone["out"] == {"m1": [A, "m1-a-y"], "m2": [B]}
    assert undone["paused"] == [A, "m1-a-y", B]
    assert undone["busy"]["m1"] == [{"name": "a", "models": [{"identifier": "x"}, {"identifier": "y"}]}]
    back = told(undone, answers=[answers()])
    assert (back["gone"], back["resumed"], back["well"]) == (["m1-a-y"], [A, B], True)
    stays = told(undone, m1={"run": FAILED}, answers=[answers(of=[A, "m1-a-y", B])])
    assert (stays["gone"], stays["resumed"]) == ([], [A, "m1-a-y", B]), "it goes on with what it was changed to"
