# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the gateway runner says of its releases, and the keys that clients may send. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: Seconds after which the status of a runner counts as stale; it is written every second.
FRESH_SECONDS = 15.0
FORMAT = 1


class Status(NamedTuple):
    """status.json of a live runner; releases by name, None for none. `refused` is {release, reason}.

    `ending` are the releases that answer their last requests. `program` is the fingerprint of what the runner is, None
    for one that cannot go on as another program, and `refused_program` {program, written, reason} for what it did not
    become, with the time of that file in nanoseconds.
    """

    serving: str | None
    starting: str | None
    refused: Mapping | None
    ending: Sequence[str] = ()
    program: str | None = None
    refused_program: Mapping | None = None

    def running(self) -> set[str]:
        """Return the releases that have processes."""
        return {name for name in (self.serving, self.starting, *self.ending) if name}

    def said(self) -> str:
        """Return the status in a few words, for a message."""
        starting = f", release {self.starting} is starting" if self.starting else ""
        return f"{f'release {self.serving} serves' if self.serving else 'nothing serves'}{starting}"


def live_status(document: object, alive: bool, now: float) -> Status | None:
    """Return the status in status.json, or None when no runner keeps it up to date; `alive`: its process exists."""
    if not isinstance(document, dict) or document.get("format") != FORMAT or not alive:
        return None
    if now - document.get("at", 0) > FRESH_SECONDS:
        return None
    return Status(
        document.get("serving"),
        document.get("starting"),
        document.get("refused"),
        document.get("ending", []),
        document.get("program"),
        document.get("refused_program"),
    )


def outcome(status: Status | None, name: str) -> str | None:
    """Return "" when the release `name` serves, the reason when it is refused, None while that is open."""
    if status is None:
        return None
    if status.refused and status.refused["release"] == name:
        return status.refused["reason"]
    return "" if status.serving == name else None


def handed_over(status: Status | None, program: str, written: int) -> str | None:
    """Return "" when the runner goes on as `program`, the reason when it does not, None while that is open.

    `written` is the time of its file in nanoseconds: the same program may have been refused before.
    """
    if status is None:
        return None
    refused = status.refused_program
    if refused and (refused["program"], refused["written"]) == (program, written):
        return refused["reason"]
    return "" if status.program == program else None


def next_name(names: Sequence[str]) -> str:
    """Return the name of a new release, which is a number, given those that are there."""
    return str(max([int(name) for name in names if name.isdigit()] or [0]) + 1)


def keys_after(document: object, key: str, grace: float, now: float) -> dict:
    """Return client_keys.json: `key` for good, and those before it for `grace` seconds from when they were replaced.

    `document` is the one before. The result equals it when there is nothing to change.
    """
    before = document.get("keys", []) if isinstance(document, dict) else []
    former = [
        {"key": entry["key"], "until": now + grace if entry["until"] is None else min(entry["until"], now + grace)}
        for entry in before
        if entry["key"] != key
    ]
    kept = [entry for entry in former if entry["until"] > now]
    # An entry that has run out harms nobody: it alone is no reason to write the file.
    current = {"format": FORMAT, "keys": [{"key": key, "until": None}, *kept]}
    return document if _in_force(before, now) == _in_force(current["keys"], now) else current


def keys_with(document: object, key: str) -> dict:
    """Return client_keys.json while a change to `key` is under way: it counts already, and no other key ends yet."""
    before = document.get("keys", []) if isinstance(document, dict) else []
    others = [entry for entry in before if entry["key"] != key]
    return {"format": FORMAT, "keys": [{"key": key, "until": None}, *others]}


def _in_force(entries: Sequence[Mapping], now: float) -> list:
    return [entry for entry in entries if entry["until"] is None or entry["until"] > now]
