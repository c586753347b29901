# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the disk that every sandbox Mac begins with, and the layer that makes this machine's /usr look like a Mac's.

It holds the files of tests/sandbox/skeleton/root, links such as /etc -> private/etc, the few files of this machine's
/etc that its programs need, and under usr/ overlayfs whiteouts for every command a Mac does not have.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from .errors import SandboxError
from .pythons import Interpreter, controller_python, mac_python
from .realm import CACHE, LARGEST_FLEET, Realm

SOURCE = Path(__file__).resolve().parents[1] / "skeleton"
ADMIN_UID = 501
STAFF_GID = 20

_LINKS = {
    "etc": "private/etc",
    "var": "private/var",
    "tmp": "private/tmp",
    "run": "private/var/run",
    # Written by launchd at boot, because the version is a knob.
    "System/Library/CoreServices/SystemVersion.plist": "../../../private/var/db/lmfleet-sandbox/SystemVersion.plist",
}
# Folders that exist on a Mac and must not show what this machine has in them.
_OWN_FOLDERS = [
    "Applications", "Library/LaunchAgents", "Library/LaunchDaemons", "Library/Preferences",
    "System/Library/CoreServices", "Users/Shared", "Volumes", "cores", "dev", "proc", "opt", "private/etc",
    "private/tmp", "private/var/db", "private/var/empty", "private/var/log", "private/var/root", "private/var/run",
    "private/var/tmp", "private/var/folders", "opt/sandbox/engine", "usr/local/bin", "usr/local/lib", "usr/local/share",
]  # fmt: skip
# Writable although the rest of the system volume is sealed; /usr/local is too.
WRITABLE = ("Applications", "Library", "Users", "Volumes", "opt", "private", "cores")
# What programs built for Debian look for in /etc.
_BORROWED_FROM_ETC = ["alternatives", "ld.so.cache", "localtime", "protocols", "services", "ssl", "mime.types"]
_MODES = {
    "private/etc/shadow": 0o640,
    "private/etc/sudoers": 0o440,
    "private/tmp": 0o1777,
    "private/var/tmp": 0o1777,
    "private/var/root": 0o750,
    "private/var/empty": 0o755,
    "Users/Shared": 0o1777,
}
# Where a Mac keeps commands that Debian keeps elsewhere.
_COMMAND_LINKS = {
    "usr/sbin/lsof": "../bin/lsof",
    "usr/sbin/chown": "../bin/chown",
    "usr/sbin/ping": "../bin/ping",
}


