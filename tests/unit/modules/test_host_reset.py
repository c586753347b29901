# SPDX-License-Identifier: GPL-3.0-or-later
"""What is ours on a Mac and what is not, and taking the former away."""

from __future__ import annotations

import os
import plistlib
import pwd
import subprocess
import sys

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _reset
from ansible_collections.lmfleet.mac.plugins.module_utils._reset import (
    Entry,
    Mac,
    ResetError,
    is_ours,
    processes_below,
    sort_entries,
)
from ansible_collections.lmfleet.mac.plugins.modules import host_reset

ROOT = "/Users/admin/.lmfleet"


@pytest.mark.parametrize(
    ("entry", "goes"),
    [
        (Entry("instances", "folder", True, False), "folder"),
        (Entry("what-comes-later", "folder", True, False), "folder"),
        (Entry(".removed-instances-7", "folder", False, False), "folder"),
        (Entry("gateway", "folder", False, True), "folder"),
        (Entry("gateway", "folder", False, False), ""),
        (Entry("instances", "link", False, False), ""),
        (Entry("models", "folder", False, False), ""),
        (Entry("instance_runner.py", "file", False, False), "file"),
        (Entry("instance_runner.py", "link", False, False), ""),
        (Entry("notes.txt", "file", False, False), ""),
        (Entry("models.json", "file", False, False), ""),
    ],
)
def test_entries_of_the_root(entry, goes):
    folders, files, kept = sort_entries([entry], with_models=False)
    assert (bool(folders), bool(files), bool(kept)) == (goes == "folder", goes == "file", goes == "")


def test_the_index_goes_with_the_models():
    assert sort_entries([Entry("models.json", "file", False, False)], with_models=True) == ([], ["models.json"], [])


def program(*words):
    return {"ProgramArguments": list(words)}


@pytest.mark.parametrize(
    ("label", "plist", "ours"),
    [
        ("lmfleet.instance.a", program("/usr/bin/python3", f"{ROOT}/instance_runner.py"), True),
        ("lmfleet.gateway", program("/usr/bin/python3", f"{ROOT}/gateway/gateway_runner.py", f"{ROOT}/gateway"), True),
        ("lmfleet.queue_guard", program("/usr/bin/python3", f"{ROOT}/queue_guard/queue_guard.pyz"), True),
        ("lmfleet.queue_guard", program("/usr/bin/python3", "/Users/eve/.lmfleet/queue_guard/queue_guard.pyz"), False),
        ("lmfleet.instance.a", program("/usr/bin/python3", "/Users/eve/.lmfleet/instance_runner.py"), False),
        ("lmfleet.instance.a", program(f"{ROOT}-other/x"), False),
        ("lmfleet.instance.a", None, True),
        ("lmfleet.gpu-memory", program("/usr/sbin/sysctl"), True),
        ("org.example.agent", program(f"{ROOT}/x"), False),
    ],
)
def test_jobs(label, plist, ours):
    assert is_ours(label, plist, ROOT) == ours


def test_processes():
    table = (
        f"  1 /sbin/launchd\n 20 {ROOT}/llmster/1/llmster\n 21 /usr/bin/python3 {ROOT}/instance_runner.py x\n"
        f" 22 /usr/bin/tail -f {ROOT}/log\n 23 {ROOT}-other/llmster\n 24 {ROOT}/gateway/venv-1/bin/python\n"
    )
    assert sorted(processes_below(ROOT, table, {24})) == [20, 21]


@pytest.fixture
def mac(tmp_path, launchd, monkeypatch):
    """A Mac whose home is tmp_path, with one domain."""
    account = pwd.getpwuid(os.getuid())
    monkeypatch.setattr(_reset.pwd, "getpwnam", lambda _name: pwd.struct_passwd([*account[:5], str(tmp_path), ""]))
    made = Mac("~/.lmfleet", "admin", with_models=True)
    made.domains = [launchd.domain]
    monkeypatch.setattr(made, "_processes", dict)
    return made


