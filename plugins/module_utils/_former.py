# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance had before its last change, kept in its home, so that a roll-out that goes wrong can put it back.

A change is unfinished until the instance was seen to serve as declared. What is kept stays the same until then, over as
many runs as it takes: it is what served last. An instance may have come to serve after its run was cut off.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ._files import atomic_write, canonical_json, read_bytes, read_json, remove_file
from ._instances import Found, InstanceError, Wanted, parse_wanted, serves_as_declared
from ._launchd import LaunchdError
from ._tuning_files import Change, Home, managed

FILE = "former.json"
_FORMAT = 1


class Former(NamedTuple):
    """An instance as it was, and what its tuning files need for that."""

    wanted: Wanted
    tunings: Home


def remember(home: str, found: Found, tunings: Home | None) -> None:
    """Keep what an instance has, as its change begins. Secret, as its declaration is."""
    files = {change.file: change.before for change in tunings.changes} if tunings else {}
    document = _read(home)
    # Its tuning files come before its declaration: with the one that was kept, it has not begun to serve another.
    came_to_serve = document.get("declaration") != found.declaration and serves_as_declared(found)
    if not document.get("unfinished") or came_to_serve:
        document = {
            "format": _FORMAT,
            "declaration": found.declaration,
            "plist": found.service.plist,
            "managed": tunings.before if tunings else managed(home),
            "files": {},
        }
    _write(home, {**document, "files": {**files, **document["files"]}, "unfinished": True})


def unfinished(home: str) -> bool:
    """Tell whether a change has begun that was not seen to serve."""
    return bool(_read(home).get("unfinished"))


def finish(home: str) -> None:
    """Note that an instance was seen to serve as declared."""
    if unfinished(home):
        _write(home, {**_read(home), "unfinished": False})


def forget(home: str) -> None:
    """Keep nothing: there is no change to go back from."""
    remove_file(os.path.join(home, FILE))


def recall(name: str, home: str) -> Former | None:
    """Return what was kept, None when nothing is. Raises InstanceError when it cannot be used."""
    kept = _read(home)
    if not kept:
        return None
    try:
        wanted = parse_wanted({"name": name, "declaration": kept["declaration"], "plist": kept["plist"] or ""})
    except LaunchdError as error:
        raise InstanceError(f"instance {name}: {os.path.join(home, FILE)} cannot be used: {error}") from None
    changes = [Change(name, "", file, _text(file), before) for file, before in kept["files"].items()]
    return Former(wanted, Home(home, managed(home), kept["managed"], changes))


def _read(home: str) -> dict:
    kept = read_json(os.path.join(home, FILE))
    return kept if isinstance(kept, dict) and kept.get("format") == _FORMAT and kept.get("declaration") else {}


def _write(home: str, document: dict) -> None:
    atomic_write(os.path.join(home, FILE), canonical_json(document), 0o600)


def _text(file: str) -> str | None:
    content = read_bytes(file)
    return None if content is None else content.decode("utf-8", "replace")
