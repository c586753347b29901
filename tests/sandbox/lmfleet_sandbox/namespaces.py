# SPDX-License-Identifier: GPL-3.0-or-later
"""The few Linux calls about namespaces and mounts that Python 3.11 does not have, and whether they are allowed here."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import NamespacesUnavailableError

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_ALL = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _bytes(text: str | os.PathLike | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_* flags. Raises OSError."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace behind an open /proc/<pid>/ns/<kind>. Raises OSError."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def mount(source, target, kind=None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError naming the target."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(data))
    _checked(result, f"mount {kind or source} on {target}")


def bind(source, target, read_only: bool = False) -> None:
    """Show `source` at `target` as well."""
    mount(source, target, flags=MS_BIND)
    if read_only:
        mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def unmount(target) -> None:
    """Detach a mount, also a busy one. Raises OSError."""
    _checked(_libc.umount2(_bytes(target), ctypes.c_int(MNT_DETACH)), f"unmount {target}")


def change_root(new_root) -> None:
    """Make `new_root`, which must be a mount, the root of this mount namespace and forget the old one."""
    os.chdir(new_root)
    number = _SYS_PIVOT_ROOT[platform.machine()]
    _checked(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def set_hostname(name: str) -> None:
    encoded = name.encode()
    _checked(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), "sethostname")


def require() -> None:
    """Raise NamespacesUnavailableError with a one-line reason unless this machine can run sandbox Macs."""
    if platform.system() != "Linux":
        raise NamespacesUnavailableError(f"sandbox Macs need Linux namespaces; this is {platform.system()}")
    if platform.machine() not in _SYS_PIVOT_ROOT:
        raise NamespacesUnavailableError(f"sandbox Macs run on x86_64 and aarch64, not on {platform.machine()}")
    if os.geteuid() != 0:
        raise NamespacesUnavailableError("sandbox Macs need root, to make namespaces, mounts and network bridges")
    if not os.path.islink("/bin"):
        raise NamespacesUnavailableError("sandbox Macs need a merged /usr as on Debian 12; here /bin is no link")
    reason = _reason_from_a_trial()
    if reason:
        raise NamespacesUnavailableError(f"this machine does not allow the namespaces that sandbox Macs need: {reason}")


def _reason_from_a_trial() -> str:
    """Make the namespaces, an overlay over /usr and a bridge in a child that ends at once; '' when all went well."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        message = ""
        try:
            _trial()
        except (OSError, subprocess.SubprocessError) as error:
            message = str(error)
        os.write(write_end, message.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8", errors="replace") as answers:
        message = answers.read()
    _pid, status = os.waitpid(child, 0)
    return message or ("" if status == 0 else f"the trial ended with status {status}")


def _trial() -> None:
    unshare(CLONE_ALL)
    mount(None, "/", flags=MS_REC | MS_PRIVATE)
    # The mount lives in this child's namespace only; the empty folder is removed by name below.
    folder = Path(tempfile.mkdtemp(prefix="lmfleet-sandbox-check-"))
    try:
        mount("tmpfs", folder, "tmpfs", data="size=1m")
        for part in ("lower", "upper", "work", "root"):
            (folder / part).mkdir()
        options = f"lowerdir={folder}/lower:/usr,upperdir={folder}/upper,workdir={folder}/work"
        mount("overlay", folder / "root", "overlay", data=options)
        os.mknod(folder / "upper" / "whiteout", 0o020000, os.makedev(0, 0))
        unmount(folder / "root")
        unmount(folder)
    finally:
        folder.rmdir()
    ip = shutil.which("ip")
    if ip:
        script = "link add lmfleet type bridge\nlink add lmf-a master lmfleet type veth peer name lmf-b\n"
        done = subprocess.run([ip, "-batch", "-"], input=script, text=True, capture_output=True, check=False)
        if done.returncode:
            raise OSError(f"ip: {done.stderr.strip().splitlines()[0]}")
