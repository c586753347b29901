# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance had before its last change, kept in its home, so that a roll-out that goes wrong can put it back."""

from __future__ import annotations

import os
from typing import NamedTuple

from ._files import atomic_write, canonical_json, read_bytes, read_json
from ._instances import Found, InstanceError, Wanted, parse_wanted
from ._tuning_files import Change, Home, managed

FILE = "former.json"
_FORMAT = 1


class Former(NamedTuple):
    """An instance as it was, and what its tuning files need for that."""

    wanted: Wanted
    tunings: Home


def remember(home: str, found: Found, tunings: Home | None) -> None:
    """Keep what an instance has. Secret, as its declaration is."""
    files = {change.file: change.before for change in tunings.changes} if tunings else {}
    document = {
        "format": _FORMAT,
        "declaration": found.declaration,
        "plist": found.service.plist,
        "managed": tunings.before if tunings else managed(home),
        "files": files,
    }
    atomic_write(os.path.join(home, FILE), canonical_json(document), 0o600)


def recall(name: str, home: str) -> Former:
    """Return what was kept. Raises InstanceError when there is nothing, or nothing that can be used."""
    kept = read_json(os.path.join(home, FILE))
    if not isinstance(kept, dict) or kept.get("format") != _FORMAT or not kept.get("declaration"):
        raise InstanceError(f"instance {name}: there is nothing to go back to ({os.path.join(home, FILE)})")
    wanted = parse_wanted({"name": name, "declaration": kept["declaration"], "plist": kept["plist"] or ""})
    changes = [Change(name, "", file, _text(file), before) for file, before in kept["files"].items()]
    return Former(wanted, Home(home, managed(home), kept["managed"], changes))


def _text(file: str) -> str | None:
    content = read_bytes(file)
    return None if content is None else content.decode("utf-8", "replace")
