# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models the instances of a Mac have loaded, all together."""

from __future__ import annotations

import os

from ._files import listing, read_json
from ._loaded import listed

_TIMEOUT = 30.0


class LoadedError(Exception):
    """An instance does not tell what it has loaded; the text names it."""


def loaded_models(homes: str, lms: str, leaving: bool = False) -> dict[str, str]:
    """Return {path of a loaded model: name of an instance} over all instances with a home below `homes`.

    With `leaving`, what an instance is declared to load is left out. Raises LoadedError.
    """
    names = listing(homes)
    loaded = {}
    for name in names:
        home = os.path.join(homes, name)
        declaration = read_json(os.path.join(home, "instance.json"))
        if not isinstance(declaration, dict):
            continue
        managed = {model.get("identifier") for model in declaration.get("models", [])} if leaving else set()
        entries, trouble = listed(lms, home, _TIMEOUT)
        if trouble or not all(isinstance(entry.get("path"), str) for entry in entries):
            raise LoadedError(
                f"instance {name} does not tell what it has loaded ({trouble or 'lms ps names no path'}), so no model "
                "is removed. Run again when it is ready."
            )
        loaded.update({entry["path"]: name for entry in entries if entry.get("identifier") not in managed})
    return loaded
