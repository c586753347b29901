# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transport: fetch one large file to disk, verify it, and go on where an earlier try was cut off."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request

from ansible.module_utils.urls import open_url

from ._files import hash_file, remove_file

#: Seconds without a single byte after which a server counts as stalled.
STALL_TIMEOUT = 60.0
_BLOCK = 1 << 20


class DownloadError(Exception):
    """A file that could not be fetched or is not what its checksum says; the text names the source."""


class ChecksumError(DownloadError):
    """The content is not what the checksum says."""


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

    What is already in `part` is kept and continued by a range request. `timeout` is seconds for the whole transfer.
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
        hint = _looks_like_a_page(part)
        remove_file(part)
        raise ChecksumError(f"{source}: wrong {algorithm}: expected {expected}, got {got}{hint}. Nothing was kept.")
    return os.path.getsize(part)


def _transfer(source: str, part: str, deadline: float) -> bool:
    """Fill `part`; return whether it began with bytes of an earlier try."""
    path = local_path(source)
    have = os.path.getsize(part) if os.path.exists(part) else 0
    try:
        if path is not None:
            with open(path, "rb") as stream:
                _copy(source, stream, part, "wb", deadline)
            return False
        return _transfer_http(source, part, have, deadline)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing beyond what is there: perhaps complete
            return True
        raise DownloadError(f"{source}: the server answered {error.code} {error.reason}") from None
    except OSError as error:
        raise DownloadError(f"{source}: {_reason(error)}") from None


def _transfer_http(source: str, part: str, have: int, deadline: float) -> bool:
    headers = {"Range": f"bytes={have}-"} if have else {}
    with open_url(source, headers=headers, timeout=STALL_TIMEOUT) as answer:
        continued = have > 0 and answer.status == 206
        received = _copy(source, answer, part, "ab" if continued else "wb", deadline)
        announced = answer.headers.get("Content-Length")
    if announced is not None and received < int(announced):
        raise DownloadError(
            f"{source}: the connection ended after {received} of {announced} bytes; run again to go on from there"
        )
    return continued


def _copy(source: str, stream, part: str, mode: str, deadline: float) -> int:
    received = 0
    with open(part, mode) as target:
        # read1: a short read shows at once, so the deadline holds against a slow server as well.
        read = getattr(stream, "read1", stream.read)
        for block in iter(lambda: read(_BLOCK), b""):
            target.write(block)
            received += len(block)
            if time.monotonic() > deadline:
                raise DownloadError(f"{source}: not complete in time; run again to go on from there")
        target.flush()
        os.fsync(target.fileno())
    return received


def _reason(error: OSError) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(error, TimeoutError) or isinstance(inner, TimeoutError):
        return "no answer in time"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return error.strerror or str(inner or error) or type(error).__name__


def _looks_like_a_page(part: str) -> str:
    with open(part, "rb") as stream:
        start = stream.read(200).lstrip().lower()
    return " (it is a web page, not the file)" if start.startswith((b"<!doctype html", b"<html")) else ""


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
