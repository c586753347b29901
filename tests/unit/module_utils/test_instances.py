# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance needs, and whether it is ready."""

from __future__ import annotations

import json
import plistlib

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _instances as instances
from ansible_collections.lmfleet.mac.plugins.module_utils import _lmstudio_http
from ansible_collections.lmfleet.mac.plugins.module_utils._launchd import Actual, Job, LaunchdError, canonical
from ansible_collections.lmfleet.mac.plugins.module_utils._lmstudio_http import Server

from instance_runner import declaration, plan

SETTINGS = {"type": "llm", "context_length": 4096, "parallel": 2}
MODEL = {"identifier": "m", "path": "p/n/f.gguf", "fingerprint": "1", **SETTINGS}
PATH = "/L/lmfleet.instance.chat-a.plist"
JOB = Job("running", 7, None, PATH)


def entry(name="chat-a", plist=None, **changes):
    declaration = {"name": name, "address": "127.0.0.1", "port": 1234, "poll_interval": 5, "models": [MODEL], **changes}
    default = {"Label": f"lmfleet.instance.{name}", "ProgramArguments": ["/usr/bin/python3"], "KeepAlive": True}
    return {"name": name, "declaration": json.dumps(declaration), "plist": plistlib.dumps(plist or default).decode()}


WANTED = instances.parse_wanted(entry())
STATUS = {"pid": 7, "runner": "v1", "generation": WANTED.generation, "state": "ready"}


def found(**changes):
    """An instance that is as declared, but for `changes`."""
    right = {
        "declaration": WANTED.content,
        "status": STATUS,
        "status_age": 1.0,
        "service": Actual(canonical(WANTED.service.plist), True, JOB),
        "models_link_right": True,
        "runner_right": True,
        "moved_from": None,
        "disabled": False,
    }
    return instances.Found(**{**right, **changes})


def decide(**changes):
    decision = instances.decide(WANTED, found(**changes), PATH, "v1")
    return decision.action, decision.why, decision.service_actions


def other(**changes):
    return instances.parse_wanted(entry(**changes)).content


AGAIN = ["bootout", "bootstrap"]
NOT_LOADED = Actual(canonical(WANTED.service.plist), True, None)


def test_a_disabled_job_is_enabled_and_goes_on_running():
    assert decide(disabled=True) == ("live", "its launchd job was disabled: it would not start again", ["enable"])
    assert decide(disabled=True, declaration=other(models=[])) == ("live", "its models changed", ["enable"])


def test_nothing_to_do():
    assert decide() == ("nothing", "", [])


def test_only_models_differ():
    changed = [{**MODEL, "fingerprint": "2"}]
    assert decide(declaration=other(models=changed)) == ("live", "its models changed", [])
    assert decide(declaration=other(models=[])) == ("live", "its models changed", [])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"declaration": other(port=1235)}, "changed: port"),
        ({"declaration": other(port=1235, models=[])}, "changed: port"),
        ({"declaration": other(lms="/lms", stop_timeout=1)}, "changed: lms"),
        ({"declaration": None}, "its instance.json is missing"),
        ({"declaration": "{", "status": {**STATUS, "generation": "old"}}, "its instance.json is invalid"),
        ({"runner_right": False}, "the instance runner changed"),
        ({"status": {**STATUS, "runner": "v0"}}, "the instance runner changed"),
        ({"models_link_right": False}, "its models folder changed"),
        ({"status_age": 46.0}, "its runner has not reported for 46 s"),
    ],
)
def test_restarts(changes, why):
    assert decide(**changes) == ("restart", why, AGAIN)


def test_a_changed_plist_restarts_with_a_write_in_between():
    service = Actual(canonical({"Label": "x"}), True, JOB)
    assert decide(service=service) == ("restart", "its property list changed", ["bootout", "write", "bootstrap"])


def test_small_repairs_need_no_restart():
    assert decide(declaration="{") == ("live", "its instance.json was edited", [])
    assert decide(declaration=other(stop_timeout=1)) == ("live", "changed: stop_timeout", [])
    service = Actual(canonical(WANTED.service.plist), False, JOB)
    assert decide(service=service) == ("live", "owner or mode of its property list", ["fix_ownership"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"declaration": None}, "it is new"),
        ({}, "its launchd job is not loaded"),
        ({"moved_from": "gui", "declaration": None}, "it moves from launchd domain gui"),
    ],
)
def test_starts(changes, why):
    assert decide(service=NOT_LOADED, status={}, **changes) == ("start", why, ["bootstrap"])


