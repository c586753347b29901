# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a model on disk is, and what the KV cache of its context is reckoned from."""

from __future__ import annotations

import json
import os
import re

from . import _gguf

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_MOST_CONFIG = 4 << 20


def describe(path):
    """Return size_bytes, layers, kv_heads, key_length and value_length of a model, with C(problem) for what is missing.

    C(path) is that of a GGUF file, of the first part of a split one, or of the folder of an MLX model. None when it, or
    a part of it, is not there.
    """
    try:
        found = {"size_bytes": sum(os.stat(file).st_size for file in _weights(path))}
    except OSError:
        return None
    if not found["size_bytes"]:
        return None
    try:
        found.update(_mlx_figures(path) if os.path.isdir(path) else _gguf.figures(path))
    except (_gguf.GgufError, OSError, ValueError) as error:
        found["problem"] = str(error)
    return found


def _weights(path):
    """Return the files that are loaded: every part, and the projector that a model with eyes has beside it."""
    if os.path.isdir(path):
        return [os.path.join(path, name) for name in os.listdir(path) if name.lower().endswith(".safetensors")]
    folder = os.path.dirname(path)
    projectors = [name for name in os.listdir(folder) if re.fullmatch(r"(?i)mmproj.*\.gguf", name)]
    return _parts(path) + [os.path.join(folder, name) for name in projectors]


def _parts(path):
    shard = _SHARD.search(path)
    if not shard:
        return [path]
    stem = path[: shard.start()]
    return [f"{stem}-{number:05}-of-{shard[2]}.gguf" for number in range(1, int(shard[2]) + 1)]


def _mlx_figures(folder):
    """Return the figures in the config.json of an MLX model. Raises OSError, ValueError."""
    with open(os.path.join(folder, "config.json"), "rb") as stream:
        content = stream.read(_MOST_CONFIG)
    try:
        config = json.loads(content)
        config = config.get("text_config") or config
        heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
        length = config.get("head_dim") or (config["hidden_size"] // heads)
        figures = {"layers": config["num_hidden_layers"], "kv_heads": kv_heads or heads}
        figures.update(key_length=length, value_length=length)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise ValueError("its config.json does not tell layers, KV heads and their length") from None
    if not all(isinstance(figure, int) and figure > 0 for figure in figures.values()):
        raise ValueError("its config.json does not tell layers, KV heads and their length")
    return figures
