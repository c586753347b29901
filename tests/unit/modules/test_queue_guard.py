# SPDX-License-Identifier: GPL-3.0-or-later
"""Module queue_guard: what it does to files and job, against a launchd of dictionaries and a guard that only says."""

from __future__ import annotations

import http.server
import json
import plistlib
import threading
from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _queue_guard
from ansible_collections.lmfleet.mac.plugins.modules import queue_guard

LABEL = "lmfleet.queue_guard"
SAID = """# HELP lmfleet_deployment_known 1 when the last poll learned the queue, else 0.
lmfleet_deployment_known{deployment="a",group="g"} 1
lmfleet_deployment_known{deployment="b",group="g"} 0
lmfleet_deployment_paused{deployment="b",group="g",owner="guard"} 1
lmfleet_deployment_paused{deployment="b",group="g",owner="operator"} 1
lmfleet_guard_poll_age_seconds AGE
"""


class Said(http.server.ThreadingHTTPServer):
    """A guard that says its figures while its job runs; `age` None for one that does not answer."""

    age = "2"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.server.age is None:
            return
        body = SAID.replace("AGE", self.server.age).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def said():
    server = Said()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def guard(run_module, launchd, tmp_path, monkeypatch, said):
    """Return a function that runs the module with some options changed."""
    monkeypatch.setattr(queue_guard, "domain_for", lambda _kind, _user: launchd.domain)
    monkeypatch.setattr(_queue_guard, "_SETTLE", 0.3)
    folder, registry = tmp_path / "queue_guard", tmp_path / "gateway" / "registry"
    (registry / "paused").mkdir(parents=True)
    settings = {"metrics_address": "127.0.0.1", "metrics_port": said.server_port, "interval": 5, "registry": "r"}
    plist = plistlib.dumps({"Label": LABEL, "ProgramArguments": ["/bin/guard"], "KeepAlive": True}).decode()

    def run(check=False, **changes):
        options = {
            "directory": str(folder),
            "registry": str(registry),
            "files": {"__main__.py": "print()"},
            "settings": json.dumps(settings),
            "plist": plist,
            "domain": "gui",
            "timeout": 2,
        }
        return run_module(queue_guard, {**options, **changes}, check)

    run.folder, run.registry, run.settings = folder, registry, settings
    return run


def test_a_first_run_installs_and_waits_and_a_second_changes_nothing(guard, launchd):
    foretold = guard(check=True)
    assert not guard.folder.exists() and launchd.names() == []
    first = guard()
    assert first["changed"] and first["actions"] == foretold["actions"]
    assert first["actions"] == ["write queue_guard.pyz", "write settings.json", "write", "bootstrap"]
    assert first["guard"] == {"deployments": 2, "known": 1, "paused": 1, "age": 2}
    assert json.loads((guard.folder / "settings.json").read_text()) == guard.settings
    assert {Path(diff["after_header"]).name for diff in first["diff"]} == {
        "queue_guard.pyz",
        "settings.json",
        f"{LABEL}.plist",
    }
    launchd.calls.clear()
    second = guard()
    assert not second["changed"] and second["diff"] == [] and launchd.names() == []


@pytest.mark.parametrize(
    ("change", "written"),
    [
        (lambda guard: {"settings": json.dumps({**guard.settings, "interval": 9})}, "settings.json"),
        (lambda _guard: {"files": {"__main__.py": "print(2)"}}, "queue_guard.pyz"),
    ],
)
def test_what_differs_is_written_while_the_job_is_stopped(guard, launchd, change, written):
    guard()
    changes = change(guard)
    launchd.calls.clear()
    result = guard(**changes)
    assert result["actions"] == ["bootout", f"write {written}", "bootstrap"]
    assert launchd.names() == [f"bootout {LABEL}", f"bootstrap {LABEL}"]
    assert not guard(**changes)["changed"]


def test_a_disabled_guard_is_enabled_without_a_restart(guard, launchd):
    guard()
    pid = launchd.jobs[LABEL]["pid"]
    launchd.disabled.add(LABEL)
    assert guard()["actions"] == ["enable"] and launchd.jobs[LABEL]["pid"] == pid and not launchd.disabled


def test_settings_that_mean_the_same_are_the_same(guard):
    guard()
    assert not guard(settings=json.dumps(dict(reversed(guard.settings.items())), indent=7))["changed"]


def test_a_run_that_was_killed_halfway_is_completed(guard, launchd):
    guard()
    launchd.jobs.clear()
    assert guard()["actions"] == ["bootstrap"]


@pytest.mark.parametrize("age", ["500", "+Inf", None])
def test_one_that_does_not_look_is_told_in_check_mode_and_restarted_in_a_run(guard, launchd, said, age):
    guard()
    said.age = age
    launchd.on_start = lambda _label, _pid: setattr(said, "age", "0")
    checked = guard(check=True)
    assert not checked["changed"] and "the queue guard" in checked["problem"]
    assert guard()["actions"] == ["bootout", "bootstrap"]


def test_one_that_never_looks_is_an_error_that_says_so(guard, said):
    said.age = "inf"
    result = guard()
    assert result["failed"] and "waited 2 s for the queue guard to look" in result["msg"]
    assert "has not looked at the instances yet" in result["msg"]


def test_absent_removes_job_folder_and_pauses_and_nothing_else(guard, launchd):
    guard()
    pauses, others = (guard.registry / "paused" / f"{owner}.json" for owner in ("guard", "operator"))
    pauses.write_text("{}")
    others.write_text("{}")
    assert guard(check=True, state="absent")["changed"] and pauses.exists()
    removed = guard(state="absent")
    assert removed["changed"] and len(removed["diff"]) == 3
    assert (guard.folder.exists(), pauses.exists(), others.exists()) == (False, False, True)
    assert launchd.jobs == {} and not Path(launchd.domain.plist_path(LABEL)).exists()
    assert not guard(state="absent")["changed"]


def test_a_folder_that_is_not_ours_stays(guard):
    guard.folder.mkdir()
    (guard.folder / "mine").write_text("")
    assert not guard(state="absent")["changed"] and (guard.folder / "mine").exists()


@pytest.mark.parametrize(
    ("changes", "said_so"),
    [
        ({"settings": "{\n x", "settings_source": "mine.j2"}, "mine.j2: line 2"),
        ({"settings": "{}", "settings_source": "mine.j2"}, "mine.j2: metrics_address"),
        ({"files": {"a.py": ""}}, "there is no __main__.py"),
        ({"plist": "<plist>"}, "not valid XML"),
        ({"registry": "/nowhere/gateway/registry"}, "Set it up first"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(guard, launchd, changes, said_so):
    result = guard(**changes)
    assert result["failed"] and said_so in result["msg"]
    assert launchd.names() == [] and not guard.folder.exists()