def test_the_status_of_an_earlier_runner_decides_nothing():
    old = {**STATUS, "pid": 6, "runner": "v0"}
    assert decide(status=old, status_age=900.0) == ("nothing", "", [])


@pytest.mark.parametrize(
    ("before", "gives"),
    [
        ({"models": [MODEL, {**MODEL, "identifier": "n"}]}, True),
        ({"models": [{**MODEL, "fingerprint": "2"}, {**MODEL, "identifier": "n"}]}, False),
        ({"models": [{**MODEL, "identifier": "n"}]}, False),
        ({"models": []}, False),
        ({"poll_interval": 6}, False),
        ({"models": [MODEL, {**MODEL, "identifier": "n"}], "port": 1}, False),
    ],
    ids=["one less", "another one is loaded anew", "one for another", "one more", "something else", "it restarts"],
)
def test_what_only_gives_memory_away(before, gives):
    now = found(declaration=other(**before))
    assert instances.only_gives(WANTED, now, instances.decide(WANTED, now, PATH, "v1")) is gives


def test_meaning_decides_the_generation_not_the_text():
    text = json.dumps(json.loads(entry()["declaration"]), indent=7, sort_keys=True)
    assert instances.parse_wanted({**entry(), "declaration": text}).generation == WANTED.generation


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"declaration": '{\n"name": x}'}, "instance chat-a: declaration: line 2, column 9"),
        ({"declaration": "[]"}, "the top level must be an object"),
        ({"declaration": json.dumps({"name": "b"})}, "its name is 'b'"),
        ({"declaration": entry(port=0)["declaration"]}, "port 0 is not a number from 1 to 65535"),
        ({"declaration": entry(address=None)["declaration"]}, "address is missing"),
        ({"declaration": entry(models=[{}])["declaration"]}, "models must be a list"),
        ({"name": "../x"}, "instance '../x'"),
    ],
)
def test_bad_declarations_are_refused(changes, said):
    with pytest.raises(instances.InstanceError) as error:
        instances.parse_wanted({**entry(), **changes})
    assert said in str(error.value)


def test_a_plist_of_another_instance_is_refused():
    with pytest.raises(LaunchdError, match=r"lmfleet\.instance\.chat-a"):
        instances.parse_wanted({**entry(), "plist": entry("chat-b")["plist"]})


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry(f"i{n}", port=n + 1) for n in range(6)], "6 instances .* room for 5"),
        ([entry(), entry("CHAT-A", port=2)], "CHAT-A is declared twice"),
        ([entry(), entry("b")], "chat-a and b both declare port 1234"),
        ([entry(), entry("b", address="0.0.0.0")], "both declare port 1234"),
    ],
)
def test_instances_that_cannot_live_together(entries, said):
    with pytest.raises(instances.InstanceError, match=said):
        instances.check_together([instances.parse_wanted(one) for one in entries])


def test_instances_that_can():
    entries = [entry(), entry("b", address="10.0.0.1"), entry("c", port=9)]
    instances.check_together([instances.parse_wanted(one) for one in entries])


@pytest.mark.parametrize(
    ("status", "age", "job", "ready", "lasting", "seen"),
    [
        ({}, 1, JOB, True, False, "state ready"),
        ({}, 1, None, False, False, "its job has no process"),
        ({"error": "boom"}, 1, JOB._replace(pid=None, last_exit=1), False, False, "last exit code 1; it said: boom"),
        ({"pid": 6}, 1, JOB, False, False, "has not reported yet"),
        ({}, 60, JOB, False, False, "has not reported for 60 s"),
        ({"generation": "old"}, 1, JOB, False, False, "has not taken up the declaration; state ready"),
        ({"state": "loading"}, 1, JOB, False, False, "state loading"),
        ({"state": "starting", "error": "port in use"}, 1, JOB, False, True, "port in use"),
        ({"state": "starting", "error": "before this start: x"}, 1, JOB, False, False, "before this start"),
        ({"state": "degraded", "error": "parallel"}, 1, JOB, False, True, "state degraded: parallel"),
        ({"state": "degraded", "models": [{"attempts": 1}]}, 1, JOB, False, False, "degraded"),
        ({"state": "degraded", "models": [{"attempts": 0}, {"attempts": 2}]}, 1, JOB, False, True, "degraded"),
    ],
)
def test_what_the_runner_says(status, age, job, ready, lasting, seen):
    verdict = instances.judge_status(WANTED, {**STATUS, **status}, age, job)
    assert (verdict.ready, verdict.lasting) == (ready, lasting) and seen in verdict.seen


