# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands do to a realm: bring it up, take it down, reboot a Mac, turn its knobs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path

from . import control, host, mirror, network, processes
from . import namespaces as ns
from .errors import PackagesMissingError, SandboxError
from .processes import MAC_MARK
from .realm import CACHE, STATE_ROOT, Mac, Realm
from .skeleton import Skeleton

SSH_TIMEOUT = 60.0
SHUTDOWN_TIMEOUT = 40.0
KNOB_TIMEOUT = 60.0
_OVERLAYFS_MAGIC = 0x794C7630
_NEEDED_COMMANDS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "sudo": "sudo",
    "cc": "gcc libc6-dev",
    "ps": "procps",
    "lsof": "lsof",
}


def require_packages() -> None:
    """Raise PackagesMissingError when a command that Macs are made of is not installed."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [package for command, package in _NEEDED_COMMANDS.items() if not shutil.which(command, path=path)]
    if missing:
        raise PackagesMissingError(f"packages are missing; apt-get install {' '.join(missing)}")


def pids_of(realm: Realm) -> dict[str, int]:
    """The Macs of the realm that run: {name: pid of process 1, as seen from here}."""
    prefix = f"{realm.name}/"
    return {
        marker.removeprefix(prefix): pids[0]
        for marker, pids in processes.marked(MAC_MARK).items()
        if marker.startswith(prefix)
    }


def pid_of(mac: Mac) -> int:
    """The pid of the Mac's process 1. Raises SandboxError when the Mac does not run."""
    pid = pids_of(mac.realm).get(mac.name)
    if pid is None:
        raise SandboxError(f"{mac.name} of realm {mac.realm.name} is not up")
    return pid


# -- up


def up(realm: Realm, count: int, keep_disk: bool, knobs: dict, say) -> None:
    """Bring up mac-1 … mac-<count>; those that run stay as they are. `say(text)` reports a step that is done."""
    ns.require()
    require_packages()
    with realm.lock():
        started = time.monotonic()
        running = pids_of(realm)
        if not running:
            # What a killed command has left; new Macs begin with nothing of it.
            _end_processes_and_links(realm)
            if not keep_disk:
                _remove_state(realm)
        _prepare_state(realm)
        _make_keys(realm)
        skeleton = Skeleton(realm)
        skeleton.build()
        (CACHE / "engine").mkdir(parents=True, exist_ok=True)
        network.make_bridge(realm)
        mirror.start(realm)
        say(f"{realm.bridge} and the mirror at {realm.mirror_url} are up ({time.monotonic() - started:.1f} s)")
        macs = [realm.mac(number) for number in range(1, count + 1)]
        missing = [mac for mac in macs if mac.name not in running]
        pids = {mac: running[mac.name] for mac in macs if mac.name in running}
        pids |= _start(missing, skeleton, keep_disk, knobs)
        say(f"{len(missing)} of {count} Macs booted ({time.monotonic() - started:.1f} s)")
        wait_for_ssh(pids)
        say(f"{count} Macs answer ssh ({time.monotonic() - started:.1f} s)")
        _write_status(realm)


def _start(macs: list[Mac], skeleton: Skeleton, keep_disk: bool, knobs: dict) -> dict[Mac, int]:
    starting = [host.prepare(mac, skeleton, keep_disk, knobs) for mac in macs]
    network.connect({one.mac: one.pid for one in starting})
    for one in starting:
        one.release()
    return {one.mac: one.pid for one in starting}


def _prepare_state(realm: Realm) -> None:
    realm.state.mkdir(parents=True, exist_ok=True)
    for folder in (STATE_ROOT, realm.state):
        folder.chmod(0o755)
    # An overlay cannot have its writable layer on another overlay (a container's root file system).
    if _file_system(realm.state) == _OVERLAYFS_MAGIC:
        ns.mount("tmpfs", realm.state, "tmpfs", data="mode=755")


def _file_system(path: Path) -> int:
    """The f_type of statfs(2), which os.statvfs does not tell."""
    buffer = (ctypes.c_long * 32)()
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        raise OSError(ctypes.get_errno(), f"statfs {path}")
    return buffer[0]


def _make_keys(realm: Realm) -> None:
    """One login key and one host key a realm; both readable by whoever ran sudo, if anyone did."""
    realm.ssh_folder.mkdir(exist_ok=True)
    for name in ("id_ed25519", "ssh_host_ed25519_key"):
        path = realm.ssh_folder / name
        if not path.with_suffix(".pub").exists():
            path.unlink(missing_ok=True)
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lmfleet-sandbox-{realm.name}", "-f", path]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    kind, key, *_comment = (realm.ssh_folder / "ssh_host_ed25519_key.pub").read_text().split()
    (realm.ssh_folder / "known_hosts").write_text(f"10.77.{realm.index}.*,mac-* {kind} {key}\n")
    caller = os.environ.get("SUDO_USER")
    if caller:
        user = pwd.getpwnam(caller)
        for path in [realm.ssh_folder, *realm.ssh_folder.iterdir()]:
            os.chown(path, user.pw_uid, user.pw_gid)


