# SPDX-License-Identifier: GPL-3.0-or-later
"""A loaded job: its process, when it is started again, and how it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from . import keepalive, spawn

DEFAULT_THROTTLE = 10.0
DEFAULT_EXIT_TIMEOUT = 5.0
# How often a path that a job is kept alive for is looked at, in seconds.
PATH_INTERVAL = 0.5


class Job:
    """One service of a domain. `watch(pid, job)` tells the server whose process it is; `log(text)` writes a line."""

    def __init__(self, spec: dict, path: str, domain, timers, watch, log):
        self.spec = spec
        self.label = spec["Label"]
        self.path = path
        self.domain = domain
        self.pid: int | None = None
        self.runs = 0
        self.exit_code: int | None = None
        self.exit_signal: int | None = None
        self.leaving = False
        self._timers = timers
        self._watch = watch
        self._log = log
        self._started_at = 0.0
        self._next_start = None
        self._kill_timer = None
        self._interval_timer = None
        self._path_timer = None
        self._wanted_now = False
        self._on_exit: list = []

    @property
    def throttle(self) -> float:
        return float(self.spec.get("ThrottleInterval", DEFAULT_THROTTLE))

    @property
    def exit_timeout(self) -> float:
        """Seconds between SIGTERM and SIGKILL; 0 means never."""
        return float(self.spec.get("ExitTimeOut", DEFAULT_EXIT_TIMEOUT))

    @property
    def state(self) -> str:
        if self.pid:
            return "SIGTERMed" if self.leaving else "running"
        return "spawn scheduled" if self._next_start else "not running"

    def loaded(self) -> None:
        """Do what is to be done when the job has just been loaded."""
        if keepalive.at_load(self.spec):
            self.start()
        if "StartInterval" in self.spec:
            self._interval_timer = self._timers.after(float(self.spec["StartInterval"]), self._interval_is_over)
        if keepalive.watched_paths(self.spec):
            self._look_at_paths()

    def start(self) -> None:
        """Start the process now, unless it runs."""
        if self.pid or self.leaving:
            return
        self._cancel("_next_start")
        self._started_at = time.monotonic()
        self.runs += 1
        self.pid = spawn.start(self.spec, self.domain.uid)
        self._watch(self.pid, self)
        self._log(f"{self.domain.name}/{self.label}: started, pid {self.pid}")

    def restart(self, started) -> None:
        """Stop the process if there is one and start it at once, whatever the throttle; then call `started()`."""
        if not self.pid:
            self.start()
            started()
            return
        self._wanted_now = True
        self._on_exit.append(started)
        self._terminate()

    def stop_for_good(self, gone) -> None:
        """The job is being unloaded: end the process and call `gone()` once it has ended."""
        self.leaving = True
        self._wanted_now = False
        for name in ("_next_start", "_interval_timer", "_path_timer"):
            self._cancel(name)
        if not self.pid:
            gone()
            return
        self._on_exit.append(gone)
        self._terminate()

    def send(self, number: int) -> None:
        """Send a signal to the process, which must be running."""
        os.kill(self.pid, number)

    def ended(self, status: int) -> None:
        """The process has been reaped with this wait status."""
        pid, self.pid = self.pid, None
        self._cancel("_kill_timer")
        self.exit_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        cause = f"signal {self.exit_signal}" if self.exit_signal else f"exit code {self.exit_code}"
        self._log(f"{self.domain.name}/{self.label}: ended, pid {pid}, {cause}")
        if not self.spec.get("AbandonProcessGroup"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGTERM)
        if self._wanted_now:
            self._wanted_now = False
            self.start()
        elif not self.leaving and keepalive.after_exit(self.spec, self.exit_code, self.exit_signal):
            self._start_when_allowed()
        waiting, self._on_exit = self._on_exit, []
        for call in waiting:
            call()

    def _terminate(self) -> None:
        if self._kill_timer:
            return
        self.send(signal.SIGTERM)
        if self.exit_timeout > 0:
            self._kill_timer = self._timers.after(self.exit_timeout, self._kill)

    def _kill(self) -> None:
        if self.pid:
            self._log(f"{self.domain.name}/{self.label}: still there after {self.exit_timeout:g} s, killed")
            self.send(signal.SIGKILL)

    def _start_when_allowed(self) -> None:
        wait = self._started_at + self.throttle - time.monotonic()
        if wait <= 0:
            self.start()
        elif not self._next_start:
            self._log(f"{self.domain.name}/{self.label}: starts again in {wait:.1f} s")
            self._next_start = self._timers.after(wait, self._throttle_is_over)

    def _throttle_is_over(self) -> None:
        self._next_start = None
        self.start()

    def _interval_is_over(self) -> None:
        self._interval_timer = self._timers.after(float(self.spec["StartInterval"]), self._interval_is_over)
        self.start()

    def _look_at_paths(self) -> None:
        self._path_timer = self._timers.after(PATH_INTERVAL, self._look_at_paths)
        if not self.pid and keepalive.path_state_asks(self.spec):
            self._start_when_allowed()

    def _cancel(self, name: str) -> None:
        timer = getattr(self, name)
        if timer:
            timer.cancel()
            setattr(self, name, None)
