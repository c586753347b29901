# SPDX-License-Identifier: GPL-3.0-or-later
"""The models on disk: <models folder>/<publisher>/<model>/<file>.gguf, scanned whenever they are asked for."""

from __future__ import annotations

import os
import re

from llmster_standin import gguf, home

FAKE = "lmfleet.fake."
_EMBEDDING_ARCHITECTURES = ("bert", "nomic-bert", "jina-bert-v2", "gemma-embedding")
_LATER_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_headers = {}


class Model:
    """One model file with the names and figures the APIs report."""

    def __init__(self, publisher, folder, file, metadata, size):
        self.publisher = publisher
        self.folder = folder
        self.file = file
        self.path = f"{publisher}/{folder}/{file}"
        self.metadata = metadata
        self.architecture = metadata.get("general.architecture")
        self.type = "embedding" if self.architecture in _EMBEDDING_ARCHITECTURES else "llm"
        pretended = metadata.get(FAKE + "size_mb")
        self.size = int(pretended) * 1024 * 1024 if pretended else size
        self.quantization = gguf.QUANTIZATIONS.get(metadata.get("general.file_type"))
        self.display_name = metadata.get("general.name") or folder
        self.params = metadata.get("general.size_label")
        self.max_context = int(self.figure("context_length", 2048))
        self.key = None

    @property
    def fake(self):
        """Return whether the file asks for the fake engine."""
        return any(key.startswith(FAKE) for key in self.metadata)

    @property
    def full_path(self):
        """Return the absolute path of the file."""
        return os.path.join(home.models_folder(), self.path)

    def figure(self, name, default):
        """Return a number of the architecture, such as block_count."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def fake_figure(self, name, default):
        """Return a number of the fake engine, such as tokens_per_second."""
        return self.metadata.get(FAKE + name, default)

    def info(self):
        """Return the entry of ``lms ls --json``."""
        entry = {
            "type": self.type,
            "modelKey": self.key,
            "format": "gguf",
            "displayName": self.display_name,
            "publisher": self.publisher,
            "path": self.path,
            "sizeBytes": self.size,
            "indexedModelIdentifier": self.path,
            "deviceIdentifier": None,
        }
        if self.params:
            entry["paramsString"] = self.params
        if self.architecture:
            entry["architecture"] = self.architecture
        if self.quantization:
            entry["quantization"] = {"name": self.quantization[0], "bits": self.quantization[1]}
        if self.type == "llm":
            entry["vision"] = False
            entry["trainedForToolUse"] = False
        entry["maxContextLength"] = self.max_context
        return entry


def _folders(path):
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []


def _header(path, status):
    stamp = (status.st_mtime_ns, status.st_size)
    cached = _headers.get(path)
    if cached is None or cached[0] != stamp:
        try:
            metadata = gguf.read_metadata(path)
        except (OSError, gguf.NotGgufError):
            metadata = None
        cached = _headers[path] = (stamp, metadata)
    return cached[1]


def _files(folder):
    """Yield (name, metadata, bytes); the parts of a split model count as one file."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        part = _LATER_PART.search(name)
        hidden = name.startswith((".", "mmproj")) or not name.endswith(".gguf")
        if hidden or (part and part.group(1) != "00001"):
            continue
        path = os.path.join(folder, name)
        try:
            status = os.stat(path)
            size = status.st_size
            if part:
                stem = name[: part.start()]
                size = sum(os.stat(os.path.join(folder, n)).st_size for n in names if n.startswith(stem + "-"))
        except OSError:
            continue
        metadata = _header(path, status)
        if metadata is not None:
            yield name, metadata, size


def _give_keys(models):
    """Derive keys from the folders; a clash is told apart by quantisation, then by publisher."""
    bases = {}
    for model in models:
        base = model.folder.lower()
        if base.endswith("-gguf"):
            base = base[:-5]
        if model.type == "embedding" and not base.startswith("text-embedding-"):
            base = "text-embedding-" + base
        bases.setdefault(base, []).append(model)
    for base, same in bases.items():
        publishers = {model.publisher for model in same}
        folders = {}
        for model in same:
            folders.setdefault((model.publisher, model.folder), []).append(model)
        for model in same:
            model.key = base if len(publishers) == 1 else f"{model.publisher.lower()}/{base}"
            if len(folders[(model.publisher, model.folder)]) > 1:
                quantization = model.quantization[0] if model.quantization else os.path.splitext(model.file)[0]
                model.key += "@" + quantization.lower()


def scan():
    """Return every model in the models folder, ordered by path, with unique keys."""
    root = home.models_folder()
    models = []
    for publisher in _folders(root):
        for folder in _folders(os.path.join(root, publisher)):
            for name, metadata, size in _files(os.path.join(root, publisher, folder)):
                models.append(Model(publisher, folder, name, metadata, size))
    _give_keys(models)
    return models


def find(key):
    """Return the model with exactly this key or path, or None."""
    for model in scan():
        if key in (model.key, model.path):
            return model
    return None
