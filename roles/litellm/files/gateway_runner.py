# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a LiteLLM gateway: ``gateway_runner.py <gateway folder>``, as the program of a launchd job.

It holds the socket that clients connect to and hands it to the server that the link ``current`` names, a release: a
folder with a configuration, an environment, a launcher and a virtual environment. When the link names another release,
that one is started on the same socket; only when all of its workers have reported does the former one stop to accept,
answer what it has in hand, and end. So no request fails, whatever is different. A release that does not come up is
ended and named in ``status.json``, and the former one goes on.

SIGHUP starts the release in use anew in the same way. SIGTERM ends everything. A server that dies is started again.
When the file of this program becomes another one, the process goes on as that, with the socket and the servers it has.
The servers' output goes to ``logs/gateway.log``, of which a few parts of limited size are kept.

Needs nothing but the Python 3.9 of the Command Line Tools.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import glob
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from typing import Any, NamedTuple

EXIT_LOST = 1
EXIT_CONFIG = 78

POLL = 0.2  # seconds between two looks at everything
HEARTBEAT = 1.0  # seconds between two writings of status.json
REPORT_FRESH = 10.0  # seconds after which the report of a worker counts as stale; a busy machine reports late
STOP_TIMEOUT = 30.0  # seconds that requests get to end when the job is stopped
PORT_TIMEOUT = 3.0  # seconds to wait for a port that somebody has
RESTART_AFTER = 5.0  # seconds between two starts of a server that dies
CHECK_TIMEOUT = 30.0  # seconds that another program gets to show that it can be one
BACKLOG = 2048
LAST_LINES = 25

PROGRAM = os.path.abspath(__file__)
CHECK = "--check"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
HANDED_OVER = "LMFLEET_HANDED_OVER"  # the environment variable in which one program tells the next what it has


class ReleaseError(Exception):
    """A release that cannot be served; the text says why."""


class Release(NamedTuple):
    """release.json; times in seconds."""

    name: str
    folder: str
    address: str
    port: int
    workers: int
    start_timeout: float
    drain_timeout: float
    log_bytes: int
    log_files: int


