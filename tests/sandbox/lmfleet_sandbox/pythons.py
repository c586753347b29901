# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Python interpreters of this machine a sandbox Mac shows."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PROBE = (
    "import json, os, sys; "
    "print(json.dumps([os.path.realpath(sys.executable), sys.base_prefix, list(sys.version_info[:2])]))"
)


@dataclass(frozen=True)
class Interpreter:
    """A real interpreter (never a shim or a virtual environment's link) and the folder it needs."""

    executable: Path
    prefix: Path
    version: tuple[int, int]

    @property
    def belongs_to_usr(self) -> bool:
        """Part of /usr, which every Mac shows already."""
        return self.prefix == Path("/usr")


def _probe(candidate: str | Path) -> Interpreter | None:
    try:
        done = subprocess.run(
            [str(candidate), "-I", "-c", _PROBE], capture_output=True, text=True, timeout=20, check=True
        )
        executable, prefix, version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(Path(executable), Path(prefix), tuple(version))


def _homes() -> list[Path]:
    """The homes of this user, also where HOME is another folder for the time being, and of who called sudo."""
    homes = [Path.home(), Path(pwd.getpwuid(os.getuid()).pw_dir)]
    caller = os.environ.get("SUDO_USER")
    if caller:
        homes.append(Path(pwd.getpwnam(caller).pw_dir))
    return list(dict.fromkeys(homes))


def controller_python() -> Interpreter:
    """The interpreter that runs this program: 3.11 or newer. On a Mac it is /opt/sandbox/python."""
    base = getattr(sys, "_base_executable", sys.executable)
    return Interpreter(Path(base).resolve(), Path(sys.base_prefix), (sys.version_info[0], sys.version_info[1]))


def mac_python() -> Interpreter:
    """What /usr/bin/python3 is on a Mac: a Python 3.9, Apple's version, where there is one."""
    candidates: list[str | Path] = []
    for home in _homes():
        candidates += sorted(home.glob(".pyenv/versions/3.9*/bin/python3.9"), reverse=True)
        candidates += sorted(home.glob(".local/share/uv/python/cpython-3.9*/bin/python3.9"), reverse=True)
    on_path = shutil.which("python3.9")
    candidates += [on_path] if on_path else []
    for candidate in candidates:
        found = _probe(candidate)
        if found and found.version == (3, 9):
            return found
    return controller_python()
