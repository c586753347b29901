# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tasks of a roll-out work out from what came of those before."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

VARIABLES = Path(__file__).resolve().parents[3] / "playbooks" / "vars" / "rollout.yml"
TEMPLATES = VARIABLES.parents[1] / "templates"
FAILED = {"failed": True, "msg": "broken for a test"}
UNREACHABLE = {"unreachable": True, "msg": "gone"}
A, B = "mac-1-chat-a-m", "mac-2-chat-a-m"
PART = {
    "hosts": {"mac-1": ["chat-a"], "mac-2": ["chat-a"]},
    "replaced": {"mac-1": ["chat-a"], "mac-2": ["chat-a"]},
    "busy": {},
    "out": {"mac-1": [A], "mac-2": [B]},
    "paused": [A, B],
    "removed": [],
    "given_up": [],
    "added": [],
    "missing": [],
}
KNOWN = {
    "fleet": {
        "gateways": ["mac-1"],
        "deployments": [
            {"id": A, "host": "mac-1", "instance": "chat-a", "model_group": "m"},
            {"id": B, "host": "mac-2", "instance": "chat-a", "model_group": "m"},
        ],
    },
    "rollout": {"batches": [PART]},
    "batch": PART,
    "undone": PART,
    "gateway": "mac-1",
    "gateway_deployments_keep_hosts": [],
}


def text_of(template):
    """Return what evaluates to the text of a template of the roll-out."""
    return f"lookup('ansible.builtin.template', '{TEMPLATES / template}.txt.j2')"


@pytest.fixture
def evaluate_each(controller, inventory, tmp_path):
    """Return a function that evaluates a variable for each case; of each Mac, `runs` is what came of its change."""

    def evaluate_each(name, cases, runs=(), **variables):
        (tmp_path / "variables.json").write_text(json.dumps({**KNOWN, **variables}))
        hosts = inventory["all"]["children"]["macs"]["hosts"]
        for name_of, host in hosts.items():
            host.update(ansible_connection="local", ansible_python_interpreter=sys.executable)
            host["__lmstudio_instances_run"] = dict(runs).get(name_of, {})
        show = {"ansible.builtin.debug": {"msg": f"<<{{{{ {name} | to_json }}}}>>"}, "run_once": True}
        play = {"hosts": "macs", "gather_facts": False, "tasks": [{**show, "vars": case} for case in cases]}
        play["vars_files"] = [str(tmp_path / "variables.json"), str(VARIABLES)]
        (tmp_path / "evaluate.yml").write_text(json.dumps([play]))
        run = controller(inventory, tmp_path / "evaluate.yml")
        output = run.communicate(timeout=60)[0]
        assert run.returncode == 0, output
        return [json.loads(json.loads(f'"{text}"')) for text in re.findall("<<(.*)>>", output)]

    return evaluate_each


@pytest.fixture
def evaluate(evaluate_each):
    def evaluate(name, runs=(), **variables):
        [value] = evaluate_each(name, [{}], runs, **variables)
        return value

    return evaluate


def test_a_gateway_knows_what_it_had_or_what_it_was_last_told(evaluate):
    told = {"results": [{"gateway": "mac-1", "groups": {B: "m"}}, {"gateway": "other", "groups": {"strange": "m"}}]}
    asked = {"results": [{"gateway": "mac-1", "groups": {A: "m"}}, {"gateway": "other", "groups": {}}]}
    assert evaluate("__rollout_known", __rollout_gateways=asked) == [A]
    assert evaluate("__rollout_known", __rollout_gateways=asked, __rollout_told=told) == [B]
    skipped = {"results": [{"gateway": "mac-1", "skipped": True}]}
    assert evaluate("__rollout_known", __rollout_gateways=asked, __rollout_told=skipped) == [A]
    assert evaluate("__rollout_known", __rollout_gateways=asked, __rollout_told=told, gateway="other") == ["strange"]


def test_what_the_guard_alone_has_paused_is_not_out(evaluate):
    pauses = {A: {"guard": {}}, B: {"guard": {}, "operator": {}}}
    now = {"results": [{"gateway": "mac-1", "paused": pauses}, {"gateway": "other", **UNREACHABLE}]}
    assert evaluate("__rollout_paused_now", __rollout_now=now) == [B]


