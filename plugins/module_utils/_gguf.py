# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures in the head of a GGUF file that tell how much memory a model's context takes."""

from __future__ import annotations

import struct

# Value type -> struct format. Two types have no fixed size.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# What is believed of a head: beyond it the file is damaged, or no GGUF file at all.
_MOST_KEYS, _MOST_BYTES, _MOST_KEPT = 4096, 64 << 20, 4096


class GgufError(Exception):
    """The file is not a GGUF file that can be used; the text says why."""


def figures(path):
    """Return layers, kv_heads, key_length and value_length of a GGUF file. Raises GgufError, OSError.

    kv_heads is the mean where layers differ, as in models that pay attention in some layers only.
    """
    with open(path, "rb") as stream:
        metadata = _metadata(_Head(stream))
    name = metadata.get("general.architecture")
    value = {key: metadata.get(f"{name}.{key}") for key in _FIGURES}
    heads = value["attention.head_count"]
    kv_heads = heads if value["attention.head_count_kv"] is None else value["attention.head_count_kv"]
    length = None
    if _count(value["embedding_length"]) and _count(heads):
        length = value["embedding_length"] // heads
    found = {
        "layers": value["block_count"],
        "kv_heads": _mean(kv_heads),
        "key_length": value["attention.key_length"] or length,
        "value_length": value["attention.value_length"] or length,
    }
    missing = [key for key, figure in found.items() if not _count(figure)]
    if missing:
        raise GgufError(f"its head does not tell {', '.join(missing)}")
    return found


_FIGURES = (
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
)


class _Head:
    """Reads numbers and texts one after the other, up to a bound."""

    def __init__(self, stream):
        self._stream = stream
        self._left = _MOST_BYTES

    def take(self, count):
        self._left -= count
        if self._left < 0:
            raise GgufError("its head is longer than can be")
        data = self._stream.read(count)
        if len(data) != count:
            raise GgufError("it ends inside its head")
        return data

    def number(self, layout):
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self):
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind):
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        raise GgufError(f"its head has a value of the unknown type {kind}")

    def _array(self):
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _ARRAY or count > _MOST_BYTES:
            raise GgufError("a list in its head is not one that can be")
        if kind in _SCALARS and count > _MOST_KEPT:
            self.take(count * struct.calcsize(_SCALARS[kind]))
            return None
        # A long list of texts is the vocabulary: walked through, not kept.
        values = [self.value(kind) for _number in range(min(count, _MOST_KEPT))]
        for _number in range(len(values), count):
            self.value(kind)
        return values


def _metadata(head):
    if head.take(4) != b"GGUF":
        raise GgufError("it is not a GGUF file")
    version = head.number("<I")
    if version not in (2, 3):
        raise GgufError(f"it is of GGUF version {version}, and only 2 and 3 are known")
    head.number("<Q")
    count = head.number("<Q")
    if count > _MOST_KEYS:
        raise GgufError("its head has more keys than can be")
    metadata = {}
    for _number in range(count):
        key = head.text()
        # The vocabulary is large and comes last; what matters stands before it, in nearly every file.
        if key.startswith("tokenizer.") and any(name.endswith(".attention.head_count") for name in metadata):
            break
        metadata[key] = head.value(head.number("<I"))
    return metadata


def _count(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _mean(value):
    if isinstance(value, list) and value and all(isinstance(entry, int) for entry in value):
        return sum(value) / len(value)
    return value
