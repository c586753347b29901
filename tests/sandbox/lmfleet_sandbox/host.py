# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts one Mac: its namespaces, its disk, its process 1."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

from . import namespaces as ns
from . import network
from .errors import SandboxError
from .processes import MAC_MARK
from .realm import CACHE, Mac
from .skeleton import WRITABLE, Skeleton, make_folders

KNOBS = "private/var/db/lmfleet-sandbox/knobs.json"
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


@dataclass
class Starting:
    """A Mac whose namespaces exist and whose process 1 waits for its network."""

    mac: Mac
    pid: int
    _go: int

    def release(self) -> None:
        """Its veth pair is there: let it boot."""
        os.write(self._go, b"!")
        os.close(self._go)


def prepare(mac: Mac, skeleton: Skeleton, keep_disk: bool, knobs: dict) -> Starting:
    """Make the namespaces of a Mac that does not run. Its process 1 waits for `release`, and ends if we end before."""
    if not keep_disk:
        shutil.rmtree(mac.folder, ignore_errors=True)
    for name in ("upper", "work", "root"):
        (mac.folder / name).mkdir(parents=True, exist_ok=True)
        (mac.folder / name).chmod(0o755)
    go_read, go_write = os.pipe()
    pid_read, pid_write = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go_write)
        _in_helper(mac, skeleton, knobs, go_read, pid_write)
    os.close(go_read)
    os.close(pid_write)
    with os.fdopen(pid_read, encoding="utf-8") as answers:
        answer = answers.read()
    os.waitpid(helper, 0)
    if not answer.isdecimal():
        os.close(go_write)
        raise SandboxError(f"{mac.name}: no namespaces: {answer or 'the helper died'}")
    return Starting(mac, int(answer), go_write)


def _in_helper(mac: Mac, skeleton: Skeleton, knobs: dict, go: int, answers: int) -> None:
    """The process between the command and process 1: pid namespaces begin with the first child."""
    try:
        os.setsid()
        _let_go_of_the_caller(mac)
        ns.unshare(ns.CLONE_ALL)
        pid = os.fork()
        if pid == 0:
            # Held open here, the pipe would keep the command waiting for its end.
            os.close(answers)
            _in_process_1(mac, skeleton, knobs, go)
        os.write(answers, str(pid).encode())
    except OSError as error:
        os.write(answers, str(error).encode())
    finally:
        os._exit(0)


def _let_go_of_the_caller(mac: Mac) -> None:
    """No pipe of the caller may stay open: `sandbox up | tee` must end."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    console = os.open(mac.console_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(console, 1)
    os.dup2(console, 2)


def _in_process_1(mac: Mac, skeleton: Skeleton, knobs: dict, go: int) -> None:
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if os.read(go, 1) != b"!":
            os._exit(1)
        network.configure_inside(mac)
        root = mac.folder / "root"
        _mount_disk(mac, skeleton)
        _mount_devices(root)
        _write_first_knobs(root, knobs)
        ns.set_hostname(mac.name)
        ns.change_root(root)
        _set_up_network_rules()
        os.execve("/usr/sbin/launchd", ["/usr/sbin/launchd"], {MAC_MARK: mac.marker, "PATH": "/usr/bin:/usr/sbin"})
    except BaseException as error:
        os.write(2, f"{mac.name} could not boot: {error}\n".encode())
    finally:
        os._exit(1)


def _mount_disk(mac: Mac, skeleton: Skeleton) -> None:
    """The Mac's disk as root, this machine's /usr seen through the skeleton's; all sealed but a few folders."""
    root = mac.folder / "root"
    ns.mount(None, "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    layers = f"lowerdir={skeleton.folder},upperdir={mac.folder}/upper,workdir={mac.folder}/work"
    ns.mount("overlay", root, "overlay", data=layers)
    for name in WRITABLE:
        ns.bind(root / name, root / name)
    local = os.open(root / "usr/local", os.O_PATH)
    ns.mount("overlay", root / "usr", "overlay", ns.MS_RDONLY, f"lowerdir={skeleton.folder}/usr:/usr")
    if not skeleton.shows_usr_local():
        ns.bind(f"/proc/self/fd/{local}", root / "usr/local")
    os.close(local)
    ns.mount(None, root, flags=ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY)
    for prefix in skeleton.bound_prefixes():
        ns.bind(prefix, root / prefix.relative_to("/"), read_only=True)
    ns.bind(CACHE / "engine", root / "opt/sandbox/engine", read_only=True)


def _mount_devices(root: Path) -> None:
    ns.mount("proc", root / "proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    dev = root / "dev"
    ns.mount("tmpfs", dev, "tmpfs", ns.MS_NOSUID, "mode=755,size=64m")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    for name, target in _DEVICE_LINKS.items():
        (dev / name).symlink_to(target)
    (dev / "shm").mkdir()
    (dev / "shm").chmod(0o1777)
    (dev / "pts").mkdir()
    ns.mount("devpts", dev / "pts", "devpts", data="newinstance,ptmxmode=0666,mode=620,gid=4")


def _write_first_knobs(root: Path, knobs: dict) -> None:
    if knobs:
        path = root / KNOBS
        make_folders(root, os.path.dirname(KNOBS))
        current = json.loads(path.read_text()) if path.exists() else {}
        write_knobs(path, {**current, **knobs})


def write_knobs(path: Path, knobs: dict) -> None:
    """Replace a knobs file, world-readable and whole at any moment."""
    making = path.with_suffix(".new")
    making.write_text(json.dumps(knobs, indent=2, sort_keys=True) + "\n")
    making.chmod(0o644)
    making.rename(path)


def _set_up_network_rules() -> None:
    """On a Mac anyone may ping and listen on ports below 1024; outgoing connections have the ports of IANA's range."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("49152 65535")
