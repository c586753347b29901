# SPDX-License-Identifier: GPL-3.0-or-later
"""What fleet_rollout makes of the results of modules; how batches are made up is in test_rollout.py."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout import Policy, from_results, shortage


def need(name="a", action="restart", interrupted=("m",), loaded=("m",), **more):
    """Return what lmstudio_instances says of an instance; one that needs something is not ready in check mode."""
    models = [{"identifier": model, "key": f"key-{model}" if model in loaded else None} for model in ("m", "n")]
    entry = {"name": name, "action": action, "why": "changed", "ready": action == "nothing", "tuning": False}
    return {**entry, "interrupted": list(interrupted), "pid": 7, "models": models, **more}


def deployment(host, instance="a", model="m"):
    return {"id": f"{host}-{instance}-{model}", "model_group": "g", "host": host, "instance": instance}


def gateway(registered, paused=(), name="g1"):
    pauses = paused if isinstance(paused, dict) else {one: {"operator": {}} for one in paused}
    return {"gateway": name, "groups": dict.fromkeys(registered, "g"), "paused": pauses}


def run(needs, registered=None, paused=(), unreachable=(), silent=(), declared=None, **policy):
    """Plan for Macs with one declared instance each; `registered` are the ids that the gateway has."""
    declared = declared or [deployment(host) for host in needs]
    told = gateway(registered or [entry["id"] for entry in declared], paused)
    return from_results(needs, declared, [told], Policy(**policy), unreachable, silent)


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
    assert hosts(result) == [{"m2": ["new"]}, {"m1": ["a", "new"]}]
    assert [batch["paused"] for batch in result["batches"]] == [[], ["m1-a-m"]]


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
    assert [batch["canary"] for batch in batches] == [False, True, False]
    assert batches[1]["title"] == "Batch 2 of 3: m1 (a restart, new start)"
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


QUIET = need(action="nothing", interrupted=())


def test_a_model_that_moves_between_instances_is_added_where_it_comes_and_removed_where_it_was():
    macs = ("m1", "m2", "m3")
    moving = [need("b", "live", ()), need("a", "live")]
    result = run(
        dict.fromkeys(macs, moving),
        registered=[f"{host}-a-m" for host in macs],
        declared=[deployment(host, "b") for host in macs],
    )
    assert result["problems"] == []
    assert hosts(result) == [{host: ["a", "b"]} for host in macs]
    assert [batch["left"] for batch in result["batches"]] == [{"g": 2}] * 3
    assert [batch["added"] for batch in result["batches"]] == [[f"{host}-b-m"] for host in macs]
    assert [batch["removed"] for batch in result["batches"]] == [[f"{host}-a-m"] for host in macs]


def test_models_of_two_instances_change_places():
    macs = ("m1", "m2")
    declared = [
        {**deployment(host, instance, model), "model_group": model}
        for host in macs
        for instance, model in (("a", "n"), ("b", "m"))
    ]
    needs = {host: [need("a", "live", ["m"]), need("b", "live", ["n"], loaded=["n"])] for host in macs}
    groups = {f"{host}-a-m": "m" for host in macs} | {f"{host}-b-n": "n" for host in macs}
    result = from_results(needs, declared, [{"groups": groups, "paused": {}}], Policy())
    assert [batch["left"] for batch in result["batches"]] == [{"m": 1, "n": 1}] * 2
    assert result["batches"][1]["added"] == ["m2-a-n", "m2-b-m"]


def test_an_instance_gets_another_name_everywhere():
    macs = ("m1", "m2", "m3")
    needs = {host: [need("b", "start", (), pid=None, models=[]), need("a", "remove", models=[])] for host in macs}
    declared = [deployment(host, "b") for host in macs]
    result = run(needs, registered=[f"{host}-a-m" for host in macs], declared=declared)
    assert hosts(result) == [{host: ["a", "b"]} for host in macs]
    assert [batch["left"] for batch in result["batches"]] == [{"g": 2}] * 3


def test_a_new_mac_serves_before_the_old_one_is_taken_out():
    needs = {"m1": [need()], "m2": [need(action="start", interrupted=(), pid=None, models=[])]}
    result = run(needs, registered=["m1-a-m"])
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}]
    assert [batch["added"] for batch in result["batches"]] == [["m2-a-m"], []]
    assert result["batches"][1]["left"] == {"g": 1}


@pytest.mark.parametrize("down", [{"loaded": ()}, {"pid": None}])
def test_what_its_mac_says_is_down_serves_after_its_turn_only(down):
    result = run({"m1": [need()], "m2": [need(**down)], "m3": [need()]})
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}, {"m3": ["a"]}]
    started = need("a", "start", (), **down), need("b", "remove")
    declared, registered = [deployment(host) for host in ("m1", "m2")], ["m1-a-m", "m2-a-m", "m2-b-m"]
    result = run({"m1": [need()], "m2": started}, registered=registered, declared=declared)
    assert hosts(result) == [{"m1": ["a"]}, {"m2": ["b", "a"]}]
    assert [batch["left"] for batch in result["batches"]] == [{"g": 1}] * 2


def test_a_model_is_down_although_others_of_its_instance_serve():
    declared = [deployment(host, model=model) | {"model_group": model} for host in ("m1", "m2") for model in "mn"]
    groups = {entry["id"]: entry["model_group"] for entry in declared}
    needs = {"m1": [need(interrupted="mn", loaded="mn")], "m2": [need(interrupted="mn")]}
    result = from_results(needs, declared, [{"groups": groups, "paused": {}}], Policy())
    # The only one that serves n is on m1; m2 goes first, and serves it then. Which m is missing meanwhile is no matter.
    assert [(batch["hosts"], batch["left"]) for batch in result["batches"]] == [
        ({"m2": ["a"]}, {"m": 1, "n": 1}),
        ({"m1": ["a"]}, {"m": 1, "n": 1}),
    ]


def test_what_is_known_not_to_answer_does_not_serve():
    declared = [deployment(host) for host in ("m1", "m2")]
    assert run({"m1": [need()]}, declared=declared)["problems"] == []
    assert "leaves 0 of 1" in run({"m1": [need()]}, declared=declared, silent=["m2-a-m"])["problems"][0]


def test_a_mac_that_takes_no_part_keeps_the_pauses_of_a_cut_off_run():
    declared = [deployment(host) for host in ("m1", "m2", "m3")]
    result = run({"m1": [need()]}, declared=declared, paused={"m2-a-m": LEFT})
    assert hosts(result) == [{"m1": ["a"]}] and result["batches"][0]["left"] == {"g": 1}


def test_what_only_the_guard_pauses_serves():
    needs = {"m1": [need()], "m2": [QUIET]}
    assert run(needs, paused={"m2-a-m": {"guard": {}}})["batches"][0]["left"] == {"g": 1}
    assert "leaves 0 of 1" in run(needs, paused={"m2-a-m": {"guard": {}, "operator": {}}})["problems"][0]
    both = run(needs, paused={"m2-a-m": {"guard": {}, **LEFT}})
    assert hosts(both) == [{"m2": ["a"]}, {"m1": ["a"]}]


def test_what_the_gateways_do_not_know_although_it_runs_is_told_first():
    result = run({"m1": [need()], "m2": [QUIET]}, registered=["m1-a-m"])
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}]
    assert result["batches"][0]["added"] == ["m2-a-m"] and result["batches"][0]["paused"] == []
    assert result["rows"][1][3:5] == ["resume", "the gateways do not know it yet"]


def test_where_no_gateway_was_asked_nothing_is_new():
    needs = {"m1": [need(action="start", interrupted=())], "m2": [QUIET]}
    result = from_results(needs, [deployment("m1"), deployment("m2")], [], Policy())
    assert hosts(result) == [{"m1": ["a"]}] and result["batches"][0]["added"] == []


def test_what_is_refused_is_shown_beside_what_could_be_done():
    declared = [*(deployment(host) for host in ("m1", "m2")), {**deployment("m3"), "model_group": "alone"}]
    groups = {entry["id"]: entry["model_group"] for entry in declared}
    needs = {host: [need()] for host in ("m1", "m2", "m3")}
    result = from_results(needs, declared, [{"groups": groups, "paused": {}}], Policy())
    assert result["batches"] == [] and len(result["problems"]) == 1
    assert [(row[0], row[1], row[6]) for row in result["rows"][1:]] == [
        (1, "m1", "g: 1"),
        (2, "m2", "g: 1"),
        ("refused", "m3", "alone: 0"),
    ]


def short(batch, needs, now, declared=None, unreachable=(), silent=(), **policy):
    declared = declared or [deployment(host) for host in needs]
    return shortage(batch, needs, declared, [now], Policy(**policy), unreachable, silent)


def test_a_batch_that_would_leave_too_little_by_now_is_told():
    needs = {"m1": [need()], "m2": [need()]}
    batch = run(needs)["batches"][0]
    both = ["m1-a-m", "m2-a-m"]
    assert short(batch, needs, gateway(both)) == []
    for now, more in (
        (gateway(both, ["m2-a-m"]), {}),
        (gateway(both), {"silent": ["m2-a-m"]}),
        (gateway(both), {"unreachable": ["m2"]}),
        (gateway(["m1-a-m"]), {}),
    ):
        assert "model group g: to change a on m1 leaves 0 of 1" in short(batch, needs, now, **more)[0]
        assert short(batch, needs, now, allow_downtime=True, **more) == []
    assert short(batch, needs, gateway(both, {"m2-a-m": {"guard": {}}})) == []
    assert short(batch, needs, gateway(both, ["m1-a-m"])) == [], "it does not serve anyway"


def test_what_changed_since_the_run_began_and_what_goes_later_counts_as_it_is_now():
    needs = {
        host: [need("b", "start", (), pid=None, models=[]), need("a", "remove", models=[])] for host in ("m1", "m2")
    }
    declared = [deployment(host, "b") for host in needs]
    first, second = run(needs, registered=["m1-a-m", "m2-a-m"], declared=declared)["batches"]
    assert short(first, needs, gateway(["m1-a-m", "m2-a-m"]), declared) == []
    assert short(second, needs, gateway(["m1-b-m", "m2-a-m"]), declared) == []
    assert len(short(second, needs, gateway(["m2-a-m"]), declared)) == 1


def known_to(*ids, paused=()):
    """Return what a gateway says that knows where its deployments are."""
    places = {one: dict(zip(("host", "instance"), one.split("-")[:2], strict=True)) for one in ids}
    return {**gateway(ids, paused), "places": places}


BOTH = [deployment("m1"), deployment("m2")]


def test_what_not_every_gateway_knows_is_told_first_and_goes_on_serving_elsewhere():
    result = from_results(
        {"m1": [need()], "m2": [QUIET]}, BOTH, [gateway(["m1-a-m", "m2-a-m"]), gateway(["m1-a-m"], name="g2")], Policy()
    )
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}]
    first = result["batches"][0]
    assert (first["missing"], first["added"], first["paused"]) == (["m2-a-m"], [], [])
    assert result["rows"][1][3:5] == ["resume", "not every gateway knows it yet"]


def test_what_not_every_gateway_knows_and_is_changed_is_paused_where_it_serves():
    told = [gateway(["m1-a-m", "m2-a-m"]), gateway(["m1-a-m"], name="g2")]
    result = from_results({"m1": [need()], "m2": [need()]}, BOTH, told, Policy())
    assert hosts(result) == [{"m2": ["a"]}, {"m1": ["a"]}]
    assert (result["batches"][0]["missing"], result["batches"][0]["paused"]) == ([], ["m2-a-m"])


def test_what_not_every_gateway_knows_is_not_taken_from_the_clients_of_those_that_do():
    other = [deployment("m1"), {**deployment("m2", model="n"), "model_group": "h"}]
    told = [{**gateway(["m1-a-m", "m2-a-n"]), "groups": {"m1-a-m": "g", "m2-a-n": "h"}}, gateway(["m1-a-m"], name="g2")]
    [problem] = from_results({"m2": [need(interrupted=("n",), loaded=("n",))]}, other, told, Policy())["problems"]
    assert "model group h: to change a on m2 leaves 0 of 1 serving deployments, and at least one" in problem


@pytest.mark.parametrize("policy", [{"batch": "50%"}, {"batch": "50%", "min_capacity": 5}])
def test_a_gateway_that_knows_little_is_judged_by_itself_and_makes_the_others_no_worse(policy):
    """At g2, which a run that was killed has told of m1 only, nothing is lost but m1, which has to go last."""
    names = [f"m{number}" for number in range(1, 7)]
    told = [gateway([f"{name}-a-m" for name in names]), gateway(["m1-a-m"], name="g2")]
    result = from_results(
        {name: [need()] for name in names}, [deployment(name) for name in names], told, Policy(**policy)
    )
    assert hosts(result) == [{name: ["a"]} for name in (*names[1:], "m1")]
    assert [batch["left"] for batch in result["batches"]] == [{"g": 5}] * 6


def test_a_gateway_that_joins_does_not_hide_what_has_been_paused_meanwhile_at_the_others():
    needs = {name: [need()] for name in ("m1", "m2", "m3")}
    every = [f"{name}-a-m" for name in needs]
    batch = run(needs)["batches"][1]
    joined = gateway(["m1-a-m"], name="g2")
    declared = [deployment(name) for name in needs]
    assert shortage(batch, needs, declared, [gateway(every), joined], Policy()) == []
    [problem] = shortage(batch, needs, declared, [gateway(every, ["m1-a-m", "m3-a-m"]), joined], Policy())
    assert "to change a on m2 leaves 0 of 1" in problem


def test_a_gateway_that_knows_little_is_named_where_it_would_be_left_with_nothing():
    told = [gateway(["m1-a-m", "m2-a-m"]), gateway(["m1-a-m"], name="g2")]
    assert (
        "leaves 0 of 1 serving deployments at gateway g2"
        in from_results({"m1": [need()]}, BOTH, told, Policy())["problems"][0]
    )


def test_a_gateway_that_has_nothing_yet_lacks_nothing():
    result = from_results(
        {"m1": [need()], "m2": [QUIET]}, BOTH, [gateway(["m1-a-m", "m2-a-m"]), gateway([], name="g2")], Policy()
    )
    assert hosts(result) == [{"m1": ["a"]}]


def test_what_is_new_on_a_drained_mac_gets_no_requests():
    needs = {"m1": [need()], "m2": [need("b", "start", (), pid=None, models=[]), need("a", "remove", models=[])]}
    declared = [deployment("m1"), deployment("m2", "b")]
    drained = known_to("m1-a-m", "m2-a-m", paused=["m2-a-m"])
    result = from_results(needs, declared, [drained], Policy())
    assert "leaves 0 of 1" in result["problems"][0]
    result = from_results(needs, declared, [known_to("m1-a-m", "m2-a-m")], Policy())
    assert result["problems"] == [] and [batch["added"] for batch in result["batches"]] == [[], ["m2-b-m"]]


def test_a_model_that_is_given_up_for_another_is_kept_back():
    needs = {"m1": [need("a", "live", ["m"])], "m2": [need("old", "remove")]}
    declared = [deployment("m1", model="n"), deployment("m3")]
    result = from_results(needs, declared, [gateway(["m1-a-m", "m2-old-m", "m3-a-m"])], Policy(canary=False))
    assert [(batch["removed"], batch["given_up"]) for batch in result["batches"]] == [
        (["m1-a-m"], ["m1-a-m"]),
        (["m2-old-m"], []),
    ]
    now = gateway(["m1-a-m", "m1-a-n", "m2-old-m", "m3-a-m"], paused={"m1-a-m": LEFT})
    share = Policy(min_capacity="60%")
    assert shortage(result["batches"][1], needs, declared, [now], share) == []
