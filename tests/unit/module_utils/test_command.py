# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs are given a time, whatever they do."""

from __future__ import annotations

import time

from ansible_collections.lmfleet.mac.plugins.module_utils._command import run


def test_output_and_exit_code():
    result = run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10)
    assert (result.rc, result.out, result.err, result.said()) == (3, "out\n", "err\n", "err")


def test_environment_and_folder(tmp_path):
    assert run(["/bin/sh", "-c", "echo $A; pwd"], 10, env={"A": "1"}, cwd=str(tmp_path)).out == f"1\n{tmp_path}\n"


def test_a_program_and_its_children_are_killed_in_time(tmp_path):
    began = time.monotonic()
    result = run(["/bin/sh", "-c", f"(sleep 1; touch {tmp_path}/alive) & sleep 30"], timeout=0.5)
    assert result.timed_out and result.said() == "no answer in time" and time.monotonic() - began < 5
    time.sleep(1)
    assert not (tmp_path / "alive").exists()


def test_a_grandchild_that_keeps_the_output_open_does_not_matter():
    began = time.monotonic()
    assert run(["/bin/sh", "-c", "sleep 3 & echo done"], timeout=10).out == "done\n"
    assert time.monotonic() - began < 2


def test_a_missing_program():
    assert "No such file" in run(["/nowhere"], 5).said()
