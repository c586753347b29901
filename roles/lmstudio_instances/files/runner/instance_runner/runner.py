# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance, from start to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from .daemon import Daemon
from .declaration import Declaration, parse_declaration
from .errors import DaemonLostError, DeclarationError, ReplacedError, StopRequestedError
from .files import Places, bytes_of, read_object, stamp, write_atomically
from .lms import LMS_TIMEOUT, Answer, Lms
from .logs import keep_small, log
from .models import Models
from .processes import Wakeups, is_orphan
from .runtimes import Runtimes
from .server import greets, port_trouble, served_models
from .status_server import Publication

EXIT_LOST = 1

SILENT_POLLS = 3  # polls without greeting after which the server counts as hung
DECLARATION_CHECK = 0.25  # seconds between two looks at instance.json
PORT_RETRY = 1.0  # seconds between two tries for a port that is taken
LOG_CHECK = 60.0  # seconds between two looks at the size of the logs


class Runner:
    """Starts, watches and stops; every wait goes through `pause`."""

    def __init__(self, places: Places, declaration: Declaration, wakeups: Wakeups, version: str) -> None:
        self.places = places
        self.declaration = declaration
        self.wakeups = wakeups
        self.version = version
        self.daemon = Daemon(places)
        self.lms = Lms(places, self.pause)
        self.models = Models(self.ask, self._served_models, self.write_status)
        self.runtimes = Runtimes(self.ask)
        self.publication = Publication()
        self.phase = "starting"
        self.error: str | None = None
        self.declaration_error: str | None = None
        self._declaration_stamp = stamp(places.declaration)
        self._served: dict[str, dict[str, Any]] | None = None
        self._silent = 0
        self._next_poll = 0.0
        self._next_log_check = 0.0

    def run(self) -> int:
        """Run until launchd stops the job or something is lost; return the exit code: 0 for a stop, 1 for a loss."""
        code = 0
        try:
            self._check_logs()
            self._end_previous_daemon()
            self._start_daemon()
            self._start_server()
            self.runtimes.check(self.declaration.runtimes)
            self._watch()
        except StopRequestedError:
            log("stopping: launchd asked for it")
        except ReplacedError:
            log("stopping: the declaration changed, a new start applies it")
        except DaemonLostError as error:
            self.error = str(error)
            log(f"stopping: {error}")
            code = EXIT_LOST
        finally:
            self._stop(drain=code == 0 and self.phase == "watching")
        return code

    # Status

    def state(self) -> str:
        """Return the state as status.json knows it."""
        if self.phase != "watching":
            return self.phase
        if self.declaration_error or self.problems():
            return "degraded"
        plan = self.models.plan(self.declaration)
        return "loading" if plan.load or plan.unload or self.runtimes.pending else "ready"

    def problems(self) -> list[str]:
        """Return in words what is not as declared."""
        published = [self.publication.problem] if self.publication.problem else []
        return [*self.runtimes.problems, *self.models.problems(self.declaration), *published]

    def write_status(self) -> None:
        """Write status.json, and publish the part of it that others may see."""
        self.publication.follow(self.declaration.status_address, self.declaration.status_port)
        problems = self.problems()
        if self.declaration_error:
            problems.append(f"instance.json was changed and is invalid: {self.declaration_error}")
        status = {
            "instance": self.declaration.name,
            "pid": os.getpid(),
            "runner": self.version,
            "llmster": self.declaration.llmster,
            "daemon_pid": self.daemon.pid,
            "control_port": self.daemon.control_port,
            "address": self.declaration.address,
            "port": self.declaration.port,
            "status_address": self.publication.address,
            "status_port": self.publication.port,
            "generation": self.declaration.generation,
            "state": self.state(),
            "error": "; ".join(problems) or self.error,
            "updated_at": time.time(),
            "updated_monotonic": time.monotonic(),  # the age of a status does not depend on the clock being set
            "models": [self.models.status_of(model) for model in self.declaration.models],
            "unmanaged": self.models.plan(self.declaration).unmanaged,
            "runtimes": self.runtimes.selected,
            "drift": self.models.drift(self.declaration),
        }
        try:
            write_atomically(self.places.status, status)
        except OSError as error:  # a full disk must not take the models down
            log(f"cannot write {self.places.status}: {error}")
        self.publication.tell(status, self.models.looked_at)

    # Waiting

    def pause(self, seconds: float) -> None:
        """Sleep; raise StopRequestedError or DaemonLostError as soon as there is a reason to."""
        stopping = self.phase == "stopping"
        if stopping or not self.wakeups.stop_requested:
            self.wakeups.sleep(seconds)
        if self.wakeups.stop_requested and not stopping:
            raise StopRequestedError
        lost = self.daemon.lost()
        if lost:
            raise DaemonLostError(lost)

    def ask(self, arguments: list[str], timeout: float = LMS_TIMEOUT, refresh: bool = False) -> Answer:
        """Call lms; with `refresh` the status of the other models is kept up to date meanwhile."""

        def refreshed() -> None:
            self.models.look()
            self.write_status()

        meanwhile = refreshed if refresh else self.write_status
        return self.lms.ask(self.declaration.lms, arguments, timeout, meanwhile, self.declaration.poll_interval)

    def _beat(self, seconds: float) -> None:
        """Sleep, and write the status when it is due."""
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + self.declaration.poll_interval
            self.write_status()
        self.pause(seconds)

    def _check_logs(self) -> None:
        if time.monotonic() >= self._next_log_check:
            self._next_log_check = time.monotonic() + LOG_CHECK
            keep_small(self.places, self.declaration.log_max_bytes, self.declaration.log_keep)

    # Start

    def _end_previous_daemon(self) -> None:
        """End the llmster of this home that a killed runner left behind: it holds the port and the memory.

        A pid in a file may belong to anyone by now. It is ours when its command is our llmster and no runner is its
        parent: the llmster of another instance has one.
        """
        before = read_object(self.places.status)
        if before.get("state") == "stopping" and before.get("error"):
            # Said on until this start has made it better: a job that dies at once would never show why.
            self.error = f"before this start: {str(before['error']).replace('before this start: ', '')}"
        self.write_status()
        programs = {self.declaration.llmster, str(before.get("llmster") or self.declaration.llmster)}
        for pid in (before.get("daemon_pid"), read_object(self.places.daemon_info).get("pid")):
            if isinstance(pid, int) and pid > 1 and is_orphan(pid, programs):
                log(f"ending process {pid}, the llmster that an earlier run left behind")
                self._end_process(pid)

    def _end_process(self, pid: int) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + self.declaration.stop_timeout
            try:
                os.kill(pid, number)
                while time.monotonic() < deadline:
                    self.pause(0.2)
                    os.kill(pid, 0)
            except (ProcessLookupError, PermissionError):
                return

    def _start_daemon(self) -> None:
        self._wait_for_port()
        declaration = self.declaration
        self.daemon.start(declaration.llmster, declaration.address, declaration.port)
        self.write_status()
        deadline = time.monotonic() + declaration.start_timeout
        while not self.daemon.published():
            if time.monotonic() >= deadline:
                raise DaemonLostError(f"llmster did not open its control port within {declaration.start_timeout:g} s")
            self._beat(0.2)
        self._require_own_lms()
        self.write_status()

    def _require_own_lms(self) -> None:
        """Make sure that lms talks to our daemon: without an answer it is not judged, its exit code says nothing."""
        status = self.ask(["daemon", "status", "--json"]).value()
        pid = status.get("pid") if isinstance(status, dict) else None
        if isinstance(pid, int):
            self.daemon.require_own(pid, f"lms talks to process {pid}")

    def _wait_for_port(self) -> None:
        """Wait until the port is free: starting llmster before would only make it crash again and again."""
        while True:
            trouble = port_trouble(self.declaration.address, self.declaration.port)
            if not trouble:
                return
            if self.error != trouble:
                log(f"waiting: {trouble}")
                self.error = trouble
            self.write_status()
            self.pause(PORT_RETRY)
            self._check_declaration()

    def _start_server(self) -> None:
        place = f"{self.declaration.address}:{self.declaration.port}"
        deadline = time.monotonic() + self.declaration.start_timeout
        arguments = ["server", "start", "--port", str(self.declaration.port), "--bind", self.declaration.address]
        answer = self.ask(arguments, self.declaration.start_timeout)
        while not self._greets():
            if time.monotonic() >= deadline:
                raise DaemonLostError(f"no greeting on {place} after `lms server start`; lms said: {answer.said()}")
            self._beat(0.3)
        log(f"server listens on {place}, control port {self.daemon.control_port}")
        self.error = None
        self.phase = "watching"
        self.models.look()
        self.write_status()

    def _greets(self) -> bool:
        return greets(self.declaration.address, self.declaration.port, self.declaration.api_token)

    def _served_models(self) -> dict[str, dict[str, Any]] | None:
        return served_models(self.declaration.address, self.declaration.port, self.declaration.api_token)

    # Watch

    def _watch(self) -> None:
        while True:
            self._check_declaration()
            if self.runtimes.check(self.declaration.runtimes):
                self.models.known.clear()  # loaded with another runtime: they are loaded again
            self._reconcile()
            if time.monotonic() >= self._next_poll:
                self._poll()
                self._next_poll = time.monotonic() + self.declaration.poll_interval
                self.write_status()
            self._check_logs()
            self.pause(min(DECLARATION_CHECK, self._next_poll - time.monotonic()))

    def _check_declaration(self) -> None:
        changed_stamp = stamp(self.places.declaration)
        if changed_stamp is None or changed_stamp == self._declaration_stamp:
            return
        self._declaration_stamp = changed_stamp
        try:
            changed = parse_declaration(bytes_of(self.places.declaration))
        except (DeclarationError, OSError) as error:
            self.declaration_error = str(error)
            log(f"instance.json is invalid, going on with the one before: {error}")
            self.write_status()
            return
        self.declaration_error = None
        if changed.needs_new_start(self.declaration):
            raise ReplacedError
        if changed.generation != self.declaration.generation:
            log(f"new declaration {changed.generation[:12]}")
            self.models.failures.clear()
            if changed.runtimes != self.declaration.runtimes:
                self.runtimes.check_soon()
        self.declaration = changed
        self.write_status()

    def _poll(self) -> None:
        """Ask the server how it is, and lms for what is loaded when that is due."""
        if not self._greets():
            self._silent += 1
            log(f"no greeting from the server ({self._silent} of {SILENT_POLLS})")
            if self._silent >= SILENT_POLLS:
                raise DaemonLostError(f"the server did not answer {SILENT_POLLS} polls in a row")
            return
        self._silent = 0
        served = self._served_models()
        changed = served != self._served
        self._served = served
        if changed or self.models.look_is_due():
            self.models.look()

    def _reconcile(self) -> None:
        def replaced() -> bool:
            return stamp(self.places.declaration) != self._declaration_stamp

        if self.models.reconcile(self.declaration, replaced) and self.state() == "ready":
            log(f"ready: {len(self.declaration.models)} model(s) loaded")

    # Stop

    def _stop(self, drain: bool) -> None:
        """End llmster when no request runs any more, and say in status.json how things stand."""
        self.phase = "stopping"
        self.write_status()
        if drain:
            with contextlib.suppress(DaemonLostError):
                self._drain()
        self.models.loaded = []
        self.daemon.end(self.wakeups.sleep, self.write_status)
        self.write_status()

    def _drain(self) -> None:
        """Wait until the running requests have their answers, for at most stop_timeout; new ones may come meanwhile."""
        deadline = time.monotonic() + self.declaration.stop_timeout
        told = 0
        while True:
            self.write_status()
            if not self.models.look():
                log("stopping without waiting for requests: lms does not tell whether there are any")
                return
            queued = self.models.queued()
            left = deadline - time.monotonic()
            if queued and queued != told:
                log(f"{queued} request(s) running, waiting for them for at most {max(0.0, left):.0f} s")
                told = queued
            if not queued or left <= 0:
                break
            self.pause(min(1.0, left))
        if queued:
            log(f"{queued} request(s) are cut off: they did not end within {self.declaration.stop_timeout:g} s")
