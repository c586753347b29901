# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of one instance."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any


class Places:
    """Where the files of one instance are."""

    def __init__(self, home: str) -> None:
        self.home = os.path.abspath(home)
        lmstudio = os.path.join(self.home, ".lmstudio")
        internal = os.path.join(lmstudio, ".internal")
        self.declaration = os.path.join(self.home, "instance.json")
        self.status = os.path.join(self.home, "status.json")
        self.lock = os.path.join(self.home, ".runner.lock")
        self.log = os.path.join(self.home, "logs", "runner.log")
        self.server_logs = os.path.join(lmstudio, "server-logs")
        self.daemon_info = os.path.join(internal, "http-server.json")
        self.server_config = os.path.join(internal, "http-server-config.json")

    def environment(self) -> dict[str, str]:
        """Return the environment that makes llmster and lms work for this instance and no other."""
        return {**os.environ, "HOME": self.home, "LMS_API_SERVER_INFO_PATH": self.daemon_info}


def write_atomically(path: str, value: object) -> None:
    """Write `value` as JSON so that a reader sees the old file or the new one."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2)
        stream.write("\n")
    os.replace(temporary, path)


def read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a file, {} when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def stamp(path: str) -> tuple[int, int, int] | None:
    """Return what changes when a file does, None when it is not there."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


def bytes_of(path: str) -> bytes:
    """Return the content of a file."""
    with open(path, "rb") as stream:
        return stream.read()


def remove(path: str) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
