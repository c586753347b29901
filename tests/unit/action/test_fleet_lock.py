# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_lock: one run at a time, held for as long as the run lives and not longer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import uuid

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_lock

LOCK = {"lmfleet.mac.fleet_lock": {"timeout": 1}, "run_once": True}
LONG = {"ansible.builtin.pause": {"seconds": 30}}
MARK = "the lock is taken"


@pytest.fixture
def inventory(inventory):
    inventory["all"]["children"]["macs"]["hosts"]["mac-1"]["ansible_host"] = f"fleet-{uuid.uuid4()}"
    return inventory


def start_and_wait_for_lock(controller, inventory):
    run = controller(inventory, [LOCK, {"ansible.builtin.debug": {"msg": MARK}}, LONG])
    for line in run.stdout:
        if MARK in line:
            return run
    raise AssertionError("the run ended before it had the lock")


def test_a_second_run_is_refused_and_told_who_holds_the_lock(controller, inventory):
    first = start_and_wait_for_lock(controller, inventory)
    try:
        second = controller(inventory, [LOCK])
        output = second.communicate(timeout=60)[0]
        assert second.returncode != 0
        assert f"process {first.pid}" in output
        assert "Nothing has been changed" in output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_a_killed_run_frees_the_lock(controller, inventory):
    first = start_and_wait_for_lock(controller, inventory)
    os.killpg(first.pid, signal.SIGKILL)
    second = controller(inventory, [LOCK])
    output = second.communicate(timeout=60)[0]
    first.communicate()
    assert second.returncode == 0, output


def test_another_fleet_has_another_lock(controller, inventory):
    first = start_and_wait_for_lock(controller, inventory)
    try:
        inventory["all"]["children"]["macs"]["hosts"]["mac-1"]["ansible_host"] = "another"
        second = controller(inventory, [LOCK])
        assert second.communicate(timeout=60)[0]
        assert second.returncode == 0
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


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
