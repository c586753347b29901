# SPDX-License-Identifier: GPL-3.0-or-later
"""Which inference runtimes an instance uses."""

from __future__ import annotations

import pytest

from instance_runner import runtimes
from instance_runner.lms import Answer

NAME = "llama.cpp-mac-arm64-apple-metal-advsimd"


class Lms:
    """lms runtime ls and select."""

    def __init__(self):
        self.installed = {f"{NAME}@2.27.1": True, f"{NAME}@2.26.0": False, "mlx@1.9.0": True}
        self.stuck = False
        self.calls = []

    def ask(self, words):
        self.calls.append(words)
        if words[:2] == ["runtime", "select"] and not self.stuck:
            name = words[2].partition("@")[0]
            self.installed.update({one: one == words[2] for one in self.installed if one.startswith(name)})
            return Answer("", f"Selected {words[2]}", False)
        rows = "".join(f"{one:<50} {'✓' if chosen else '':<8} GGUF\n" for one, chosen in self.installed.items())
        return Answer(f"LLM ENGINE   SELECTED   MODEL FORMAT\n{rows}", "", False)


@pytest.fixture
def lms():
    return Lms()


def test_what_is_selected_already_costs_one_question(lms):
    checked = runtimes.Runtimes(lms.ask)
    assert not checked.check({NAME: "2.27.1"}) and not checked.check({NAME: "2.27.1"})
    assert (checked.selected, checked.problems, lms.calls) == ({NAME: "2.27.1"}, [], [["runtime", "ls"]])


def test_another_version_is_selected_and_read_back(lms):
    checked = runtimes.Runtimes(lms.ask)
    assert checked.check({NAME: "2.26.0"})
    assert (checked.selected, checked.problems) == ({NAME: "2.26.0"}, [])
    assert lms.calls == [["runtime", "ls"], ["runtime", "select", f"{NAME}@2.26.0"], ["runtime", "ls"]]


def test_one_that_is_not_installed_is_said_with_the_cure(lms):
    checked = runtimes.Runtimes(lms.ask)
    assert not checked.check({NAME: "3.0.0", "other": "1.0"})
    assert f"runtime {NAME}: version 3.0.0 is not installed (installed is 2.27.1, 2.26.0)" in checked.problems[0]
    assert f"lms runtime get {NAME}@3.0.0" in checked.problems[0]
    assert "no version of it is installed" in checked.problems[1]


def test_one_that_does_not_get_selected_is_said(lms):
    lms.stuck = True
    checked = runtimes.Runtimes(lms.ask)
    checked.check({NAME: "2.26.0"})
    assert checked.problems == [f"runtime {NAME}: version 2.26.0 is installed and does not get selected"]


def test_an_lms_that_does_not_tell_is_said(lms):
    checked = runtimes.Runtimes(lambda _words: Answer("", "network unreachable", False))
    assert not checked.check({NAME: "2.26.0"})
    assert checked.problems == ["lms runtime ls does not tell which runtimes there are: network unreachable"]


def test_nothing_declared_asks_nothing(lms):
    assert not runtimes.Runtimes(lms.ask).check({}) and lms.calls == []
