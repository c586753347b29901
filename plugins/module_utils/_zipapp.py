# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program of several Python files as the one file that Python runs: written whole, and the same bytes each time."""

from __future__ import annotations

import io
import zipfile

_MAIN = "__main__.py"
_DATE = (1980, 1, 1, 0, 0, 0)


def build(files: dict[str, str]) -> bytes:
    """Return the archive of `files` ({path in the archive: text}). Raises ValueError when it could not be run."""
    if _MAIN not in files:
        raise ValueError(f"there is no {_MAIN} among its files ({', '.join(sorted(files)) or 'none'})")
    content = io.BytesIO()
    # Stored, not compressed: the result of compressing depends on the zlib at hand.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _DATE), files[name])
    return content.getvalue()
