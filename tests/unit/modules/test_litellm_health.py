# SPDX-License-Identifier: GPL-3.0-or-later
"""The module litellm_health, against a small HTTP server that plays the gateway."""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.lmfleet.mac.plugins.modules import litellm_health

CHAT = {"choices": [{"message": {"role": "assistant", "content": "ok"}}]}
EMBEDDING = {"data": [{"embedding": [0.1]}]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/health/readiness":
            self.answer(*self.server.readiness)
        elif self.headers["Authorization"] != "Bearer sk-1":
            self.answer(400, {"error": "No connected db."})
        else:
            infos = [{"model_info": {"id": name, "mode": mode}} for name, (mode, __) in self.server.deployments.items()]
            self.answer(200, {"data": infos})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, asked["model"]))
        __, answers = self.server.deployments[asked["model"]]
        status, body, answered = answers.pop(0) if len(answers) > 1 else answers[0]
        self.answer(status, body, {"x-litellm-model-id": answered or asked["model"]})

    def answer(self, status, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def gateway():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.readiness = (200, {"status": "healthy"})
    server.deployments = {
        "chat": ("chat", [(200, CHAT, None)]),
        "embed": ("embedding", [(200, EMBEDDING, None)]),
    }
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(gateway, capsys):
    def run(**arguments):
        with patch_module_args({"url": gateway.url, "timeout": 0.2, **arguments}), pytest.raises(SystemExit):
            litellm_health.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_readiness_needs_no_key_and_asks_nothing_else(run, gateway):
    result = run()
    assert not result.get("failed")
    assert gateway.requests == ["/health/readiness"]


@pytest.mark.parametrize(
    "readiness", [(503, {"status": "unhealthy"}), (200, {"error": "Unexpected endpoint"}), (200, b"<html>")]
)
def test_not_ready(run, gateway, readiness):
    gateway.readiness = readiness
    result = run()
    assert result["failed"]
    assert "was not ready within 0.2 s. Last seen: HTTP" in result["msg"]
    assert "gateway.log" in result["msg"]


def test_nobody_listens(run, gateway):
    assert "connection refused" in run(url="http://127.0.0.1:1")["msg"]


def test_check_mode_asks_once_and_no_deployment(run, gateway):
    result = run(deployments=["chat"], master_key_file="/nowhere", timeout=60, _ansible_check_mode=True)
    assert (result["deployments"], gateway.requests) == ([], ["/health/readiness"])
    gateway.readiness = (503, {"status": "starting"})
    result = run(timeout=60, _ansible_check_mode=True)
    assert not result.get("failed")
    assert "starting" in result["problem"]


def test_each_deployment_is_asked_by_its_mode(run, gateway, tmp_path):
    (tmp_path / "key").write_text("sk-1\n")
    result = run(deployments=["chat", "embed"], master_key_file=str(tmp_path / "key"))
    assert [d["healthy"] for d in result["deployments"]] == [True, True]
    assert sorted(gateway.requests[2:]) == [("/v1/chat/completions", "chat"), ("/v1/embeddings", "embed")]


def test_each_that_is_silent_is_named_with_what_was_seen(run, gateway):
    gateway.deployments["broken"] = ("chat", [(500, {"error": "boom"}, None)])
    gateway.deployments["html"] = ("chat", [(200, b"<html>", None)])
    gateway.deployments["stray"] = ("chat", [(200, CHAT, "other")])
    names = ["chat", "broken", "html", "stray", "unknown"]
    result = run(deployments=names, master_key="sk-1")
    assert result["failed"]
    assert "4 of 5 deployments did not answer" in result["msg"]
    assert [d["id"] for d in result["deployments"] if d["healthy"]] == ["chat"]
    problems = {d["id"]: d["problem"] for d in result["deployments"]}
    assert problems["broken"] == 'HTTP 500: {"error": "boom"}'
    assert problems["html"] == "not an answer: <html>"
    assert problems["stray"] == "the answer came from other"
    assert problems["unknown"] == "the gateway does not know it"
    assert all(f"  - {name}: {problems[name]}" in result["msg"] for name in names[1:])


def test_it_asks_again_only_those_that_did_not_answer(run, gateway):
    gateway.deployments["late"] = ("chat", [(500, {}, None), (200, CHAT, None)])
    result = run(deployments=["chat", "late"], master_key="sk-1", timeout=10)
    assert not result.get("failed")
    assert gateway.requests.count(("/v1/chat/completions", "chat")) == 1
    assert gateway.requests.count(("/v1/chat/completions", "late")) == 2


def test_what_has_little_hope_is_not_waited_for(run, gateway):
    gateway.deployments["late"] = ("chat", [(500, {}, None)] * 4 + [(200, CHAT, None)])
    gateway.deployments["dead"] = ("chat", [(500, {}, None)])
    result = run(deployments=["dead", "late"], doubtful=["dead"], doubtful_timeout=0.1, master_key="sk-1", timeout=60)
    assert [(one["id"], one["healthy"]) for one in result["deployments"]] == [("dead", False), ("late", True)]
    assert gateway.requests.count(("/v1/chat/completions", "dead")) <= 2


def test_a_wrong_key_is_said_at_once(run, gateway):
    result = run(deployments=["chat"], master_key="sk-2", timeout=60)
    assert result["failed"]
    assert "does not accept the key (HTTP 400" in result["msg"]
    assert "Give its master key" in result["msg"]
    assert "sk-2" not in result["msg"]
    assert gateway.requests == ["/health/readiness", "/model/info"]


def test_each_worker_must_know_each_deployment(run, tmp_path):
    def report(pid, *known):
        content = {"format": 1, "pid": pid, "at": time.time(), "generation": 3, "paused_generations": {}, "workers": 2}
        content.update(rejected={}, error=None, deployments=list(known), in_flight={"a": 1})
        (tmp_path / "applied" / f"{pid}.json").write_text(json.dumps(content))

    (tmp_path / "applied").mkdir()
    entries = [{"model_name": "g", "litellm_params": {"model": "m"}, "model_info": {"id": name}} for name in "ab"]
    document = {"format": 1, "generation": 3, "routing": "round_robin", "deployments": entries}
    (tmp_path / "deployments.json").write_text(json.dumps(document))
    report(os.getpid(), "a", "b")
    assert "2 of the gateway's workers to report, and 1 did" in run(registry=str(tmp_path))["msg"]
    report(os.getppid(), "a")
    assert f"worker {os.getppid()} to know b" in run(registry=str(tmp_path))["msg"]
    looked = run(registry=str(tmp_path), idle=["a"], watch=["a"], timeout=60, _ansible_check_mode=True)
    assert (looked.get("failed"), len(looked["workers"])) == (None, 2)
    assert looked["problem"] == f"still waiting for worker {os.getppid()} to know b"
    report(os.getppid(), "a", "b")
    result = run(registry=str(tmp_path))
    assert not result.get("failed")
    assert sorted(worker["pid"] for worker in result["workers"]) == sorted([os.getpid(), os.getppid()])
    assert result["workers"][0]["in_flight"] == {"a": 1}


@pytest.mark.parametrize("age", [30, 3600])
def test_a_report_of_long_ago_is_of_no_worker(run, tmp_path, age):
    """After a boot its process id belongs to somebody else."""
    (tmp_path / "applied").mkdir()
    for pid, seconds in ((os.getpid(), -60), (os.getppid(), age)):
        content = {"format": 1, "pid": pid, "at": time.time() - seconds, "generation": 3, "paused_generations": {}}
        content.update(workers=1, rejected={}, error=None)
        (tmp_path / "applied" / f"{pid}.json").write_text(json.dumps(content))
    result = run(registry=str(tmp_path), idle=["a"], timeout=0.1)
    assert bool(result.get("failed")) == (age < 60)
    assert len(result["workers"]) == 1 + (age < 60)


def test_a_registry_that_cannot_be_read_is_named(run, tmp_path):
    (tmp_path / "deployments.json").mkdir()
    message = run(registry=str(tmp_path))["msg"]
    assert message.startswith(f"{tmp_path}/deployments.json cannot be read (Is a directory).")
    assert "move it away" in message


def test_what_is_no_http_is_no_answer(run, gateway, monkeypatch):
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.wfile.write(b"SSH-2.0\r\n"))
    assert "no answer: SSH-2.0" in run(deployments=["chat"], master_key="sk-1")["msg"]


