# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run per fleet and controller: a lock that is held exactly as long as the run's process lives.

The task that takes the lock ends long before the run does, so a small process of its own holds it. The kernel
frees the lock with that process, and that process ends with the run, however the run ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path


def lock_file(hosts: Iterable[str]) -> Path:
    """Return the path of the lock of the fleet that consists of these addresses.

    It is the same for every user and inventory folder.
    """
    fleet = hashlib.sha256("\n".join(sorted(set(hosts))).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"lmfleet-{fleet}.lock"


def run_pid() -> int:
    """Return the process of ansible-playbook, which has started this worker.

    After a kill -9 of it a worker goes on for a moment, a child of process 1, for which a lock would never end.
    """
    starter = multiprocessing.parent_process()
    return starter.pid if starter else os.getppid()


def take(path: Path, run_pid: int, timeout: float, holder: dict[str, str]) -> dict[str, str] | None:
    """Take the lock for the process C(run_pid), waiting up to C(timeout) seconds.

    Returns None when the lock is held for that process now, or else what the present holder wrote about itself.
    Raises OSError when the lock file cannot be opened, RuntimeError when the holding process could not be started.
    """
    command = [sys.executable, __file__, str(path), str(run_pid), str(timeout), json.dumps(holder)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    answer = process.stdout.readline()
    process.stdout.close()
    if not answer:
        raise RuntimeError(f"cannot take the lock {path}: its holder ended with code {process.wait()}")
    return json.loads(answer)["held_by"]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.fchmod(descriptor, 0o666)  # another user of this controller runs against the same fleet
        return descriptor


def _lock(descriptor: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


def _wait_for_end(pid: int) -> None:
    """Return when the process has ended, at once when there is none. A process that nobody has reaped yet has ended."""
    if hasattr(select, "kqueue"):
        event = select.kevent(pid, filter=select.KQ_FILTER_PROC, flags=select.KQ_EV_ADD, fflags=select.KQ_NOTE_EXIT)
        try:
            select.kqueue().control([event], 1)
        except ProcessLookupError:
            return
    else:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        select.select([descriptor], [], [])


def _hold(path: Path, run_pid: int, timeout: float, holder: str) -> None:
    descriptor = _open(path)
    if not _lock(descriptor, timeout):
        text = os.pread(descriptor, 4096, 0).decode(errors="replace")
        print(json.dumps({"held_by": json.loads(text)}), flush=True)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.encode(), 0)
    print(json.dumps({"held_by": None}), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _wait_for_end(run_pid)


if __name__ == "__main__":
    _hold(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
