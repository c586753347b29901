# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON over HTTP: bodies, silence, slow servers."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _lmstudio_http
from ansible_collections.lmfleet.mac.plugins.module_utils._http import request_json
from ansible_collections.lmfleet.mac.plugins.module_utils._lmstudio_http import WantedModel


@pytest.fixture
def serve():
    """Return a function that serves {path: body or callable(handler)} and returns the URL."""
    servers = []

    def start(routes):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                size = int(self.headers.get("Content-Length") or 0)
                self.sent = json.loads(self.rfile.read(size)) if size else None
                answer = routes.get(self.path, {"error": "Unexpected endpoint or method."})
                if callable(answer):
                    answer = answer(self)
                if answer is not None:
                    data = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            do_POST = do_GET  # noqa: N815 (the name http.server looks for)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_json_and_payload(serve):
    url = serve({"/echo?x=1": lambda handler: {"got": handler.sent, "auth": handler.headers["Authorization"]}})
    reply = request_json(url + "/echo?x=1", "POST", {"a": 1}, {"Authorization": "Bearer x"})
    assert reply.status == 200 and reply.body == {"got": {"a": 1}, "auth": "Bearer x"}


def test_an_answer_that_is_not_json(serve):
    reply = request_json(serve({"/": b"<html>"}))
    assert reply.body is None and reply.answered and "HTTP 200: <html>" in reply.said()


def test_nobody_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reply = request_json(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert not reply.answered and reply.said() == "connection refused"


def test_a_server_that_accepts_and_stays_silent():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        reply = request_json(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.3)
    assert reply.said() == "no answer within 0.3 s"


@pytest.mark.parametrize("pause", [0.1, 0.8])
def test_a_server_that_drips_is_cut_off(serve, pause):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _byte in range(int(3 / pause)):
            time.sleep(pause)
            try:
                handler.wfile.write(b" ")
            except OSError:
                break

    began = time.monotonic()
    assert request_json(serve({"/": drip}), timeout=1).said() == "no answer within 1 s"
    assert time.monotonic() - began < 1.5


def test_no_proxy_of_the_environment_is_used(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert request_json(serve({"/": {"ok": True}})).body == {"ok": True}


@pytest.mark.parametrize("url", ["ftp://x/", "nonsense", "http://127.0.0.1:99999/"])
def test_bad_urls_are_answers_not_exceptions(url):
    assert not request_json(url).answered


LOADED = {
    "models": [
        {
            "type": "llm",
            "key": "m",
            "loaded_instances": [{"id": "a", "config": {"context_length": 4096, "parallel": 2}}],
        },
        {"type": "embedding", "key": "e", "loaded_instances": [{"id": "e", "config": {"context_length": 512}}]},
        {"type": "llm", "key": "idle", "loaded_instances": []},
    ]
}


def test_a_server_is_judged_by_its_greeting_not_by_200(serve):
    server = _lmstudio_http.look(serve({"/api/v1/models": LOADED}), 2)
    assert not server.greeting and server.loaded is None and "Unexpected endpoint" in server.seen


def test_what_is_loaded_and_how_it_differs(serve):
    server = _lmstudio_http.look(serve({"/lmstudio-greeting": {"lmstudio": True}, "/api/v1/models": LOADED}), 2)
    assert sorted(server.loaded) == ["a", "e"]
    wanted = [WantedModel("a", "llm", 8192, 2), WantedModel("e", "embedding", 512, 4), WantedModel("absent")]
    assert _lmstudio_http.missing(wanted, server) == ["absent"]
    # an embedding does not show parallel, so that is not judged
    assert _lmstudio_http.differences(wanted, server) == ["a: context_length is 4096, declared 8192"]
    # nor is what no server shows
    tuned = WantedModel("a", load={"flash_attention": True, "mmap": False})
    shown = server._replace(loaded={"a": {"type": "llm", "flash_attention": False}})
    assert _lmstudio_http.differences([tuned], shown) == ["a: flash_attention is false, declared true"]


def test_a_greeting_without_a_list_is_not_ready(serve):
    server = _lmstudio_http.look(serve({"/lmstudio-greeting": {"lmstudio": True}}), 2)
    assert server.greeting and server.loaded is None


def test_a_server_that_asks_for_a_token_gets_it(serve):
    def only_with_token(answer):
        refusal = {"error": {"code": "invalid_api_key"}}
        return lambda request: answer if request.headers["Authorization"] == "Bearer sk-lm-1" else refusal

    routes = {"/lmstudio-greeting": {"lmstudio": True}, "/api/v1/models": LOADED, "/v1/chat/completions": CHAT}
    url = serve({path: only_with_token(answer) for path, answer in routes.items()})
    assert "invalid_api_key" in _lmstudio_http.look(url, 2).seen
    assert sorted(_lmstudio_http.look(url, 2, "sk-lm-1").loaded) == ["a", "e"]
    assert not _lmstudio_http.probe(url, WantedModel("a"), 2).ok
    assert _lmstudio_http.probe(url, WantedModel("a"), 2, "sk-lm-1").ok


CHAT = {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}


@pytest.mark.parametrize(
    ("kind", "path", "body", "ok"),
    [
        ("llm", "/v1/chat/completions", CHAT, True),
        ("llm", "/v1/chat/completions", {"error": "model crashed"}, False),
        ("llm", "/v1/chat/completions", {"choices": []}, False),
        ("embedding", "/v1/embeddings", {"data": [{"embedding": [0.1, 0.0]}]}, True),
        ("embedding", "/v1/embeddings", {"data": [{"embedding": [0.0, 0.0]}]}, False),
        ("embedding", "/v1/embeddings", {"data": []}, False),
    ],
)
def test_probes(serve, kind, path, body, ok):
    probe = _lmstudio_http.probe(serve({path: body}), WantedModel("a", kind), 2)
    assert probe.ok is ok and (probe.latency_seconds is not None) is ok and bool(probe.error) is not ok


def test_addresses_that_mean_everywhere_are_asked_at_home():
    assert _lmstudio_http.url_of("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert _lmstudio_http.url_of("::", 1) == "http://[::1]:1"
    assert _lmstudio_http.url_of("10.0.0.1", 1) == "http://10.0.0.1:1"
