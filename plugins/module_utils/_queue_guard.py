# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue guard on a gateway's Mac: its files, its job, its pauses, and whether it looks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from typing import NamedTuple

from ._addresses import from_here, url_host
from ._files import (
    atomic_write,
    canonical_json,
    exclusive,
    file_diff,
    make_directory,
    read_bytes,
    remove_file,
)
from ._http import request_json
from ._launchd import EX_CONFIG, Launchctl, Service, canonical, last_words, parse_plist, plan
from ._names import GUARD_LABEL, LOCK_NAME
from ._zipapp import build

PROGRAM = "queue_guard.pyz"
SETTINGS = "settings.json"

#: Seconds on top of three looks after which a guard counts as hung.
_STALE_RESERVE = 30.0
#: Seconds to let a guard that has just started look for the first time, before it counts as hung.
_SETTLE = 10.0
_ASK_TIMEOUT = 3.0
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


class GuardError(Exception):
    """Settings that cannot be used, or a guard that does not look; the text says what to do."""


class Wanted(NamedTuple):
    """The guard as declared: name to bytes of its files, its job, and where and how often it is to look."""

    files: dict[str, bytes]
    service: Service
    metrics_url: str
    interval: float


class Plan(NamedTuple):
    """What there is to do, in this order, and a diff of each file."""

    actions: list[str]
    diff: list[dict]


def parse_wanted(params: dict) -> Wanted:
    """Return the Wanted of the options of the module. Raises GuardError, LaunchdError (for the property list)."""
    try:
        program = build(params["files"])
    except ValueError as error:
        raise GuardError(f"files: {error}") from None
    try:
        settings = json.loads(params["settings"])
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise GuardError(f"{params['settings_source']}: {where}: not valid JSON ({error.msg})") from None
    try:
        address, port = settings["metrics_address"], int(settings["metrics_port"])
        interval = float(settings["interval"])
    except (KeyError, TypeError, ValueError) as error:
        raise GuardError(
            f"{params['settings_source']}: metrics_address, metrics_port and interval are needed: {error}"
        ) from None
    url = f"http://{url_host(from_here(address))}:{port}/metrics"
    plist = parse_plist(GUARD_LABEL, params["plist"])
    service = Service(GUARD_LABEL, "started", plist, (params["plist"].strip() + "\n").encode("utf-8"))
    return Wanted({PROGRAM: program, SETTINGS: canonical_json(settings).encode("utf-8")}, service, url, interval)


def parse_metrics(text: str) -> dict | None:
    """Return what the guard says of itself, None when it is not a guard that says it."""
    samples: dict[str, list[tuple[str, float]]] = {}
    for name, labels, value in _SAMPLE.findall(text):
        samples.setdefault(name, []).append((labels, float(value)))
    age = samples.get("lmfleet_guard_poll_age_seconds")
    if not age:
        return None
    paused = [value for labels, value in samples.get("lmfleet_deployment_paused", []) if 'owner="guard"' in labels]
    known = [value for _labels, value in samples.get("lmfleet_deployment_known", [])]
    return {
        "deployments": len(known),
        "known": int(sum(known)),
        "paused": int(sum(paused)),
        # JSON has no infinity: null for a guard that has not looked yet.
        "age": None if age[0][1] == float("inf") else age[0][1],
    }


