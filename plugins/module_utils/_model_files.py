# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models folder: which files are missing, whether there is room for them, and fetching them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import NamedTuple

from ._catalog import NAME, Catalog, CatalogError
from ._download import ChecksumError, DownloadError, fetch, free_bytes, is_digest, size_of
from ._files import atomic_write, canonical_json, make_directory, owner_for, remove_file, sha256_file
from ._lms_get import GetError
from ._model_index import FETCHING, INDEX, is_place, is_unchanged, read_index, stamp, unchanged

#: Bytes that must stay free on the disk after everything was fetched.
RESERVE = 1 << 30


class ModelError(Exception):
    """A model file that cannot be had; the text names the model, the source and what is wrong."""


class ModelFile(NamedTuple):
    """A file to have: `path` below the models folder, `source` a URL or an absolute path, `size` in bytes or None.

    With `local` the path is one on the controller, which sends the file. With `weights`, the format gguf or mlx, the
    source is a model of LM Studio's catalogue that has a file of this name.
    """

    name: str
    path: str
    source: str
    sha256: str
    size: int | None
    local: bool = False
    weights: str = ""

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return f"lms get {self.source}" if self.weights else self.source


def checked_models(entries: list[dict]) -> list[ModelFile]:
    """Return the files of the module's option.

    Raises ModelError for a bad path or checksum, or two contents for one path.
    """
    files = []
    seen: dict[str, dict] = {}
    gguf = {entry["name"] for entry in entries if entry["path"].lower().endswith(".gguf")}
    for entry in entries:
        name, path = entry["name"], entry["path"]
        if not is_place(path):
            raise ModelError(f"model {name}: path {path!r} must be publisher/name/file")
        if not is_digest(entry["sha256"], 64):
            raise ModelError(f"model {name}: sha256 must be 64 hex digits")
        same = seen.setdefault(path.lower(), entry)  # APFS ignores case
        if (same["path"], same["sha256"].lower()) != (path, entry["sha256"].lower()):
            raise ModelError(f"model {name}: path {path!r} is also that of model {same['name']}, with another content")
        sources = [entry[kind] for kind in ("url", "src", "local", "catalog") if entry.get(kind)]
        if len(sources) != 1:
            raise ModelError(
                f"model {name}: exactly one of url, src, local and catalog must say where {path} comes from"
            )
        if entry.get("catalog") and not NAME.fullmatch(entry["catalog"]):
            raise ModelError(f"model {name}: catalog must be [publisher/]name[@quantization], not {entry['catalog']!r}")
        weights = ("gguf" if name in gguf else "mlx") if entry.get("catalog") else ""
        local = bool(entry.get("local"))
        files.append(ModelFile(name, path, sources[0], entry["sha256"].lower(), entry.get("size"), local, weights))
    return files


def settled(found: dict, directory: str, files: list[ModelFile]) -> dict | None:
    """Return the result of the module when `found` (`_model_index.standing`) shows every one of `files`, else None."""
    there = found.get("files") or {}
    verified = {path: one["sha256"] for path, one in there.items()}
    if found.get("directory") != directory or any(verified.get(file.path) != file.sha256 for file in files):
        return None
    declared = {file.path for file in files}
    return {
        "changed": False,
        "models": [
            {"name": file.name, "path": file.path, "state": "present", "bytes": there[file.path]["bytes"]}
            for file in files
        ],
        "diff": [],
        "removed": [],
        "undeclared": [path for path, one in there.items() if one["fetched"] and path not in declared],
        "directory": directory,
        "server": found["server"],
        "user": found["user"],
    }


