# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds and ends what the sandbox has started, by a mark in each process's environment: no pid file to go stale."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

MAC_MARK = "LMFLEET_SANDBOX_MAC"
MIRROR_MARK = "LMFLEET_SANDBOX_MIRROR"
#: Who works on a realm from outside sets this to its name: what hangs about after a kill -9 then goes with the realm.
#: The workers of an ansible-playbook have sessions of their own and outlive it.
CLIENT_MARK = "LMFLEET_SANDBOX_CLIENT"


def _environment(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    entries = (entry.partition(b"=") for entry in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, _sign, value in entries if name}


def _is_process_1_of_a_namespace(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            pids = line.split()[1:]
            return len(pids) > 1 and pids[-1] == "1"
    return False


def marked(mark: str) -> dict[str, list[int]]:
    """All processes carrying `mark`: {its value: [pid, …]}. For Macs only process 1 counts."""
    found: dict[str, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        pid = int(entry)
        value = _environment(pid).get(mark)
        if value and (mark != MAC_MARK or _is_process_1_of_a_namespace(pid)):
            found.setdefault(value, []).append(pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not just waiting for its parent to notice its end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill(pid: int, mark: str, timeout: float = 10.0) -> None:
    """SIGKILL the process if it still carries `mark`, and wait until it is gone (seconds; TimeoutError)."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Read after opening the handle: the pid can no longer be somebody else's.
        if mark not in _environment(pid):
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return
        wait_for_end(handle, pid, timeout)
    finally:
        os.close(handle)


def wait_for_end(handle: int, pid: int, timeout: float) -> None:
    """Wait until the process behind a pidfd has ended. Raises TimeoutError after `timeout` seconds."""
    if not select.select([handle], [], [], timeout)[0]:
        raise TimeoutError(f"process {pid} did not end within {timeout:g} s")
