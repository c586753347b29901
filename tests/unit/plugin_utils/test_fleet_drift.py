# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from the results of tasks that ran in check mode."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.fleet_drift import Check, checks_of, drift_of_host, pauses

CHECK = Check("lmstudio_instances", "Run the instances", "run")


def found(result):
    return [(entry["what"], entry["problem"]) for entry in drift_of_host("mac-1", [CHECK], {"run": result})]


def test_what_is_as_declared_is_no_drift():
    instances = [{"name": "a", "action": "nothing", "why": "", "ready": True, "unmanaged": []}]
    assert found({"changed": False, "failed": False, "instances": instances, "diff": []}) == []
    assert found({"changed": False, "skipped": True, "skip_reason": "Conditional result was False"}) == []


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"action": "start", "why": "it is new"}, "it is new (to do: start)"),
        ({"action": "nothing", "ready": False}, "is not ready: its runner says so"),
        ({"ready": False, "last_seen": "connection refused"}, "is not ready: connection refused"),
        ({"ready": False, "missing": ["m"]}, "m is not loaded"),
        ({"unmanaged": ["m"]}, "m is loaded, and not declared"),
        ({"differences": ["m: parallel is 1, declared 2"]}, "m: parallel is 1, declared 2"),
        ({"actions": ["enable"]}, "needs enable"),
        ({"healthy": False, "problem": "HTTP 500"}, "HTTP 500"),
    ],
)
def test_what_a_module_says_of_one_thing(item, problem):
    assert found({"changed": False, "instances": [{"name": "a", **item}]}) == [("instance a", problem)]


def test_names_of_deployments():
    result = {"changed": True, "added": ["x"], "updated": ["y"], "removed": ["z"]}
    assert found(result) == [
        ("x", "is not registered"),
        ("y", "is registered otherwise"),
        ("z", "is registered, and not declared"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("", "a\nb\n", "is missing"),
        ("a\nb\n", "", "is not declared"),
        ("a\n  x: 1\n", "a\n  x: 2\n", "has x: 1, declared is x: 2"),
        ("a\nb\n", "a\n", "has a line too many: b"),
        ("a\n", "a\nb\n", "lacks the line b"),
        ("a\nb\nc\n", "d\ne\nc\n", "differs in 2 lines"),
    ],
)
def test_texts_that_differ(before, after, problem):
    diff = {"before_header": "/f (absent)", "after_header": "/f", "before": before, "after": after}
    assert found({"changed": True, "diff": [diff]}) == [("/f", problem)]
    assert found({"changed": True, "diff": diff}) == [("/f", problem)]


def test_the_report_has_the_whole_difference():
    diff = {"before_header": "/f", "after_header": "/f", "before": "a\n", "after": "b\n"}
    entry = drift_of_host("mac-1", [CHECK], {"run": {"changed": True, "diff": [diff]}})[0]
    assert entry == {
        "host": "mac-1",
        "role": "lmstudio_instances",
        "task": "Run the instances",
        "what": "/f",
        "problem": "has a, declared is b",
        "diff": "--- /f\n+++ /f\n@@ -1 +1 @@\n-a\n+b",
    }


def test_a_change_that_nobody_explains_is_drift_all_the_same():
    assert found({"changed": True}) == [("Run the instances", "is not done: a run would change it")]


def test_a_result_of_a_loop_is_that_of_its_turns():
    turns = {"changed": True, "results": [{"changed": False}, {"changed": True}]}
    assert found(turns) == [("Run the instances", "is not done: a run would change it")]


def test_what_cannot_be_looked_at_is_drift():
    assert found({"failed": True, "changed": False, "msg": "no\n  route"}) == [
        ("Run the instances", "cannot be looked at: no route")
    ]
    consequence = "Task failed: Error while resolving value for 'lms': 'lmstudio_installed' is undefined"
    assert found({"failed": True, "msg": consequence}) == [
        ("Run the instances", "was not looked at, because something it needs could not be looked at")
    ]


def test_reasons_of_a_failure_take_the_place_of_its_message():
    result = {"failed": True, "msg": "This host cannot serve.", "problems": ["8 MB of memory", "no macOS"]}
    assert found(result) == [("host", "8 MB of memory"), ("host", "no macOS")]


def test_a_host_that_cannot_be_reached_is_said_once():
    checks = [Check("mac_host", "Check", "a"), Check("litellm", "Install", "b")]
    results = {"a": {"unreachable": True, "msg": "timed out"}, "b": {"unreachable": True, "msg": "timed out"}}
    drift = drift_of_host("mac-1", checks, results)
    assert [(entry["what"], entry["problem"]) for entry in drift] == [("host", "cannot be reached: timed out")]


def test_a_role_that_left_nothing_behind_was_not_looked_at():
    assert [(entry["role"], entry["problem"]) for entry in drift_of_host("mac-1", [CHECK], {})] == [
        ("lmstudio_instances", "was not looked at")
    ]


def test_what_two_tasks_see_is_told_once():
    checks = [CHECK, CHECK._replace(variable="again")]
    result = {"instances": [{"name": "a", "unmanaged": ["m"]}]}
    assert len(drift_of_host("mac-1", checks, {"run": result, "again": result})) == 1


def test_steps_that_no_file_shows():
    diff = [{"before_header": "/r/config.yaml", "after_header": "/r/config.yaml", "before": "a", "after": "b"}]
    result = {"changed": True, "root": "/r", "actions": ["venv", "config.yaml"], "diff": diff}
    assert found(result) == [("/r", "needs venv"), ("/r/config.yaml", "has a, declared is b")]


def test_checks_are_the_tasks_that_keep_a_result():
    tasks = [
        {"name": "One", "x.y.z": None, "register": "__r_one"},
        {"name": "Two", "ansible.builtin.debug": None},
        {"block": [{"name": "Three", "x.y.z": None, "register": "__r_three"}]},
    ]
    assert checks_of("r", [tasks, None]) == [Check("r", "One", "__r_one"), Check("r", "Three", "__r_three")]


def test_pauses_with_their_owners_oldest_first():
    paused = {
        "b": {"operator": {"reason": "memory", "since": 7200.0, "until": None}},
        "a": {"guard": {"since": 3600.0, "until": 10800.0}},
    }
    assert pauses("gw", [None, {"changed": False}, {"paused": paused}]) == [
        {
            "gateway": "gw",
            "id": "a",
            "owner": "guard",
            "reason": "",
            "since": "1970-01-01T01:00:00Z",
            "until": "1970-01-01T03:00:00Z",
        },
        {
            "gateway": "gw",
            "id": "b",
            "owner": "operator",
            "reason": "memory",
            "since": "1970-01-01T02:00:00Z",
            "until": "",
        },
    ]
