# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lmstudio_health, with a server that answers 200 to everything."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.modules import lmstudio_health


@pytest.fixture
def server():
    """A server whose `loaded` ({identifier: config}), `greeting`, `answers` and `ready_at` the test sets."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            body = {"error": "Unexpected endpoint or method. (GET /)"}
            if time.monotonic() >= server.ready_at:
                instances = [{"id": name, "config": config} for name, config in server.loaded.items()]
                routes = {
                    "/lmstudio-greeting": {"lmstudio": server.greeting},
                    "/api/v1/models": {"models": [{"type": "llm", "loaded_instances": instances}]},
                    "/v1/chat/completions": server.answers,
                }
                body = routes.get(self.path, body)
            data = json.dumps(body).encode()
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 (the name http.server looks for)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.loaded, server.greeting, server.ready_at = {"m": {"context_length": 4096, "parallel": 2}}, True, 0
    server.answers = {"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(run_module, server):
    def run(models=({"identifier": "m"},), **arguments):
        instance = {"name": "chat-a", "url": server.url + "/", "models": list(models)}
        return run_module(lmstudio_health, {"instances": [instance], "timeout": 0, **arguments})

    return run


def test_ready(run):
    result = run([{"identifier": "m", "context_length": 4096, "parallel": 2}])
    assert result["instances"] == [
        {
            "name": "chat-a",
            "ready": True,
            "greeting": True,
            "loaded": ["m"],
            "missing": [],
            "unmanaged": [],
            "differences": [],
            "probes": [],
            "last_seen": "loaded: m",
        }
    ]
    assert not result["changed"]


def test_a_model_that_answers(run):
    probe = run(probe="completion")["instances"][0]["probes"][0]
    assert probe["ok"] and 0 <= probe["latency_seconds"] < 5


def test_a_model_that_does_not_answer(run, server):
    server.answers = {"error": "out of memory"}
    failed = run(probe="completion")
    assert failed["failed"] and "m does not answer: HTTP 200" in failed["msg"] and "out of memory" in failed["msg"]


def test_it_waits_until_the_server_is_there(run, server):
    server.ready_at = time.monotonic() + 1
    assert run(timeout=20)["instances"][0]["ready"]


@pytest.mark.parametrize(
    ("setting", "value", "models", "said"),
    [
        ("greeting", False, [{"identifier": "m"}], "no greeting of LM Studio: HTTP 200"),
        ("ready_at", float("inf"), [], "Unexpected endpoint"),
        ("loaded", {}, [{"identifier": "m"}], "not loaded: m"),
        ("loaded", {"m": {"context_length": 1}}, [{"identifier": "m", "context_length": 2}], "context_length is 1"),
    ],
)
def test_reasons_not_to_be_ready(run, server, setting, value, models, said):
    setattr(server, setting, value)
    failed = run(models)
    assert failed["failed"] and said in failed["msg"] and f"instance chat-a at {server.url}" in failed["msg"]
    told = run(models, fail=False)
    assert "failed" not in told and not told["instances"][0]["ready"]


def test_what_nobody_declared_counts_only_where_it_is_asked_to(run, server):
    server.loaded["other"] = {}
    assert run()["instances"][0]["unmanaged"] == ["other"]
    failed = run(exact=True)
    assert failed["failed"] and "other is loaded, and not declared" in failed["msg"]


def test_idle_is_what_lms_says_of_these_models(run_module, tmp_path):
    lms = tmp_path / "lms"
    lms.write_text(f"#!/bin/sh\nexec cat {tmp_path}/ps.json\n")
    lms.chmod(0o755)
    entry = {"name": "chat-a", "home": str(tmp_path), "models": [{"identifier": "m"}, {"identifier": "n"}]}
    arguments = {"instances": [entry], "lms": str(lms), "idle": True}

    def say(*entries):
        temporary = tmp_path / "new.json"
        named = [{"identifier": name, "queued": queued, "status": status} for name, queued, status in entries]
        temporary.write_text(json.dumps(named))
        temporary.replace(tmp_path / "ps.json")

    say(("m", 0, "idle"), ("n", 0, "idle"), ("other", 9, "generating"))
    assert run_module(lmstudio_health, {**arguments, "timeout": 0})["instances"][0]["busy"] == {}
    say(("m", 3, "generating"), ("n", 0, "processingPrompt"))
    busy = run_module(lmstudio_health, {**arguments, "timeout": 0})["msg"]
    assert "not idle" in busy and "m has 3, n has 1" in busy
    later = threading.Timer(1, say, [("m", 0, "idle")])
    later.start()
    assert not run_module(lmstudio_health, {**arguments, "timeout": 20}).get("failed")
    later.join()
    assert "lms" in run_module(lmstudio_health, {"instances": [entry], "idle": True})["msg"]


@pytest.mark.parametrize(
    ("pid", "listens", "idle"),
    [(os.getpid(), True, False), (os.getpid(), False, True), (2**22, True, True), (None, True, True)],
    ids=["it hangs", "its port is closed", "its process is gone", "it never ran"],
)
def test_without_an_answer_only_what_is_down_is_idle(run_module, server, tmp_path, pid, listens, idle):
    published = tmp_path / ".lmstudio" / ".internal" / "http-server.json"
    published.parent.mkdir(parents=True)
    if pid:
        published.write_text(
            json.dumps({"host": "127.0.0.1", "pid": pid, "port": server.server_port if listens else 1})
        )
    entry = {"name": "chat-a", "home": str(tmp_path), "models": [{"identifier": "m"}]}
    arguments = {"instances": [entry], "lms": "/bin/false", "idle": True, "timeout": 0}
    result = run_module(lmstudio_health, arguments)
    assert result["instances"][0]["ready"] is idle
    assert idle or "chat-a: nobody can tell whether it has requests: lms ps does not tell" in result["msg"]


def test_an_instance_is_asked_with_the_lms_of_its_version(run_module, server, tmp_path):
    lms = tmp_path / "its-lms"
    lms.write_text(f"#!/bin/sh\necho '{json.dumps([{'identifier': 'm', 'queued': 2}])}'\n")
    lms.chmod(0o755)
    (tmp_path / "instance.json").write_text(json.dumps({"lms": str(lms)}))
    entry = {"name": "a", "url": server.url, "home": str(tmp_path), "models": [{"identifier": "m"}]}
    arguments = {"instances": [entry], "lms": "/bin/false", "timeout": 0}
    assert "m has 2" in run_module(lmstudio_health, {**arguments, "idle": True})["msg"]
    assert run_module(lmstudio_health, arguments)["instances"][0]["ready"]


def test_lms_is_asked_as_well(run_module, server, tmp_path):
    lms = tmp_path / "lms"
    entries = [{"identifier": "m", "contextLength": 4096, "parallel": 2, "ttlMs": 60000}, {"identifier": "hidden"}]
    lms.write_text(f"#!/bin/sh\n[ $HOME = {tmp_path} ] && echo '{json.dumps(entries)}'\n")
    lms.chmod(0o755)
    entry = {"name": "a", "url": server.url, "home": str(tmp_path), "models": [{"identifier": "m"}]}
    result = run_module(lmstudio_health, {"instances": [entry], "lms": str(lms), "timeout": 0, "fail": False})
    one = result["instances"][0]
    assert (one["loaded"], one["unmanaged"]) == (["hidden", "m"], ["hidden"])
    assert one["differences"] == ["m: is unloaded when nobody asked it for 60 s, declared never"]
    assert not one["ready"]


def test_check_mode_looks_once_asks_nothing_and_does_not_fail(run_module, server):
    server.answers = {"error": "must not be asked"}
    entry = {"name": "a", "url": server.url, "models": [{"identifier": "m"}, {"identifier": "other"}]}
    result = run_module(lmstudio_health, {"instances": [entry], "probe": "completion", "timeout": 60}, check=True)
    assert not result.get("failed")
    assert (result["instances"][0]["ready"], result["instances"][0]["missing"]) == (False, ["other"])
    assert result["instances"][0]["probes"] == []


def test_every_instance_that_is_not_ready_is_named(run_module):
    instances = [{"name": name, "url": "http://127.0.0.1:1"} for name in ("a", "b")]
    failed = run_module(lmstudio_health, {"instances": instances, "timeout": 1})
    for part in ("instance a at", "instance b at", "connection refused"):
        assert part in failed["msg"]


def test_no_instances(run_module):
    assert run_module(lmstudio_health, {"instances": []})["instances"] == []
