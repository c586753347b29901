# SPDX-License-Identifier: GPL-3.0-or-later
"""Talks from outside to process 1 of a Mac, through its own file system."""

from __future__ import annotations

import json
import socket

from .errors import SandboxError

_SOCKET = "/proc/{pid}/root/private/var/run/launchd.sock"


def ask(pid: int, operation: str, timeout: float) -> dict:
    """Have process 1 (by its pid here) do `operation`: knobs, status or shutdown. `timeout` in seconds.

    Raises SandboxError when there is no answer in time.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(_SOCKET.format(pid=pid))
            connection.sendall(json.dumps({"sandbox": operation}).encode() + b"\n")
            received = b"".join(iter(lambda: connection.recv(65536), b""))
            return json.loads(received)
    except (OSError, ValueError) as error:
        message = f"process 1 (pid {pid} here) did not answer {operation!r} within {timeout:g} s: {error}"
        raise SandboxError(message) from error
