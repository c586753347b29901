# SPDX-License-Identifier: GPL-3.0-or-later
"""The module launchd_services against the exit codes of launchctl."""

from __future__ import annotations

import os
import plistlib
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _launchd
from ansible_collections.lmfleet.mac.plugins.modules import launchd_services

LABEL = "org.example.job"


def plist(label=LABEL, **keys):
    return plistlib.dumps({"Label": label, "ProgramArguments": ["/bin/sh"], "RunAtLoad": True, **keys}).decode()


@pytest.fixture
def run(run_module, launchd, monkeypatch):
    monkeypatch.setattr(launchd_services, "domain_for", lambda kind, user: launchd.domain)

    def run(text=None, check=False, state="started", timeout=5, label=LABEL):
        service = {"label": label, "state": state, "plist": text}
        return run_module(launchd_services, {"services": [service], "timeout": timeout}, check)

    return run


def file_of(launchd, label=LABEL):
    return launchd.domain.plist_path(label)


def test_check_then_create_then_nothing(run, launchd):
    before = run(plist(), check=True)
    assert before["changed"] and before["services"][0]["actions"] == ["write", "bootstrap"]
    assert not os.path.exists(launchd.domain.folder) and launchd.names() == []

    made = run(plist())
    assert made["services"][0] == {**before["services"][0], "pid": 101}
    assert made["diff"] == before["diff"] and "/bin/sh" in made["diff"][0]["after"]
    assert os.stat(file_of(launchd)).st_mode & 0o777 == 0o644

    launchd.calls.clear()
    again = run(plist())
    assert not again["changed"] and again["diff"] == [] and launchd.names() == []


def test_comments_and_order_do_not_count(run):
    run(plist(Nice=1, KeepAlive=True))
    text = plist(KeepAlive=True, Nice=1).replace("<dict>", "<dict> <!-- why -->", 1)
    assert not run(text)["changed"]


def test_true_is_not_1(run):
    run(plist(Nice=1))
    assert run(plist(Nice=True))["changed"]


def test_a_changed_plist_is_written_only_after_the_job_is_gone(run, launchd):
    run(plist())
    launchd.draining[LABEL] = 3
    launchd.calls.clear()
    changed = run(plist(Nice=5))
    assert changed["services"][0]["actions"] == ["bootout", "write", "bootstrap"]
    # a look for the plan and two more until it was drained; only then the new start
    until_start = launchd.calls[: launchd.calls.index(("bootstrap", LABEL))]
    assert until_start.count(("print", LABEL)) == 3
    assert launchd.jobs[LABEL]["plist"]["Nice"] == 5
    assert "<key>Nice</key>" in changed["diff"][0]["after"] and "Nice" not in changed["diff"][0]["before"]


def test_a_run_killed_before_bootstrap_is_repaired(run, launchd):
    run(plist())
    del launchd.jobs[LABEL]
    repaired = run(plist())
    assert repaired["changed"] and repaired["services"][0]["actions"] == ["bootstrap"]


def test_a_job_that_vanishes_while_waiting_is_started_again(run, launchd):
    run(plist())
    launchd.draining[LABEL] = 2  # a killed run had just sent bootout: seen once more, then gone
    assert run(plist())["services"][0]["pid"] == 102


def test_a_job_loaded_from_another_file_is_loaded_again(run, launchd):
    run(plist())
    launchd.jobs[LABEL]["path"] = "/elsewhere.plist"
    assert run(plist())["services"][0]["actions"] == ["bootout", "bootstrap"]


def test_stopped_and_absent(run, launchd):
    run(plist())
    assert run(plist(), state="stopped")["services"][0]["actions"] == ["bootout"]
    assert not run(plist(), state="stopped")["changed"]
    gone = run(state="absent")
    assert gone["services"][0]["actions"] == ["remove"] and not os.path.exists(file_of(launchd))
    assert not run(state="absent")["changed"]


