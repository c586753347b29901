# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway's registry, instances that answer as a test wants, and the real guard as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "roles" / "queue_guard" / "files" / "guard"
CHAT = {"choices": [{"message": {"content": "p"}}]}


class Instance:
    """An HTTP server with one model. `queued` is what it tells; `raw` replaces its status by any bytes at all."""

    def __init__(self):
        self.queued, self.age, self.raw, self.hang = 0, 0.0, None, False
        self.trial_seconds, self.trials, self.asked, self.chat = 0.0, 0, 0, CHAT
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def status(self):
        model = {"identifier": "m", "loaded": True, "queued": self.queued, "parallel": 2}
        return {"format": 1, "instance": "a", "age": self.age, "models": [model]}

    def close(self):
        self._stopped.set()
        self._listener.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as reader:
            while True:
                try:
                    request = reader.readline()
                    headers = {}
                    while (line := reader.readline().strip()) if request else b"":
                        headers[line.split(b":")[0].lower()] = line.partition(b":")[2].strip()
                    reader.read(int(headers.get(b"content-length", 0)))
                    if not request or self._stopped.is_set():
                        return
                    self._answer(connection, request)
                except OSError:
                    return

    def _answer(self, connection, request):
        if request.startswith(b"POST"):
            self.trials += 1
            time.sleep(self.trial_seconds)
            content = self.chat
        else:
            self.asked += 1
            while self.hang and not self._stopped.wait(0.05):
                pass
            if callable(self.raw):
                self.raw(connection)
                return
            if self.raw is not None:
                connection.sendall(self.raw)
                connection.shutdown(socket.SHUT_RDWR)
                return
            content = self.status()
        body = json.dumps(content).encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Gateway:
    """The folders of a gateway and of its guard."""

    def __init__(self, folder):
        self.registry, self.folder = folder / "registry", folder / "guard"
        (self.registry / "paused").mkdir(parents=True)
        self.folder.mkdir()
        self.instances = [Instance() for _ in range(3)]
        self.processes = []
        self.limits = {}
        self.settings = {"pause_after": 2, "resume_after": 2, "min_pause": 0.3}
        self.declare()

    def declare(self, count=None):
        entries = [
            {
                "model_name": "g",
                "litellm_params": {"model": "openai/m", "api_base": f"{instance.url}/v1", "api_key": "none"},
                "model_info": {
                    "id": f"d{number}",
                    "mode": "chat",
                    "host": "mac",
                    "instance": f"i{number}",
                    "parallel": 2,
                    "status_url": f"{instance.url}/status",
                },
            }
            for number, instance in enumerate(self.instances[:count])
        ]
        document = {"format": 1, "generation": 1, "routing": "round_robin", "deployments": entries}
        (self.registry / "deployments.json").write_text(json.dumps(document))

    def start(self, **more):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.metrics_port = probe.getsockname()[1]
        plan = {
            "registry": str(self.registry),
            "interval": 0.1,
            "ttl": 5,
            "metrics_address": "127.0.0.1",
            "metrics_port": self.metrics_port,
            "log_bytes": 100000,
            "log_files": 2,
            "settings": self.settings,
            "limits": {"timeout": 1.0, "jitter": 0.01, **self.limits},
        }
        (self.folder / "settings.json").write_text(json.dumps({**plan, **more}))
        with open(self.folder / "stderr", "a") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(self.folder)],
                stderr=stderr,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        self.processes.append(process)
        return process

    def end(self, how=signal.SIGTERM):
        self.processes[-1].send_signal(how)
        return self.processes[-1].wait(10)

    def said(self):
        return (self.folder / "stderr").read_text()

    def pauses(self):
        try:
            return json.loads((self.registry / "paused" / "guard.json").read_text())["paused"]
        except FileNotFoundError:
            return {}

    def lines(self):
        try:
            return [json.loads(line) for line in (self.folder / "guard.log").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def until(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"pauses {self.pauses()}, log {self.lines()[-5:]}"
            time.sleep(0.05)

    def until_paused(self, *names):
        self.until(lambda: sorted(self.pauses()) == sorted(names))

    def rounds(self, count=6):
        """Wait until the first instance was asked so many times more."""
        target = self.instances[0].asked + count
        self.until(lambda: self.instances[0].asked >= target)


@pytest.fixture
def gateway(tmp_path):
    gateway = Gateway(tmp_path)
    yield gateway
    for process in gateway.processes:
        process.kill()
        process.wait()
    for instance in gateway.instances:
        instance.close()
