# SPDX-License-Identifier: GPL-3.0-or-later
"""The sysctl variables of a sandbox Mac."""

from __future__ import annotations

import json
import os
import struct
import time

from . import knobs

# Forgotten at a reboot, as on a Mac.
_CHANGES = "/private/var/run/lmfleet-sandbox.sysctl.json"
_BOOT_TIME = "/private/var/run/boottime"
SETTABLE = {"iogpu.wired_limit_mb", "kern.maxfiles", "kern.maxfilesperproc", "kern.ipc.somaxconn"}


def values() -> dict[str, str]:
    """All variables by name, as `sysctl` prints them."""
    machine = knobs.read()
    fast, slow = int(machine["performance_cores"]), int(machine["efficiency_cores"])
    version = str(machine["macos_version"])
    release = knobs.darwin_release(version)
    memory = int(float(machine["memory_gb"]) * knobs.GIB)
    found = {
        "hw.ncpu": fast + slow,
        "hw.byteorder": 1234,
        "hw.memsize": memory,
        "hw.activecpu": fast + slow,
        "hw.physicalcpu": fast + slow,
        "hw.physicalcpu_max": fast + slow,
        "hw.logicalcpu": fast + slow,
        "hw.logicalcpu_max": fast + slow,
        "hw.nperflevels": 2,
        "hw.perflevel0.name": "Performance",
        "hw.perflevel0.physicalcpu": fast,
        "hw.perflevel0.logicalcpu": fast,
        "hw.perflevel1.name": "Efficiency",
        "hw.perflevel1.physicalcpu": slow,
        "hw.perflevel1.logicalcpu": slow,
        "hw.pagesize": 16384,
        "hw.optional.arm64": int(machine["machine"] == "arm64"),
        "hw.machine": machine["machine"],
        "hw.model": machine["model"],
        "machdep.cpu.brand_string": machine["chip"],
        "machdep.cpu.core_count": fast + slow,
        "machdep.cpu.cores_per_package": fast + slow,
        "machdep.cpu.logical_per_package": fast + slow,
        "machdep.cpu.thread_count": fast + slow,
        "kern.ostype": "Darwin",
        "kern.osrelease": release,
        "kern.osrevision": 199506,
        "kern.osversion": knobs.build_version(version),
        "kern.osproductversion": version,
        "kern.version": f"Darwin Kernel Version {release}: sandbox",
        "kern.hostname": os.uname().nodename,
        "kern.boottime": _boot_time_text(),
        "kern.maxfiles": 245760,
        "kern.maxfilesperproc": 122880,
        "kern.ipc.somaxconn": 128,
        "iogpu.wired_limit_mb": 0,
    }
    found.update(_changes())
    return {name: str(value) for name, value in found.items()}


def change(name: str, value: str) -> None:
    """Set a variable until the next boot. Raises PermissionError (not root) or ValueError (not a number)."""
    if os.geteuid() != 0:
        raise PermissionError(name)
    changes = _changes()
    changes[name] = int(value)
    knobs.replace(_CHANGES, json.dumps(changes).encode())


def boot_time_bytes() -> bytes:
    """kern.boottime as the kernel hands it out: a struct timeval."""
    moment = _boot_time()
    return struct.pack("@qq", int(moment), int(moment % 1 * 1e6))


def _boot_time() -> float:
    with open(_BOOT_TIME, encoding="utf-8") as file:
        return float(file.read())


def _boot_time_text() -> str:
    moment = _boot_time()
    return f"{{ sec = {int(moment)}, usec = {int(moment % 1 * 1e6)} }} {time.ctime(moment)}"


def _changes() -> dict:
    try:
        with open(_CHANGES, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}
