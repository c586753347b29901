# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tasks of a roll-out work out from what came of those before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

VARIABLES = Path(__file__).resolve().parents[3] / "playbooks" / "vars" / "rollout.yml"
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
    "added": [],
    "withdrawn": [],
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
}


@pytest.fixture
def evaluate(controller, inventory, tmp_path):
    """Return a function that evaluates a variable; of each Mac, `runs` is what came of its change."""

    def evaluate(name, runs=(), **variables):
        (tmp_path / "variables.json").write_text(json.dumps({**KNOWN, **variables}))
        hosts = inventory["all"]["children"]["macs"]["hosts"]
        for name_of, host in hosts.items():
            host.update(ansible_connection="local", ansible_python_interpreter=sys.executable)
            host["__lmstudio_instances_run"] = dict(runs).get(name_of, {})
        tasks = [{"ansible.builtin.debug": {"msg": f"<<{{{{ {name} | to_json }}}}>>"}, "run_once": True}]
        play = {"hosts": "macs", "gather_facts": False, "tasks": tasks}
        play["vars_files"] = [str(tmp_path / "variables.json"), str(VARIABLES)]
        (tmp_path / "evaluate.yml").write_text(json.dumps([play]))
        run = controller(inventory, tmp_path / "evaluate.yml")
        output = run.communicate(timeout=60)[0]
        assert run.returncode == 0, output
        return json.loads(json.loads('"' + output.partition("<<")[2].rpartition(">>")[0] + '"'))

    return evaluate


def test_a_gateway_knows_what_it_had_and_what_it_was_told(evaluate):
    told = {"results": [{"gateway": "mac-1", "groups": {B: "m"}}, {"gateway": "other", "groups": {"strange": "m"}}]}
    asked = {"results": [{"gateway": "mac-1", "groups": {A: "m"}}, {"gateway": "other", "groups": {}}]}
    assert evaluate("__rollout_known", __rollout_gateways=asked) == [A]
    assert evaluate("__rollout_known", __rollout_gateways=asked, __rollout_told=told) == [A, B]
    assert evaluate("__rollout_known", __rollout_gateways=asked, __rollout_told=told, gateway="other") == ["strange"]


def test_only_what_failed_and_does_not_serve_as_before_is_doubtful(evaluate):
    entry = {"name": "chat-a", "ready": False, "restored": False}
    restored = {**FAILED, "instances": [{**entry, "restored": True}]}
    assert evaluate("__rollout_doubtful", {"mac-1": restored, "mac-2": UNREACHABLE}) == [B]
    assert evaluate("__rollout_doubtful", {"mac-1": {**FAILED, "instances": [entry]}}) == [A]
    assert evaluate("__rollout_doubtful", {"mac-1": {"instances": [entry]}}) == []


def test_what_the_guard_alone_has_paused_is_not_out(evaluate):
    pauses = {A: {"guard": {}}, B: {"guard": {}, "operator": {}}}
    now = {"results": [{"gateway": "mac-1", "paused": pauses}, {"gateway": "other", **UNREACHABLE}]}
    assert evaluate("__rollout_paused_now", __rollout_now=now) == [B]


@pytest.mark.parametrize(
    ("baked", "worse", "stopped"),
    [
        ({"gateway": "mac-1", **FAILED, "worse": "slow"}, True, True),
        ({"gateway": "mac-1", **FAILED}, False, True),
        ({"gateway": "mac-1", **UNREACHABLE}, False, True),
        ({"gateway": "mac-1"}, False, False),
    ],
)
def test_only_a_mac_that_does_worse_goes_back(evaluate, baked, worse, stopped):
    verdict = "[__rollout_worse, __rollout_stopped]"
    well = {"results": [{"gateway": "mac-1", "deployments": [{"id": one, "healthy": True} for one in (A, B)]}]}
    assert evaluate(verdict, __rollout_baked={"results": [baked]}, __rollout_answers=well) == [worse, stopped]


def test_the_gateways_are_not_told_of_a_mac_that_did_not_go_back(evaluate):
    runs = {"mac-1": {}, "mac-2": {**FAILED, "instances": []}}
    [told] = evaluate("__rollout_news_back", runs, __rollout_moved=[A, B])
    assert (told["id"], told["state"]) == (A, "former")
