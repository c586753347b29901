# SPDX-License-Identifier: GPL-3.0-or-later
"""The models on disk: <models folder>/<publisher>/<model>/, scanned whenever they are asked for.

A model is a GGUF file, the parts of one, or a folder in MLX's format. What came from the catalogue is listed under its
name there, which the hub folder keeps.
"""

from __future__ import annotations

import json
import os
import re

from llmster_standin import gguf, home

FAKE = "lmfleet.fake."
_EMBEDDING_ARCHITECTURES = ("bert", "nomic-bert", "jina-bert-v2", "gemma-embedding")
_LATER_PART = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_MLX_FIGURES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_headers = {}


class Model:
    """One model with the names and figures the APIs report; `path` is what they call it, `place` where it is."""

    def __init__(self, publisher, folder, file, metadata, size, vision=False):
        self.publisher = publisher
        self.folder = folder
        self.file = file
        self.place = f"{publisher}/{folder}/{file}" if file else f"{publisher}/{folder}"
        self.path = self.place
        self.format = "gguf" if file else "safetensors"
        self.vision = vision
        self.variant = None
        self.metadata = metadata
        self.architecture = metadata.get("general.architecture")
        self.type = "embedding" if self.architecture in _EMBEDDING_ARCHITECTURES else "llm"
        pretended = metadata.get(FAKE + "size_mb")
        self.size = int(pretended) * 1024 * 1024 if pretended else size
        self.quantization = metadata.get("quantization") or gguf.QUANTIZATIONS.get(metadata.get("general.file_type"))
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
        """Return the absolute path of the file or folder."""
        return os.path.join(home.models_folder(), self.place)

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
            "format": self.format,
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
            entry["vision"] = self.vision
            entry["trainedForToolUse"] = False
        entry["maxContextLength"] = self.max_context
        if self.variant:
            entry["variants"] = [self.variant]
            entry["selectedVariant"] = self.variant
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


def _mlx(folder, names):
    """Return (metadata, bytes, vision) of a model in MLX's format, None when the folder has none."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if "config.json" not in names or not weights:
        return None
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        size = sum(os.stat(os.path.join(folder, name)).st_size for name in weights)
        text = config.get("text_config") or config
        architecture = config.get("model_type") or "unknown"
        metadata = {key: value for key, value in config.items() if key.startswith(FAKE)}
        bits = (config.get("quantization") or {}).get("bits")
        if bits:
            metadata["quantization"] = (f"{bits}bit", bits)
    except (OSError, ValueError, AttributeError):
        return None
    metadata["general.architecture"] = architecture
    for name, key in _MLX_FIGURES.items():
        if text.get(key) is not None:
            metadata[f"{architecture}.{name}"] = text[key]
    return metadata, size, "vision_config" in config


def _files(folder, names):
    """Yield (name, metadata, bytes); the parts of a split model count as one file."""
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
            place = os.path.join(root, publisher, folder)
            try:
                names = sorted(os.listdir(place))
            except OSError:
                continue
            sees = any(name.startswith("mmproj") and name.endswith(".gguf") for name in names)
            for name, metadata, size in _files(place, names):
                models.append(Model(publisher, folder, name, metadata, size, sees))
            mlx = _mlx(place, names)
            if mlx:
                models.append(Model(publisher, folder, None, *mlx))
    _give_keys(models)
    _name_after_catalogue(models)
    return models


def artifact_file(owner, name):
    """Return the file in the hub folder that says which model on disk a model of the catalogue is."""
    return os.path.join(home.lmstudio_home(), "hub", "models", owner, name, "manifest.json")


def _name_after_catalogue(models):
    """Give what came from the catalogue its name there, which hides the other one."""
    hub = os.path.join(home.lmstudio_home(), "hub", "models")
    by_place = {model.place: model for model in models}
    for owner in _folders(hub):
        for name in _folders(os.path.join(hub, owner)):
            manifest = home.read_json(artifact_file(owner, name)) or {}
            model = by_place.get(manifest.get("place"))
            if model:
                model.publisher = owner
                model.key = model.path = f"{owner}/{name}"
                model.variant = f"{model.path}@{manifest['quantization'].lower()}"


def find(key):
    """Return the model with exactly this key or path, or None."""
    for model in scan():
        if key in (model.key, model.path):
            return model
    return None