class Guard:
    """Transport around the plan: `wanted` is None for a guard that shall not be. `last` is what it said last."""

    def __init__(self, folder: str, registry: str, launchctl: Launchctl, wanted: Wanted | None) -> None:
        self.folder = os.path.abspath(folder)
        self.pauses = os.path.join(registry, "paused", "guard.json")
        self.launchctl = launchctl
        self.wanted = wanted
        self.last: dict | None = None

    # Looking

    def told(self) -> str:
        """Ask the guard how it is, into `last`; return "" or why it is not known."""
        reply = request_json(self.wanted.metrics_url, timeout=_ASK_TIMEOUT)
        self.last = parse_metrics(reply.text)
        return "" if self.last else f"{self.wanted.metrics_url}: {reply.said(100)}"

    def trouble(self, unknown: str, planned: Plan) -> str:
        """Return what is wrong with a guard that runs as declared; `unknown` is what told() returned."""
        if planned.actions:
            return ""
        most = 3 * self.wanted.interval + _STALE_RESERVE
        if not unknown and self.last["age"] is None:
            return "the queue guard has not looked at the instances yet"
        if not unknown and self.last["age"] > most:
            return f"the queue guard has not looked at the instances for {self.last['age']:.0f} s"
        return f"the queue guard does not say how it is. {unknown}" if unknown else ""

    def plan(self) -> Plan:
        """Return what there is to do. Changes nothing."""
        return self._plan_absent() if self.wanted is None else self._plan_present(self.wanted)

    def _plan_absent(self) -> Plan:
        service = Service(GUARD_LABEL, "absent", None)
        path = self.launchctl.domain.plist_path(GUARD_LABEL)
        actual = self.launchctl.actual(service)
        actions = plan(service, path, actual)
        diff = [file_diff(path, actual.plist, None)] if actual.plist is not None else []
        for what in (self.pauses, self._marked_folder()):
            if what and os.path.exists(what):
                actions.append(f"remove {what}")
                diff.append(file_diff(what, "the queue guard's\n", None))
        return Plan(actions, diff)

    def _marked_folder(self) -> str:
        """Return the folder when our lock shows that it is ours, else ""."""
        return self.folder if os.path.isfile(os.path.join(self.folder, LOCK_NAME)) else ""

    def _plan_present(self, wanted: Wanted) -> Plan:
        path = self.launchctl.domain.plist_path(GUARD_LABEL)
        disabled = GUARD_LABEL in self.launchctl.disabled()
        actual = self.launchctl.actual(wanted.service)._replace(disabled=disabled)
        actions = plan(wanted.service, path, actual)
        found = {name: read_bytes(os.path.join(self.folder, name)) for name in wanted.files}
        differing = [name for name in wanted.files if found[name] != wanted.files[name]]
        if differing:
            rest = [action for action in actions if action not in ("bootout", "bootstrap")]
            stop = ["bootout"] if actual.job is not None else []
            actions = [*stop, *(f"write {name}" for name in differing), *rest, "bootstrap"]
        diff = []
        if actual.plist != canonical(wanted.service.plist):
            diff.append(file_diff(path, actual.plist, canonical(wanted.service.plist)))
        for name in differing:
            pair = (found[name], wanted.files[name])
            shown = [_version(content) for content in pair] if name == PROGRAM else pair
            diff.append(file_diff(os.path.join(self.folder, name), *shown))
        return Plan(actions, diff)

    # Changing

    def converge(self, timeout: float, lock_timeout: float) -> Plan:
        """Make it so, wait until the guard looks, and return what was done."""
        if self.wanted is None:
            planned = self.plan()
            if planned.actions:
                self._carry_out(planned, time.monotonic() + timeout)
            return planned
        if not os.path.isdir(os.path.dirname(os.path.dirname(os.path.dirname(self.pauses)))):
            raise GuardError(f"{os.path.dirname(self.pauses)}: there is no gateway. Set it up first (role litellm).")
        make_directory(self.folder)
        with exclusive(self.folder, "queue_guard", lock_timeout):
            planned = self.plan()
            deadline = time.monotonic() + timeout
            if not planned.actions and self._wait(min(time.monotonic() + _SETTLE, deadline)):
                planned = Plan(["bootout", "bootstrap"], [])  # it runs as declared and does not look: it hangs
            if planned.actions:
                if "bootstrap" in planned.actions:
                    self.launchctl.require_domain()
                self._carry_out(planned, deadline)
                self.launchctl.wait_running(self.wanted.service, deadline)
                trouble = self._wait(deadline)
                if trouble:
                    raise GuardError(
                        f"waited {timeout:g} s for the queue guard to look; {trouble}. "
                        + last_words(self.wanted.service.plist)
                    )
        return planned

    def _carry_out(self, planned: Plan, deadline: float) -> None:
        service = self.wanted.service if self.wanted else Service(GUARD_LABEL, "absent", None)
        for action in planned.actions:
            verb, _space, what = action.partition(" ")
            if verb == "write" and what:
                # The settings name the gateway's registry, no secret.
                atomic_write(os.path.join(self.folder, what), self.wanted.files[what], 0o644)
            elif verb == "remove" and what == self.folder:
                shutil.rmtree(what)
            elif verb == "remove" and what:
                remove_file(what)
            else:
                self.launchctl.apply(service, [action], deadline)

    def _wait(self, deadline: float) -> str:
        """Wait until the guard has looked lately; return "" or, after `deadline`, what was seen last."""
        while True:
            trouble = self.trouble(self.told(), Plan([], []))
            if not trouble:
                return ""
            job = self.launchctl.job(GUARD_LABEL)
            hopeless = job is not None and job.pid is None and job.last_exit == EX_CONFIG
            if hopeless or time.monotonic() >= deadline:
                return trouble
            time.sleep(0.3)


def _version(content: bytes | None) -> str | None:
    return None if content is None else f"version {hashlib.sha256(content).hexdigest()}\n"
