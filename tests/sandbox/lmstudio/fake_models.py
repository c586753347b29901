#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write small GGUF files without tensors whose metadata tells the stand-in to use its fake engine.

fake_models.py OUT.gguf --kind llm --name "Fake LLM" --tokens-per-second 50 --size-mb 800
"""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

from build_archive import write_whole

_UINT32, _FLOAT32, _STRING = 4, 6, 8


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: str | int | float) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return _text(key) + struct.pack("<If", _FLOAT32, value)
    return _text(key) + struct.pack("<II", _UINT32, value)


def fake_model(
    kind: str = "llm",
    name: str = "Fake LLM",
    tokens_per_second: float = 50.0,
    prompt_tokens_per_second: float = 2000.0,
    reply_tokens: int = 24,
    size_mb: int = 64,
    load_seconds: float = 0.0,
    slowdown_per_request: float = 0.0,
    context_length: int = 32768,
    blocks: int = 2,
) -> bytes:
    """Return the bytes of a model file.

    kind: "llm" or "embedding". tokens_per_second, prompt_tokens_per_second: speed of one request.
    reply_tokens: least length of an answer. size_mb: size the stand-in reports and reckons memory with.
    slowdown_per_request: s, so that each of n simultaneous requests runs 1 + s(n-1) times slower.
    """
    if kind not in ("llm", "embedding"):
        raise ValueError(f"unknown kind {kind!r}")
    architecture = "llama" if kind == "llm" else "nomic-bert"
    metadata = {
        "general.architecture": architecture,
        "general.name": name,
        "general.size_label": "1B" if kind == "llm" else "137M",
        "general.file_type": 15,
        f"{architecture}.context_length": context_length,
        f"{architecture}.block_count": blocks,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.attention.head_count": 2,
        f"{architecture}.attention.head_count_kv": 1,
        "lmfleet.fake.tokens_per_second": float(tokens_per_second),
        "lmfleet.fake.prompt_tokens_per_second": float(prompt_tokens_per_second),
        "lmfleet.fake.reply_tokens": reply_tokens,
        "lmfleet.fake.size_mb": size_mb,
        "lmfleet.fake.load_seconds": float(load_seconds),
        "lmfleet.fake.slowdown_per_request": float(slowdown_per_request),
    }
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    return head + b"".join(_pair(key, value) for key, value in metadata.items())


def write_fake_model(path: Path, **options: str | int | float) -> Path:
    """Write a model file (see fake_model) and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, fake_model(**options))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--kind", choices=("llm", "embedding"), default="llm")
    parser.add_argument("--name", default="Fake LLM")
    parser.add_argument("--tokens-per-second", type=float, default=50.0)
    parser.add_argument("--prompt-tokens-per-second", type=float, default=2000.0)
    parser.add_argument("--reply-tokens", type=int, default=24)
    parser.add_argument("--size-mb", type=int, default=64)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--slowdown-per-request", type=float, default=0.0)
    options = vars(parser.parse_args())
    print(write_fake_model(options.pop("path"), **options))


if __name__ == "__main__":
    main()