def read_release(root: str, name: str) -> Release:
    """Return a release. Raises ReleaseError when it is not there or not whole."""
    folder = os.path.join(root, "releases", name)
    try:
        with open(os.path.join(folder, "release.json"), encoding="utf-8") as stream:
            data = json.load(stream)
        return Release(
            name=name,
            folder=folder,
            address=str(data["address"]),
            port=int(data["port"]),
            workers=int(data["workers"]),
            start_timeout=float(data["start_timeout"]),
            drain_timeout=float(data["drain_timeout"]),
            log_bytes=int(data["log_bytes"]),
            log_files=int(data["log_files"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ReleaseError(f"{folder}/release.json cannot be used: {error!r}") from None


def wanted_name(root: str) -> str | None:
    """Return the name of the release that the link `current` points to."""
    try:
        return os.path.basename(os.readlink(os.path.join(root, "current")))
    except OSError:
        return None


def bind(address: str, port: int, beside: socket.socket | None = None) -> socket.socket:
    """Return a socket that is to take the connections. Raises ReleaseError when none can, as when the port is taken.

    `beside` is a socket of this runner that has the port on another address. The two share it, so the new one does not
    listen before it takes over: what it got until then would find nobody who answers.
    """
    give_up = time.monotonic() + PORT_TIMEOUT
    while True:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for sharing in (beside, listener) if beside else ():
                sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((address, port))
            if beside is None:
                listener.listen(BACKLOG)
            return listener
        except (OSError, OverflowError, ValueError, TypeError) as error:
            listener.close()
            # Whoever had the port may be ending just now.
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() >= give_up:
                reason = getattr(error, "strerror", None) or error
                raise ReleaseError(f"cannot listen on {address} port {port}: {reason}") from None
        time.sleep(POLL)


class Log:
    """logs/gateway.log and its former parts, gateway.log.1 being the youngest. Threads may write at the same time."""

    def __init__(self, path: str) -> None:
        self.path, self.limit, self.files = path, 10 << 20, 5
        self._lock = threading.Lock()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._descriptor = self._open()

    def write(self, line: bytes) -> None:
        # A full disk must not end the gateway: what cannot be written is lost.
        with self._lock, contextlib.suppress(OSError):
            if os.fstat(self._descriptor).st_size + len(line) > self.limit:
                self._rotate()
            os.write(self._descriptor, line)

    def say(self, text: str) -> None:
        """Write a line of the runner's own."""
        self.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} gateway runner: {text}\n".encode())

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _rotate(self) -> None:
        for path in glob.glob(glob.escape(self.path) + ".*"):
            number = path.rpartition(".")[2]
            if number.isdigit() and int(number) >= self.files - 1:
                os.unlink(path)
        if self.files <= 1:
            # There is no other part to become, and it must not grow without bound.
            os.ftruncate(self._descriptor, 0)
            return
        for number in range(self.files - 1, 0, -1):
            older = self.path if number == 1 else f"{self.path}.{number - 1}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, f"{self.path}.{number}")
        former, self._descriptor = self._descriptor, self._open()
        os.close(former)


class Inherited:
    """The process of a server that a former program of this process has started: as much of Popen as is used here."""

    def __init__(self, pid: int, output: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        os.set_inheritable(output, False)
        self.stdout = os.fdopen(output, "rb")

    def poll(self) -> int | None:
        return self._look(os.WNOHANG)

    def wait(self) -> int | None:
        return self._look(0)

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _look(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # It had ended, and the former program had taken note, but not told of it.
                self.returncode = EXIT_LOST
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Server:
    """One start of a release: a process group of its own, led by gunicorn or uvicorn."""

    def __init__(
        self,
        root: str,
        release: Release,
        listener: socket.socket,
        run: str,
        process: subprocess.Popen[bytes] | Inherited,
        log: Log,
    ) -> None:
        self.release = release
        self.listener = listener
        self.run = run
        self.process = process
        self.began = time.monotonic()
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.end_by: float | None = None
        self._registry = registry_of(root)
        threading.Thread(target=self._read, args=(log,), daemon=True).start()

    @classmethod
    def start(cls, root: str, release: Release, listener: socket.socket, log: Log) -> Server:
        run = uuid.uuid4().hex
        own = {
            "LMFLEET_SOCKET": str(listener.fileno()),
            "LMFLEET_RUN": run,
            "LMFLEET_REGISTRY": registry_of(root),
            "LMFLEET_KEYS": os.path.join(root, "client_keys.json"),
            "LMFLEET_WORKERS": str(release.workers),
            "LMFLEET_DRAIN_TIMEOUT": str(int(release.drain_timeout)),
        }
        process = subprocess.Popen(
            [os.path.join(release.folder, "run-gateway")],
            cwd=release.folder,
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        return cls(root, release, listener, run, process, log)

    def handed_over(self) -> dict[str, Any]:
        """Return what the next program of this process needs to know of it."""
        output = self.process.stdout.fileno() if self.process.stdout else None
        if output is not None:
            os.set_inheritable(output, True)
        # What a clock says is not the same for every program: on macOS, Python 3.9 begins it anew.
        seconds = None if self.end_by is None else self.end_by - time.monotonic()
        told = {"release": self.release.name, "run": self.run, "pid": self.process.pid}
        return {**told, "output": output, "seconds_left": seconds}

    @classmethod
    def inherit(cls, root: str, told: dict[str, Any], listener: socket.socket, log: Log) -> Server:
        """Return a server that a former program has handed over. Raises ReleaseError."""
        process = Inherited(told["pid"], told["output"])
        server = cls(root, read_release(root, told["release"]), listener, told["run"], process, log)
        if told["seconds_left"] is not None:
            server.end_by = time.monotonic() + told["seconds_left"]
        return server

    def _read(self, log: Log) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are for the thread that knows when it blocks them
        for line in self.process.stdout or ():
            log.write(line)
            text = line.decode("utf-8", "replace").strip()
            if text:
                self.last_lines.append(text[:500])

    def reported(self) -> int:
        """Return how many workers of this start serve already; the plugin in each of them says so.

        Who has applied nothing serves nothing, unless there is nothing to apply.
        """
        return len(self._reports()) - len(self._with_nothing())

    def _reports(self) -> list[dict[str, Any]]:
        paths = glob.glob(os.path.join(glob.escape(self._registry), "applied", "*.json"))
        reports = [report for report in map(read_object, paths) if report.get("run") == self.run]
        return [report for report in reports if time.time() - float(report.get("at") or 0) <= REPORT_FRESH]

    def _with_nothing(self) -> list[dict[str, Any]]:
        declared = os.path.lexists(os.path.join(self._registry, "deployments.json"))
        return [report for report in self._reports() if declared and report.get("generation") is None]

    def trouble(self) -> str:
        """Return why this start has failed, or "" while it may still succeed."""
        if self.process.poll() is not None:
            return f"it ended with exit code {self.process.returncode}: {self.said()}"
        if time.monotonic() - self.began > self.release.start_timeout:
            errors = sorted({str(report.get("error")) for report in self._with_nothing()})
            return (
                f"{self.reported()} of {self.release.workers} workers reported within "
                f"{self.release.start_timeout:g} s: {' | '.join(errors) or self.said()}"
            )
        return ""

    def said(self) -> str:
        return " | ".join(list(self.last_lines)[-8:]) or "it said nothing"

    def terminate(self, seconds: float) -> None:
        """Let it answer what it has in hand, for so many seconds."""
        self.end_by = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def kill(self) -> None:
        end_group(self.process.pid)
        self.process.wait()


def end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def registry_of(root: str) -> str:
    return os.path.join(root, "registry")


def fingerprint() -> str | None:
    """Return what tells the file of this program from others, None while it cannot be read."""
    try:
        with open(PROGRAM, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()[:32]
    except OSError:
        return None


def trouble_with_program(program: str) -> str:
    """Return why the file of this program, with that fingerprint, is none that could go on, or ""."""
    try:
        command = [sys.executable, PROGRAM, CHECK]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=CHECK_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0 and done.stdout.strip() == program:
        return ""
    said = (done.stdout + done.stderr).strip().splitlines()
    return f"it ended with exit code {done.returncode}: {' | '.join(said[-3:]) or 'it said nothing'}"


def read_object(path: str) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def end_leftovers(root: str, groups: list[int], log: Log) -> None:
    """End the servers of a runner that was killed: they hold the port."""
    command = ["/bin/ps", "-axwwo", "pgid=", "-o", "command="]
    listed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    for line in listed.stdout.splitlines():
        group, _blank, command = line.strip().partition(" ")
        # Its number may belong to somebody else by now.
        if group.isdigit() and int(group) in groups and os.path.join(root, "") in command:
            log.say(f"ending a server that a former runner left: process group {group}")
            end_group(int(group))
            groups = [other for other in groups if other != int(group)]


class Runner:
    """The loop. `serving` takes requests, `candidate` is starting, `ending` answer their last ones."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.log = Log(os.path.join(root, "logs", "gateway.log"))
        self.serving: Server | None = None
        self.candidate: Server | None = None
        self.ending: list[Server] = []
        self.refused: dict[str, str] = {}
        self.stopping = False
        self.reload = False
        self._listener: socket.socket | None = None
        self._listens_on = ("", 0)
        self._status_path = os.path.join(root, "status.json")
        self._written_at = 0.0
        self._start_after = 0.0
        self.program = fingerprint()
        self.refused_program: dict[str, Any] = {}
        self._looked_at: tuple[int, int] | None = None
        former = read_object(self._status_path)
        self._last_good = former.get("serving")
        if HANDED_OVER in os.environ:
            self._inherit(json.loads(os.environ.pop(HANDED_OVER)))
            return
        groups = [group for group in former.get("groups", []) if isinstance(group, int)]
        if groups:
            end_leftovers(root, groups, self.log)

    def run(self) -> int:
        """Serve until SIGTERM, or until nothing can be served; return the exit code."""
        for number in SIGNALS:
            signal.signal(number, self._reload if number == signal.SIGHUP else self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self.log.say(f"process {os.getpid()} begins")
        while not self.stopping:
            changed = self._step()
            if self.serving is None and self.candidate is None and not self._can_start():
                self.log.say("there is nothing that could be served")
                self._write_status()
                return EXIT_CONFIG if wanted_name(self.root) is None else EXIT_LOST
            changed = self._look_at_program() or changed
            if changed or time.monotonic() - self._written_at >= HEARTBEAT:
                self._write_status()
            time.sleep(POLL)
        return self._end()

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _reload(self, *_: object) -> None:
        self.reload = True

    def _step(self) -> bool:
        """Look at everything once; return whether something is different now."""
        changed = self._look_at_ending() | self._look_at_serving()
        if self.candidate:
            return self._look_at_candidate(self.candidate) or changed
        name = self._next()
        if name and time.monotonic() >= self._start_after:
            self._start(name)
            return True
        return changed

    def _next(self) -> str | None:
        """Return the release that is to be started now, or None."""
        wanted = wanted_name(self.root)
        if self.refused and self.refused["release"] != wanted:
            self.refused, self._start_after = {}, 0.0
        if self.serving is None:
            # After a crash or a reboot in the middle of a change: what served last is better than nothing.
            return self._last_good if self.refused or wanted is None else wanted
        if wanted and wanted != self.serving.release.name and not self.refused:
            return wanted
        if self.reload:
            self.reload = False
            return self.serving.release.name
        return None

    def _can_start(self) -> bool:
        name = self._next()
        return bool(name) and not (self.refused and self.refused["release"] == name)

    def _start(self, name: str) -> None:
        try:
            release = read_release(self.root, name)
            self.log.limit, self.log.files = release.log_bytes, release.log_files
            self.candidate = Server.start(self.root, release, self._listener_for(release), self.log)
        except Exception as error:
            # Whatever is wrong with a release, the one that serves goes on.
            self._refuse(name, str(error) if isinstance(error, (ReleaseError, OSError)) else repr(error))
            return
        self.log.say(f"starting release {name} as process {self.candidate.process.pid}")

    def _listener_for(self, release: Release) -> socket.socket:
        address, port = self._listens_on
        if self._listener and (address, port) == (release.address, release.port):
            return self._listener
        return bind(release.address, release.port, self._listener if port == release.port else None)

    def _refuse(self, name: str, reason: str) -> None:
        self.log.say(f"release {name} is not served: {reason}")
        if self.serving and self.serving.release.name == name:
            return  # to start it anew has failed, but it serves
        self.refused = {"release": name, "reason": reason}
        self._start_after = time.monotonic() + RESTART_AFTER

    def _look_at_candidate(self, candidate: Server) -> bool:
        trouble = candidate.trouble()
        ready = not trouble and candidate.reported() >= candidate.release.workers
        if not trouble and not ready:
            return False
        self.candidate = None
        if trouble:
            candidate.kill()
            if candidate.listener is not self._listener:
                candidate.listener.close()
            self._refuse(candidate.release.name, trouble)
            return True
        if candidate.listener is not self._listener:
            candidate.listener.listen(BACKLOG)
            # The servers that have the former socket as well take what is waiting there, and close it then.
            if self._listener:
                self._listener.close()
            self._listener = candidate.listener
            self._listens_on = (candidate.release.address, candidate.release.port)
        if self.serving:
            self.serving.terminate(self.serving.release.drain_timeout)
            self.ending.append(self.serving)
        self.serving, self._last_good = candidate, candidate.release.name
        self.log.say(f"release {candidate.release.name} serves {candidate.release.address}:{candidate.release.port}")
        return True

    def _look_at_serving(self) -> bool:
        if self.serving is None or self.serving.process.poll() is None:
            return False
        self.log.say(f"the server ended with exit code {self.serving.process.returncode}; it is started again")
        self.serving.kill()
        self.serving = None
        self._start_after = time.monotonic() + min(RESTART_AFTER, 1.0)
        return True

    def _look_at_ending(self) -> bool:
        before = len(self.ending)
        for server in list(self.ending):
            if server.process.poll() is not None or time.monotonic() >= (server.end_by or 0):
                server.kill()
                self.ending.remove(server)
        return len(self.ending) != before

    def _look_at_program(self) -> bool:
        """Go on as what the file of this program has become; return whether that was refused, or is no longer."""
        if self.candidate or self.reload:
            return False  # what has begun is brought to its end first
        try:
            found = os.stat(PROGRAM)
        except OSError:
            return False
        if (found.st_ino, found.st_mtime_ns) == self._looked_at:
            return False
        self._looked_at = (found.st_ino, found.st_mtime_ns)
        program, before = fingerprint(), self.refused_program
        self.refused_program = {}
        if program and program != self.program:
            reason = trouble_with_program(program) or self._hand_over()
            if reason:
                self.refused_program = {"program": program, "written": found.st_mtime_ns, "reason": reason}
                self.log.say(f"the program stays as it is: {reason}")
            else:
                self._looked_at = None
        return self.refused_program != before

    def _hand_over(self) -> str:
        """Become the other program. Return why that cannot be, "" where a signal is to be followed first."""
        told: dict[str, Any] = {
            "listener": self._listener.fileno() if self._listener else None,
            "listens_on": self._listens_on,
            "serving": self.serving.handed_over() if self.serving else None,
            "ending": [server.handed_over() for server in self.ending],
            "refused": self.refused,
        }
        if self._listener:
            self._listener.set_inheritable(True)
        # Whoever sends one from now on finds the other program ready for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if self.stopping or self.reload:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return ""
        self.log.say("going on as another program")
        try:
            environment = {**os.environ, HANDED_OVER: json.dumps(told)}
            os.execve(sys.executable, [sys.executable, PROGRAM, self.root], environment)
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return str(error)

    def _inherit(self, told: dict[str, Any]) -> None:
        """Take over what a former program of this process has."""
        self.refused = told["refused"]
        if told["listener"] is None:
            return
        address, port = told["listens_on"]
        self._listener, self._listens_on = socket.socket(fileno=told["listener"]), (address, port)
        self._listener.set_inheritable(False)
        for server in [told["serving"], *told["ending"]]:
            if not server:
                continue
            try:
                inherited = Server.inherit(self.root, server, self._listener, self.log)
            except (ReleaseError, OSError) as error:
                self.log.say(f"ending a server that cannot be taken over: {error}")
                end_group(server["pid"])
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(server["pid"], 0)
                continue
            if server is told["serving"]:
                self.serving = inherited
                self.log.limit, self.log.files = inherited.release.log_bytes, inherited.release.log_files
            else:
                self.ending.append(inherited)

    def _write_status(self) -> None:
        servers = [server for server in (self.serving, self.candidate, *self.ending) if server]
        status = {
            "format": 1,
            "pid": os.getpid(),
            "at": time.time(),
            "serving": self.serving.release.name if self.serving else None,
            "starting": self.candidate.release.name if self.candidate else None,
            "ending": [server.release.name for server in self.ending],
            "refused": self.refused or None,
            "program": self.program,
            "refused_program": self.refused_program or None,
            "groups": [server.process.pid for server in servers],
        }
        # A full disk must not end the gateway; whoever waits for the status sees that it is old.
        with contextlib.suppress(OSError):
            descriptor, temporary = tempfile.mkstemp(prefix=".status-", dir=self.root)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(status, stream)
            os.replace(temporary, self._status_path)
        self._written_at = time.monotonic()

    def _end(self) -> int:
        self.log.say("stopping")
        servers = [server for server in (self.serving, self.candidate, *self.ending) if server]
        for server in servers:
            server.listener.close()
        for server in servers:
            server.terminate(STOP_TIMEOUT)
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline and any(server.process.poll() is None for server in servers):
            time.sleep(POLL)
        for server in servers:
            server.kill()
        return 0


def main(arguments: list[str]) -> int:
    if arguments == [CHECK]:
        print(fingerprint())
        return 0
    if len(arguments) != 1 or not os.path.isdir(arguments[0]):
        print("usage: gateway_runner.py <gateway folder>", file=sys.stderr)
        return EXIT_CONFIG
    os.umask(0o077)
    return Runner(os.path.abspath(arguments[0])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
