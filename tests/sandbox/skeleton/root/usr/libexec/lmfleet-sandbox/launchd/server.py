# SPDX-License-Identifier: GPL-3.0-or-later
"""Process 1: boots, reaps, and answers launchctl over a socket. One thread that sleeps until something happens."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import time

from macos import knobs

from .commands import Commands
from .domains import Domains
from .timers import Timers

SOCKET = "/private/var/run/launchd.sock"
LOG = "/private/var/log/com.apple.xpc.launchd/launchd.log"
BOOT_TIME = "/private/var/run/boottime"
CONSOLE_UID = 501
LARGEST_REQUEST = 1 << 20


class Launchd:
    """The event loop and the operations of the sandbox itself (knobs, status, shutdown)."""

    def __init__(self):
        self._timers = Timers()
        self._selector = selectors.DefaultSelector()
        self._jobs_by_pid: dict = {}
        os.makedirs(os.path.dirname(LOG), exist_ok=True)
        self._log_file = open(LOG, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as process 1 lives
        self._domains = Domains(self._timers, self._jobs_by_pid.__setitem__, self._log)
        self._commands = Commands(self._domains, self._timers)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._signals, self._wakeup = socket.socketpair()

    def boot(self) -> None:
        settings = knobs.read()
        knobs.publish(settings)
        self._log(f"booted, macOS {settings['macos_version']}")
        self._listen()
        self._domains.boot()
        if settings["gui_session"]:
            self._domains.log_in(CONSOLE_UID)

    def run(self) -> None:
        while True:
            for key, _events in self._selector.select(self._timers.seconds_to_next()):
                key.data()
            self._timers.run_due()

    # -- plumbing

    def _log(self, text: str) -> None:
        self._log_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _listen(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)
        self._listener.bind(SOCKET)
        os.chmod(SOCKET, 0o666)
        self._listener.listen(128)
        for end in (self._listener, self._signals, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._signals, selectors.EVENT_READ, self._reap)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._signals.recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self._jobs_by_pid.pop(pid, None)
            if job:
                job.ended(status)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _address = self._listener.accept()
            connection.setblocking(False)
            received = bytearray()
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection, received))

    def _receive(self, connection: socket.socket, received: bytearray) -> None:
        """A request is one line of JSON: {"words": […]} from launchctl, {"sandbox": …} from outside."""
        try:
            chunk = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        received += chunk
        if chunk and b"\n" not in received and len(received) < LARGEST_REQUEST:
            return
        self._selector.unregister(connection)
        try:
            request = json.loads(received)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except (ValueError, OSError):
            connection.close()
            return
        _pid, uid, _gid = struct.unpack("3i", credentials)

        def reply(code: int, out: str, err: str) -> None:
            self._send(connection, {"code": code, "out": out, "err": err})

        if "sandbox" in request and uid == 0:
            self._sandbox(request["sandbox"], lambda answer: self._send(connection, answer))
        else:
            self._commands.run([str(word) for word in request.get("words", [])], uid, reply)

    @staticmethod
    def _send(connection: socket.socket, answer: dict) -> None:
        # A caller that went away has no use for the answer; one that does not read must not stop process 1.
        connection.settimeout(2)
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.close()

    # -- what the sandbox asks from outside

    def _sandbox(self, operation: str, answer) -> None:
        operations = {"knobs": self._apply_knobs, "status": self._status, "shutdown": self._shut_down}
        operations[operation](answer)

    def _apply_knobs(self, answer) -> None:
        settings = knobs.read()
        knobs.publish(settings)
        if settings["gui_session"]:
            self._domains.log_in(CONSOLE_UID)
            answer({})
        else:
            self._domains.log_out(CONSOLE_UID, lambda: answer({}))

    def _status(self, answer) -> None:
        jobs = [
            {"target": f"{domain.name}/{job.label}", "state": job.state, "pid": job.pid}
            for domain in self._domains.all()
            for job in domain.jobs.values()
        ]
        answer({"domains": [domain.name for domain in self._domains.all()], "jobs": jobs})

    def _shut_down(self, answer) -> None:
        self._log("shutting down")

        def done():
            answer({})
            # The kernel ends whatever is left of this pid namespace together with process 1.
            os._exit(0)

        self._domains.shut_down(done)


def _clean_volatile_folders() -> None:
    """What does not outlive a reboot."""
    for folder in ("/private/var/run", "/private/tmp"):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
    # Debian's sshd wants this folder.
    os.mkdir("/private/var/run/sshd", 0o755)
    knobs.replace(BOOT_TIME, f"{time.time():.6f}\n".encode())


def main() -> None:
    if os.getpid() != 1:
        sys.exit("launchd: runs as process 1 only")
    os.umask(0o022)
    os.makedirs(knobs.FOLDER, exist_ok=True)
    _clean_volatile_folders()
    launchd = Launchd()
    launchd.boot()
    launchd.run()
