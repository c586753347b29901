# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed versions of LM Studio on a Mac: what is there, and which of them stay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ._command import run
from ._files import listing, read_json
from ._lms import Install, find_install

VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]*")
#: In the home of an install. Written last, so a folder without it is an install that was cut off.
MARKER = "installed.json"
#: The end of the name of a download that is not complete.
PART = ".part"

#: In the folder of the installs: {"versions": [the latest selected first]}.
HISTORY = "selected.json"


class Removal(NamedTuple):
    """What goes: `versions` that are too many, and `rubbish`, installs and downloads that were cut off."""

    versions: list[str]
    rubbish: list[str]


def history_after(history: Iterable[str], selected: str) -> list[str]:
    """Return the versions with `selected` first, the others in the order in which they were selected last."""
    return [selected, *(version for version in history if version != selected)]


def too_many(installed: Mapping[str, float], history: list[str], keep: int) -> list[str]:
    """Return the versions beyond the `keep` that were selected last.

    `installed` maps each version to when it was installed (seconds since the epoch), for those never selected since;
    `history` begins with the version that is selected, which always stays.
    """
    rank = {version: position for position, version in enumerate(history)}
    ordered = sorted(installed, key=lambda version: (rank.get(version, len(rank)), -installed[version]))
    return sorted(ordered[max(keep, 1) :])


def installed(home: str, version: str, digest: str | None) -> Install | None:
    """Return the complete install of that version at `home`, made from an archive of that digest if one is given."""
    marker = read_json(os.path.join(home, MARKER))
    if not isinstance(marker, dict) or marker.get("version") != version:
        return None
    if digest is not None and marker.get("sha512") != digest:
        return None
    return find_install(home)


def selected_before(directory: str, on_disk: dict[str, float]) -> list[str]:
    """Return the versions selected so far, the latest first, of those that are still there."""
    stored = read_json(os.path.join(directory, HISTORY))
    versions = stored.get("versions") if isinstance(stored, dict) else None
    if isinstance(versions, list):
        return [version for version in versions if version in on_disk]
    return sorted(on_disk, key=lambda version: -on_disk[version])


def look(directory: str) -> tuple[dict[str, float], list[str]]:
    """Return the complete installs (version to when it was made) and the names of what was cut off."""
    complete, rubbish = {}, []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        if name.startswith(".") and name.endswith(PART):
            rubbish.append(name)
        elif VERSION.fullmatch(name) and os.path.isdir(path):
            if installed(path, name, None):
                complete[name] = os.path.getmtime(os.path.join(path, MARKER))
            else:
                rubbish.append(name)
    return complete, rubbish


def standing(directory: str) -> dict:
    """Return what is installed below `directory`, without starting a process or asking anybody.

    `selected` is the version selected last with its paths and checksum, absent while there is none; `versions` are
    those on disk, that one first; `leftovers` what was cut off.
    """
    on_disk, rubbish = look(directory)
    history = selected_before(directory, on_disk)
    found = {"versions": [*history, *sorted(set(on_disk) - set(history))], "leftovers": rubbish}
    if not history:
        return found
    home = os.path.join(directory, history[0])
    install = find_install(home)
    marker = read_json(os.path.join(home, MARKER))
    if install is None or not isinstance(marker, dict):
        return found
    selected = {"version": history[0], "sha512": marker.get("sha512"), "home": home}
    return {**found, "selected": {**selected, "llmster": install.llmster, "lms": install.lms}}


def settled(found: Mapping, version: str, digest: str | None, keep: int) -> dict | None:
    """Return the selected install in `found` (see `standing`) when it is `version` and nothing else is to be done.

    `digest` is the sha512 its archive must have had, None for any; `keep` how many versions may stay.
    """
    selected = found.get("selected") or {}
    if selected.get("version") != version or (digest is not None and selected.get("sha512") != digest):
        return None
    return selected if not found.get("leftovers") and len(found.get("versions", [])) <= max(keep, 1) else None


def used_homes(homes: Iterable[str], instances: str) -> set[str]:
    """Return those of `homes` that are in use.

    An instance below `instances` is to run from them or may go back to them, or any process runs from them.
    """
    texts = [run(["/bin/ps", "-axww", "-o", "command="], timeout=30).out]
    for name in listing(instances):
        for file in ("instance.json", "status.json"):
            declared = read_json(os.path.join(instances, name, file))
            program = declared.get("llmster") if isinstance(declared, dict) else None
            texts.append(program if isinstance(program, str) else "")
        former = read_json(os.path.join(instances, name, "former.json"))
        # What served last, as long as what came after it was not seen to.
        texts.append(str(former.get("declaration")) if isinstance(former, dict) and former.get("unfinished") else "")
    return {home for home in homes if any(home + os.sep in text for text in texts)}
