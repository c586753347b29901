# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the metadata at the head of a GGUF file (version 2 or 3)."""

from __future__ import annotations

import struct

# Value type -> struct format; 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9

# general.file_type -> (name, bits)
QUANTIZATIONS = {
    0: ("F32", 32), 1: ("F16", 16), 2: ("Q4_0", 4), 3: ("Q4_1", 4), 7: ("Q8_0", 8), 8: ("Q5_0", 5), 9: ("Q5_1", 5),
    10: ("Q2_K", 2), 11: ("Q3_K_S", 3), 12: ("Q3_K_M", 3), 13: ("Q3_K_L", 3), 14: ("Q4_K_S", 4), 15: ("Q4_K_M", 4),
    16: ("Q5_K_S", 5), 17: ("Q5_K_M", 5), 18: ("Q6_K", 6),
}  # fmt: skip


class NotGgufError(ValueError):
    """The file is not a GGUF file, or is cut short."""


def _take(file, count):
    data = file.read(count)
    if len(data) != count:
        raise NotGgufError("the file ends inside its header")
    return data


def _string(file):
    (length,) = struct.unpack("<Q", _take(file, 8))
    if length > 1 << 24:
        raise NotGgufError(f"a string of {length} bytes in the header")
    return _take(file, length).decode("utf-8", "replace")


def _value(file, kind):
    if kind in _SCALARS:
        layout = _SCALARS[kind]
        return struct.unpack(layout, _take(file, struct.calcsize(layout)))[0]
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        item, count = struct.unpack("<IQ", _take(file, 12))
        return [_value(file, item) for _ in range(count)]
    raise NotGgufError(f"unknown value type {kind}")


def read_metadata(path):
    """Return the metadata that comes before the tokenizer as a dict.

    The tokenizer arrays have tens of thousands of entries and come last: reading stops there.
    Raises NotGgufError for another or a truncated file, OSError when it cannot be read.
    """
    metadata = {}
    with open(path, "rb") as file:
        if _take(file, 4) != b"GGUF":
            raise NotGgufError("no GGUF magic")
        _version, _tensors, count = struct.unpack("<IQQ", _take(file, 20))
        for _ in range(count):
            key = _string(file)
            if key.startswith("tokenizer."):
                break
            (kind,) = struct.unpack("<I", _take(file, 4))
            metadata[key] = _value(file, kind)
    return metadata
