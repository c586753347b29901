# SPDX-License-Identifier: GPL-3.0-or-later
"""The network of a realm: a bridge on this machine and one veth pair a Mac. Nothing is routed any further."""

from __future__ import annotations

import os
import subprocess

from .errors import SandboxError
from .realm import Mac, Realm


def _ip(commands: list[str]) -> None:
    if not commands:
        return
    script = "".join(f"{command}\n" for command in commands)
    done = subprocess.run(["ip", "-batch", "-"], input=script, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SandboxError(f"ip: {' '.join(done.stderr.split())} (commands: {'; '.join(commands)})")


def _delete(links: list[str]) -> None:
    """Delete links, some of which the kernel may just be deleting: it takes namespaces down in the background."""
    script = "".join(f"link del {name}\n" for name in links)
    if script:
        subprocess.run(["ip", "-force", "-batch", "-"], input=script, text=True, capture_output=True, check=False)
    left = set(links) & set(_links(""))
    if left:
        raise SandboxError(f"ip could not delete {', '.join(sorted(left))}")


def _links(start: str) -> list[str]:
    return [name for name in os.listdir("/sys/class/net") if name.startswith(start)]


def make_bridge(realm: Realm) -> None:
    """Make the realm's bridge with the controller's address, unless it is there."""
    if realm.bridge in _links(""):
        return
    _ip(
        [
            f"link add {realm.bridge} type bridge",
            f"addr add {realm.bridge_address}/24 dev {realm.bridge}",
            f"link set {realm.bridge} up",
        ]
    )


def connect(macs: dict[Mac, int]) -> None:
    """Give each Mac, by the pid of its process 1, its end of a veth pair, called en0 there."""
    present = set(_links("lmf"))
    _delete([mac.veth for mac in macs if mac.veth in present])
    commands = []
    for mac, pid in macs.items():
        # Always the same hardware address: after a reboot the controller's ARP cache would know a wrong one.
        peer = f"peer name en0 address {hardware_address(mac)} netns {pid}"
        commands.append(f"link add {mac.veth} master {mac.realm.bridge} type veth {peer}")
        commands.append(f"link set {mac.veth} up")
    _ip(commands)


def hardware_address(mac: Mac) -> str:
    """The address of the Mac's en0; locally administered."""
    return f"02:4c:4d:46:{mac.realm.index:02x}:{mac.number:02x}"


def configure_inside(mac: Mac) -> None:
    """Called inside the Mac's network namespace: loopback and en0."""
    _ip(["link set lo up", f"addr add {mac.address}/24 dev en0", "link set en0 up"])


def remove(realm: Realm) -> None:
    """Remove the realm's veth pairs and bridge, whichever are there."""
    _delete(_links(realm.veth_prefix) + [name for name in _links("") if name == realm.bridge])