def test_idle_is_what_every_worker_says_after_the_question(run, tmp_path):
    (tmp_path / "applied").mkdir()
    entries = [{"model_name": "g", "litellm_params": {"model": "m"}, "model_info": {"id": "a"}}]
    document = {"format": 1, "generation": 3, "routing": "round_robin", "deployments": entries}
    (tmp_path / "deployments.json").write_text(json.dumps(document))

    def report(in_flight, at):
        content = {"format": 1, "pid": os.getpid(), "at": at, "generation": 3, "paused_generations": {}, "workers": 1}
        content.update(rejected={}, error=None, deployments=["a"], in_flight=in_flight)
        temporary = tmp_path / "report"
        temporary.write_text(json.dumps(content))
        temporary.replace(tmp_path / "applied" / f"{os.getpid()}.json")

    report({}, time.time() - 1)
    assert f"the worker {os.getpid()} to report" in run(registry=str(tmp_path), idle=["a"], timeout=0.2)["msg"]
    report({"a": 2, "b": 1}, time.time() + 60)
    busy = run(registry=str(tmp_path), idle=["a"], timeout=0.2)
    assert ("requests to end: a has 2" in busy["msg"], busy["busy"]) == (True, {"a": 2})
    later = threading.Timer(1, report, ({"b": 1}, time.time() + 60))
    later.start()
    assert not run(registry=str(tmp_path), idle=["a"], timeout=20).get("failed")
    later.join()
    assert "registry" in run(idle=["a"])["msg"]


