# SPDX-License-Identifier: GPL-3.0-or-later
"""Filling the mirror: complete, idempotent, and repaired after a run that was killed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

FILL = Path(__file__).resolve().parent.parent / "fill_mirror.py"


def _fill(cache):
    subprocess.run([sys.executable, FILL, "--cache", cache, "--fake-only"], check=True, timeout=60)
    return {p.relative_to(cache): p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file()}


def test_second_run_changes_nothing(tmp_path):
    first = _fill(tmp_path)
    assert {path.name for path in first} >= {
        "0.0.24-1-darwin-arm64.full.tar.gz",
        "0.0.25-1-darwin-arm64.full.tar.gz",
        "0.0.25-1-darwin-arm64.full.tar.gz.sha512",
        "fake-llm.gguf",
        "fake-embed.gguf",
        "models.json",
    }
    second = _fill(tmp_path)
    lock = Path("fill.lock")
    assert {**second, lock: 0} == {**first, lock: 0}


def test_models_json_tells_checksum_and_size(tmp_path):
    _fill(tmp_path)
    models = tmp_path / "mirror" / "models"
    listed = json.loads((models / "models.json").read_text())
    assert set(listed) == {"fake-llm.gguf", "fake-embed.gguf"}
    for name, entry in listed.items():
        data = (models / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_run_after_a_killed_one_repairs(tmp_path):
    first = _fill(tmp_path)
    models = tmp_path / "mirror" / "models"
    (models / ".fake-llm.gguf.1.tmp").write_bytes(b"half")
    (models / "fake-llm.gguf").write_bytes(b"half")
    (models / "models.json").write_text("{")
    assert set(_fill(tmp_path)) == set(first)
    test_models_json_tells_checksum_and_size(tmp_path)
