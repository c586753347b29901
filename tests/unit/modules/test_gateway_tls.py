# SPDX-License-Identifier: GPL-3.0-or-later
"""The module gateway_tls: launchd is made of dictionaries, nginx is a script. The real one is in tests/gateway."""

from __future__ import annotations

import os
import plistlib
import signal

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _gateway_tls
from ansible_collections.lmfleet.mac.plugins.module_utils._names import LOCK_NAME
from ansible_collections.lmfleet.mac.plugins.modules import gateway_tls

from certificates import certificate

FIRST, SECOND = certificate(), certificate()


class Front:
    """Runs the module; `signals` are those that it sent, `trouble` is what clients see."""

    def __init__(self, folder, launchd, run_module):
        self.folder, self.launchd, self.run_module = folder / "tls", launchd, run_module
        self.nginx = folder / "nginx"
        self.trouble = ""
        self.signals = []
        self.takes("exit 0")

    def takes(self, script):
        self.nginx.write_text(f"#!/bin/sh\n{script}\n")
        self.nginx.chmod(0o755)

    def run(self, pair=FIRST, check=False, **changes):
        plist = {"Label": "lmfleet.gateway_tls", "ProgramArguments": [str(self.nginx)], "RunAtLoad": True}
        given = {
            "directory": str(self.folder),
            "nginx": str(self.nginx),
            "config": "events {}\n",
            "certificate": pair[0],
            "key": pair[1],
            "port": 8443,
            "plist": plistlib.dumps(plist).decode(),
            "timeout": 1,
        }
        return self.run_module(gateway_tls, {**given, **changes}, check)

    def files(self):
        """Return all that is there, but for who had the lock last."""
        there = [path for path in self.folder.iterdir() if path.is_file() and path.name != LOCK_NAME]
        return {path.name: path.read_bytes() for path in there}


@pytest.fixture
def front(tmp_path, launchd, run_module, monkeypatch):
    front = Front(tmp_path, launchd, run_module)
    monkeypatch.setattr(gateway_tls, "domain_for", lambda _kind, _user: launchd.domain)
    monkeypatch.setattr(_gateway_tls.Front, "trouble", lambda _self: front.trouble)
    monkeypatch.setattr(os, "kill", lambda pid, number: front.signals.append((pid, number)))
    return front


def test_the_same_again_changes_nothing(front):
    assert front.run()["actions"] == ["write nginx.conf", "write server.pem", "write", "bootstrap"]
    assert not front.run()["changed"]
    assert (front.folder / "server.pem").stat().st_mode & 0o777 == 0o600
    assert front.folder.stat().st_mode & 0o777 == 0o700
    assert not (front.folder / "trial").exists()


def test_a_new_certificate_is_taken_up_without_a_new_start(front):
    front.run()
    pid = front.launchd.jobs["lmfleet.gateway_tls"]["pid"]
    checked = front.run(SECOND, check=True)
    assert checked["actions"] == ["write server.pem", "reload"]
    assert front.signals == []
    changed = front.run(SECOND)
    assert changed["actions"] == checked["actions"]
    assert front.signals == [(pid, signal.SIGHUP)]
    assert "PRIVATE" not in str(changed) and "PRIVATE" not in str(checked)
    assert len(changed["diff"]) == 1
    assert not front.run(SECOND)["changed"]


def test_a_run_that_was_killed_before_nginx_knew_is_completed(front):
    front.run()
    front.trouble = "it shows another certificate"
    assert "it shows another certificate" in front.run(SECOND)["msg"]
    front.trouble = ""
    assert front.run(SECOND)["actions"] == ["reload"]


@pytest.mark.parametrize(
    ("script", "changes", "told"),
    [
        ("echo 'unknown directive in /x/trial/nginx.conf:1' >&2; exit 1", {}, "unknown directive"),
        ("exit 0", {"nginx": "/nowhere/nginx"}, "brew install nginx"),
        ("exit 0", {"certificate": "nonsense"}, "certificate: there is none in it"),
    ],
)
def test_what_cannot_serve_replaces_nothing(front, script, changes, told):
    front.run()
    before = front.files()
    front.takes(script)
    failed = front.run(SECOND, **changes)
    assert told in failed["msg"]
    assert front.files() == before
    assert front.signals == []


def test_what_does_not_serve_is_told_in_check_mode(front):
    front.run()
    front.trouble = "/health/liveliness is answered with HTTP 502"
    assert front.run(check=True)["problem"] == front.trouble


def test_it_goes_with_all_it_had(front):
    front.run()
    assert front.run(check=True, state="absent")["actions"] == ["bootout", "remove", "remove folder"]
    front.run(state="absent")
    assert not front.folder.exists()
    assert not front.launchd.jobs
    assert not front.run(state="absent")["changed"]
