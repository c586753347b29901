# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transport: fetch one large file to disk, verify it, and go on where an earlier try was cut off."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request

from ansible.module_utils.urls import open_url

from ._files import hash_file, remove_file

#: Seconds without a single byte after which a server counts as stalled.
STALL_TIMEOUT = 60.0
#: Seconds between the tries of a transfer that broke off.
RETRY_PAUSES = (1.0, 4.0, 10.0)
_BLOCK = 1 << 20
#: Answers of a server that may be others a moment later.
_PASSING = (408, 429, 500, 502, 503, 504)


class DownloadError(Exception):
    """A file that could not be fetched or is not what its checksum says; the text names the source."""


class ChecksumError(DownloadError):
    """The content is not what the checksum says."""


class _FinalError(Exception):
    """A transfer broke off for a reason that does not pass by itself."""


def local_path(source: str) -> str | None:
    """Return the path behind a file URL or an absolute path, None for http(s). Raises DownloadError for the rest."""
    if source.startswith("/"):
        return source
    parts = urllib.parse.urlsplit(source)
    if parts.scheme == "file":
        return urllib.request.url2pathname(parts.path)
    if parts.scheme in ("http", "https") and parts.netloc:
        return None
    raise DownloadError(f"{source}: neither an http(s) or file URL nor an absolute path")


def size_of(source: str, timeout: float = 15.0) -> int | None:
    """Return the size in bytes of a source, None when it cannot be told."""
    path = local_path(source)
    try:
        if path is not None:
            return os.path.getsize(path)
        with open_url(source, method="HEAD", timeout=timeout) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def text_of(source: str, timeout: float = 30.0, limit: int = 65536) -> str:
    """Return the text of a small file. Raises DownloadError."""
    path = local_path(source)
    try:
        if path is not None:
            with open(path, "rb") as stream:
                return stream.read(limit).decode("utf-8", "replace")
        with open_url(source, timeout=timeout) as answer:
            return answer.read(limit).decode("utf-8", "replace")
    except OSError as error:
        raise DownloadError(f"{source}: {_reason(error)}") from None


def fetch(source: str, part: str, algorithm: str, expected: str, timeout: float) -> int:
    """Fetch `source` (http, https or file URL, or absolute path) to the file `part` and verify it; return its size.

    What is already in `part` is kept and continued by a range request, also when the connection breaks in between.
    `timeout` is seconds for the whole transfer.
    On a wrong checksum `part` is removed; a part that was continued is fetched once more from the start before that.
    After an interruption `part` stays for the next try. Raises DownloadError, ChecksumError.
    """
    deadline = time.monotonic() + timeout
    continued = _transfer(source, part, deadline)
    got = hash_file(part, algorithm)
    if got != expected and continued:
        remove_file(part)
        _transfer(source, part, deadline)
        got = hash_file(part, algorithm)
    if got != expected:
        remove_file(part)
        raise ChecksumError(f"{source}: wrong {algorithm}: expected {expected}, got {got}. Nothing was kept.")
    return os.path.getsize(part)


def _transfer(source: str, part: str, deadline: float) -> bool:
    """Fill `part`; return whether any of it came from an earlier try. What may pass by itself is tried again."""
    path = local_path(source)
    continued = False
    for pause in (*RETRY_PAUSES, None):
        continued = path is None and (continued or _size(part) > 0)
        try:
            if path is None:
                _transfer_http(source, part, deadline)
            else:
                with open(path, "rb") as stream:
                    _copy(stream, part, "wb", deadline)
            return continued
        except urllib.error.HTTPError as error:
            if error.code == 416 and _size(part):  # nothing beyond what is there: perhaps complete
                return True
            trouble, passing = f"the server answered {error.code} {error.reason}", error.code in _PASSING
        except _FinalError as error:
            trouble, passing = str(error), False
        except (OSError, http.client.HTTPException) as error:
            trouble, passing = _reason(error), path is None
        if not passing or pause is None or time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
    have = _size(part)
    kept = f", after {have} bytes, which are kept; run again to go on from there" if have else ""
    tries = f" (tried {len(RETRY_PAUSES) + 1} times)" if passing and pause is None else ""
    raise DownloadError(f"{source}: {trouble}{tries}{kept}")


def _transfer_http(source: str, part: str, deadline: float) -> None:
    have = _size(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with open_url(source, headers=headers, timeout=STALL_TIMEOUT) as answer:
        partial = have > 0 and answer.status == 206
        if partial and not (answer.headers.get("Content-Range") or f"bytes {have}-").startswith(f"bytes {have}-"):
            remove_file(part)
            raise ConnectionError(f"the server sent {answer.headers['Content-Range']} instead of bytes from {have}")
        received = _copy(answer, part, "ab" if partial else "wb", deadline)
        announced = answer.headers.get("Content-Length")
    if announced is not None and received < int(announced):
        raise ConnectionError(f"the connection ended after {received} of {announced} bytes")


def _copy(stream, part: str, mode: str, deadline: float) -> int:
    # read1: a short read shows at once, so the deadline holds against a slow server as well.
    read = getattr(stream, "read1", stream.read)
    block = read(_BLOCK)
    if mode == "wb" and _is_page(block):  # seen before an earlier part is overwritten
        raise _FinalError("it is a web page, not the file")
    received = 0
    with open(part, mode) as target:
        while block:
            try:
                target.write(block)
                target.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise _FinalError(f"the disk of {os.path.dirname(part)} is full: make room") from None
            received += len(block)
            if time.monotonic() > deadline:
                raise _FinalError("not complete in time")
            block = read(_BLOCK)
        os.fsync(target.fileno())
    return received


def _size(part: str) -> int:
    return os.path.getsize(part) if os.path.exists(part) else 0


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    # Until Python 3.10 a socket's timeout was no TimeoutError.
    if any(isinstance(one, (TimeoutError, socket.timeout)) for one in (error, inner)):
        return f"no byte for {STALL_TIMEOUT:g} s"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return getattr(error, "strerror", None) or str(inner or error) or type(error).__name__


def _is_page(start: bytes) -> bool:
    return start[:200].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def parse_checksum(text: str, file_name: str, algorithm: str) -> str:
    """Return the digest in a checksum file: a bare digest, or lines `<digest>  <name>` of which one names the file.

    Raises DownloadError when there is none.
    """
    length = hashlib.new(algorithm).digest_size * 2
    digests = {}
    for line in text.splitlines():
        words = line.split()
        if words and is_digest(words[0], length):
            name = os.path.basename(words[1].lstrip("*")) if len(words) > 1 else ""
            digests.setdefault(name, words[0].lower())
    for name in (file_name, ""):
        if name in digests:
            return digests[name]
    if len(digests) == 1:
        return next(iter(digests.values()))
    raise DownloadError(f"no {algorithm} of {file_name} in the checksum file")


def is_digest(text: str, length: int) -> bool:
    """Tell whether `text` is a digest of `length` hex digits."""
    return len(text) == length and all(character in "0123456789abcdefABCDEF" for character in text)


def free_bytes(folder: str) -> int:
    """Return the free bytes of the disk that holds `folder` or, while it does not exist, its closest parent."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free
