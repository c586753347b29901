# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to change about the settings of a Mac. The commands are run by sandbox Macs in tests/e2e."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _host_settings
from ansible_collections.lmfleet.mac.plugins.module_utils._host_settings import Actual, Wanted, plan

# A portable Mac: two power sources. A number is not always all that a line has.
PMSET = """\
Battery Power:
 lidwake              1
 sleep                1
 womp                 0
AC Power:
 sleep                0 (sleep prevented by caffeinate)
 womp                 0
 hibernatefile        /var/vm/sleepimage
"""
FOUND = {"sleep": {0, 1}, "womp": {0}, "lidwake": {1}}


def test_the_settings_of_all_power_sources_are_read():
    assert _host_settings.parse_power(PMSET) == FOUND


@pytest.mark.parametrize(
    ("wanted", "changes"),
    [
        ({"sleep": 0}, {"sleep": 0}),  # one source differs
        ({"womp": 0}, {}),
        ({"womp": 1, "lidwake": 1}, {"womp": 1}),
        ({}, {}),
    ],
)
def test_only_what_differs_is_set(wanted, changes):
    made = plan(Wanted(wanted, None, ""), Actual(FOUND, 0, []))
    assert (made.power, made.unsupported, made.empty) == (changes, [], not changes)


def test_a_setting_that_the_mac_does_not_have_is_left_out_and_named():
    made = plan(Wanted({"autorestart": 1}, None, ""), Actual(FOUND, 0, []))
    assert (made.power, made.unsupported, made.empty) == ({}, ["autorestart"], True)


@pytest.mark.parametrize(
    ("declared", "found", "boot", "limit"),
    [
        (9000, 0, ["write", "bootstrap"], 9000),
        (9000, 9000, [], None),
        (9000, 8000, [], 9000),
        (None, 8000, [], None),  # somebody else's limit
        (None, 8000, ["bootout", "remove"], 0),  # ours, and no longer declared
    ],
)
def test_the_limit_of_the_gpu(declared, found, boot, limit):
    made = plan(Wanted({}, declared, ""), Actual({}, found, boot))
    assert (made.limit_mb, made.boot_actions) == (limit, boot)


@pytest.mark.parametrize(
    ("limit", "refused"), [(None, False), (1023, True), (1024, False), (6144, False), (6145, True)]
)
def test_bounds_of_the_limit(limit, refused):
    problem = _host_settings.limit_problem(limit, 8192)
    assert bool(problem) == refused
    assert not refused or "1024 to 6144" in problem


def test_what_changes_is_told():
    wanted = Wanted({"sleep": 0}, 9000, "")
    actual = Actual(FOUND, 0, ["bootstrap"])
    changes = plan(wanted, actual)
    job = "launchd job system/lmfleet.gpu-memory-limit: bootstrap"
    assert _host_settings.lines(changes) == ["pmset sleep 0", "sysctl iogpu.wired_limit_mb=9000", job]
    diff = _host_settings.diff(changes, actual)
    assert diff["before"] == "pmset sleep 0 and 1\niogpu.wired_limit_mb=0\n"
    assert diff["after"] == f"pmset sleep 0\niogpu.wired_limit_mb=9000\n{job}\n"
