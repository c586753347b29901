# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which installed versions of LM Studio stay on a Mac. The decision is pure; the reading of what runs is at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ._command import run
from ._files import read_json

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


def used_homes(homes: Iterable[str], instances: str) -> set[str]:
    """Return those of `homes` that an instance below `instances` is declared to run from, or any process runs from."""
    texts = [run(["/bin/ps", "-axww", "-o", "command="], timeout=30).out]
    for name in _listing(instances):
        for file in ("instance.json", "status.json"):
            declared = read_json(os.path.join(instances, name, file))
            program = declared.get("llmster") if isinstance(declared, dict) else None
            texts.append(program if isinstance(program, str) else "")
    return {home for home in homes if any(home + os.sep in text for text in texts)}


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
