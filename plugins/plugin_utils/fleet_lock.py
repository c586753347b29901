# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run per fleet and controller: locks that are held exactly as long as the run's process lives.

The task that takes the locks ends long before the run does, so a small process of its own holds them. The kernel
frees them with that process, and that process ends with the run, however the run ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import select
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

#: The same for all runs of a user. The temporary folder is not: a shell may have one of its own.
FOLDER = Path("~/.ansible/lmfleet")


def lock_files(addresses: Iterable[str]) -> list[Path]:
    """Return the paths of the locks of these addresses, in the order in which every run takes them."""
    folder = FOLDER.expanduser()
    return [folder / f"{quote(address, safe='')}.lock" for address in sorted(set(addresses))]


def controller_id() -> str:
    """Return what tells this user's controller from others for ever, made up at the first call.

    Names and network interfaces come and go. Raises OSError.
    """
    folder = FOLDER.expanduser()
    path = folder / "controller-id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=folder)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):  # the one of a run that was quicker
            os.link(draft, path)
        os.unlink(draft)
    return path.read_text().strip()


def run_pid() -> int:
    """Return the process of ansible-playbook, which has started this worker.

    After a kill -9 of it a worker goes on for a moment, a child of process 1, for which a lock would never end.
    """
    starter = multiprocessing.parent_process()
    return starter.pid if starter else os.getppid()


def take(paths: list[Path], run_pid: int, timeout: float, holder: dict[str, str]) -> dict[str, str] | None:
    """Take the locks for the process C(run_pid), waiting up to C(timeout) seconds.

    Returns None when all are held for that process now, or else what the present holder of one wrote about itself.
    Raises RuntimeError when the holding process could not be started or cannot open a file.
    """
    command = [sys.executable, __file__, str(run_pid), str(timeout), json.dumps(holder), *map(str, paths)]
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
        raise RuntimeError(f"the process that is to hold it ended with code {process.wait()}")
    return json.loads(answer)["held_by"]


def _lock(descriptor: int, deadline: float) -> bool:
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


def _hold(run_pid: int, timeout: float, holder: str, paths: list[str]) -> None:
    deadline = time.monotonic() + timeout
    for path in paths:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock(descriptor, deadline):
            text = os.pread(descriptor, 4096, 0).decode(errors="replace")
            print(json.dumps({"held_by": json.loads(text)}), flush=True)
            return
        # At once: another run may ask while this one still waits for the next lock.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
    print(json.dumps({"held_by": None}), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _wait_for_end(run_pid)


if __name__ == "__main__":
    _hold(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
