# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends what tests have started and left behind, also those of a run that was killed.

Every process that a run of pytest starts inherits a mark that names the run. So nothing has to be kept in a file, and
two runs do not end each other's.
"""

from __future__ import annotations

import os
from pathlib import Path

from lmfleet_sandbox import processes

MARK = "LMFLEET_TESTS"


def this_run() -> str:
    return _name(os.getpid())


def end_of_dead_runs() -> None:
    """End what is left of runs that are no more."""
    namespace = this_run().partition(".")[0]
    for run in processes.marked(MARK):
        where, pid, _started = run.split(".")
        # Whether a run in another namespace lives cannot be seen from here.
        if where == namespace and _name(int(pid)) != run:
            end_of(run)


def end_of(run: str) -> None:
    """End all that a run has started."""
    for pid in processes.marked(MARK).get(run, []):
        processes.kill(pid, MARK)


def _name(pid: int) -> str:
    """Return a name for a process that no later one gets, "" when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    state, started = (stat.rpartition(")")[2].split()[field] for field in (0, 19))
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return "" if state in "ZX" else f"{namespace}.{pid}.{started}"
