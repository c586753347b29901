# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The index of the model files that were verified: {path: {size, mtime_ns, sha256, fetched}}. Reads only."""

from __future__ import annotations

import os
import re

from ._files import read_json

#: Beside the models folder: the index, and the program that serves the folder to other Macs.
INDEX = "models.json"
SERVER = "model_server.py"
#: In the folder of unfinished downloads: what is being fetched, for who wants to tell how far it is.
FETCHING = "fetching.json"

_PART = re.compile(r"[^/\\:*?\"<>|\x00-\x1f]+")


def read_index(path: str) -> dict:
    """Return what the index says, {} where it cannot be read."""
    stored = read_json(path)
    return stored if isinstance(stored, dict) else {}


def is_place(path: str) -> bool:
    """Tell whether a path below the models folder is publisher/name/file."""
    parts = path.split("/")
    return len(parts) == 3 and all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)


def stamp(info: os.stat_result) -> tuple[int, int]:
    """Return the size in bytes and the time by which a file counts as the one that was verified."""
    return info.st_size, info.st_mtime_ns


def is_unchanged(entry: object, info: os.stat_result) -> bool:
    """Tell whether a file is the one that an entry of the index tells of."""
    return isinstance(entry, dict) and (entry.get("size"), entry.get("mtime_ns")) == stamp(info)


def unchanged(directory: str, index: dict) -> dict[str, dict]:
    """Return the entries of the index whose files are in `directory` as they were verified."""
    found = {}
    for path, entry in sorted(index.items()):
        try:
            if is_place(path) and is_unchanged(entry, os.stat(os.path.join(directory, *path.split("/")))):
                found[path] = entry
        except OSError:
            continue
    return found


def standing(root: str, user: str) -> dict:
    """Return what there is below `root`, which belongs to `user`: the models `directory`, its verified `files` by path,
    each with sha256, bytes and fetched, and the path of the program that serves them, or None.
    """
    directory, server = os.path.join(root, "models"), os.path.join(root, SERVER)
    files = {
        path: {"sha256": entry.get("sha256"), "bytes": entry["size"], "fetched": bool(entry.get("fetched"))}
        for path, entry in unchanged(directory, read_index(os.path.join(root, INDEX))).items()
    }
    return {"directory": directory, "files": files, "server": server if os.path.exists(server) else None, "user": user}
