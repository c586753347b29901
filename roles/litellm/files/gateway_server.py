# SPDX-License-Identifier: GPL-3.0-or-later
"""LiteLLM as the gateway runner starts it: ``gateway_server.py <arguments of litellm>``.

What LiteLLM's own command cannot do, and what a change without a failed request needs:

- take the socket from the runner (environment variable LMFLEET_SOCKET, a file descriptor) instead of opening the port,
  listen on it only once there is somebody who answers, and leave nothing behind in it that nobody has taken;
- end without cutting anybody off: a worker that shall end takes no new connection, finishes its answers, however long
  they take, tells the clients that kept their connections to close them, and closes one itself only after nothing was
  asked on it for a while (LMFLEET_DRAIN_TIMEOUT seconds at most);
- let several keys in while the master key is being changed: the file that LMFLEET_KEYS names has them;
- refuse any other key, and none, with 401 also without a database;
- tell with each 429 and 503 when to come back, also where LiteLLM does not (/v1/completions, and streams);
- give up early on a backend that does not take a connection (LMFLEET_CONNECT_TIMEOUT seconds), however long an answer
  may take;
- stream for long without a crash of the interpreter.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import math
import os
import select
import sys
import time

import gunicorn.config
import gunicorn.sock
import uvicorn
import uvicorn.supervisors
from litellm import run_server
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport
from litellm.proxy.proxy_cli import ProxyInitializationHelpers

FIRST_INHERITED = 3  # where gunicorn expects the sockets that it is given
# For so long a client that has a connection may be about to ask something on it.
LAST_CALL_SECONDS = 10.0
# Longer than clients keep an idle connection: it must be them who close it, or a request may cross the closing.
KEEP_ALIVE_SECONDS = 75
REFUSED = {"message": "This is not a key of the gateway.", "type": "auth_error", "param": None, "code": "401"}
KEY_HEADERS = {
    b"authorization",
    b"api-key",
    b"x-api-key",
    b"x-goog-api-key",
    b"x-litellm-api-key",
    b"ocp-apim-subscription-key",
}


class Keys:
    """The keys that clients may send, each taken for the master key of this process."""

    def __init__(self, path: str | None, own: str) -> None:
        self._path, self._own = path, own.encode()
        self._seen: tuple | None = None
        self._accepted: list[tuple[bytes, float | None]] = []

    def translate(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers of a request with an accepted key replaced by the master key."""
        self._refresh()
        if not self._accepted:
            return headers
        return [(name, self._value(value) if name in KEY_HEADERS else value) for name, value in headers]

    def opens(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Tell whether translated headers have the master key."""
        sent = [value.rpartition(b" ")[2] for name, value in headers if name in KEY_HEADERS]
        return any(hmac.compare_digest(value, self._own) for value in sent)

    def _value(self, value: bytes) -> bytes:
        scheme, blank, sent = value.rpartition(b" ")
        for key, until in self._accepted:
            if (until is None or time.time() < until) and hmac.compare_digest(sent, key):
                return scheme + blank + self._own
        return value

    def _refresh(self) -> None:
        """Read the file if it has changed; one that cannot be used changes nothing."""
        if not self._path:
            return
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            with open(self._path, "rb") as stream:
                entries = json.load(stream)["keys"]
            self._accepted = [(entry["key"].encode(), entry["until"]) for entry in entries]
            self._seen = seen
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self._seen = None


class Front:
    """The ASGI application around LiteLLM's."""

    last_call = False

    def __init__(self, app, keys: Keys, has_database: bool) -> None:
        self._app, self._keys, self._has_database = app, keys, has_database

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope = {**scope, "headers": self._keys.translate(scope["headers"])}
            send = functools.partial(self._send, send)
            # The keys in a database only LiteLLM knows.
            if not self._has_database and not self._keys.opens(scope["headers"]):
                await self._refuse_unless_public(scope, receive, Refusal(send))
                return
        await self._app(scope, receive, send)

    async def _refuse_unless_public(self, scope, receive, refusal):
        try:
            await self._app(scope, receive, refusal)
        except ModuleNotFoundError as error:
            # Before LiteLLM refuses who sends no key, it looks whether the database is to blame.
            if error.name != "prisma":
                raise
            await refusal.refuse()

    async def _send(self, send, message):
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            if self.last_call:
                headers.append((b"connection", b"close"))
            if message["status"] in (429, 503) and all(name.lower() != b"retry-after" for name, _value in headers):
                headers.append((b"retry-after", b"%d" % rest_seconds()))
            message = {**message, "headers": headers}
        await send(message)


class Refusal:
    """The answers to a request without the key: 401 where LiteLLM, without a database, fails to refuse it."""

    def __init__(self, send) -> None:
        self._send = send
        self._start: dict | None = None
        self._over = False

    async def __call__(self, message):
        if self._over:
            return
        if message["type"] == "http.response.start" and message["status"] == 400:
            self._start = message  # until it is known what it says
        elif self._start and b"No connected db" in message.get("body", b""):
            await self.refuse()
        else:
            if self._start:
                await self._send(self._start)
                self._start = None
            await self._send(message)

    async def refuse(self) -> None:
        """Answer with 401, and with nothing else."""
        self._over = True
        body = json.dumps({"error": REFUSED}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": 401, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


class LastCall:
    """Tells when a worker that shall end may close its connections: none of them would lose a request by it."""

    def __init__(self) -> None:
        self._idle_since: dict = {}

    def is_awaited(self, connection, now: float) -> bool:
        """Tell whether a request is being answered on a connection, or may yet be sent."""
        cycle = getattr(connection, "cycle", None)
        if cycle is not None and not cycle.response_complete:
            self._idle_since.pop(connection, None)
            return True
        idle_since = self._idle_since.setdefault(connection, now)
        return now - idle_since < LAST_CALL_SECONDS


def rest_seconds() -> int:
    """Return for how long LiteLLM leaves a backend alone that fails."""
    router = getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None)
    return max(1, math.ceil(getattr(router, "cooldown_time", None) or 1))


def is_somebody_waiting(server: uvicorn.Server) -> bool:
    """Tell whether there is a connection that no process has taken yet."""
    poll = select.poll()
    for listening in server.servers:
        for taken_from in listening.sockets:
            poll.register(taken_from.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def take_over(_wrapper, handed_over, bound):
    """Do what gunicorn does with a socket that it is given, but do not listen: there is no worker yet."""
    handed_over.setblocking(False)
    return handed_over


def prepare() -> None:
    """Change what uvicorn and gunicorn do; to be called in each process before they begin."""
    keys = Keys(os.environ.get("LMFLEET_KEYS"), os.environ.get("LITELLM_MASTER_KEY", ""))
    has_database = bool(os.environ.get("DATABASE_URL"))
    load, shutdown = uvicorn.Config.load, uvicorn.Server.shutdown
    terminate_all = uvicorn.supervisors.Multiprocess.terminate_all
    ask_backend = LiteLLMAiohttpTransport.handle_async_request
    connect_timeout = float(os.environ.get("LMFLEET_CONNECT_TIMEOUT", "10"))
    drain_timeout = int(os.environ.get("LMFLEET_DRAIN_TIMEOUT", "30"))

    @functools.wraps(load)
    def load_with_front(config):
        load(config)
        config.loaded_app = Front(config.loaded_app, keys, has_database)

    @functools.wraps(shutdown)
    async def shutdown_after_last_call(server, sockets=None):
        call, until = LastCall(), time.monotonic() + drain_timeout
        # When the gateway moves to another address, this may be the last process that has the socket of the former one.
        while is_somebody_waiting(server) and time.monotonic() < until:
            await asyncio.sleep(0)
        for listening in server.servers:
            listening.close()
        if sockets is None and server.config.fd is not None:
            os.close(server.config.fd)  # what uvicorn listened on is a duplicate
        Front.last_call = True
        awaited = True
        while awaited and time.monotonic() < until:
            await asyncio.sleep(0.1)  # first of all: a connection may be about to appear in the list
            connections = list(server.server_state.connections)
            awaited = [one for one in connections if call.is_awaited(one, time.monotonic())]
        await shutdown(server, sockets=sockets)

    @functools.wraps(terminate_all)
    def terminate_all_after_closing(supervisor):
        for listening in supervisor.sockets:
            listening.close()
        os.close(supervisor.config.fd)
        terminate_all(supervisor)

    @functools.wraps(ask_backend)
    async def ask_backend_that_is_there(transport, request):
        timeout = request.extensions.get("timeout") or {}
        limit = min(timeout.get("connect") or connect_timeout, connect_timeout)
        request.extensions = {**request.extensions, "timeout": {**timeout, "connect": limit}}
        return await ask_backend(transport, request)

    LiteLLMAiohttpTransport.handle_async_request = ask_backend_that_is_there
    uvicorn.Config.load = load_with_front
    uvicorn.Server.shutdown = shutdown_after_last_call
    uvicorn.supervisors.Multiprocess.terminate_all = terminate_all_after_closing
    gunicorn.sock.TCPSocket.set_options = take_over
    gunicorn.config.GracefulTimeout.default = drain_timeout
    gunicorn.config.Keepalive.default = KEEP_ALIVE_SECONDS
    # The finalizer of a stream sets context variables. When Python collects garbage while one is being set, that frees
    # what Python is about to read (its issue 148891), and the worker crashes. What it restores ends with the request.
    if hasattr(CustomStreamWrapper, "__del__"):
        del CustomStreamWrapper.__del__
    # LiteLLM takes any other port, without a word to the clients, when somebody listens on 4000.
    ProxyInitializationHelpers.is_port_in_use = staticmethod(lambda port: False)


def take_socket() -> None:
    """Make the server use the socket of the runner."""
    inherited = os.environ.pop("LMFLEET_SOCKET", None)
    if inherited:
        if int(inherited) != FIRST_INHERITED:
            os.dup2(int(inherited), FIRST_INHERITED, inheritable=True)
            os.close(int(inherited))
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        uvicorn.run = functools.partial(uvicorn.run, fd=FIRST_INHERITED)


# The workers of uvicorn import this file anew; those of gunicorn are forked.
prepare()

if __name__ == "__main__":
    take_socket()
    sys.argv[0] = "litellm"
    sys.exit(run_server())
