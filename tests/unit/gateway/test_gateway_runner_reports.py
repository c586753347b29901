# SPDX-License-Identifier: GPL-3.0-or-later
"""Which workers of a new start the gateway runner counts as serving."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[3] / "roles" / "litellm" / "files" / "gateway_runner.py"


@pytest.fixture
def server(tmp_path):
    """A start of two workers, without a process."""
    spec = importlib.util.spec_from_file_location("gateway_runner_under_test", RUNNER)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    server = runner.Server.__new__(runner.Server)
    server.run, server._registry, server.began, server.last_lines = "new", str(tmp_path), 0.0, ["its last words"]
    server.process = type("Process", (), {"poll": lambda self: None})()
    server.release = type("Release", (), {"workers": 2, "start_timeout": 1.0})()
    (tmp_path / "applied").mkdir()
    return server


def report(folder, pid, **changes):
    content = {"run": "new", "at": time.time(), "generation": 1, "error": None, **changes}
    (folder / "applied" / f"{pid}.json").write_text(json.dumps(content))


def test_those_of_this_start_that_have_reported_lately(server, tmp_path):
    report(tmp_path, 1)
    report(tmp_path, 2, run="old")
    report(tmp_path, 3, at=time.time() - 60)
    assert server.reported() == 1


def test_a_new_gateway_has_nothing_to_apply(server, tmp_path):
    report(tmp_path, 1, generation=None, error="deployments.json: No such file or directory; nothing to keep")
    assert server.reported() == 1
    assert server.trouble() == "1 of 2 workers reported within 1 s: its last words"


def test_who_has_applied_nothing_of_what_there_is_does_not_serve(server, tmp_path):
    (tmp_path / "deployments.json").write_text("{")
    report(tmp_path, 1, generation=None, error="deployments.json: broken; nothing to keep")
    report(tmp_path, 2, error="paused/operator.json: broken; keeping generation 3")
    assert server.reported() == 1
    assert server.trouble() == "1 of 2 workers reported within 1 s: deployments.json: broken; nothing to keep"
