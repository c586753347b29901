# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files written whole, compared as texts, and changed by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator

from ._names import LOCK_NAME


class LockTimeoutError(Exception):
    """Another run held the lock of a folder for longer than the timeout; the text says who."""


def listing(folder: str) -> list[str]:
    """Return the names in a folder, sorted; none when there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_bytes(path: str) -> bytes | None:
    """Return the content of `path`, or None when there is no such file.

    Raises OSError for everything else (a folder, no permission): that is not the same as absent.
    """
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_json(path: str) -> object | None:
    """Return the parsed JSON of `path`, or None when the file is absent or is not JSON."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None


def canonical_json(value: object) -> str:
    """Return `value` as JSON text in one fixed form: equal meaning gives equal text.

    Unlike ``==`` this tells true from 1; a float that is whole (4.0) counts as the integer, as in JavaScript.
    """
    return json.dumps(_whole(value), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _whole(value):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value


def owner_for(path: str) -> tuple[int, int] | None:
    """Return (uid, gid) a new `path` shall get: those of its closest existing parent, or None when not root.

    So a module that runs as root never leaves files of root in the folders of the login user.
    """
    if os.geteuid() != 0:
        return None
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    info = os.stat(parent)
    return info.st_uid, info.st_gid


def make_directory(path: str, mode: int = 0o755, owner: tuple[int, int] | None = None) -> bool:
    """Make `path` and what it lacks above it; return True when something was made.

    `owner` is (uid, gid) of every folder made here; None takes over the owner of the closest existing parent.
    """
    if os.path.isdir(path):
        return False
    owner = owner or owner_for(path)
    missing = [path]
    while not os.path.isdir(os.path.dirname(missing[-1])):
        missing.append(os.path.dirname(missing[-1]))
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, mode)
            if owner:
                os.chown(folder, *owner)
    return True


def atomic_write(path: str, content: bytes | str, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    `mode` and `owner` (uid, gid; None: the owner of the folder when root, else the caller) are set before the file
    gets its name, so a secret is never readable for a moment. The folder must exist. Raises OSError.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    owner = owner or owner_for(path)
    descriptor, temporary = tempfile.mkstemp(prefix=".lmfleet-", dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            if owner:
                os.fchown(stream.fileno(), *owner)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def remove_file(path: str) -> bool:
    """Remove `path`; return False when it was not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def sha256_file(path: str) -> str:
    """Return the sha256 of a file of any size as hex text."""
    return hash_file(path, "sha256")


def hash_file(path: str, algorithm: str) -> str:
    """Return the digest of a file of any size as hex text; `algorithm` is a name hashlib knows."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def file_diff(path: str, before: str | bytes | None, after: str | bytes | None) -> dict[str, str]:
    """Return one entry for a module's `diff`; None stands for an absent file.

    Ansible renders it as a unified diff with `path` in both headers. Never hand it a secret.
    """
    return {
        "before_header": path if before is not None else f"{path} (absent)",
        "after_header": path if after is not None else f"{path} (absent)",
        "before": _as_text(before),
        "after": _as_text(after),
    }


def _as_text(content: str | bytes | None) -> str:
    if content is None:
        return ""
    return content.decode("utf-8", "replace") if isinstance(content, bytes) else content


@contextlib.contextmanager
def exclusive(directory: str, holder: str, timeout: float = 120.0) -> Iterator[None]:
    """Hold the lock of `directory` (an existing folder), so that two runs never interleave below it.

    `holder` names who takes it (the module), for the message of whoever waits in vain. The lock goes away with the
    process, so a killed run leaves none behind. Raises LockTimeoutError after `timeout` seconds.
    """
    path = os.path.join(directory, LOCK_NAME)
    descriptor = _open_lock(path)
    try:
        _take(descriptor, path, timeout)
        _sign(descriptor, holder)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: str) -> int:
    owner = owner_for(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except PermissionError:
        # Made by another user: a read-only descriptor can be locked as well, only not signed.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    if owner:
        os.fchown(descriptor, *owner)
    return descriptor


def _take(descriptor: int, path: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if time.monotonic() >= deadline:
            held_by = os.pread(descriptor, 400, 0).decode("utf-8", "replace").strip() or "an unknown process"
            raise LockTimeoutError(
                f"waited {timeout:g} s for another run on this Mac to finish: {path} is held by {held_by}. "
                "Wait for that run to end, then run again."
            )
        time.sleep(0.2)


def _sign(descriptor: int, holder: str) -> None:
    client = os.environ.get("SSH_CONNECTION", "").split(" ")[0] or "this Mac"
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder} (process {os.getpid()}, started from {client} at {since})\n".encode(), 0)
