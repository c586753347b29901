# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `lms ps` lists of one instance, and how that compares with what it shall have loaded."""

from __future__ import annotations

import json

from ._lms import call
from ._lmstudio_http import WantedModel


def listed(lms: str, home: str, timeout: float) -> tuple[list[dict], str]:
    """Return the entries of `lms ps --json` for the instance at `home`, or none of them and what came instead."""
    answer = call([lms, "ps", "--json"], home, timeout)
    try:
        entries = json.loads(answer.out)
    except ValueError:
        return [], f"lms ps does not tell what is loaded: {answer.said()[-300:]}"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return [], f"lms ps answered something else than a list: {answer.out.strip()[:300]}"
    return entries, ""


def differences(wanted: list[WantedModel], entries: list[dict]) -> list[str]:
    """Return in words what is loaded otherwise than wanted, as far as `lms ps` shows it."""
    by_identifier = {entry.get("identifier"): entry for entry in entries}
    found = []
    for model in wanted:
        entry = by_identifier.get(model.identifier)
        if entry is None:
            found.append(f"{model.identifier}: lms ps does not list it")
            continue
        for name, shown in (("context_length", "contextLength"), ("parallel", "parallel")):
            want, have = getattr(model, name), entry.get(shown)
            if want is not None and have is not None and want != have:
                found.append(f"{model.identifier}: {name} is {have}, declared {want}")
        if entry.get("ttlMs") is not None:
            found.append(
                f"{model.identifier}: is unloaded when nobody asked it for {entry['ttlMs'] / 1000:g} s, declared never"
            )
    return found


def busy(entries: list[dict], identifiers: list[str]) -> dict[str, int]:
    """Return identifier to number of requests, running and waiting, of those of the models that have any."""
    counts = {
        entry.get("identifier"): max(entry.get("queued") or 0, int(entry.get("status") not in (None, "idle")))
        for entry in entries
    }
    return {name: counts[name] for name in identifiers if counts.get(name)}


def strangers(wanted: list[WantedModel], *identifiers: str) -> list[str]:
    """Return those of the identifiers that nobody wants."""
    return sorted(set(identifiers) - {model.identifier for model in wanted})