def test_ownership_is_repaired_without_a_restart(run, launchd):
    run(plist())
    os.chmod(file_of(launchd), 0o666)
    assert run(plist())["services"][0]["actions"] == ["fix_ownership"]
    assert os.stat(file_of(launchd)).st_mode & 0o777 == 0o644 and launchd.jobs[LABEL]["pid"] == 101


def test_a_disabled_job_is_enabled(run, launchd):
    launchd.disabled.add(LABEL)
    assert run(plist())["services"][0]["pid"] == 101
    assert launchd.names() == [f"enable {LABEL}", f"bootstrap {LABEL}"]


def test_a_disabled_job_that_runs_is_enabled_without_a_restart(run, launchd):
    run(plist())
    launchd.disabled.add(LABEL)
    assert run(plist(), check=True)["services"][0]["actions"] == ["enable"] and launchd.disabled
    enabled = run(plist())["services"][0]
    assert (enabled["changed"], enabled["pid"], enabled["actions"]) == (True, 101, ["enable"])
    assert not launchd.disabled and not run(plist())["changed"]


@pytest.mark.parametrize("code", [5, 37, 122])
def test_bootstrap_is_tried_again(run, launchd, code):
    launchd.refuse_once = [code]
    assert run(plist())["services"][0]["pid"] == 101


def test_bootstrap_that_never_succeeds_names_the_code(run, launchd):
    launchd.refuse_once = [5] * 50
    failed = run(plist(), timeout=1)
    assert failed["failed"] and "kept answering 5" in failed["msg"] and "plutil" in failed["msg"]


def test_launchd_that_refuses_is_not_asked_to_the_end_of_the_timeout(run, launchd, monkeypatch):
    monkeypatch.setattr(_launchd, "REFUSAL_SECONDS", 1.0)
    launchd.refuse_once = [5] * 50
    began = time.monotonic()
    failed = run(plist(), timeout=100)
    assert failed["failed"] and "launchd refuses the plist" in failed["msg"]
    assert time.monotonic() - began < 50


@pytest.mark.parametrize("check", [True, False])
def test_no_session_at_the_screen_names_both_cures_and_changes_nothing(run, launchd, check):
    launchd.no_domain = True
    failed = run(plist(), check=check)
    assert "log in as admin" in failed["msg"] and "lmfleet_launchd_domain: system" in failed["msg"]
    assert not os.path.exists(file_of(launchd))


def test_exit_78_names_the_missing_program(run, launchd):
    launchd.exits[LABEL] = 78
    text = plist(ProgramArguments=["/nowhere/llmster"], KeepAlive=True)
    assert "/nowhere/llmster does not exist" in run(text)["msg"]
    text = plist(KeepAlive=True, WorkingDirectory="/nowhere")
    assert "working directory /nowhere does not exist" in run(text)["msg"]


def test_no_process_in_time_tells_the_last_words(run, launchd, tmp_path):
    launchd.exits[LABEL] = 1
    (tmp_path / "log").write_text("one\ntwo\n")
    failed = run(plist(KeepAlive=True, StandardErrorPath=str(tmp_path / "log")), timeout=1)
    assert "last exit code 1" in failed["msg"] and "one | two" in failed["msg"]


def test_a_job_that_may_end_is_well_when_it_ended_well(run, launchd):
    launchd.exits[LABEL] = 0
    assert run(plist())["services"][0]["pid"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n<plist><dict></plist>", "line 3"),
        ("not xml", "not valid XML"),
        (plist("another"), "its Label is 'another'"),
        (plistlib.dumps({"Label": LABEL}).decode(), "what to run"),
        (plistlib.dumps([1]).decode(), "must be a dict"),
        (None, "plist is required"),
    ],
)
def test_bad_plists_are_refused_by_name(run, text, said):
    failed = run(text)
    assert failed["failed"] and said in failed["msg"] and LABEL in failed["msg"]


@pytest.mark.parametrize("label", ["../x", "a b", ""])
def test_bad_labels_are_refused(run, label):
    assert "not a launchd label" in run(plist(), label=label)["msg"]