def test_a_changed_deployment_is_compared_with_the_others_of_its_group(run, tmp_path):
    (tmp_path / "applied").mkdir()
    groups = {"a": "g", "b": "g", "far": "h"}
    entries = [
        {"model_name": groups[name], "litellm_params": {"model": "m"}, "model_info": {"id": name}} for name in groups
    ]
    document = {"format": 1, "generation": 3, "routing": "round_robin", "deployments": entries}
    (tmp_path / "deployments.json").write_text(json.dumps(document))

    def report(**deployments):
        content = {"format": 1, "pid": os.getpid(), "at": time.time() + 60, "generation": 3, "paused_generations": {}}
        content.update(workers=1, rejected={}, error=None, deployments=list(groups), in_flight={}, started_at=1.0)
        content["outcomes"] = {"failed_requests": 0, "deployments": deployments}
        temporary = tmp_path / "report"
        temporary.write_text(json.dumps(content))
        temporary.replace(tmp_path / "applied" / f"{os.getpid()}.json")

    def watched(seconds):
        return run(registry=str(tmp_path), watch=["a"], watch_seconds=seconds)

    report(a={"ended": 3, "failed": 9})
    assert not watched(0.1).get("failed"), "what was before does not count"
    later = threading.Timer(1, report, (), {"a": {"ended": 4, "failed": 12}, "b": {"ended": 9}, "far": {"failed": 99}})
    later.start()
    began = time.monotonic()
    result = watched(60)
    assert time.monotonic() - began < 50, "it does not wait to the end"
    assert "a: 75% of 4 requests failed, elsewhere 0%" in result["msg"] and result["worse"] in result["msg"]
    later.join()


def test_no_key(run, tmp_path):
    assert "needs the master key" in run(deployments=["chat"])["msg"]
    assert "needs the master key" in run(deployments=["chat"], master_key_file=str(tmp_path / "absent"))["msg"]