def wait_for_ssh(pids: dict[Mac, int]) -> None:
    """Wait until the sshd of every Mac (with the pid of its process 1) greets. SandboxError names those that do not."""
    waiting = list(pids)
    deadline = time.monotonic() + SSH_TIMEOUT
    while waiting:
        for mac in waiting:
            if not processes.is_alive(pids[mac]):
                raise SandboxError(f"{mac.name} did not boot: {_last_line(mac.console_log)}")
        waiting = [mac for mac in waiting if not _greets(mac, pids[mac])]
        if waiting and time.monotonic() > deadline:
            names = ", ".join(mac.name for mac in waiting)
            raise SandboxError(f"no ssh after {SSH_TIMEOUT:g} s on {names}; see {waiting[0].console_log}")
        if waiting:
            time.sleep(0.03)


def _listens_for_ssh(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    # Columns: number, local address:port in hex, remote, state (0A is LISTEN).
    return any(columns[1].endswith(":0016") and columns[3] == "0A" for columns in map(str.split, lines))


def _greets(mac: Mac, pid: int) -> bool:
    # A packet to a Mac without its network yet would cost a second: ARP tries again no sooner.
    if not _listens_for_ssh(pid):
        return False
    try:
        with socket.create_connection((mac.address, 22), timeout=1) as connection:
            return bool(select.select([connection], [], [], 1)[0]) and connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line), f"{path} is empty")


# -- down


def down(realm: Realm) -> int:
    """End everything of the realm and remove its state; returns how many Macs ran."""
    ns.require()
    with realm.lock():
        for pid in processes.marked(processes.CLIENT_MARK).get(realm.name, []):
            processes.kill(pid, processes.CLIENT_MARK)
        ended = _end_processes_and_links(realm)
        _end_connections(realm)
        _remove_state(realm)
    return ended


def _end_processes_and_links(realm: Realm) -> int:
    running = pids_of(realm)
    for pid in running.values():
        processes.kill(pid, MAC_MARK)
    mirror.stop(realm)
    network.remove(realm)
    return len(running)


def _end_connections(realm: Realm) -> None:
    """End the ssh connections that Ansible keeps for its next run; they would outlive the Macs by a minute."""
    for path in (realm.ssh_folder / "connections").glob("*"):
        command = ["ssh", "-O", "exit", "-o", f"ControlPath={path}", "a-mac"]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10, check=False)


def _remove_state(realm: Realm) -> None:
    while os.path.ismount(realm.state):
        ns.unmount(realm.state)
    if realm.state.exists():
        shutil.rmtree(realm.state)
    with contextlib.suppress(OSError):
        STATE_ROOT.rmdir()


# -- one Mac


def reboot(mac: Mac, keep_disk: bool = True) -> None:
    """Shut a Mac down in good order, start it on the same disk, wait for ssh."""
    ns.require()
    with mac.realm.lock():
        pid = pid_of(mac)
        handle = os.pidfd_open(pid)
        try:
            control.ask(pid, "shutdown", SHUTDOWN_TIMEOUT)
            processes.wait_for_end(handle, pid, 10)
        finally:
            os.close(handle)
        skeleton = Skeleton(mac.realm)
        skeleton.build()
        wait_for_ssh(_start([mac], skeleton, keep_disk, {}))
        _write_status(mac.realm)


def set_knobs(mac: Mac, changes: dict, clear: bool) -> dict:
    """Change knobs of a Mac that runs (all of them forgotten first if `clear`) and have them take effect."""
    with mac.realm.lock():
        pid = pid_of(mac)
        path = Path(f"/proc/{pid}/root") / host.KNOBS
        current = json.loads(path.read_text()) if path.exists() and not clear else {}
        current.update(changes)
        host.write_knobs(path, current)
        control.ask(pid, "knobs", KNOB_TIMEOUT)
    return current


# -- status


def status(realm: Realm) -> dict:
    """The realm as it is now: mirror and, per Mac, address, pid, memory (MiB) and jobs."""
    running = pids_of(realm)
    macs = []
    for mac in realm.macs_with_state():
        pid = running.get(mac.name)
        entry = {"name": mac.name, "address": mac.address, "state": "up" if pid else "down", "pid": pid}
        if pid:
            entry.update(control.ask(pid, "status", 10))
        macs.append(entry)
    mirror_runs = bool(processes.marked(processes.MIRROR_MARK).get(realm.name))
    return {"realm": realm.name, "mirror": realm.mirror_url if mirror_runs else None, "macs": macs}


def _write_status(realm: Realm) -> None:
    (realm.state / "status").write_text(json.dumps(status(realm), indent=2) + "\n")