@pytest.mark.parametrize(
    ("loaded", "ready", "lasting", "seen"),
    [
        ({"m": SETTINGS, "stranger": {}}, True, False, "x"),
        ({"m": {**SETTINGS, "context_length": 1}}, False, True, "context_length is 1, declared 4096"),
        ({"other": {}}, False, False, "not loaded: m"),
        (None, False, False, "x"),
    ],
)
def test_what_the_server_says(loaded, ready, lasting, seen):
    verdict = instances.judge_server(WANTED, Server(True, loaded, "x"))
    assert (verdict.ready, verdict.lasting) == (ready, lasting) and seen in verdict.seen


def evidence(name="a", **changes):
    number = ord(name)
    right = {
        "home": f"/homes/{name}",
        "daemon_pid": number,
        "control_port": 1000 + number,
        "published": (number, 1000 + number),
        "listeners": {number},
        "declared": {"m"},
        "loaded": {"m"},
    }
    return instances.Evidence(name=name, **{**right, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"daemon_pid": None, "control_port": None, "listeners": set()}, None),
        ({"published": (None, None)}, None),
        ({"home": "/homes/a"}, "instances a and b share the home /homes/a."),
        ({"daemon_pid": 97, "published": (97, 1098)}, "share daemon 97."),
        ({"control_port": 1097, "published": (98, 1097)}, "share control port 1097."),
        ({"listeners": {98, 97}}, "share process 97, which listens for both."),
        ({"declared": {"n"}}, "share the loaded models (m), though they declare different ones."),
        ({"declared": {"n"}, "loaded": {"n", "m"}}, None),  # loaded there by hand
        ({"published": (97, 1097)}, "instance b: its runner has process 98 at control port 1098, but"),
    ],
)
def test_what_two_instances_may_not_share(changes, said):
    troubles = instances.indistinct([evidence(), evidence("b", **changes)])
    assert [said in trouble for trouble in troubles] == ([True] if said else [])
    assert all("Declare one instance here" in trouble or "Restart the" in trouble for trouble in troubles)


def test_the_runner_and_the_module_agree():
    assert instances.NEEDS_NEW_START == declaration.NEEDS_NEW_START
    assert _lmstudio_http.READ_BACK == plan.READ_BACK


def test_what_moves_to_another_launchd_domain_does_not_answer_meanwhile():
    moves = found(moved_from="gui", service=NOT_LOADED)
    decision = instances.decide(WANTED, moves, PATH, "v1")
    assert decision.action == "start"
    assert instances.interrupted(WANTED, moves, decision) == ["m"]
    fresh = found(service=NOT_LOADED)
    assert instances.interrupted(WANTED, fresh, instances.decide(WANTED, fresh, PATH, "v1")) == []


def interrupted(wanted=WANTED, **changes):
    now = found(**changes)
    return instances.interrupted(wanted, now, instances.decide(wanted, now, PATH, "v1"))


@pytest.mark.parametrize("broken", [None, "{", "[]"])
def test_what_serves_without_a_sound_declaration_does_not_answer_while_it_starts_anew(broken):
    models = [{"identifier": "m", "key": "p/n"}, {"identifier": "not loaded", "key": None}]
    status = {**STATUS, "generation": "another", "models": models}
    assert interrupted(declaration=broken, status=status) == ["m"]


@pytest.mark.parametrize(
    ("before", "after", "stopped"),
    [
        ({}, {"engine": "2"}, ["m"]),
        ({"engine": "1"}, {"engine": "2"}, ["m"]),
        ({"engine": "2"}, {"engine": "2"}, []),
        ({"engine": "2", "other": "1"}, {"engine": "2"}, []),  # what is not declared is left as it is
    ],
)
def test_with_another_runtime_all_models_are_loaded_anew(before, after, stopped):
    wanted = instances.parse_wanted(entry(runtimes=after, purge=True))
    assert interrupted(wanted, declaration=other(runtimes=before)) == stopped


@pytest.mark.parametrize(
    ("changes", "serves"),
    [
        ({}, True),
        ({"status": {**STATUS, "state": "loading"}}, False),
        ({"status": {**STATUS, "pid": 8}}, False),  # written before the last start
        ({"declaration": other(port=1235)}, False),
        ({"declaration": None}, False),
    ],
)
def test_what_serves_as_its_file_has_it(changes, serves):
    assert instances.serves_as_declared(found(**changes)) == serves
