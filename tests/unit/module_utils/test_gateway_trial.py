# SPDX-License-Identifier: GPL-3.0-or-later
"""A release on trial, with a small server in the place of LiteLLM."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _gateway_trial as gateway_trial

import registry_documents
from lmfleet_sandbox.processes import is_alive

SERVER = """#!{python}
import http.server, json, os, socket, time
folder = os.environ["LMFLEET_REGISTRY"]
with open(os.path.join(folder, "deployments.json")) as stream:
    known = json.load(stream)["deployments"]
with open({seen!r}, "w") as stream:
    json.dump([entry["model_info"]["id"] for entry in known], stream)
report = {{"generation": 1, "error": None, "rejected": {{}}, **{report!r}}}
with open(os.path.join(folder, "applied", "1.json"), "w") as stream:
    json.dump(report, stream)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.headers["Authorization"] in (None, "Bearer sk-1") else 401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{{}}")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=int(os.environ["LMFLEET_SOCKET"]))
server.serve_forever()
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "registry" / "applied" / "kept").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def run(root):
    """Return a function that puts a release on trial whose plugin reports this; returns the ids that it was given."""

    def run(timeout=20, **report):
        program = root / "release" / "run-gateway"
        program.parent.mkdir(exist_ok=True)
        program.write_text(SERVER.format(python=sys.executable, seen=str(root / "seen"), report=report))
        program.chmod(0o755)
        gateway_trial.trial(str(program.parent), str(root), "sk-1", timeout)
        return json.loads((root / "seen").read_text())

    return run


def serve(root, *names, age=0.0):
    """Write the report of a worker of the gateway in use."""
    report = {"format": 1, "pid": os.getpid(), "at": time.time() - age, "generation": 1, "paused_generations": {}}
    report.update(workers=1, rejected={}, error=None, deployments=list(names))
    (root / "registry" / "applied" / "1.json").write_text(json.dumps(report))


def test_it_gets_the_deployments_that_there_are(run, root):
    assert run() == ["lmfleet-trial-1"]
    (root / "registry" / "deployments.json").write_text(registry_documents.DEPLOYMENTS["one"])
    assert run() == ["a", "lmfleet-trial-1"]


@pytest.mark.parametrize("name", ["cut off", "empty object", "twice"])
def test_of_a_broken_registry_it_gets_what_the_workers_keep(run, root, name):
    broken = root / "registry" / "deployments.json"
    broken.write_text(registry_documents.BROKEN_DEPLOYMENTS[name])
    with pytest.raises(gateway_trial.TrialError, match="is broken, and no worker has kept a copy"):
        run()
    kept = root / "registry" / "applied" / "kept" / "deployments.json"
    kept.write_text(registry_documents.DEPLOYMENTS["one"])
    assert run() == ["a", "lmfleet-trial-1"]
    broken.unlink()
    assert run() == ["a", "lmfleet-trial-1"]


def test_what_the_gateway_serves_must_not_be_refused(run, root):
    serve(root, "a", "b")
    with pytest.raises(gateway_trial.TrialError, match=r"the gateway serves: a \(no such provider\)"):
        run(rejected={"a": "no such provider", "new": "x"})
    assert run(rejected={"new": "the gateway in use refuses it, too"})
    serve(root, "a", age=30)
    assert run(rejected={"a": "no such provider"})


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"rejected": {"lmfleet-trial-1": "x"}}, "it takes no deployment: x"),
        ({"error": "y", "generation": None}, "it cannot follow the registry: y"),
        ({"generation": None, "timeout": 1}, "it did not follow the registry within 1 s"),
    ],
)
def test_what_the_plugin_says_is_heard(run, report, message):
    with pytest.raises(gateway_trial.TrialError, match=message):
        run(**report)


def test_a_trial_whose_run_was_killed_is_ended_and_leaves_nothing(run, root):
    killed = multiprocessing.get_context("fork").Process(target=run, kwargs={"timeout": 60, "generation": None})
    killed.start()
    deadline = time.monotonic() + 20
    while not list(root.glob(".trial-*/applied/1.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (folder,) = root.glob(".trial-*")
    server = int((folder / "group").read_text())
    killed.kill()
    killed.join()
    try:
        assert is_alive(server)
        gateway_trial.end_leftovers(str(root))
        assert (is_alive(server), folder.exists()) == (False, False)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
    assert run()


def test_the_number_of_a_trial_that_has_ended_may_be_that_of_somebody_else(root):
    folder = root / ".trial-x"
    folder.mkdir()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        (folder / "group").write_text(f"{other.pid}\n")
        gateway_trial.end_leftovers(str(root))
        time.sleep(0.1)
        assert other.poll() is None
        other.kill()
    assert not folder.exists()
