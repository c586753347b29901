# SPDX-License-Identifier: GPL-3.0-or-later
"""Which numbers of processes are those of living ones."""

from __future__ import annotations

import os
import subprocess

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _processes


@pytest.mark.parametrize("pid", [None, "7", 1.5, True, 0, 1, -1, 2**70])
def test_what_is_no_process_that_is_meant(pid):
    assert not _processes.alive(pid)


def test_the_living_and_the_dead():
    assert _processes.alive(os.getpid(), of_this_user=True)
    child = subprocess.Popen(["true"])
    child.wait()
    assert not _processes.alive(child.pid)


def test_one_of_somebody_else(monkeypatch):
    def kill(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert _processes.alive(4711)
    assert not _processes.alive(4711, of_this_user=True)
