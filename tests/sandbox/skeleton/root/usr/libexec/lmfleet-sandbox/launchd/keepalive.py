# SPDX-License-Identifier: GPL-3.0-or-later
"""The KeepAlive key: whether a job that is not running should be."""

from __future__ import annotations

import os
import signal

# The signals launchd takes for a crash.
_CRASHES = {
    signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGFPE, signal.SIGBUS, signal.SIGSEGV, signal.SIGSYS,
}  # fmt: skip


def at_load(spec: dict) -> bool:
    """Whether the job starts as soon as it is loaded."""
    keep_alive = spec.get("KeepAlive", False)
    if spec.get("RunAtLoad") or keep_alive is True:
        return True
    # SuccessfulExit and Crashed speak of a previous run, so they imply that there is a first one.
    return isinstance(keep_alive, dict) and ("SuccessfulExit" in keep_alive or "Crashed" in keep_alive)


def after_exit(spec: dict, exit_code: int | None, exit_signal: int | None) -> bool:
    """Whether a job that just ended (by itself or by a signal) is to be started again for how it ended."""
    keep_alive = spec.get("KeepAlive", False)
    if not isinstance(keep_alive, dict):
        return bool(keep_alive)
    if "SuccessfulExit" in keep_alive and keep_alive["SuccessfulExit"] == (exit_code == 0):
        return True
    return "Crashed" in keep_alive and keep_alive["Crashed"] == (exit_signal in _CRASHES)


def path_state_asks(spec: dict) -> bool:
    """Whether one of the paths of KeepAlive's PathState is (or is not) there as asked."""
    return any(os.path.exists(path) == wanted for path, wanted in watched_paths(spec).items())


def watched_paths(spec: dict) -> dict[str, bool]:
    keep_alive = spec.get("KeepAlive", False)
    return keep_alive.get("PathState", {}) if isinstance(keep_alive, dict) else {}