class Skeleton:
    """The layer of one realm: made by `build`, the lower layer of every Mac's disk."""

    def __init__(self, realm: Realm):
        self.realm = realm
        self.mac_python = mac_python()
        self.controller_python = controller_python()
        self.fingerprint = self._fingerprint()
        self.folder = realm.state / f"skeleton-{self.fingerprint}"

    def bound_prefixes(self) -> list[Path]:
        """Folders of this machine that every Mac shows read-only at the same place, for the interpreters in them."""
        return sorted({prefix for prefix in self._prefixes() if not prefix.is_relative_to("/usr")})

    def shows_usr_local(self) -> bool:
        """Whether an interpreter lives in this machine's /usr/local, which then shows, sealed like the rest of /usr."""
        return any(prefix.is_relative_to("/usr/local") for prefix in self._prefixes())

    def _prefixes(self) -> list[Path]:
        return [self.mac_python.prefix, self.controller_python.prefix]

    def build(self) -> None:
        """Make the layer unless it is there. A build that was interrupted is begun again."""
        if self.folder.exists():
            return
        making = self.folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        making.chmod(0o755)
        self._folders_and_links(making)
        self._hide_this_machine(making)
        self._copy_sources(making)
        self._borrow_from_etc(making)
        self._interpreters(making)
        self._uname_override(making)
        self._hosts_and_keys(making)
        self._admin_home(making)
        for name, mode in _MODES.items():
            (making / name).chmod(mode)
        self._compile(making)
        making.rename(self.folder)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for path in sorted(SOURCE.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(SOURCE)).encode())
                digest.update(path.read_bytes())
        for interpreter in (self.mac_python, self.controller_python):
            digest.update(str(interpreter).encode())
        digest.update((self.realm.ssh_folder / "id_ed25519.pub").read_bytes())
        return digest.hexdigest()[:12]

    def _folders_and_links(self, root: Path) -> None:
        for name in _OWN_FOLDERS:
            make_folders(root, name)
        for name, target in _LINKS.items():
            (root / name).symlink_to(target)
        for name in os.listdir("/"):
            # bin, sbin, lib, … are links into /usr on a Debian of today.
            if os.path.islink(f"/{name}") and os.readlink(f"/{name}").removeprefix("/").startswith("usr/"):
                (root / name).symlink_to(os.readlink(f"/{name}"))
        if not self.shows_usr_local():
            make_opaque(root / "usr/local")
        for prefix in self.bound_prefixes():
            make_folders(root, str(prefix.relative_to("/")))

    def _hide_this_machine(self, root: Path) -> None:
        shown = _words(SOURCE / "commands.txt")
        for folder in ("usr/bin", "usr/sbin"):
            make_folders(root, folder)
            stand_ins = {path.name for path in (SOURCE / "root" / folder).iterdir()}
            for name in os.listdir(f"/{folder}"):
                if name not in shown and name not in stand_ins:
                    make_whiteout(root / folder / name)
        for name in _words(SOURCE / "hidden.txt"):
            if os.path.lexists(f"/{name}"):
                make_folders(root, os.path.dirname(name))
                make_whiteout(root / name)

    def _copy_sources(self, root: Path) -> None:
        source = SOURCE / "root"
        for path in sorted(source.rglob("*")):
            if "__pycache__" in path.parts:
                continue
            target = root / path.relative_to(source)
            if path.is_dir():
                make_folders(root, str(path.relative_to(source)))
            else:
                shutil.copyfile(path, target)
                target.chmod(0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o100 else 0o644)
        for name, link in _COMMAND_LINKS.items():
            if not os.path.lexists(f"/{name}"):
                (root / name).symlink_to(link)

    def _borrow_from_etc(self, root: Path) -> None:
        for name in _BORROWED_FROM_ETC:
            origin = Path("/etc") / name
            target = root / "private/etc" / name
            if origin.is_dir():
                shutil.copytree(origin, target, symlinks=True, ignore=shutil.ignore_patterns("private"))
            elif origin.exists():
                shutil.copyfile(origin, target)

    def _interpreters(self, root: Path) -> None:
        # Programs that exec, not links: a virtual environment made from a link would look for its base in /usr.
        self._launcher(root, "usr/bin/python3", self.mac_python)
        self._launcher(root, "opt/sandbox/python", self.controller_python)

    def _launcher(self, root: Path, place: str, interpreter: Interpreter) -> None:
        launcher = root / place
        launcher.unlink(missing_ok=True)
        launcher.parent.mkdir(parents=True, exist_ok=True)
        launcher.write_text(f'#!/bin/sh\nexec {self._shown_executable(root, interpreter)} "$@"\n')
        launcher.chmod(0o755)

    def _shown_executable(self, root: Path, interpreter: Interpreter) -> Path:
        if not interpreter.belongs_to_usr:
            return interpreter.executable
        # Its name in /usr/bin is hidden, so that nobody finds a newer Python there than a Mac would have.
        shown = make_folders(root, "opt/sandbox/bin") / interpreter.executable.name
        shutil.copyfile(interpreter.executable, shown)
        shown.chmod(0o755)
        return Path("/") / shown.relative_to(root)

    def _uname_override(self, root: Path) -> None:
        target = make_folders(root, "usr/lib/lmfleet-sandbox") / "uname.so"
        shutil.copyfile(compiled_uname_override(), target)
        target.chmod(0o755)
        (root / "private/etc/ld.so.preload").write_text("/usr/lib/lmfleet-sandbox/uname.so\n")

    def _hosts_and_keys(self, root: Path) -> None:
        lines = ["127.0.0.1 localhost", "::1 localhost", f"{self.realm.bridge_address} controller mirror"]
        lines += [f"{self.realm.address_of(k)} mac-{k} mac-{k}.local" for k in range(1, LARGEST_FLEET + 1)]
        (root / "private/etc/hosts").write_text("".join(f"{line}\n" for line in lines))
        for name, mode in (("ssh_host_ed25519_key", 0o600), ("ssh_host_ed25519_key.pub", 0o644)):
            target = root / "private/etc/ssh" / name
            shutil.copyfile(self.realm.ssh_folder / name, target)
            target.chmod(mode)

    def _admin_home(self, root: Path) -> None:
        home = make_folders(root, "Users/admin")
        for name in (".ssh", "Library", "Library/LaunchAgents", "Library/Logs"):
            make_folders(home, name)
        shutil.copyfile(self.realm.ssh_folder / "id_ed25519.pub", home / ".ssh/authorized_keys")
        for path in [home, *home.rglob("*")]:
            os.chown(path, ADMIN_UID, STAFF_GID)
            path.chmod(0o600 if path.is_file() else 0o700)
        home.chmod(0o750)

    def _compile(self, root: Path) -> None:
        # /usr is sealed on the Macs: without this every start of launchd would compile its modules again.
        library = root / "usr/libexec/lmfleet-sandbox"
        command = [self.mac_python.executable, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([*command, "-s", str(root), str(library)], check=True, stdout=subprocess.DEVNULL)


def compiled_uname_override() -> Path:
    """The shared library that answers uname(2) as a Mac would; compiled once for each version of its source."""
    source = SOURCE / "uname.c"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = CACHE / "sandbox" / f"uname-{digest}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        making = library.with_suffix(f".{os.getpid()}")
        command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-nostartfiles", "-o", making, source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SandboxError(f"cc could not compile {source}: {' '.join(done.stderr.split())}")
        making.rename(library)
    return library


def make_folders(root: Path, name: str) -> Path:
    """Make root/name and its parents, each mode 0755 whatever the umask; returns the innermost."""
    folder = root
    for part in Path(name).parts:
        folder = folder / part
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(0o755)
    return folder


def make_opaque(folder: Path) -> None:
    """Hide what the layer below has in this folder."""
    os.setxattr(folder, "trusted.overlay.opaque", b"y")


def make_whiteout(path: Path) -> None:
    """Hide what the layer below has at this path."""
    os.mknod(path, 0o020000, os.makedev(0, 0))


def _words(path: Path) -> set[str]:
    """The words of a list file; # starts a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {word for line in lines for word in line.partition("#")[0].split()}
