# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a Mac that serves: power (pmset), and the memory that the GPU may use, now and after each boot."""

from __future__ import annotations

import os
import pwd
from typing import NamedTuple

from ._command import run
from ._launchd import SYSTEM_FOLDER, Domain, Launchctl, Service, converge, parse_plist

LABEL = "lmfleet.gpu-memory-limit"
LIMIT = "iogpu.wired_limit_mb"
#: Least that the GPU may be given, and least that must stay with macOS, in megabytes.
LEAST_LIMIT_MB = 1024
LEFT_TO_MACOS_MB = 2048

#: The settings of `pmset` that a server may want, each a number.
POWER = (
    "autorestart",
    "disksleep",
    "displaysleep",
    "hibernatemode",
    "lowpowermode",
    "networkoversleep",
    "powernap",
    "sleep",
    "standby",
    "tcpkeepalive",
    "ttyskeepawake",
    "womp",
)

SPEC = {
    "power": {"type": "dict", "options": {name: {"type": "int"} for name in POWER}},
    "gpu_memory_limit_mb": {"type": "int"},
    "boot_plist": {"type": "str"},
}

_TIMEOUT = 30  # seconds
_JOB_TIMEOUT = 60  # seconds


class SettingsError(Exception):
    """What a Mac refuses; the text says what to do."""


class Wanted(NamedTuple):
    """What is declared. `limit_mb` None: not managed. `boot_plist` is the job that sets the limit at each boot."""

    power: dict[str, int]
    limit_mb: int | None
    boot_plist: str


class Actual(NamedTuple):
    """What was found: the values of each power setting over all power sources, the limit, what the boot job needs."""

    power: dict[str, set[int]]
    limit_mb: int
    boot_actions: list[str]


class Plan(NamedTuple):
    """What has to change. `limit_mb` None: nothing. `unsupported`: power settings that this Mac does not have."""

    power: dict[str, int]
    limit_mb: int | None
    boot_actions: list[str]
    unsupported: list[str]

    @property
    def empty(self) -> bool:
        return not self.power and self.limit_mb is None and not self.boot_actions


def wanted_from(params: dict) -> Wanted:
    """Return what the options of a module declare; a power setting without a value is not managed."""
    power = {name: value for name, value in (params["power"] or {}).items() if value is not None}
    return Wanted(power, params["gpu_memory_limit_mb"], params["boot_plist"] or "")


def limit_problem(limit_mb: int | None, memory_mb: int) -> str | None:
    """Return why a limit is out of bounds on a Mac with that memory, None when it is not. Pure."""
    most = memory_mb - LEFT_TO_MACOS_MB
    if limit_mb is None or LEAST_LIMIT_MB <= limit_mb <= most:
        return None
    return (
        f"mac_host_gpu_memory_limit_mb is {limit_mb}, and this Mac has {memory_mb} MB of memory: "
        f"declare {LEAST_LIMIT_MB} to {most}, which leaves {LEFT_TO_MACOS_MB} MB to macOS."
    )


def parse_power(text: str) -> dict[str, set[int]]:
    """Return the values of each setting, over all power sources, from the output of `pmset -g custom`. Pure."""
    found: dict[str, set[int]] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and line[:1].isspace() and words[1].isdigit():
            found.setdefault(words[0], set()).add(int(words[1]))
    return found


def plan(wanted: Wanted, actual: Actual) -> Plan:
    """Return what has to change. Pure. A limit that was ours and is no longer declared goes back to macOS's own."""
    power = {name: value for name, value in wanted.power.items() if actual.power.get(name, {value}) != {value}}
    unsupported = sorted(set(wanted.power) - set(actual.power))
    limit_mb = None
    if wanted.limit_mb is not None and wanted.limit_mb != actual.limit_mb:
        limit_mb = wanted.limit_mb
    elif wanted.limit_mb is None and actual.boot_actions:
        limit_mb = 0
    return Plan(power, limit_mb, actual.boot_actions, unsupported)


def look(wanted: Wanted, limit_mb: int) -> Actual:
    """Return how the Mac is set. Changes nothing and needs no root. `limit_mb` is what sysctl has told."""
    power = parse_power(run(["/usr/bin/pmset", "-g", "custom"], _TIMEOUT).out) if wanted.power else {}
    launchctl = _launchctl()
    # Without its file the job is gone at the latest after the next boot, so launchd need not be asked.
    if wanted.limit_mb is None and not os.path.exists(launchctl.domain.plist_path(LABEL)):
        return Actual(power, limit_mb, [])
    return Actual(power, limit_mb, converge(launchctl, [_service(wanted)], True, _JOB_TIMEOUT)[0].actions)


def read_limit() -> int:
    """Return the limit as the Mac is set, in megabytes; 0 is macOS's own."""
    return _sysctl(LIMIT)


def read_memory() -> int:
    """Return the memory of the Mac in megabytes."""
    return _sysctl("hw.memsize") // (1024 * 1024)


def _sysctl(name: str) -> int:
    text = run(["/usr/sbin/sysctl", "-n", name], _TIMEOUT).out.strip()
    return int(text) if text.isdigit() else 0


def apply(changes: Plan, wanted: Wanted) -> None:
    """Carry out a plan, and read back what was set. Raises SettingsError and LaunchdError. Needs root."""
    if changes.power:
        words = [word for name, value in changes.power.items() for word in (name, str(value))]
        _call(["/usr/bin/pmset", "-a", *words])
    if changes.limit_mb is not None:
        _call(["/usr/sbin/sysctl", f"{LIMIT}={changes.limit_mb}"])
    if changes.boot_actions:
        converge(_launchctl(), [_service(wanted)], False, _JOB_TIMEOUT)
    left = plan(wanted, look(wanted, read_limit()))
    if not left.empty:
        raise SettingsError("macOS took these settings, and they are not in effect: " + "; ".join(lines(left)))


def lines(changes: Plan) -> list[str]:
    """Return a plan, one line for each thing that changes. Pure."""
    told = [f"pmset {name} {value}" for name, value in changes.power.items()]
    if changes.limit_mb is not None:
        told.append(f"sysctl {LIMIT}={changes.limit_mb}")
    return told + [f"launchd job system/{LABEL}: {action}" for action in changes.boot_actions]


def diff(changes: Plan, actual: Actual) -> dict:
    """Return the values that change, before and after, as Ansible shows them. Pure."""
    names = sorted(changes.power)
    before = [f"pmset {name} {' and '.join(map(str, sorted(actual.power[name])))}" for name in names]
    after = [f"pmset {name} {changes.power[name]}" for name in names]
    if changes.limit_mb is not None:
        before.append(f"{LIMIT}={actual.limit_mb}")
        after.append(f"{LIMIT}={changes.limit_mb}")
    after += [f"launchd job system/{LABEL}: {action}" for action in changes.boot_actions]
    title = "settings of the Mac"
    texts = {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)}
    return {"before_header": title, "after_header": title, **texts}


def _service(wanted: Wanted) -> Service:
    if wanted.limit_mb is None:
        return Service(LABEL, "absent", None)
    text = wanted.boot_plist.strip() + "\n"
    return Service(LABEL, "started", parse_plist(LABEL, text), text.encode("utf-8"))


def _launchctl() -> Launchctl:
    return Launchctl(Domain("system", "system", SYSTEM_FOLDER, (0, 0), pwd.getpwuid(0).pw_name))


def _call(command: list[str]) -> None:
    result = run(command, _TIMEOUT)
    if result.rc != 0:
        raise SettingsError(f"{' '.join(command)} failed: {result.said()}")