class ModelFolder:
    """The files on disk, and the index of what was verified: {path: {size, mtime_ns, sha256}}."""

    def __init__(
        self,
        directory: str,
        index: str | None = None,
        partial: str | None = None,
        read_all: bool = False,
        lmstudio: str | None = None,
    ) -> None:
        beside = os.path.dirname(os.path.abspath(directory))
        self.directory = directory
        self.index = index or os.path.join(beside, INDEX)
        self.partial = partial or os.path.join(beside, "partial")
        #: Whether files are read though size and time are as in the index.
        self.read_all = read_all
        #: sha256 of files that were found with another content than declared, by path.
        self.seen: dict[str, str] = {}
        self._verified = read_index(self.index)
        self._catalog = Catalog(os.path.join(self.partial, "catalog"), lmstudio, self._has_room)

    def path_of(self, file: ModelFile) -> str:
        return os.path.join(self.directory, *file.path.split("/"))

    def size_on_disk(self, file: ModelFile) -> int:
        return os.stat(self.path_of(file)).st_size

    def missing(self, files: list[ModelFile], remember: bool) -> list[ModelFile]:
        """Return the files that are absent or have another content; with `remember` the index is kept up to date."""
        before = canonical_json(self._verified)
        by_path = {file.path: file for file in files}  # two models may share a file
        missing = [file for file in by_path.values() if not self._is_verified(file)]
        if remember and canonical_json(self._verified) != before:
            self._write_index()
        return missing

    def _is_verified(self, file: ModelFile) -> bool:
        path = self.path_of(file)
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        entry = self._verified.get(file.path)
        if self.read_all or not is_unchanged(entry, info):
            before, entry = entry, _entry(info, sha256_file(path))
            # Touched, it is still the file that was fetched; with another content it is somebody else's.
            if isinstance(before, dict) and before.get("fetched") and before.get("sha256") == entry["sha256"]:
                entry["fetched"] = True
            self._verified[file.path] = entry
        if entry.get("sha256") == file.sha256:
            return True
        self.seen[file.path] = str(entry.get("sha256"))
        return False

    def undeclared(self, files: list[ModelFile]) -> list[str]:
        """Return the paths of files that were fetched here, are still that, and are not among `files`."""
        declared = {file.path for file in files}
        there = unchanged(self.directory, self._verified)
        return [path for path, entry in there.items() if entry.get("fetched") and path not in declared]

    def remove(self, path: str) -> None:
        """Remove a file, its entry of the index, and the folders that it leaves empty."""
        file = os.path.join(self.directory, *path.split("/"))
        remove_file(file)
        self._verified.pop(path, None)
        self._write_index()
        for folder in (os.path.dirname(file), os.path.dirname(os.path.dirname(file))):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def _write_index(self) -> None:
        make_directory(os.path.dirname(self.index))
        atomic_write(self.index, canonical_json(self._verified))

    def require_space(self, files: list[ModelFile]) -> None:
        """Raise ModelError when the disk cannot hold all of `files`; a size nobody knows counts as nothing."""
        needed = 0
        for file in files:
            part = self._part(file)
            have = os.path.getsize(part) if os.path.exists(part) else 0
            needed += max(0, (_size(file) or 0) - have)
        if any(file.weights for file in files):
            needed = max(needed - self._catalog.size(), 1)  # whatever its size: it is not begun on a full disk
        free = free_bytes(self.directory)
        if needed and free < needed + RESERVE:
            names = ", ".join(sorted({file.name for file in files}))
            raise ModelError(
                f"the disk of {self.directory} has {free >> 20} MB free, {(needed + RESERVE) >> 20} MB are "
                f"needed to fetch {names} and keep {RESERVE >> 20} MB free: make room, or declare fewer models"
            )

    def _part(self, file: ModelFile) -> str:
        # Named by content: what is there can be continued from any source that has the same file.
        return os.path.join(self.partial, f"{file.sha256}.{'sent' if file.local else 'part'}")

    def to_send(self, files: list[ModelFile]) -> list[dict]:
        """Return what the controller is to send before `files` can be fetched, each with name, local and to."""
        sent = {}
        for file in files:
            part = self._part(file)
            if file.local and not (os.path.exists(part) and os.path.getsize(part) == file.size):
                sent[part] = {"name": file.name, "local": file.source, "to": os.path.abspath(part)}
        return list(sent.values())

    def fetch_all(self, files: list[ModelFile], timeout: float) -> None:
        """Fetch the files one after the other, each in at most `timeout` seconds. Raises ModelError."""
        fetching = os.path.join(self.partial, FETCHING)
        try:
            for number, file in enumerate(files, start=1):
                part = self._catalog.home if file.weights else self._part(file)
                told = {"name": file.name, "part": os.path.abspath(part), "total": _size(file)}
                atomic_write(fetching, json.dumps({**told, "number": number, "of": len(files)}))
                self.fetch(file, timeout)
        finally:
            remove_file(fetching)
        self._catalog.forget()

    def fetch(self, file: ModelFile, timeout: float) -> None:
        """Fetch, verify and put in place one file. Raises ModelError; `timeout` is seconds for the transfer."""
        part = self._part(file)
        path = self.path_of(file)
        try:
            if file.local:
                self._require_sent(file, part)
            elif file.weights:
                name = os.path.basename(file.path)
                self._catalog.get(file.source, file.weights, name, file.sha256, part, timeout)
            else:
                fetch(file.source, part, "sha256", file.sha256, timeout)
        except (ChecksumError, CatalogError, GetError) as error:
            raise ModelError(f"model {file.name}: {error}") from None
        except DownloadError as error:
            raise ModelError(f"model {file.name}: cannot fetch {error}") from None
        self._put_in_place(file, part, path)
        self._verified[file.path] = {**_entry(os.stat(path), file.sha256), "fetched": True}
        self._write_index()

    def _has_room(self) -> bool:
        return free_bytes(self.directory) > RESERVE // 2

    @staticmethod
    def _require_sent(file: ModelFile, part: str) -> None:
        got = sha256_file(part)
        if got != file.sha256:
            remove_file(part)
            raise ChecksumError(
                f"{file.source} on the controller: wrong sha256: expected {file.sha256}, got {got}. Nothing was kept."
            )

    def _put_in_place(self, file: ModelFile, part: str, path: str) -> None:
        make_directory(os.path.dirname(path))
        owner = owner_for(path)
        os.chmod(part, 0o644)
        if owner:
            os.chown(part, *owner)
        try:
            os.replace(part, path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            remove_file(part)
            raise ModelError(
                f"model {file.name}: {self.partial} is on another disk than {self.directory}: set partial to a folder "
                "on the same disk"
            ) from None


def _size(file: ModelFile) -> int | None:
    """Return the size of a file that is to come, None when it cannot be told."""
    return file.size if file.size is not None or file.local or file.weights else size_of(file.source)


def _entry(info: os.stat_result, sha256: str) -> dict:
    size, mtime_ns = stamp(info)
    return {"size": size, "mtime_ns": mtime_ns, "sha256": sha256}
