# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of models of LM Studio's catalogue: fetched into a home of their own, and taken from it by their content."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable

from ._files import remove_file, sha256_file
from ._lms import find_install
from ._lms_get import WrongModelError, fetch

#: What `lms get` takes for a model of the catalogue. It makes all before the @ lower case, and so is the key.
NAME = re.compile(r"([a-z0-9]+(-[a-z0-9]+)*/)?[a-z0-9]+([.-][a-z0-9]+)*(@[A-Za-z0-9]+([._-][A-Za-z0-9]+)*)?", re.ASCII)


class CatalogError(Exception):
    """LM Studio has fetched something else than was declared; the text says what."""


class Catalog:
    """The home folder `home` of an LM Studio that only fetches. What it has fetched stays there until it is taken.

    `lmstudio` is the home folder that its programs were installed into.
    """

    def __init__(self, home: str, lmstudio: str | None, has_room: Callable[[], bool]) -> None:
        self.home = home
        self._lmstudio = lmstudio
        self._has_room = has_room

    def size(self) -> int:
        """Return how many bytes are there."""
        return sum(os.path.getsize(path) for paths in self._files().values() for path in paths)

    def get(self, source: str, weights: str, file: str, sha256: str, part: str, timeout: float) -> None:
        """Make `part` of the file named `file` of the model `source`, fetching that unless the file is there already.

        Raises CatalogError, WrongModelError, and GetError, after which another try goes on where this one ended.
        """
        if self._take(file, sha256, part):
            return
        install = find_install(self._lmstudio) if self._lmstudio else None
        if install is None:
            place = f"is not installed in {self._lmstudio}" if self._lmstudio else "lmstudio must tell of"
            raise CatalogError(f"lms get {source} needs an LM Studio, which {place}")
        try:
            fetch(install, self.home, source, weights, timeout, self._has_room)
        except WrongModelError:
            self.forget()
            raise
        if self._take(file, sha256, part):
            return
        fetched = self._files()
        got = ", ".join(sha256_file(path) for path in fetched.get(file, []))
        self.forget()
        if got:
            raise CatalogError(
                f"lms get {source}: wrong sha256 of {file}: expected {sha256}, got {got}. Nothing was kept."
            )
        raise CatalogError(
            f"lms get {source} fetched {', '.join(sorted(fetched)) or 'nothing'}, and no {file}. Nothing was kept. "
            "Correct the name of the file, or add @ and the quantisation to source.catalog."
        )

    def forget(self) -> None:
        """Remove what is there."""
        shutil.rmtree(self.home, ignore_errors=True)

    def _take(self, file: str, sha256: str, part: str) -> bool:
        if os.path.exists(part) and sha256_file(part) == sha256:
            return True
        remove_file(part)
        for path in self._files().get(file, []):
            if sha256_file(path) == sha256:
                os.replace(path, part)
                return True
        return False

    def _files(self) -> dict[str, list[str]]:
        """Return the places of the files that were fetched, by their names."""
        found: dict[str, list[str]] = {}
        for folder, _folders, names in os.walk(os.path.join(self.home, ".lmstudio", "models")):
            for name in names:
                found.setdefault(name, []).append(os.path.join(folder, name))
        return found
