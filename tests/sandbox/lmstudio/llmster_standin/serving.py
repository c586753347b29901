# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets, and what happens to a connection: HTTP requests, or an upgrade to the control API."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress

from llmster_standin import authentication, knobs, openai_api, rest_api
from llmster_standin.http_connection import GoneError, HttpConnection
from llmster_standin.inference import RefusedError
from llmster_standin.waiting import CancelledError, Watch
from llmster_standin.websocket import WebSocket, accept_key

_STATUS_PREFIX = "/api/v1/models/download/status/"
_ROUTES = {
    ("GET", "/v1/models"): openai_api.models,
    ("POST", "/v1/chat/completions"): openai_api.chat_completions,
    ("POST", "/v1/completions"): openai_api.completions,
    ("POST", "/v1/embeddings"): openai_api.embeddings,
    ("POST", "/v1/responses"): openai_api.responses,
    ("POST", "/v1/messages"): openai_api.messages,
    ("GET", "/api/v1/models"): rest_api.models,
    ("POST", "/api/v1/models/load"): rest_api.load,
    ("POST", "/api/v1/models/unload"): rest_api.unload,
    ("POST", "/api/v1/models/download"): rest_api.download,
}


class PortTakenError(Exception):
    """The address and port cannot be listened on."""


class Listener:
    """A port that serves the greeting and the control API, and the HTTP APIs when ``routes`` is true."""

    def __init__(self, app, routes):
        self._app = app
        self._routes = routes
        self._lock = threading.Lock()
        self._socket = None
        self._connections = set()
        self._cors = False
        self.address = None
        self.port = None

    def start(self, address, port, cors=False):
        """Listen. Raises PortTakenError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((address, port))
            listening.listen(128)
        except (OSError, OverflowError) as error:
            listening.close()
            raise PortTakenError(f"Failed to listen on {address}:{port}: {error}") from None
        self._socket, self._cors = listening, cors
        self.address, self.port = address, listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def stop(self):
        """Stop listening and drop every connection."""
        with self._lock:
            listening, self._socket = self._socket, None
            connections = list(self._connections)
            self.address = self.port = None
        for sock in ([listening] if listening else []) + connections:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if listening:
            listening.close()

    def _accept(self, listening):
        while True:
            try:
                sock, _peer = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock):
        with self._lock:
            if self._socket is None:
                sock.close()
                return
            self._connections.add(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(sock)
        except (GoneError, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(sock)
            sock.close()

    def _serve(self, sock):
        connection = HttpConnection(sock, self._cors)
        while connection.keep:
            request = connection.read_request()
            if knobs.get("hang"):
                while sock.recv(65536):  # read, never answer, until the client gives up
                    pass
                return
            if request.headers.get("upgrade", "").lower() == "websocket":
                self._upgrade(connection, request)
                return
            self._answer(connection, request)

    def _upgrade(self, connection, request):
        from llmster_standin.control_api import Session

        accept = accept_key(request.headers.get("sec-websocket-key", ""))
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
        )
        websocket = WebSocket(connection.socket, connection.take_buffered())
        Session(self._app, request.path.strip("/"), websocket).run()

    def _answer(self, connection, request):
        try:
            self._route(connection, request)
        except CancelledError as error:
            if str(error) == "client disconnected":
                raise GoneError from None
            self._refuse(connection, RefusedError(500, str(error)))
        except RefusedError as error:
            self._refuse(connection, error)

    @staticmethod
    def _refuse(connection, error):
        if not connection.streaming:
            connection.answer(error.body(), error.status)
            return
        connection.event(error.body(), "error")
        connection.end_events()

    def _route(self, connection, request):
        if self._routes and not authentication.allowed(request.headers):
            connection.answer(authentication.refusal(request.headers), 401)
            return
        handler = _ROUTES.get((request.method, request.path)) if self._routes else None
        if request.method == "GET" and request.path == "/lmstudio-greeting":
            connection.answer({"lmstudio": True})
        elif self._routes and request.method == "OPTIONS":
            connection.answer({}, 200)
        elif self._routes and request.method == "GET" and request.path.startswith(_STATUS_PREFIX):
            rest_api.download_status(self._app, connection, request.path[len(_STATUS_PREFIX) :])
        elif handler is None:
            # The trap: an unknown path is answered 200.
            text = f"Unexpected endpoint or method. ({request.method} {request.target})"
            connection.answer({"error": text})
        else:
            body = self._json(request) if request.method == "POST" else {}
            with Watch(connection.socket) as watch:
                handler(self._app, connection, body, watch)

    @staticmethod
    def _json(request):
        try:
            body = json.loads(request.body)
        except ValueError:
            raise RefusedError(400, "The request body is not valid JSON") from None
        if not isinstance(body, dict):
            raise RefusedError(400, "The request body must be a JSON object")
        return body
