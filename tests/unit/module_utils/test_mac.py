# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host can serve, judged from its facts."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _mac

WANTED = {"macos_version": "14.0", "memory_mb": 8192, "free_disk_mb": 1000, "domains": ["gui"]}


def facts(**changes):
    sound = {
        "system": "Darwin",
        "machine": "arm64",
        "macos_version": "15.5",
        "memory_mb": 65536,
        "disk_path": "/Users/admin",
        "free_disk_mb": 50000,
        "gui_session": True,
        "user": {"name": "admin"},
        "listeners": [],
    }
    return {**sound, **changes}


def test_a_sound_mac_has_no_problems():
    assert _mac.problems(facts(), WANTED) == []


PROBLEMS = {
    "linux": ({"system": "Linux", "machine": "x86_64"}, "Linux on x86_64"),
    "intel": ({"machine": "x86_64"}, "processor of type x86_64"),
    "old macOS": ({"macos_version": "13.7.1"}, "macOS 13.7.1 is older than 14.0"),
    "no version": ({"macos_version": ""}, "(unknown)"),
    "little memory": ({"memory_mb": 4096}, "4096 MB of memory"),
    "little disk": ({"free_disk_mb": 10}, "10 MB of free disk at /Users/admin"),
    "nobody logged in": ({"gui_session": False}, "lmfleet_launchd_domain: system"),
    "a port taken": (
        {"listeners": [{"port": 1234, "use": "instance a", "process": "nginx (pid 7)"}]},
        "port 1234, wanted for instance a, is taken by nginx",
    ),
}


@pytest.mark.parametrize(("changes", "words"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_wrong_is_named(changes, words):
    problems = _mac.problems(facts(**changes), WANTED)
    assert len(problems) == 1
    assert words in problems[0]


def test_everything_wrong_is_named_at_once():
    assert len(_mac.problems(facts(macos_version="12.0", memory_mb=1, free_disk_mb=1, gui_session=False), WANTED)) == 4


def test_a_session_is_wanted_only_for_agents():
    assert _mac.problems(facts(gui_session=False), {**WANTED, "domains": ["system"]}) == []


def test_versions_compare_by_number():
    assert _mac.version_tuple("14.10") > _mac.version_tuple("14.9")
    assert _mac.version_tuple("15.0 beta") == (15,)


def test_descent_follows_parents():
    parent_of = _mac.parents("  1     0\n 10     1\n 11    10\n 12    11\nnonsense line here\n")
    assert _mac.descends_from(12, 10, parent_of)
    assert not _mac.descends_from(10, 12, parent_of)
    assert not _mac.descends_from(5, 5 + 1, {5: 4, 4: 5})


def test_the_instance_runners_of_a_user():
    text = (
        "  12 /usr/bin/python3 /Users/ada/.lmfleet/instance_runner.pyz /Users/ada/.lmfleet/instances/chat-a\n"
        "  13 /usr/bin/python3 /Users/bob/.lmfleet/instance_runner.pyz /Users/bob/.lmfleet/instances/chat-a\n"
        "  14 vi /Users/ada/instance_runner.pyz\n"
    )
    assert _mac.instance_runners(text, "/Users/ada") == {12}
