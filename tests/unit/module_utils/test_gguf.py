# SPDX-License-Identifier: GPL-3.0-or-later
"""The head of a GGUF file: figures of real and strange models, and files that are none."""

from __future__ import annotations

import random
import struct

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _model_size

UINT32, STRING, ARRAY = 4, 8, 9
LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(value):
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, list):
        kind = STRING if isinstance(value[0], str) else UINT32
        items = b"".join(text(item) if kind == STRING else struct.pack("<I", item) for item in value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    return struct.pack("<II", UINT32, value)


def gguf(metadata, version=3, more=b""):
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(metadata))
    return head + b"".join(text(key) + value(entry) for key, entry in metadata.items()) + more


def described(tmp_path, content, name="model.gguf"):
    (tmp_path / name).write_bytes(content)
    return _model_size.describe(str(tmp_path / name))


def test_figures_of_a_model(tmp_path):
    content = gguf(LLAMA)
    assert described(tmp_path, content) == {
        "size_bytes": len(content),
        "layers": 32,
        "kv_heads": 8,
        "key_length": 128,
        "value_length": 128,
    }


def test_lengths_that_are_told_go_before_those_that_follow(tmp_path):
    told = {**LLAMA, "llama.attention.key_length": 256, "llama.attention.value_length": 64}
    found = described(tmp_path, gguf(told))
    assert (found["key_length"], found["value_length"]) == (256, 64)


def test_a_model_without_groups_has_as_many_kv_heads_as_heads(tmp_path):
    without = {key: entry for key, entry in LLAMA.items() if not key.endswith("_kv")}
    assert described(tmp_path, gguf(without))["kv_heads"] == 32


def test_layers_that_differ_count_with_their_mean(tmp_path):
    hybrid = {**LLAMA, "llama.attention.head_count_kv": [0, 0, 0, 8] * 8}
    assert described(tmp_path, gguf(hybrid))["kv_heads"] == 2


def test_figures_behind_the_vocabulary_are_found(tmp_path):
    words = {"tokenizer.ggml.tokens": [f"word {number}" for number in range(5000)]}
    late = {"general.architecture": "llama", **words, **LLAMA}
    assert described(tmp_path, gguf(late))["layers"] == 32


def test_the_vocabulary_is_not_read_where_it_comes_last(tmp_path):
    cut = gguf({**LLAMA, "tokenizer.ggml.tokens": ["a"] * 10})[:-20]
    assert "problem" not in described(tmp_path, cut)


DAMAGED = {
    "another file": (b"<html>not here</html>", "not a GGUF file"),
    "a letter": (b"G", "ends inside its head"),
    "an old version": (gguf(LLAMA, version=1), "version 1"),
    "cut short": (gguf(LLAMA)[:60], "ends inside its head"),
    "no figures": (gguf({"general.architecture": "llama"}), "does not tell layers"),
    "a text without end": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 40),
        "longer than can be",
    ),
    "a list without end": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 50),
        "list",
    ),
    "keys without end": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "more keys"),
    "an unknown type": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99), "unknown type 99"),
}


@pytest.mark.parametrize(("content", "words"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_model_is_said_in_words(tmp_path, content, words):
    found = described(tmp_path, content)
    assert found["size_bytes"] == len(content)
    assert words in found["problem"]


def test_no_garbage_is_too_much(tmp_path):
    sound, dice = gguf({**LLAMA, "tokenizer.ggml.tokens": ["a", "b"]}), random.Random(1)
    for _round in range(500):
        content = bytearray(sound)
        for _change in range(dice.randint(1, 8)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        assert "size_bytes" in described(tmp_path, bytes(content[: dice.randint(1, len(content))]))
