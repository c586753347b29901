# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance publishes over HTTP."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time

import pytest

from instance_runner import status_server
from instance_runner.status_server import StatusServer

MODEL = {"identifier": "m", "status": "idle", "queued": 3, "parallel": 2, "path": "p/n/f", "fingerprint": "secret"}
STATUS = {"instance": "chat-a", "state": "ready", "pid": 1, "models": [MODEL, {**MODEL, "status": "loading"}]}


@pytest.fixture
def published():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = StatusServer("127.0.0.1", port)
    server.port = port
    yield server
    server.close()


def ask(connection, method="GET", path="/status"):
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_tells_queues_and_their_age_and_nothing_else(published):
    published.tell(STATUS, time.monotonic() - 7)
    connection = http.client.HTTPConnection("127.0.0.1", published.port, timeout=10)
    code, body = ask(connection)
    told = json.loads(body)
    assert code == 200 and 7 <= told.pop("age") < 60
    entry = {"identifier": "m", "loaded": True, "queued": 3, "parallel": 2}
    assert told == {
        "format": 1,
        "instance": "chat-a",
        "state": "ready",
        "models": [entry, {**entry, "loaded": False}],
    }
    kept = connection.sock
    assert ask(connection)[0] == 200 and connection.sock is kept, "the connection is kept"
    assert ask(connection, path="/")[0] == 404
    connection.close()
    for method in ("POST", "DELETE"):
        other = http.client.HTTPConnection("127.0.0.1", published.port, timeout=10)
        assert ask(other, method)[0] == 501
        other.close()


def test_clients_that_say_nothing_take_no_more_than_their_share(published):
    published.tell(STATUS, time.monotonic())
    silent = [socket.create_connection(("127.0.0.1", published.port)) for _ in range(status_server.MOST_CLIENTS + 5)]
    deadline = time.monotonic() + 20
    while len(refused := select.select(silent, [], [], 0.5)[0]) < 5:
        assert time.monotonic() < deadline
    assert len(refused) == 5
    for client in silent:
        client.close()
    connection = http.client.HTTPConnection("127.0.0.1", published.port, timeout=10)
    deadline = time.monotonic() + 20
    while True:
        try:
            assert ask(connection)[0] == 200
            break
        except (OSError, http.client.HTTPException):
            connection.close()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    connection.close()


def test_a_port_that_is_taken_is_told_and_tried_again(published, monkeypatch):
    monkeypatch.setattr(status_server, "RETRY", 0.0)
    publication = status_server.Publication()
    publication.follow("127.0.0.1", published.port)
    assert f"127.0.0.1:{published.port}" in publication.problem and publication.port is None
    publication.tell(STATUS, 0.0)  # to nobody
    published.close()
    publication.follow("127.0.0.1", published.port)
    assert publication.problem == "" and (publication.address, publication.port) == ("127.0.0.1", published.port)
    publication.follow("127.0.0.1", None)
    assert publication.port is None
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", published.port), timeout=1)


def test_a_port_that_is_taken_is_an_error(published):
    with pytest.raises(OSError):
        StatusServer("127.0.0.1", published.port)
