# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishes how the instance is, read-only over HTTP, for a queue guard on another Mac. Nothing in it is secret."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from typing import Any

from .logs import log

PATH = "/status"
FORMAT = 1
IDLE_TIMEOUT = 60.0  # seconds a client may stay silent on a connection
MOST_CLIENTS = 16  # at once; a guard keeps one connection
RETRY = 5.0  # seconds between two tries for a port that is taken


class Publication:
    """What is published at present, as the declaration wants it: nothing, or a status at an address and port.

    A port that is taken does not hold up the models: `problem` says so, and it is tried again.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._wanted: tuple[str, int] | None = None
        self._server: StatusServer | None = None
        self._next_try = 0.0

    @property
    def address(self) -> str | None:
        """The address that is listened on, None when nothing is published."""
        return self._wanted[0] if self._server and self._wanted else None

    @property
    def port(self) -> int | None:
        return self._wanted[1] if self._server and self._wanted else None

    def follow(self, address: str, port: int | None) -> None:
        """Publish there, or nowhere when there is no port."""
        wanted = None if port is None else (address, port)
        if wanted != self._wanted:
            self.close()
            self._wanted, self._next_try = wanted, 0.0
        if self._wanted is None or self._server or time.monotonic() < self._next_try:
            return
        try:
            self._server = StatusServer(*self._wanted)
            self.problem = ""
        except OSError as error:
            problem = f"the status cannot be published at {address}:{port}: {error.strerror or error}"
            if problem != self.problem:
                log(problem)
            self.problem = problem
            self._next_try = time.monotonic() + RETRY

    def tell(self, status: dict[str, Any], learned: float) -> None:
        """Publish a status, if any is to be; see StatusServer.tell."""
        if self._server:
            self._server.tell(status, learned)

    def close(self) -> None:
        self.problem = ""
        if self._server:
            self._server.close()
            self._server = None


class StatusServer:
    """Answers GET /status from what was told last; a thread of its own, so that no client holds up the runner."""

    def __init__(self, address: str, port: int) -> None:
        self.place = f"{address}:{port}"
        self._lock = threading.Lock()
        self._told: dict[str, Any] = {}
        self._learned = time.monotonic()
        self._server = _server(address, port, self._content)
        threading.Thread(target=self._server.serve_forever, name="status", daemon=True).start()
        log(f"status is published at http://{self.place}{PATH}")

    def tell(self, status: dict[str, Any], learned: float) -> None:
        """Publish a status from now on; `learned` is when the queues in it were seen, by the monotonic clock."""
        told = {
            "format": FORMAT,
            "instance": status["instance"],
            "state": status["state"],
            "models": [
                {
                    "identifier": model["identifier"],
                    "loaded": model["status"] not in ("missing", "loading", "failed"),
                    "queued": model["queued"],
                    "parallel": model["parallel"],
                }
                for model in status["models"]
            ],
        }
        with self._lock:
            self._told, self._learned = told, learned

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _content(self) -> bytes:
        with self._lock:
            # An age, not a time of day: the clocks of two Macs need not agree.
            return json.dumps({**self._told, "age": round(time.monotonic() - self._learned, 3)}).encode()


def _server(address: str, port: int, content: Any) -> http.server.ThreadingHTTPServer:
    """Return a bound server. Raises OSError when the port is taken."""
    room = threading.BoundedSemaphore(MOST_CLIENTS)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE_TIMEOUT

        def do_GET(self) -> None:
            found = self.path == PATH
            body = content() if found else b'{"error": "only GET /status"}'
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing: a line every few seconds would push all else out of the log."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def process_request(self, request: Any, client_address: Any) -> None:
            if room.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                room.release()

        def handle_error(self, _request: Any, _client_address: Any) -> None:
            """A client that goes away in the middle is no trouble of ours."""

    return Server((address, port), Handler)
