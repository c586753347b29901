#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fill the mirror with the packages of the gateway. Does only what is missing; safe to kill and run again.

fill_wheels.py --cache DIR [--python PATH]
→ DIR/mirror/wheels/         the wheels of the Linux lock and of uv, for one Python (a flat folder, for --find-links)
  DIR/mirror/simple/<name>/  the same files as a package index
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

FILES = Path(__file__).resolve().parents[2] / "roles" / "litellm" / "files"
LOCKS = (FILES / "requirements-linux-x86_64.txt", FILES / "requirements-uv.txt")


def run(command: list[str]) -> str:
    """Return what a command prints. Raises RuntimeError with all it said when it fails."""
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stdout}")
    return result.stdout.strip()


def _download(python: str, wheels: Path, locks: Iterable[Path]) -> None:
    # pip looks at the hashes of what is in the folder already, and fetches again what is not whole.
    pip = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    for lock in locks:
        run([*pip, "--no-deps", "--only-binary", ":all:", "--require-hashes", "-d", str(wheels), "-r", str(lock)])


def _list_as_index(wheels: Path, index: Path) -> None:
    for wheel in wheels.glob("*.whl"):
        folder = index / re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        folder.mkdir(parents=True, exist_ok=True)
        listed = folder / wheel.name
        if not listed.exists() or not listed.samefile(wheel):
            listed.unlink(missing_ok=True)
            os.link(wheel, listed)


def fill(cache: Path, python: str, locks: Collection[Path] = LOCKS, name: str = "wheels") -> None:
    """Make the mirror complete for one Python and the locks that go by `name`.

    Raises RuntimeError when a download fails.
    """
    wheels = cache / "mirror" / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    version = run([python, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"])
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in locks)).hexdigest()
    # Outside of what the mirror serves.
    stamp = cache / f"{name}-{version}.sha256"
    with (cache / "wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        print(f"fetching the packages of the gateway ({name}) for Python {version}", file=sys.stderr, flush=True)
        _download(python, wheels, locks)
        _list_as_index(wheels, cache / "mirror" / "simple")
        stamp.write_text(wanted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--python", default=sys.executable, help="the gateway's Python, with pip (default: this one)")
    arguments = parser.parse_args()
    try:
        fill(arguments.cache.resolve(), arguments.python)
    except (RuntimeError, OSError) as error:
        print(f"fill_wheels: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
