# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds a TCP port of this Mac."""

from __future__ import annotations

import errno
import socket

from ._command import run


def is_taken(address: str, port: int) -> bool:
    """Tell whether a server could not listen there because somebody does already.

    Connecting comes first: on macOS a socket may be bound beside one that listens on all addresses.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    try:
        socket.create_connection((host, port), timeout=1).close()
        return True
    except OSError:
        pass
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
    listing = run(["/usr/sbin/lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc"], timeout=10).out
    found: dict[int, str] = {}
    pid = 0
    for line in listing.splitlines():
        if line[:1] == "p" and line[1:].isdigit():
            pid = int(line[1:])
        elif line[:1] == "c" and pid:
            found[pid] = line[1:]
    return found