def test_only_a_mac_that_does_worse_goes_back(evaluate_each):
    """Whether it does worse, and whether the run stops."""
    cases = {
        "worse": ({**FAILED, "worse": "slow"}, [True, True]),
        "not compared": (FAILED, [False, True]),
        "gone": (UNREACHABLE, [False, True]),
        "as good": ({}, [False, False]),
    }
    well = {"results": [{"gateway": "mac-1", "deployments": [{"id": one, "healthy": True} for one in (A, B)]}]}
    baked = [{"__rollout_baked": {"results": [{"gateway": "mac-1", **came}]}} for came, _verdict in cases.values()]
    found = evaluate_each("[__rollout_worse, __rollout_stopped]", baked, __rollout_answers=well)
    assert dict(zip(cases, found, strict=True)) == {name: verdict for name, (_came, verdict) in cases.items()}


def test_the_gateways_are_not_told_of_a_mac_that_did_not_go_back(evaluate):
    runs = {"mac-1": {}, "mac-2": {**FAILED, "instances": []}}
    [told] = evaluate("__rollout_news_back", runs, __rollout_learnt=[{"gateway": "mac-1", "updated": [A, B]}])
    assert (told["id"], told["state"]) == (A, "former")


def test_a_gateway_that_has_learnt_of_something_in_this_run_forgets_it_and_the_others_put_it_back(evaluate_each):
    learnt = [{"gateway": "mac-1", "updated": [A, B]}, {"gateway": "g2", "added": [A], "updated": [B]}]
    cases = [{"gateway": gateway, "__rollout_learnt": learnt} for gateway in ("mac-1", "g2")]
    told = [{one["id"]: one["state"] for one in news} for news in evaluate_each("__rollout_news_back", cases)]
    assert told == [{A: "former", B: "former"}, {A: "absent", B: "former"}]


C = "mac-3.local-chat-a-m"
THREE = {**KNOWN["fleet"], "deployments": [*KNOWN["fleet"]["deployments"], {"id": C, "host": "mac-3.local"}]}
THREE["deployments"][-1].update(instance="chat-a", model_group="m")
FIRST = {**PART, "paused": [A]}


def test_what_a_mac_outside_of_this_run_still_has_counts_as_declared(evaluate):
    """mac-2 has another name for its instance by now, and stays as it is; mac-1 takes part."""
    old = {"host": "mac-2", "instance": "old"}
    has = {"mac-2-old-m": old, "mac-1-old-m": {**old, "host": "mac-1"}}
    told = {"results": [{"gateway": "g", "groups": dict.fromkeys(has, "m"), "places": has}, UNREACHABLE]}
    found = evaluate("__rollout_deployments", __rollout_gateways=told, gateway_deployments_keep_hosts=["mac-2"])
    assert [one["id"] for one in found] == ["mac-2-old-m", A, B]
    assert found[0] == {**old, "id": "mac-2-old-m", "model_group": "m"}


NEW_G1 = {"results": [{"gateway": "g0", "groups": {A: "m"}}, {"gateway": "g1", "groups": {}}]}


def test_what_goes_back_must_not_be_the_last_that_serves(evaluate_each):
    """A goes back, and B is paused."""
    cases = {
        "served": ([[A, B, C]], {}, []),
        "down": ([[A, B, C]], {"__rollout_down": [B, C]}, ["m"]),
        "not registered": ([[A, B]], {}, ["m"]),
        "not at one gateway": ([[A, B, C], [A, B]], {}, ["m"]),
        "a new gateway": ([[A, B, C], []], {"__rollout_gateways": NEW_G1}, []),
        "one that learns": ([[A, B, C], [A]], {"__rollout_gateways": NEW_G1}, []),
        "silent": ([[A, B, C]], {"__rollout_elsewhere": {"deployments": [{"id": C, "healthy": False}]}}, ["m"]),
        "down itself": ([[A, B, C]], {"__rollout_down": [A, B, C]}, []),
        "brought by the run": ([[A, B, C]], {"__rollout_down": [B, C], "undone": {**FIRST, "removed": [A]}}, []),
    }
    given = []
    for groups, facts, _bare in cases.values():
        told = [{"gateway": f"g{number}", "groups": dict.fromkeys(ids, "m")} for number, ids in enumerate(groups)]
        usual = {"undone": FIRST, "__rollout_elsewhere": {"deployments": []}, "__rollout_down": [B]}
        usual["__rollout_gateways"] = {"results": [{"gateway": f"g{number}", "groups": {A: "m"}} for number in (0, 1)]}
        given.append({"__rollout_now": {"results": told}, **usual, **facts})
    found = evaluate_each("__rollout_bare", given, fleet=THREE)
    assert dict(zip(cases, found, strict=True)) == {name: bare for name, (_groups, _facts, bare) in cases.items()}


