# SPDX-License-Identifier: GPL-3.0-or-later
"""The two network interfaces of a sandbox Mac."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass

_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B
_SIOCGIFHWADDR = 0x8927


@dataclass(frozen=True)
class Ethernet:
    """en0: its addresses as text."""

    address: str
    netmask: str
    hardware: str

    @property
    def gateway(self) -> str:
        """The controller's end of the bridge."""
        return self.address.rpartition(".")[0] + ".1"

    @property
    def broadcast(self) -> str:
        return self.address.rpartition(".")[0] + ".255"


def en0() -> Ethernet:
    request = struct.pack("256s", b"en0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:

        def ask(what: int) -> bytes:
            return fcntl.ioctl(any_socket.fileno(), what, request)

        address = socket.inet_ntoa(ask(_SIOCGIFADDR)[20:24])
        netmask = socket.inet_ntoa(ask(_SIOCGIFNETMASK)[20:24])
        hardware = ":".join(f"{byte:02x}" for byte in ask(_SIOCGIFHWADDR)[18:24])
    return Ethernet(address, netmask, hardware)
