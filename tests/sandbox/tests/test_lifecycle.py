# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing realms up and down, also when somebody has killed what was there: nothing may be left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmfleet_sandbox import fleet, processes
from lmfleet_sandbox.realm import Realm
from lmfleet_sandbox.testing import CLI, SshMac, sandbox

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("realm")]

# Realms of their own: the tests next door go on using theirs.
ONE, TWO = Realm("spare4"), Realm("spare5")


def traces(realm: Realm) -> list[str]:
    """Everything of a realm that this machine still has."""
    found = [f"process {pid}" for pid in fleet.pids_of(realm).values()]
    found += [f"mirror {pid}" for pid in processes.marked(processes.MIRROR_MARK).get(realm.name, [])]
    links = os.listdir("/sys/class/net")
    found += [name for name in links if name == realm.bridge or name.startswith(realm.veth_prefix)]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(realm.state) in line]
    found += [str(realm.state)] if realm.state.exists() else []
    return found


@pytest.fixture(autouse=True)
def nothing_left():
    """Both realms are down before and after each test, without a trace."""
    for realm in (ONE, TWO):
        sandbox("down", realm=realm.name)
    yield
    for realm in (ONE, TWO):
        sandbox("down", realm=realm.name)
        assert traces(realm) == []


def pids(realm: Realm) -> dict[str, int]:
    return fleet.pids_of(realm)


def answers(realm: Realm, number: int) -> bool:
    mac = SshMac(realm.mac(number))
    try:
        return mac.ok("uname") == "Darwin\n"
    finally:
        mac.close()


def test_up_again_changes_nothing():
    sandbox("up", "2", realm=ONE.name)
    before = pids(ONE)
    assert sorted(before) == ["mac-1", "mac-2"]
    sandbox("up", "2", realm=ONE.name)
    assert pids(ONE) == before
    sandbox("up", "3", realm=ONE.name)
    after = pids(ONE)
    assert {name: after[name] for name in before} == before
    assert sorted(after) == ["mac-1", "mac-2", "mac-3"]


def test_two_realms_at_once():
    sandbox("up", "1", realm=ONE.name)
    sandbox("up", "1", realm=TWO.name)
    assert answers(ONE, 1)
    assert answers(TWO, 1)
    sandbox("down", realm=TWO.name)
    assert traces(TWO) == []
    assert answers(ONE, 1)


def test_two_commands_at_once():
    command = [sys.executable, str(CLI), "--realm", ONE.name, "up", "2"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in "ab"]
    outputs = [one.communicate(timeout=60)[0] for one in running]
    assert [one.returncode for one in running] == [0, 0], outputs
    assert "waiting for another command" in "".join(outputs)
    assert len(pids(ONE)) == 2


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.5, 0.7, 0.9])
def test_up_after_a_killed_up(delay):
    command = [sys.executable, str(CLI), "--realm", ONE.name, "up", "6"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        time.sleep(delay)
        first.kill()
    sandbox("up", "2", realm=ONE.name)
    assert answers(ONE, 1)
    assert answers(ONE, 2)


@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9])
def test_down_after_a_killed_up(delay):
    command = [sys.executable, str(CLI), "--realm", ONE.name, "up", "6"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        time.sleep(delay)
        first.kill()
    sandbox("down", realm=ONE.name)
    assert traces(ONE) == []


def test_down_ends_what_worked_on_the_realm_from_outside():
    def client(realm):
        environment = {**os.environ, processes.CLIENT_MARK: realm.name}
        return subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)

    with client(ONE) as ours, client(TWO) as theirs:
        sandbox("down", realm=ONE.name)
        assert ours.wait(10) == -signal.SIGKILL and theirs.poll() is None
        theirs.kill()


def test_up_after_everything_was_killed():
    sandbox("up", "2", realm=ONE.name)
    inside = subprocess.run(["pgrep", "-P", str(pids(ONE)["mac-1"])], capture_output=True, text=True, check=True)
    for pid in [*pids(ONE).values(), *processes.marked(processes.MIRROR_MARK)[ONE.name]]:
        os.kill(pid, signal.SIGKILL)
    sandbox("up", "2", realm=ONE.name)
    assert answers(ONE, 2)
    for pid in inside.stdout.split():
        assert not processes.is_alive(int(pid)), "what runs in a Mac ends with its process 1"


