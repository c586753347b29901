# SPDX-License-Identifier: GPL-3.0-or-later
"""Atomic writes, canonical texts and the lock of a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _files


def test_atomic_write_sets_the_mode_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "file"
    _files.atomic_write(str(target), "one", 0o600)
    _files.atomic_write(str(target), b"two", 0o640)
    assert target.read_text() == "two" and target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _files.atomic_write(str(target), "new")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_root_leaves_no_files_of_its_own_in_the_folder_of_a_user(tmp_path):
    os.chown(tmp_path, 501, 20)
    _files.make_directory(str(tmp_path / "a" / "b"))
    _files.atomic_write(str(tmp_path / "a" / "b" / "file"), "x")
    with _files.exclusive(str(tmp_path / "a"), "test"):
        pass
    for place in ("a", "a/b", "a/b/file", "a/.lmfleet.lock"):
        info = os.stat(tmp_path / place)
        assert (info.st_uid, info.st_gid) == (501, 20), place


def test_canonical_json_knows_true_from_1_and_4_from_4_5():
    assert _files.canonical_json({"b": 1, "a": 4.0}) == _files.canonical_json({"a": 4, "b": 1})
    assert _files.canonical_json([True]) != _files.canonical_json([1])
    assert _files.canonical_json([4.5]) != _files.canonical_json([4])


def test_read_json_of_absent_and_broken_files(tmp_path):
    assert _files.read_json(str(tmp_path / "absent")) is None
    (tmp_path / "broken").write_text("{")
    assert _files.read_json(str(tmp_path / "broken")) is None


def test_the_second_run_waits_and_then_says_who_holds_the_lock(tmp_path):
    with _files.exclusive(str(tmp_path), "first"):
        began = time.monotonic()
        said = rf"held by first \(process {os.getpid()}, started from"
        with pytest.raises(_files.LockTimeoutError, match=said), _files.exclusive(str(tmp_path), "second", 0.5):
            pass
        assert time.monotonic() - began >= 0.5
    with _files.exclusive(str(tmp_path), "second", timeout=0):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, 2); print('held', flush=True); "
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lmfleet.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        said = "an unknown process"
        with pytest.raises(_files.LockTimeoutError, match=said), _files.exclusive(str(tmp_path), "me", 0):
            pass
        holder.kill()
        holder.wait()
        with _files.exclusive(str(tmp_path), "me", timeout=5):
            pass
