# SPDX-License-Identifier: GPL-3.0-or-later
"""The traffic generator of the tests must see what a client would see."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from traffic import Client, Traffic

WHOLE = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n'
PLAIN = b'{"choices": [{"message": {"content": "a"}}]}'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.connections.add(self.client_address)
        server.keys.append(self.headers["Authorization"])
        body = server.body or (WHOLE if b'"stream": true' in asked else PLAIN)
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(body) + server.missing))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = bool(server.missing)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.status, server.body, server.missing, server.connections, server.keys = 200, None, 0, set(), []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["plain", "stream"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_whole_answer_is_no_problem_and_connections_are_kept_or_not(server, kind, keeps):
    client = Client(server.url, kind, keeps)
    assert [client.ask("sk-1", "m").problem for _number in range(3)] == ["", "", ""]
    client.close()
    assert len(server.connections) == (1 if keeps else 3)


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("plain", {"status": 503}, "HTTP 503"),
        ("plain", {"missing": 7}, "IncompleteRead"),
        ("plain", {"body": b"<html>"}, "not an answer"),
        ("stream", {"body": WHOLE[:-15]}, "ended early"),
        ("stream", {"body": b"data: [DONE]\n\n"}, "ended early"),
        ("stream", {"body": b'data: {"error": {}}\n\ndata: [DONE]\n\n'}, "an error in the stream"),
        ("stream", {"missing": 7}, "IncompleteRead"),
    ],
)
def test_whatever_is_not_a_whole_answer_is_a_problem(server, kind, change, problem):
    vars(server).update(change)
    assert problem in Client(server.url, kind, True).ask("sk-1", "m").problem


def test_nobody_there_is_a_problem():
    assert "refused" in Client("http://127.0.0.1:1", "plain", False).ask("sk-1", "m").problem


def test_traffic_counts_each_kind_and_asks_for_the_key_each_time(server):
    keys = iter(range(10**6))
    with Traffic(server.url, lambda: f"sk-{next(keys)}", "m") as traffic:
        traffic.wait_for(40)
    traffic.assert_none_failed()
    assert len(set(server.keys)) == len(traffic.answers)


def test_traffic_tells_of_one_failure(server):
    with Traffic(server.url, "sk-1", "m") as traffic:
        traffic.wait_for(20)
        server.status = 500
        traffic.wait_for(8)
        server.status = 200
        traffic.wait_for(8)
    with pytest.raises(AssertionError, match="HTTP 500"):
        traffic.assert_none_failed()
