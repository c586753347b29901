# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals to this process, and looking at others."""

from __future__ import annotations

import os
import select
import signal
import subprocess

#: Part of the command line of every runner.
_RUNNER = "instance_runner"


class Wakeups:
    """Sleeps that a signal ends at once; SIGTERM is remembered, SIGCHLD only wakes."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._reader, writer = os.pipe()
        for end in (self._reader, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self.stop_requested = True

    def sleep(self, seconds: float) -> None:
        """Sleep until a signal arrives or the time is over."""
        if select.select([self._reader], [], [], max(0.0, seconds))[0]:
            os.read(self._reader, 4096)


def process_row(pid: int) -> tuple[int, str] | None:
    """Return (parent pid, command line) of a process, None when there is no such process."""
    try:
        answer = subprocess.run(
            ["/bin/ps", "-ww", "-o", "ppid=", "-o", "command=", "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = answer.stdout.decode("utf-8", "replace").strip().split(None, 1)
    return (int(words[0]), words[1]) if len(words) == 2 else None


def is_orphan(pid: int, programs: set[str]) -> bool:
    """Tell whether a process is one of `programs`, and no runner is its parent."""
    row = process_row(pid)
    if row is None or not programs & set(row[1].split()):
        return False
    parent = process_row(row[0])
    return parent is None or _RUNNER not in parent[1]


def descends_from(pid: int, ancestor: int) -> bool:
    """Tell whether a process is `ancestor` or was started by it, however indirectly."""
    for _generation in range(8):
        if pid == ancestor:
            return True
        row = process_row(pid)
        if row is None or row[0] <= 1:
            return False
        pid = row[0]
    return False
