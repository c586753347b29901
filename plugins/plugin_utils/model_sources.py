# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the files of a model come from and where they go. Pure: no Ansible, no I/O."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.lmfleet.mac.plugins.module_utils._catalog import NAME as CATALOG_NAME

PUBLISHER_OF_URLS = "lmfleet"
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
HUGGINGFACE_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf", re.IGNORECASE)


def model_files(name: str, source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the files of a sound model, each with name, path (publisher/name/file), sha256, and url, local or catalog.

    `local` is an absolute path on the controller, `catalog` a model of LM Studio's catalogue.

    The file that makes LM Studio list the model comes last: it never sees a model of which a file is missing.
    """
    if source["huggingface"]:
        publisher = source["huggingface"].split("/")[0]
        base = f"https://huggingface.co/{source['huggingface']}/resolve/{source['revision']}"
    elif source["catalog"]:
        owner, slash, _name = source["catalog"].partition("/")
        publisher, base = owner if slash else PUBLISHER_OF_URLS, ""
    else:
        publisher, base = PUBLISHER_OF_URLS, (source.get("path") or source["url"]).rstrip("/")
    files = [
        {
            "name": name,
            # The folder decides the key that LM Studio gives a model: one folder a model keeps the keys apart.
            "path": f"{publisher}/{name}/{_file_name(file['file'] or base)}",
            **_origin(source, base, file["file"]),
            "sha256": file["sha256"].lower(),
        }
        for file in _listed(source)
    ]
    listed_by = _listed_by([_file_name(file["path"]) for file in files])
    return sorted(files, key=lambda file: _file_name(file["path"]) == listed_by)


def _origin(source: Mapping[str, Any], base: str, file: str | None) -> dict[str, str]:
    if source["catalog"]:
        return {"catalog": source["catalog"]}
    kind = "local" if source.get("path") else "url"
    return {kind: f"{base}/{file}" if file else source.get("path") or source["url"]}


def model_on_disk(name: str, source: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies a sound model on a Mac: path, as LM Studio tells it, and the sha256 of its content.

    The path is that of the file, of the first part of a split one, or of the folder of an MLX model. The sha256 of
    several files is that of the list of theirs.
    """
    files = model_files(name, source)
    path = files[-1]["path"]
    if not path.lower().endswith(".gguf") and len(files) > 1:
        path = path.rsplit("/", 1)[0]
    if len(files) == 1:
        return {"path": path, "sha256": files[0]["sha256"]}
    manifest = "".join(sorted(f"{file['sha256']}  {_file_name(file['path'])}\n" for file in files))
    return {"path": path, "sha256": hashlib.sha256(manifest.encode()).hexdigest()}


def source_files(source: Mapping[str, Any]) -> list[str]:
    """Return the names of the files of a source, sound or not."""
    places = [file.get("file") for file in source.get("files") or []] or [
        source.get("file") or source.get("url") or source.get("path")
    ]
    return [_file_name(place) for place in places if place]


def source_problems(source: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a source that its schema lets pass."""
    given = [kind for kind in _PROBLEMS_OF if source.get(kind)]
    if len(given) != 1:
        *kinds, last = _PROBLEMS_OF
        yield f"source needs exactly one of {', '.join(kinds)} and {last}, and has {' and '.join(given) or 'none'}."
    else:
        yield from _PROBLEMS_OF[given[0]](source)
    if source.get("files"):
        yield from _files_problems(source)
    elif not source.get("sha256"):
        yield "source.sha256 is missing. It is: SHA-256 of the file, 64 hexadecimal digits."
    elif not SHA256.fullmatch(source["sha256"]):
        yield f"source.sha256 must be 64 hexadecimal digits, not {source['sha256']!r}."


def _huggingface_problems(source: Mapping[str, Any]) -> Iterator[str]:
    if not HUGGINGFACE_REPOSITORY.fullmatch(source["huggingface"]):
        yield f"source.huggingface must look like publisher/repository, not {source['huggingface']!r}."
    if not source.get("file") and not source.get("files"):
        yield "source.file is missing: name the file inside the repository, or several in source.files."


def _url_problems(source: Mapping[str, Any]) -> Iterator[str]:
    if not re.match(r"https?://[^/]+/.", source["url"]) or not _file_name(source["url"]):
        yield f"source.url must be an http or https address of a file, not {source['url']!r}."


def _path_problems(source: Mapping[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"(/[^/?#:*\"<>|\\\x00-\x1f]+)+/?", source["path"]):
        yield (
            f"source.path must be the absolute path of a file on the controller, not {source['path']!r}. "
            "With source.files it is that of their folder."
        )


def _catalog_problems(source: Mapping[str, Any]) -> Iterator[str]:
    if not CATALOG_NAME.fullmatch(source["catalog"]):
        yield (
            "source.catalog must be publisher/name or name, in lower case, and may end in @ and a quantisation, "
            f"not {source['catalog']!r}. A repository of Hugging Face is a source.huggingface."
        )
    if not source.get("file") and not source.get("files"):
        yield "source.file is missing: name the file that lms get fetches for it, or several in source.files."


_PROBLEMS_OF = {
    "huggingface": _huggingface_problems,
    "url": _url_problems,
    "path": _path_problems,
    "catalog": _catalog_problems,
}


def _files_problems(source: Mapping[str, Any]) -> Iterator[str]:
    single = [key for key in ("file", "sha256") if source.get(key)]
    if single:
        yield f"source.files lists every file with its sha256: remove source.{' and source.'.join(single)}."
    if source.get("url") and re.search(r"[?#]", source["url"]):
        yield f"source.url must be the address of the folder of source.files, not {source['url']!r}."
    for file in source["files"]:
        # What the schema has found wrong with a file is reported already.
        if file.get("file") and not re.fullmatch(r"(?!.*(^|/)\.{0,2}(/|$))[^\\?#:*\"<>|\s]+", file["file"]):
            yield f"source.files: {file['file']!r} must be the name of a file, below the repository, url or path."
        if file.get("sha256") and not SHA256.fullmatch(file["sha256"]):
            yield f"source.files: {file.get('file')}: sha256 must be 64 hexadecimal digits, not {file['sha256']!r}."
    names = [_file_name(file["file"]) for file in source["files"] if file.get("file")]
    for name, count in Counter(name.casefold() for name in names).items():
        if count > 1:
            yield f"source.files: {count} files are named {name}. They go into one folder: list each once."
    yield from _set_problems(names)


def _set_problems(names: list[str]) -> Iterator[str]:
    """Yield why files are not one model: parts that are missing, several models, or none."""
    weights = _weights(names)
    parts = [match for match in map(_SHARD.fullmatch, weights) if match]
    if not weights:
        if not any(name.lower().endswith(".safetensors") for name in names):
            yield "source.files has no weights: neither a .gguf file nor .safetensors files of an MLX model."
        elif "config.json" not in names:
            yield "source.files has no config.json, which every MLX model has."
    elif parts and len({(part["stem"], part["total"]) for part in parts}) == 1 and len(parts) == len(weights):
        total = int(parts[0]["total"])
        missing = sorted(set(range(1, total + 1)) - {int(part["number"]) for part in parts})
        if missing:
            yield f"source.files lacks part {', '.join(map(str, missing))} of {total} of {parts[0]['stem']}."
    elif len(weights) > 1:
        yield (
            f"source.files has several models: {', '.join(sorted(weights))}. Besides the parts of one and a file "
            "mmproj… each needs an entry of its own in lmfleet_models."
        )


def _weights(names: list[str]) -> list[str]:
    # A vision projector beside the weights is part of their model; LM Studio knows it by its name.
    return [name for name in names if name.lower().endswith(".gguf") and not name.lower().startswith("mmproj")]


def _listed_by(names: list[str]) -> str:
    """Return the name of the file by which LM Studio knows the model."""
    weights = sorted(_weights(names))
    if weights:
        return weights[0]
    return "config.json" if "config.json" in names else names[0]


def _listed(source: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if source.get("files"):
        return source["files"]
    # A url or path is that of the file itself.
    inside = source["huggingface"] or source["catalog"]
    return [{"file": source["file"] if inside else None, "sha256": source["sha256"]}]


def _file_name(address: str) -> str:
    return address.split("?")[0].split("#")[0].rstrip("/").rsplit("/", 1)[-1]
