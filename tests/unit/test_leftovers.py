# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of the tests that is killed leaves nothing behind that the next one does not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import leftovers


def mark(value):
    return {**os.environ, leftovers.MARK: value}


def test_what_a_dead_run_started_is_ended_and_what_others_started_is_not():
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    namespace = leftovers.this_run().partition(".")[0]
    run = f"{int(dead.stdout)}.1"
    with (
        subprocess.Popen(["sleep", "60"], env=mark(f"{namespace}.{run}"), start_new_session=True) as orphan,
        subprocess.Popen(["sleep", "60"], env=mark(f"1{namespace}.{run}"), start_new_session=True) as elsewhere,
        subprocess.Popen(["sleep", "60"], env=mark(leftovers.this_run()), start_new_session=True) as ours,
    ):
        leftovers.end_of_dead_runs()
        assert orphan.wait(10) == -signal.SIGKILL and ours.poll() is None and elsewhere.poll() is None
        elsewhere.kill()
        leftovers.end_of(leftovers.this_run())
        assert ours.wait(10) == -signal.SIGKILL


def test_all_that_this_run_starts_carries_its_mark():
    shown = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert f"{leftovers.MARK}={os.environ[leftovers.MARK]}\n" in shown
    assert int(os.environ[leftovers.MARK].split(".")[1]) in (os.getpid(), os.getppid())