def test_a_killed_mac_comes_back_with_a_new_disk_or_the_old():
    sandbox("up", "2", realm=ONE.name)
    for disk, expected in (("keep", "kept\n"), ("new", "")):
        sandbox("exec", "mac-1", "--", "sh", "-c", "echo kept > ~/kept", realm=ONE.name)
        os.kill(pids(ONE)["mac-1"], signal.SIGKILL)
        time.sleep(0.3)
        state = json.loads(sandbox("status", "--json", realm=ONE.name).stdout)
        assert [mac["state"] for mac in state["macs"]] == ["down", "up"]
        sandbox("up", "2", "--disk", disk, realm=ONE.name)
        done = sandbox("exec", "mac-1", "--", "cat", "/Users/admin/kept", realm=ONE.name, check=False)
        assert done.stdout == expected


def test_knobs_from_the_start():
    sandbox("up", "1", "--knob", "gui_session=false", "--knob", "memory_gb=8", realm=ONE.name)
    assert sandbox("exec", "mac-1", "--", "sysctl", "-n", "hw.memsize", realm=ONE.name).stdout == f"{8 * 1024**3}\n"
    done = sandbox("exec", "mac-1", "--", "launchctl", "print", "gui/501", realm=ONE.name, check=False)
    assert done.returncode == 125


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], "need root"),
        (["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"], "does not allow the namespaces"),
    ],
    ids=["not root", "no right to make namespaces"],
)
@pytest.mark.parametrize("words", [["check"], ["up", "1"], ["down"]])
def test_without_namespaces_there_is_one_line_and_exit_code_3(tmp_path, prefix, reason, words):
    # The interpreter may live where an unprivileged user cannot look.
    interpreter = sys.executable if "--reuid=65534" not in prefix else "/usr/bin/python3"
    source = CLI.parent if "--reuid=65534" not in prefix else copied(CLI.parent, tmp_path)
    command = [*prefix, interpreter, str(source / CLI.name), "--realm", ONE.name, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert traces(ONE) == []


def copied(source: Path, folder: Path) -> Path:
    """The command line and its package where everybody can read them."""
    subprocess.run(["cp", "-r", source / "sandbox", source / "lmfleet_sandbox", folder], check=True)
    for parent in [folder, *folder.parents][:4]:
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o055)
    return folder


def test_check_is_quiet():
    done = sandbox("check", realm=ONE.name)
    assert (done.stdout, done.stderr) == ("", "")


def test_state_on_an_overlay_gets_a_tmpfs(tmp_path):
    """In a container /var/tmp is on an overlay, which cannot carry another one's writable layer."""
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/disk/upper,workdir={tmp_path}/disk/work"
    script = f"""
        mkdir {tmp_path}/lower {tmp_path}/disk && mount -t tmpfs tmpfs {tmp_path}/disk
        mkdir {tmp_path}/disk/upper {tmp_path}/disk/work && mount -t overlay overlay -o {layers} /var/tmp
        sandbox() {{ {sys.executable} {CLI} --realm {ONE.name} "$@"; }}
        sandbox up 1 && sandbox exec mac-1 -- uname && sandbox reboot mac-1 && grep -c {ONE.state} /proc/mounts
        sandbox down && ! grep {ONE.state} /proc/mounts
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Darwin\n" in done.stdout


def test_nothing_of_the_caller_stays_open():
    """`sandbox up | tee` ends, and no file of the caller is kept."""
    sandbox("up", "1", realm=ONE.name)
    for pid in [*pids(ONE).values(), *processes.marked(processes.MIRROR_MARK)[ONE.name]]:
        opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [name for name in opened if name.startswith("pipe:")]
        assert not [name for name in opened if name.startswith("/") and "lock" in name]


def test_a_realm_has_limits():
    for words, text in ((["up", "241"], "1 to 240"), (["up", "0"], "1 to 240")):
        done = sandbox(*words, realm=ONE.name, check=False)
        assert done.returncode == 1
        assert text in done.stderr
    done = sandbox("status", realm="nosuch", check=False)
    assert done.returncode == 1
    assert "no realm 'nosuch'" in done.stderr
