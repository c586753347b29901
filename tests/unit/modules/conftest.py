# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs modules in this process, against a launchd made of dictionaries."""

from __future__ import annotations

import json
import os
import plistlib
import threading

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.lmfleet.mac.plugins.module_utils import _launchd
from ansible_collections.lmfleet.mac.plugins.module_utils._command import Result


@pytest.fixture
def run_module(capsys):
    """Return a function (module, arguments, check=False) that runs a module and returns its result."""

    def run(module, arguments, check=False):
        given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(given), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


class FakeLaunchd:
    """Answers launchctl with its exit codes. Knobs: draining, disabled, no_domain, refuse_once, exits, on_start."""

    def __init__(self, folder):
        self.domain = _launchd.Domain("gui", "gui/501", str(folder), (os.getuid(), os.getgid()), "admin")
        self.jobs = {}
        self.calls = []
        self.draining = {}
        self.disabled = set()
        self.no_domain = False
        self.refuse_once = []
        self.exits = {}
        self.on_start = lambda label, pid: None
        self._next_pid = 100
        self._one_at_a_time = threading.Lock()  # modules ask from several threads

    def names(self):
        """Return the calls that change something, as "verb label"."""
        return [f"{verb} {label}" for verb, label in self.calls if verb not in ("print", "print-disabled")]

    def answer(self, verb, target, path=None):
        with self._one_at_a_time:
            return self._answer(verb, target, path)

    def _answer(self, verb, target, path):
        label = os.path.basename(path)[: -len(".plist")] if path else target.partition("/")[2].partition("/")[2]
        self.calls.append((verb, label))
        if self.no_domain:
            return Result(125, "", "Domain does not support specified action")
        return getattr(self, "_" + verb.replace("-", "_"))(label, path)

    def _print_disabled(self, _label, _path):
        lines = "".join(f'\t\t"{label}" => disabled\n' for label in sorted(self.disabled))
        return Result(0, f"\tdisabled services = {{\n{lines}\t}}\n", "")

    def _print(self, label, _path):
        if not label:
            return Result(0, "gui/501 = {\n", "")
        if self.draining.get(label):
            self.draining[label] -= 1
            if not self.draining[label]:
                del self.jobs[label], self.draining[label]
        if label not in self.jobs:
            return Result(113, "", f'Could not find service "{label}" in domain for user gui: 501')
        job = self.jobs[label]
        pid = f"\tpid = {job['pid']}\n" if job["pid"] else ""
        return Result(
            0,
            f"gui/501/{label} = {{\n\tpath = {job['path']}\n\tstate = running\n{pid}"
            f"\tlast exit code = {job['exit']}\n\tendpoints = {{\n\t\tpid = 1\n\t}}\n}}\n",
            "",
        )

    def _bootout(self, label, _path):
        if label not in self.jobs:
            return Result(3, "", "Boot-out failed: 3: No such process")
        self.draining[label] = self.draining.get(label, 2)
        return Result(36, "", "Boot-out failed: 36: Operation now in progress")

    def _bootstrap(self, label, path):
        if label in self.disabled:
            return Result(119, "", "Bootstrap failed: 119: Service is disabled")
        if self.refuse_once:
            return Result(self.refuse_once.pop(0), "", "Bootstrap failed")
        if label in self.jobs:
            return Result(5, "", "Bootstrap failed: 5: Input/output error")
        self._next_pid += 1
        code = self.exits.get(label)
        with open(path, "rb") as stream:
            plist = plistlib.load(stream)
        self.jobs[label] = {
            "path": path,
            "pid": None if code is not None else self._next_pid,
            "exit": code,
            "plist": plist,
        }
        self.on_start(label, self._next_pid)
        return Result(0, "", "")

    def _enable(self, label, _path):
        self.disabled.discard(label)
        return Result(0, "", "")


@pytest.fixture
def launchd(tmp_path, monkeypatch):
    """A launchd whose gui domain keeps its plists below tmp_path."""
    fake = FakeLaunchd(tmp_path / "LaunchAgents")
    monkeypatch.setattr(_launchd.Launchctl, "_call", lambda _self, *arguments: fake.answer(*arguments))
    return fake
