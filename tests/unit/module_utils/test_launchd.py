# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of one launchd job, and reading what launchctl prints."""

from __future__ import annotations

import os
import pwd

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils._launchd import (
    Actual,
    Job,
    LaunchdError,
    Service,
    canonical,
    domain_for,
    parse_disabled,
    parse_print,
    plan,
)

PATH = "/L/job.plist"
PLIST = {"Label": "job", "ProgramArguments": ["/bin/sh"]}
SAME, OTHER = canonical(PLIST), canonical({**PLIST, "Nice": 1})
JOB = Job("running", 7, None, PATH)


@pytest.mark.parametrize(
    ("job", "state", "actions"),
    [(JOB, "started", ["enable"]), (None, "started", ["enable", "bootstrap"]), (JOB, "stopped", ["bootout"])],
)
def test_plan_for_a_disabled_job(job, state, actions):
    assert plan(Service("job", state, PLIST), PATH, Actual(SAME, True, job, disabled=True)) == actions


@pytest.mark.parametrize(
    ("state", "disk", "owned", "job", "actions"),
    [
        ("started", None, False, None, ["write", "bootstrap"]),
        ("started", SAME, True, None, ["bootstrap"]),
        ("started", SAME, True, JOB, []),
        ("started", SAME, False, JOB, ["fix_ownership"]),
        ("started", OTHER, True, JOB, ["bootout", "write", "bootstrap"]),
        ("started", OTHER, True, None, ["write", "bootstrap"]),
        ("started", "garbage", False, JOB, ["bootout", "write", "bootstrap"]),
        ("started", None, False, JOB, ["bootout", "write", "bootstrap"]),
        ("started", SAME, True, JOB._replace(path="/other"), ["bootout", "bootstrap"]),
        ("started", SAME, True, JOB._replace(path=None), []),
        ("stopped", SAME, True, JOB, ["bootout"]),
        ("stopped", None, False, None, ["write"]),
        ("absent", SAME, True, JOB, ["bootout", "remove"]),
        ("absent", None, False, JOB, ["bootout"]),
        ("absent", None, False, None, []),
    ],
)
def test_plan(state, disk, owned, job, actions):
    service = Service("job", state, None if state == "absent" else PLIST)
    assert plan(service, PATH, Actual(disk, owned, job)) == actions


def test_print_is_read_at_its_top_level_only():
    text = (
        "gui/501/job = {\n\tpath = /L/job.plist\n\tstate = running\n\tpid = 42\n\tlast exit code = 78: EX_CONFIG\n"
        "\tendpoints = {\n\t\tstate = active\n\t\tpid = 1\n\t}\n}\n"
    )
    assert parse_print(text) == Job("running", 42, 78, "/L/job.plist")
    text = (
        "gui/501/job = {\n\tendpoints = {\n\t\tpid = 1\n\t}\n\tstate = not running\n"
        "\tlast exit code = (never exited)\n}\n"
    )
    assert parse_print(text) == Job("not running", None, None, None)


def test_domains(monkeypatch):
    me = pwd.getpwuid(os.getuid())
    gui = domain_for("gui", me.pw_name)
    assert gui.target == f"gui/{me.pw_uid}" and gui.folder == f"{me.pw_dir}/Library/LaunchAgents"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    for kind, said in (("system", "become: true"), ("gui", "or root only")):
        with pytest.raises(LaunchdError, match=said):
            domain_for(kind, me.pw_name)
    with pytest.raises(LaunchdError, match="no user 'nobody-here'"):
        domain_for("gui", "nobody-here")


def test_disabled_labels_as_old_and_new_releases_of_macos_write_them():
    new = '\tdisabled services = {\n\t\t"a.b" => disabled\n\t\t"c" => enabled\n\t}\n'
    old = '\tdisabled services = {\n\t\t"a.b" => true\n\t\t"c" => false\n\t}\n'
    assert parse_disabled(new) == parse_disabled(old) == {"a.b"}
    assert parse_disabled("Could not find domain") == set()
