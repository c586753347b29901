# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds a TCP port of this Mac."""

from __future__ import annotations

import errno
import socket

from ._addresses import from_here
from ._command import run


def accepts(address: str, port: int) -> bool:
    """Tell whether somebody listens there."""
    try:
        with socket.create_connection((from_here(address), port), timeout=1) as connection:
            # A port among those for outgoing connections can be given to the very one that asks: it meets itself.
            return connection.getsockname() != connection.getpeername()
    except OSError:
        return False


def is_taken(address: str, port: int) -> bool:
    """Tell whether a server could not listen there because somebody holds the port already.

    Connecting comes first: on macOS a socket may be bound beside one that listens on all addresses.
    """
    if accepts(address, port):
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def holders(port: int) -> dict[int, str]:
    """Return {pid: command} of those that listen on a port, as far as this user may see them."""
    return listeners().get(port, {})


def listeners() -> dict[int, dict[int, str]]:
    """Return {port: {pid: command}} of all that listen on TCP, as far as this user may see them."""
    return parse_lsof(run(["/usr/sbin/lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fpcn"], timeout=10).out)


def parse_lsof(text: str) -> dict[int, dict[int, str]]:
    """Return {port: {pid: command}} from the output of `lsof -Fpcn`."""
    found: dict[int, dict[int, str]] = {}
    pid, command = 0, ""
    for line in text.splitlines():
        kind, value = line[:1], line[1:]
        if kind == "p" and value.isdigit():
            pid, command = int(value), ""
        elif kind == "c":
            command = value
        elif kind == "n" and pid:
            port = value.rsplit(":", 1)[-1]
            if port.isdigit():
                found.setdefault(int(port), {})[pid] = command
    return found