def make(root):
    """Make what an installation makes, and beside it what is none of ours."""
    for folder in ("llmster/1", "instances/a/.lmstudio", "gateway/logs", "partial", "models/p/m", "models/mine/m"):
        (root / folder).mkdir(parents=True)
    for folder in ("llmster", "instances", "gateway", "partial"):
        (root / folder / ".lmfleet.lock").touch()
    (root / "models.json").write_text('{"p/m/a.gguf": {}, "../../outside": {}, "p/m/link.gguf": {}}')
    for file in ("models/p/m/a.gguf", "models/mine/m/b.gguf", "instance_runner.py", "notes.txt", "instances/a/x"):
        (root / file).touch()
    (root.parent / "outside").touch()
    (root / "models" / "p" / "m" / "link.gguf").symlink_to(root.parent / "outside")
    (root / "instances" / "a" / ".lmstudio" / "models").symlink_to(root / "models")


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_all_of_ours_goes_and_nothing_else(mac, launchd, tmp_path):
    root = tmp_path / ".lmfleet"
    make(root)
    agents = tmp_path / "LaunchAgents"
    agents.mkdir()
    mine = program(f"{root}/instance_runner.py")
    for label, plist in (("lmfleet.instance.a", mine), ("org.example.x", mine)):
        (agents / f"{label}.plist").write_bytes(plistlib.dumps({"Label": label, **plist}))
        launchd._bootstrap(label, str(agents / f"{label}.plist"))
    launchd.jobs["lmfleet.gateway"] = dict(launchd.jobs["org.example.x"])  # loaded, its file gone

    found = mac.look()
    assert [(job.label, job.loaded) for job in found.jobs] == [("lmfleet.gateway", True), ("lmfleet.instance.a", True)]
    before = tree(tmp_path)
    assert mac.look() == found and tree(tmp_path) == before

    mac.remove(found, 10, 10)
    assert tree(tmp_path) == sorted(
        [
            ".lmfleet",
            ".lmfleet/models",
            ".lmfleet/models/mine",
            ".lmfleet/models/mine/m",
            ".lmfleet/models/mine/m/b.gguf",
            ".lmfleet/models/p",
            ".lmfleet/models/p/m",
            ".lmfleet/models/p/m/link.gguf",
            ".lmfleet/notes.txt",
            "LaunchAgents",
            "LaunchAgents/org.example.x.plist",
            "outside",
        ]
    )
    assert list(launchd.jobs) == ["org.example.x"]
    assert mac.look().lines() == []


def test_models_stay_unless_they_are_to_go(mac, tmp_path):
    mac.with_models = False
    make(tmp_path / ".lmfleet")
    mac.remove(mac.look(), 10, 10)
    assert (tmp_path / ".lmfleet" / "models" / "p" / "m" / "a.gguf").exists()
    assert (tmp_path / ".lmfleet" / "models.json").exists()


def test_an_empty_root_goes_as_well(mac, tmp_path):
    (tmp_path / ".lmfleet" / "instances").mkdir(parents=True)
    mac.remove(mac.look(), 10, 10)
    assert tree(tmp_path) == []


def test_a_process_that_was_left_behind_is_ended(mac, tmp_path, monkeypatch):
    root = tmp_path / ".lmfleet"
    make(root)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        monkeypatch.setattr(mac, "_processes", lambda: {} if process.poll() is not None else {process.pid: "llmster"})
        assert mac.remove(mac.look(), 10, 10) == [f"process {process.pid}: llmster"]
        assert process.wait(10) < 0


@pytest.mark.parametrize("root", ["/", "/Users", "relative", "~/.", "~/link", "~/file"])
def test_a_root_that_cannot_be_ours(mac, tmp_path, root):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").touch()
    with pytest.raises(ResetError, match="lmfleet_root"):
        Mac(root, "admin", with_models=False).refuse_what_is_not_ours()


def test_check_mode_tells_the_same_and_removes_nothing(run_module, launchd, tmp_path, monkeypatch):
    root = tmp_path / "home" / "fleet"
    root.parent.mkdir()
    make(root)
    monkeypatch.setattr(_reset.Mac, "_processes", lambda _mac: {})
    monkeypatch.setattr(_reset, "SYSTEM_FOLDER", str(tmp_path / "system"))
    before = tree(tmp_path)
    arguments = {"root": str(root), "user": pwd.getpwuid(os.getuid()).pw_name}
    told = run_module(host_reset, arguments, check=True)
    assert told["changed"] and tree(tmp_path) == before
    done = run_module(host_reset, arguments)
    assert (done["changed"], done["removed"]) == (True, told["removed"])
    assert f"{root}/instances/" in done["removed"] and done["kept"] == ["models", "models.json", "notes.txt"]
    assert not run_module(host_reset, arguments)["changed"]
    failed = run_module(host_reset, {**arguments, "root": "/"})
    assert failed["failed"] and "nothing is removed" in failed["msg"]


def test_an_unknown_user():
    with pytest.raises(ResetError, match="there is no user"):
        Mac("~/.lmfleet", "nobody-of-that-name", with_models=False)
