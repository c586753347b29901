# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker that shall end loses no request, also one that is sent late."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import time

import pytest

from gateway_under_test import REPOSITORY, free_port

pytestmark = [pytest.mark.gateway, pytest.mark.slow]

SERVER = """
import asyncio, sys
sys.path.insert(0, {files!r})
import gateway_server, uvicorn
gateway_server.LAST_CALL_SECONDS = {last_call}

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]}})
    for _ in range(int(scope["path"].strip("/"))):
        await send({{"type": "http.response.body", "body": b"x", "more_body": True}})
        await asyncio.sleep(0.1)
    await send({{"type": "http.response.body", "body": b"end"}})

uvicorn.run(app, host="127.0.0.1", port={port}, lifespan="off", log_level="warning")
"""


@pytest.fixture
def server(installed):
    """Return a function that starts a server, whose answers to GET /<n> take n tenths of a second."""
    python = installed / "current" / "venv" / "bin" / "python"
    started = []

    def start(last_call):
        port = free_port()
        text = SERVER.format(files=str(REPOSITORY / "roles" / "litellm" / "files"), last_call=last_call, port=port)
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        started.append(subprocess.Popen([python, "-c", text], env=environment))
        deadline = time.monotonic() + 90
        while True:
            try:
                with connection(port) as first:
                    assert answer(first, 0) == "keep"
                return started[0], port
            except OSError:
                assert time.monotonic() < deadline and started[0].poll() is None
                time.sleep(0.2)

    yield start
    for process in started:
        process.kill()
        process.wait()


@contextlib.contextmanager
def connection(port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as opened:
        opened.connect()
        opened.auto_open = 0  # it is never opened anew
        yield opened


def answer(opened, length):
    """Ask on a connection and return whether it is to be closed."""
    opened.request("GET", f"/{length}")
    reply = opened.getresponse()
    assert reply.read() == b"x" * length + b"end"
    return reply.getheader("connection") or "keep"


def test_what_is_asked_late_is_answered_and_then_the_connection_is_closed(server):
    process, port = server(last_call=2)
    with connection(port) as kept, connection(port) as unused:
        assert answer(kept, 0) == "keep"
        process.terminate()
        time.sleep(1)
        assert [answer(one, 3) for one in (kept, unused)] == ["close", "close"]
    process.wait(20)


def test_after_a_long_answer_there_is_time_for_another_request(server):
    process, port = server(last_call=1)
    with connection(port) as kept:
        kept.request("GET", "/30")
        reply = kept.getresponse()
        process.terminate()
        assert reply.read() == b"x" * 30 + b"end"
        assert answer(kept, 0) == "close"
    process.wait(20)


def test_without_connections_a_worker_ends_at_once(server):
    process, _port = server(last_call=3600)
    process.terminate()
    process.wait(20)


LATE = """
import socket, sys, uvloop
sys.path.insert(0, {files!r})
import gateway_server, uvicorn
gateway_server.LAST_CALL_SECONDS = 0

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"end"}})

async def main():
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_level="warning", fd=listener.fileno())
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    client = socket.create_connection(listener.getsockname())
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    listener.detach()
    # Nobody has had the time to take this connection, and nobody else will.
    await server.shutdown()
    print(client.recv(1000).partition(b" ")[2][:3].decode())

uvloop.run(main())
"""


def test_who_waits_to_be_taken_when_the_socket_is_closed_is_answered(installed):
    python = installed / "current" / "venv" / "bin" / "python"
    text = LATE.format(files=str(REPOSITORY / "roles" / "litellm" / "files"))
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [python, "-c", text]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "200\n", done.stderr[-2000:]
