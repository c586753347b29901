# SPDX-License-Identifier: GPL-3.0-or-later
"""The software of a gateway, as the role has installed it on one sandbox Mac, for the others.

To install it takes half a minute of a core. test_site.py has it installed on a fresh Mac in earnest; what uses this
begins with Macs that were gateways before.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fleet_under_test import REALM, REPOSITORY, Fleet
from lmfleet_sandbox.fleet import pids_of
from lmfleet_sandbox.realm import Realm

ROLE = REPOSITORY / "roles" / "litellm"
STORE = REPOSITORY / ".cache" / "gateway-of-a-mac"
GATEWAY = "/Users/admin/.lmfleet/gateway"


@contextlib.contextmanager
def lent(fleet: Fleet, *hosts: str) -> Iterator[None]:
    """Give it to hosts that become gateways in the block; where nothing is kept yet, keep what the first then has.

    Other processes wait meanwhile.
    """
    STORE.mkdir(parents=True, exist_ok=True)
    kept = STORE / _fingerprint(ROLE)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_dir():
            yield
            _keep(_folder(hosts[0]), kept)
            return
        for host in hosts:
            fleet.on(host, f"mkdir -p {GATEWAY}")
            _copy(kept, _folder(host))
    yield


def _keep(source: Path, kept: Path) -> None:
    for former in [path for path in STORE.iterdir() if path.is_dir()]:
        shutil.rmtree(former)
    unfinished = STORE / "unfinished"
    unfinished.mkdir()
    _copy(source, unfinished)
    unfinished.rename(kept)


def _copy(source: Path, target: Path) -> None:
    environments = [path for kind in ("venv", "tools") for path in source.glob(f"{kind}-*")]
    # shutil.copytree does not keep the owner.
    subprocess.run(["cp", "--archive", *environments, target], check=True)


def _folder(host: str) -> Path:
    return Path(f"/proc/{pids_of(Realm(REALM))[host]}/root{GATEWAY}")


def _fingerprint(folder: Path) -> str:
    """Return a name for what is in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