def test_what_was_put_back_serves_again_and_what_is_silent_does_not(evaluate):
    answers = [{"id": A, "healthy": True}, {"id": B, "healthy": False, "problem": "HTTP 503"}]
    well = {"results": [{"gateway": "mac-1", "deployments": answers}]}
    now = {"results": [{"gateway": "mac-1", "groups": {A: "m", B: "m"}}]}
    facts = {"__rollout_now": now, "__rollout_elsewhere": {"deployments": []}, "__rollout_answers": well}
    facts["__rollout_gateways"] = now
    assert evaluate("__rollout_down_now", __rollout_down=[A], lmfleet_allow_downtime=True, **facts) == [B]
    left = {"undone": FIRST, "__rollout_down": [B]}
    assert evaluate("__rollout_down_now", **facts, **left) == [B], "mac-1 stays changed, as nothing else serves"


def test_what_has_requests_at_one_gateway_keeps_them_while_another_is_told_of_it(evaluate):
    part = {**PART, "paused": [A], "out": {"mac-1": [A]}, "missing": [B]}
    deployments = [{**one, "model": "m", "api_base": "http://x/v1"} for one in KNOWN["fleet"]["deployments"]]
    facts = {
        "batch": part,
        "rollout": {"batches": [part]},
        "gateway_deployments_list": deployments,
        "__rollout_unknown": {"results": [{"added": [A, B]}]},
        "__rollout_gateways": {
            "results": [{"gateway": "mac-1", "groups": {A: "m", B: "m"}}, {"gateway": "g2", "groups": {}}]
        },
    }
    news = {gateway: evaluate("__rollout_news", gateway=gateway, **facts) for gateway in ("mac-1", "g2")}
    assert {gateway: [one.get("state") for one in told] for gateway, told in news.items()} == {
        "mac-1": ["paused", None],
        "g2": ["paused", "paused"],
    }


def test_the_time_out_of_a_batch_counts_each_time_and_what_stays_out(evaluate):
    away = [
        {"gateway": "g1", "resumed": {A: 9.0}},
        {"gateway": "g2", "resumed": {A: 8.0}},
        {"gateway": "g1", "resumed": {A: 8.2, "mac-4-old-m": 3.0}},
    ]
    out = {"mac-1": [A, "mac-1-chat-a-n"], "mac-2": [B], "mac-3": [C], "mac-4": ["mac-4-old-m"]}
    batch = {**PART, "title": "Batch 1 of 1", "out": out, "removed": [C, "mac-4-old-m"]}
    told = evaluate(text_of("rollout_batch"), batch=batch, __rollout_away=away)
    assert told.splitlines() == [
        "Batch 1 of 1",
        "  mac-1 was out for 17 s; still paused: mac-1-chat-a-n",
        "  mac-2 was out for good: it is still paused",
        f"  mac-3 has given up {C}",
        "  mac-4 was out for 3 s",  # what was to go is there again
    ]


def test_only_what_went_back_is_said_to_have_gone_back(evaluate):
    runs = {
        "mac-1": {"instances": [{"name": "chat-a", "restored": True}, {"name": "chat-b", "restored": False}]},
        "mac-2": {**FAILED, "instances": [{"name": "chat-a", "restored": False, "ready": False}]},
    }
    both = {**PART, "replaced": {"mac-1": ["chat-a", "chat-b"], "mac-2": ["chat-a"]}, "paused": []}
    facts = {"__rollout_gateways": {"results": []}, "__rollout_now": {"results": []}, "__rollout_down": []}
    told = evaluate(text_of("rollout_put_back"), runs, undone=both, __rollout_elsewhere={"deployments": []}, **facts)
    assert told.splitlines() == [
        "mac-1: chat-a has again what it had before this run",
        "mac-1: chat-b stays changed, because its Mac does not know what it had before",
        "mac-2: chat-a could not get back what it had: broken for a test",
    ]
