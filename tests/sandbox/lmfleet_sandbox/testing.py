# SPDX-License-Identifier: GPL-3.0-or-later
"""For tests: a realm brought up once, and Macs that are talked to as a user would, over ssh."""

from __future__ import annotations

import contextlib
import os
import plistlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .realm import Mac, Realm

CLI = Path(__file__).resolve().parents[1] / "sandbox"
DEFAULT_REALM = "test"


@dataclass(frozen=True)
class Result:
    """How a command on a Mac ended."""

    code: int
    out: str
    err: str


def sandbox(*words: str, realm: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line of the sandbox. Raises CalledProcessError when `check` and it fails."""
    command = [sys.executable, str(CLI), "--realm", realm, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise AssertionError(f"sandbox {' '.join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_until(what: str, happened: Callable[[], object], timeout: float = 15.0) -> float:
    """Poll until `happened()` is true; returns the seconds it took. AssertionError naming `what` after `timeout`."""
    begin = time.monotonic()
    while not happened():
        if time.monotonic() - begin > timeout:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - begin


class SshMac:
    """A Mac of a realm that is up, reached over one ssh connection that is kept open."""

    def __init__(self, mac: Mac):
        self.mac = mac
        folder = mac.realm.ssh_folder
        self._options = [
            *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-F", "none"),
            *("-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
            *("-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", f"ControlPath={folder}/%h"),
            *("-i", str(folder / "id_ed25519")),
        ]

    def sh(self, script: str, root: bool = False, stdin: str | bytes = "", timeout: float = 60) -> Result:
        """Run a shell script as admin or, through sudo, as root."""
        words = ["sudo", "-n", "/bin/sh", "-s"] if root else ["/bin/sh", "-s"]
        if stdin:
            words = [*words[:-1], "-c", _quoted(script)]
        command = ["ssh", *self._options, f"admin@{self.mac.address}", *words]
        data = stdin or script
        done = subprocess.run(
            command, input=data if isinstance(data, bytes) else data.encode(), capture_output=True, timeout=timeout,
            check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def ok(self, script: str, root: bool = False) -> str:
        """As `sh`, for a script that must succeed; returns what it printed."""
        result = self.sh(script, root)
        assert result.code == 0, f"{script}\nexit {result.code}\n{result.out}{result.err}"
        return result.out

    def launchctl(self, *words: str, root: bool = False) -> Result:
        return self.sh("launchctl " + " ".join(words), root)

    def write(self, path: str, content: str | bytes, root: bool = False, mode: str = "0644") -> None:
        """Write a file as admin or root."""
        data = content if isinstance(content, bytes) else content.encode()
        result = self.sh(f"cat > {path} && chmod {mode} {path}", root, stdin=data)
        assert result.code == 0, result.err

    def sandbox(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the sandbox that takes this Mac's name first."""
        return sandbox(words[0], self.mac.name, *words[1:], realm=self.mac.realm.name)

    def reboot(self) -> None:
        self.close()
        self.sandbox("reboot")

    def close(self) -> None:
        """End the kept connection."""
        command = ["ssh", *self._options, "-O", "exit", f"admin@{self.mac.address}"]
        subprocess.run(command, capture_output=True, check=False)


def _quoted(text: str) -> str:
    # Twice: ssh hands its words to a shell, which runs the script in another.
    return "'" + text.replace("'", "'\\''") + "'"


class Job:
    """A launchd job of a test: its property list, and what launchctl says about it."""

    def __init__(self, mac: SshMac, domain: str, label: str, spec: dict, folder: str, binary: bool = False):
        self.mac = mac
        self.domain = domain
        self.label = label
        self.target = f"{domain}/{label}"
        self.root = domain == "system"
        self.path = f"{folder}/{label}.plist"
        self.spec = {"Label": label, **spec}
        self.binary = binary

    def write(self) -> None:
        kind = plistlib.FMT_BINARY if self.binary else plistlib.FMT_XML
        self.mac.write(self.path, plistlib.dumps(self.spec, fmt=kind), self.root)

    def bootstrap(self, root: bool | None = None) -> Result:
        return self.mac.launchctl("bootstrap", self.domain, self.path, root=self.root if root is None else root)

    def bootout(self) -> Result:
        return self.mac.launchctl("bootout", self.target, root=self.root)

    def run(self, *words: str) -> Result:
        """launchctl WORDS TARGET, with the rights the domain asks for."""
        return self.mac.launchctl(*words, self.target, root=self.root)

    def print(self) -> Result:
        return self.mac.launchctl("print", self.target)

    def field(self, name: str) -> str | None:
        """A `name = value` line of what print shows; None when there is none."""
        found = re.search(rf"^\t{re.escape(name)} = (.*)$", self.print().out, re.MULTILINE)
        return found.group(1) if found else None

    @property
    def pid(self) -> int | None:
        text = self.field("pid")
        return int(text) if text else None

    def remove(self) -> None:
        """Unload it, wait until it is gone, delete its file and its override."""
        self.bootout()
        wait_until(f"{self.label} is gone", lambda: self.print().code != 0)
        self.run("enable")
        self.mac.sh(f"rm -f {self.path}", self.root)


@contextlib.contextmanager
def realm_up(count: int, name: str | None = None) -> Iterator[Realm]:
    """A realm with `count` Macs for the length of a test session.

    Taken down at the end unless it was up before. Raises RuntimeError with the sandbox's own reason (exit code 3)
    where namespaces cannot be had. The realm is LMFLEET_SANDBOX_TEST_REALM or "test" unless named.
    """
    realm = Realm(name or os.environ.get("LMFLEET_SANDBOX_TEST_REALM", DEFAULT_REALM))
    was_up = realm.state.exists()
    done = sandbox("up", str(count), realm=realm.name, check=False)
    if done.returncode == 3:
        raise RuntimeError(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        yield realm
    finally:
        if not was_up:
            sandbox("down", realm=realm.name)
