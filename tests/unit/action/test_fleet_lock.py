# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_lock: one run at a time, held for as long as the run lives and not longer."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_lock

LOCK = {"lmfleet.mac.fleet_lock": {"timeout": 1}, "run_once": True, "register": "fleet_locked"}
LONG = {"ansible.builtin.pause": {"seconds": 30}}
MARK = "the lock is taken"


def start_and_wait_for_lock(controller, inventory):
    run = controller(inventory, [LOCK, {"ansible.builtin.debug": {"msg": MARK}}, LONG])
    for line in run.stdout:
        if MARK in line:
            return run
    raise AssertionError("the run ended before it had the lock")


@pytest.fixture
def running(controller, inventory):
    """A run that has the lock of the fleet, and is killed in the end."""
    run = start_and_wait_for_lock(controller, inventory)
    yield run
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def locked(controller, inventory):
    """Take the lock in another run; return its code and what it said."""
    run = controller(inventory, [LOCK, {"ansible.builtin.debug": {"msg": "id {{ fleet_locked.controller }}"}}])
    output = run.communicate(timeout=60)[0]
    return run.returncode, output


def test_a_second_run_is_refused_and_told_who_holds_the_lock(controller, inventory, running):
    # A fleet with other Macs, and with a gateway more, is the same fleet.
    groups = inventory["all"]["children"]
    groups["macs"]["hosts"]["mac-3"] = groups["macs"]["hosts"].pop("mac-2")
    groups["gateways"]["hosts"]["mac-0"] = {"ansible_host": "10.0.0.0"}
    code, output = locked(controller, inventory)
    assert code != 0
    assert f"process {running.pid}" in output
    assert "Nothing has been changed" in output


def test_a_killed_run_frees_the_lock(controller, inventory):
    first = start_and_wait_for_lock(controller, inventory)
    os.killpg(first.pid, signal.SIGKILL)
    second = controller(inventory, [LOCK])
    output = second.communicate(timeout=60)[0]
    first.communicate()
    assert second.returncode == 0, output


def test_another_fleet_has_another_lock(controller, inventory, running):
    inventory["all"]["children"]["macs"]["hosts"]["mac-1"]["ansible_host"] = "another"
    code, output = locked(controller, inventory)
    assert code == 0, output


def test_a_fleet_without_a_gateway_has_the_locks_of_its_macs(controller, inventory, tmp_path):
    inventory["all"]["children"]["gateways"]["hosts"] = {}
    code, output = locked(controller, inventory)
    assert code == 0, output
    folder = tmp_path / ".ansible" / "lmfleet"
    assert {path.name for path in folder.glob("*.lock")} == {"10.0.0.1.lock", "10.0.0.2.lock"}
    assert f"id {(folder / 'controller-id').read_text()}" in output


def test_a_run_that_does_not_get_all_locks_keeps_none(tmp_path):
    held, free = str(tmp_path / "b"), str(tmp_path / "a")
    run = subprocess.Popen(["sleep", "60"])
    holders = []

    def take(who, *paths):
        command = [sys.executable, fleet_lock.__file__, str(run.pid), "0", json.dumps({"user": who}), *paths]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return json.loads(holders[-1].stdout.readline())["held_by"]

    try:
        assert take("anna", held) is None
        assert take("ben", free, held) == {"user": "anna"}
        holders[-1].wait()
        assert take("carl", free) is None
    finally:
        run.kill()
        run.wait()
        for holder in holders:
            holder.communicate()


def test_a_controller_is_known_by_the_same_id_for_ever(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = fleet_lock.controller_id()
    assert len(found) == 32 and found == fleet_lock.controller_id()
    files = list((tmp_path / ".ansible" / "lmfleet").iterdir())
    assert [path.name for path in files] == ["controller-id"] and files[0].stat().st_mode & 0o777 == 0o600


def test_two_first_runs_make_up_one_id(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    link = os.link

    def late(draft, path):
        path.write_text("the id of the other")
        link(draft, path)

    monkeypatch.setattr(fleet_lock.os, "link", late)
    assert fleet_lock.controller_id() == "the id of the other"


def told_by_an_orphan(pids):
    os.getppid = lambda: 1  # what it is told once its parent has been killed
    pids.put(fleet_lock.run_pid())


def test_a_worker_whose_run_was_killed_takes_no_lock_for_process_1():
    fork = multiprocessing.get_context("fork")
    pids = fork.SimpleQueue()
    worker = fork.Process(target=told_by_an_orphan, args=(pids,))
    worker.start()
    assert pids.get() == os.getpid()
    worker.join()
