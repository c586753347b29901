# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon: control port, serving port, loaded models; runs in the foreground until SIGTERM."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

from llmster_standin import client, home, knobs
from llmster_standin.manager import Manager
from llmster_standin.serving import Listener, PortTakenError


class App:
    """What the APIs share."""

    def __init__(self, version):
        self.version = version
        self.downloads = {}
        self.jit = True
        self._listeners = []
        self._stop_reader, self._stop_writer = os.pipe()
        self.manager = Manager(self.log)
        self.control = Listener(self, routes=False)
        self.serving = Listener(self, routes=True)

    @staticmethod
    def log(text):
        """Write one line to stderr, and to the log file of the day."""
        line = "{} [llmster] {}\n".format(time.strftime("%Y-%m-%d %H:%M:%S"), text)
        sys.stderr.write(line)
        sys.stderr.flush()
        path = os.path.join(home.lmstudio_home(), "server-logs", time.strftime("%Y-%m/%Y-%m-%d.1.log"))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError:
            pass

    @contextmanager
    def listening(self, send):
        """Pass every published event to ``send`` for the time of the block."""
        self._listeners.append(send)
        try:
            yield
        finally:
            self._listeners.remove(send)

    def publish(self, kind, instance, text):
        """Tell the listeners of ``lms log stream`` what a model was asked or answered."""
        if not self._listeners:
            return
        data = {"type": kind, "modelIdentifier": instance.identifier, "modelPath": instance.model.path}
        field = "input" if kind.endswith("input") else "output"
        event = {"timestamp": int(time.time() * 1000), "data": dict(data, **{field: text})}
        for send in list(self._listeners):
            try:
                send(event)
            except Exception:  # one reader that went away must not end a generation
                continue

    def start_server(self, address, port, cors):
        """(Re)start the serving port and remember its settings. Raises PortTakenError."""
        self.jit = bool(home.server_config()["justInTimeModelLoading"])
        if (self.serving.address, self.serving.port) == (address, port):
            return
        self.serving.stop()
        self.serving.start(address, port, cors)
        home.save_server_config(port=self.serving.port, networkInterface=address, cors=cors)
        self.log(f"server listening on {address}:{port}")

    def request_stop(self):
        """Make run() end."""
        os.write(self._stop_writer, b"x")

    def run(self):
        """Open the control port, publish it, and serve until asked to stop. Returns the exit code."""
        if not self._open_control_port():
            self.log("no free control port (tried {})".format(", ".join(map(str, home.CONTROL_PORTS))))
            return 1
        # Who reads that it runs may end it at once.
        os.set_blocking(self._stop_writer, False)
        signal.set_wakeup_fd(self._stop_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        info = home.internal("http-server.json")
        home.write_json(info, {"host": "127.0.0.1", "pid": os.getpid(), "port": self.control.port})
        if not os.path.exists(home.internal("http-server-config.json")):
            home.save_server_config()
        self.log(f"llmster {self.version} ready, control port {self.control.port}")
        os.read(self._stop_reader, 1)
        self.log("stopping")
        os.unlink(info)
        self.control.stop()
        self.serving.stop()
        time.sleep(float(knobs.get("slow_stop_seconds", 0) or 0))
        self.manager.close()
        return 0

    def hand_over(self):
        """Publish the first daemon found as this home's own and idle until asked to stop; return False without one.

        What a vendor might do that wants one daemon per user: two homes then share one set of models and one server.
        """
        for port in home.CONTROL_PORTS:
            try:
                pid = client.Client(("127.0.0.1", port)).call("daemonInfo")["pid"]
            except (OSError, client.CommandError):
                continue
            self.log(f"another llmster (process {pid}) is running; using it")
            home.write_json(home.internal("http-server.json"), {"host": "127.0.0.1", "pid": pid, "port": port})
            signal.sigwait({signal.SIGTERM, signal.SIGINT})
            return True
        return False

    def _open_control_port(self):
        for port in home.CONTROL_PORTS:
            try:
                self.control.start("127.0.0.1", port)
                return True
            except PortTakenError:
                continue
        return False


def main(version):
    """Run one daemon for this LM Studio home. Returns the exit code."""
    if knobs.get("crash_on_start"):
        sys.stderr.write("llmster: fatal error during start\n")
        return 1
    threading.stack_size(256 * 1024)
    os.makedirs(home.internal(), exist_ok=True)
    os.makedirs(home.models_folder(), exist_ok=True)
    lock = os.open(home.internal("llmster.lock"), os.O_RDWR | os.O_CREAT, 0o600)  # never closed: held while we live
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write("llmster is already running for this LM Studio home\n")
        return 1
    app = App(version)
    if knobs.get("share"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        if app.hand_over():
            return 0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    return app.run()
