# SPDX-License-Identifier: GPL-3.0-or-later
"""`launchctl enable` and `disable`: kept on disk, so that they outlive a reboot."""

from __future__ import annotations

import os
import plistlib

from macos import knobs

FOLDER = "/private/var/db/com.apple.xpc.launchd"


class Overrides:
    """The overrides of the system domain (no uid) or of one user's domains."""

    def __init__(self, uid: int | None):
        name = "disabled.plist" if uid is None else f"disabled.{uid}.plist"
        self._path = os.path.join(FOLDER, name)
        try:
            with open(self._path, "rb") as file:
                self._disabled: dict[str, bool] = plistlib.load(file)
        except (OSError, ValueError):
            self._disabled = {}

    def set(self, label: str, disabled: bool) -> None:
        self._disabled[label] = disabled
        os.makedirs(FOLDER, mode=0o755, exist_ok=True)
        knobs.replace(self._path, plistlib.dumps(self._disabled))

    def is_disabled(self, label: str, by_plist: bool) -> bool:
        """An override wins over the Disabled key of the property list."""
        return self._disabled.get(label, by_plist)

    def items(self) -> list[tuple[str, bool]]:
        return sorted(self._disabled.items())
