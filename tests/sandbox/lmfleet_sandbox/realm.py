# SPDX-License-Identifier: GPL-3.0-or-later
"""A realm: one set of sandbox Macs with names, addresses and a state folder of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import SandboxError

# The third octet of the subnet. Fixed, so that inventories can name addresses.
INDEXES = {
    "demo": 0,
    "test": 1,
    "bench": 2,
    "dev": 3,
    **{f"spare{n}": n for n in range(4, 8)},
    **{f"e2e-{n}": 8 + n for n in range(8)},
}
LARGEST_FLEET = 240
STATE_ROOT = Path("/var/tmp/lmfleet-sandbox")
LOCK_FOLDER = Path("/run/lock")
REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / ".cache"
MIRROR_PORT = 8080


@dataclass(frozen=True)
class Mac:
    """One Mac of a realm: where it is and what it is called. Whether it runs is asked of the kernel."""

    realm: Realm
    number: int

    @property
    def name(self) -> str:
        return f"mac-{self.number}"

    @property
    def address(self) -> str:
        return self.realm.address_of(self.number)

    @property
    def marker(self) -> str:
        """The value of the environment variable by which its process 1 is recognised from outside."""
        return f"{self.realm.name}/{self.name}"

    @property
    def veth(self) -> str:
        return f"{self.realm.veth_prefix}{self.number}"

    @property
    def folder(self) -> Path:
        return self.realm.state / "hosts" / self.name

    @property
    def console_log(self) -> Path:
        return self.folder / "console.log"


@dataclass(frozen=True)
class Realm:
    """Names, addresses and folders of a realm."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in INDEXES:
            raise SandboxError(f"no realm {self.name!r}: choose one of {', '.join(INDEXES)}")

    @property
    def index(self) -> int:
        return INDEXES[self.name]

    @property
    def bridge(self) -> str:
        return f"lmfleet{self.index}"

    @property
    def veth_prefix(self) -> str:
        return f"lmf{self.index}-"

    @property
    def bridge_address(self) -> str:
        return f"10.77.{self.index}.1"

    @property
    def state(self) -> Path:
        return STATE_ROOT / self.name

    @property
    def ssh_folder(self) -> Path:
        return self.state / "ssh"

    @property
    def mirror_url(self) -> str:
        return f"http://{self.bridge_address}:{MIRROR_PORT}/"

    def address_of(self, number: int) -> str:
        return f"10.77.{self.index}.{10 + number}"

    def mac(self, number: int) -> Mac:
        if not 1 <= number <= LARGEST_FLEET:
            raise SandboxError(f"a realm has Macs 1 to {LARGEST_FLEET}, not {number}")
        return Mac(self, number)

    def mac_named(self, name: str) -> Mac:
        prefix, _dash, number = name.rpartition("-")
        if prefix != "mac" or not number.isdecimal():
            raise SandboxError(f"no Mac {name!r}: Macs are called mac-1, mac-2, …")
        return self.mac(int(number))

    def macs_with_state(self) -> list[Mac]:
        """The Macs that have a disk here, running or not, by number."""
        folders = (self.state / "hosts").glob("mac-*")
        return sorted((self.mac_named(folder.name) for folder in folders), key=lambda mac: mac.number)

    @contextlib.contextmanager
    def lock(self):
        """Hold the realm for one command at a time.

        Processes forked while it is held keep it until they exec: so the next command, even after a kill -9
        of this one, sees every Mac that was being started.
        """
        LOCK_FOLDER.mkdir(parents=True, exist_ok=True)
        path = LOCK_FOLDER / f"lmfleet-sandbox-{self.name}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"sandbox: waiting for another command on realm {self.name}", file=sys.stderr, flush=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def all_realms() -> list[Realm]:
    return [Realm(name) for name in INDEXES]
