# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking instances over HTTP, all at once, from one thread, without trusting any answer.

Connections are kept: most polls cost one small write and one small read.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

MOST_BYTES = 256 * 1024
MOST_HEADERS = 100


class AskError(Exception):
    """No usable answer; the text says what was seen."""


class Answer(NamedTuple):
    """A parsed answer and the seconds until its first byte."""

    content: Any
    first_byte: float


class Asker:
    """Keeps one connection per address and asks one question at a time over it."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def ask(self, url: str, timeout: float, body: dict[str, Any] | None = None, token: str = "") -> Answer:
        """Return the JSON object at `url`; POST when there is a `body`. Raises AskError, within `timeout` seconds."""
        try:
            return await asyncio.wait_for(self._ask(url, body, token), timeout)
        except asyncio.TimeoutError:
            raise AskError(f"no whole answer within {timeout:g} s") from None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise AskError(_said(error)) from None

    async def _ask(self, url: str, body: dict[str, Any] | None, token: str) -> Answer:
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or 80)
        kept = self._idle.pop(address, None)
        request = _request(parts, body, token)
        if kept is not None:
            try:
                return await self._exchange(address, kept, request)
            except (OSError, asyncio.IncompleteReadError):
                kept[1].close()  # the other side had closed it meanwhile
        return await self._exchange(address, await asyncio.open_connection(*address), request)

    async def _exchange(self, address: tuple[str, int], streams: Any, request: bytes) -> Answer:
        reader, writer = streams
        clock = asyncio.get_running_loop().time
        whole = False
        try:
            asked = clock()
            writer.write(request)
            status = await reader.readline()
            first_byte = clock() - asked
            if not status:
                raise asyncio.IncompleteReadError(b"", None)
            content, whole = await _read(status, reader)
            return Answer(content, first_byte)
        finally:
            # Whatever was not read to its end would be taken for the next answer.
            if whole and address not in self._idle:
                self._idle[address] = streams
            else:
                writer.close()

    def forget(self, keep: set) -> None:
        """Close the connections to addresses (host, port) that are not in `keep`."""
        for address in [known for known in self._idle if known not in keep]:
            self._idle.pop(address)[1].close()


def address_of(url: str) -> tuple[str, int]:
    """Return (host, port) of a URL. Raises ValueError for a port that is none."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80


def _request(parts: Any, body: dict[str, Any] | None, token: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content


async def _read(status: bytes, reader: asyncio.StreamReader) -> tuple[Any, bool]:
    """Return the parsed body and whether the connection can be used again."""
    words = status.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise AskError(f"not HTTP: {status[:60]!r}")
    headers = await _headers(reader)
    if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        content = await _chunks(reader)
    elif b"content-length" in headers:
        length = headers[b"content-length"]
        if not length.isdigit() or int(length) > MOST_BYTES:
            raise AskError(f"an answer of {length[:20]!r} bytes is refused, the most is {MOST_BYTES}")
        content = await reader.readexactly(int(length))
    else:
        raise AskError("an answer without a length")
    reusable = words[0] == b"HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
    if words[1] != b"200":
        raise AskError(f"HTTP {words[1].decode()}: {content[:80]!r}")
    try:
        parsed = json.loads(content)
    except ValueError:
        raise AskError(f"not JSON: {content[:60]!r}") from None
    if not isinstance(parsed, dict):
        raise AskError(f"not a JSON object: {content[:60]!r}")
    return parsed, reusable


async def _headers(reader: asyncio.StreamReader) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for _number in range(MOST_HEADERS):
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise AskError("the answer ends within its headers")
        if not line.strip():
            return headers
        name, _colon, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    raise AskError(f"more than {MOST_HEADERS} headers")


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    content = b""
    while True:
        line = (await reader.readline()).split(b";")[0].strip()
        try:
            size = int(line, 16)
        except ValueError:
            raise AskError(f"not a chunk: {line[:20]!r}") from None
        if size < 0 or len(content) + size > MOST_BYTES:
            raise AskError(f"an answer of more than {MOST_BYTES} bytes is refused")
        content += (await reader.readexactly(size + 2))[:size]
        if size == 0:
            return content


def _said(error: BaseException) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return "the answer is cut off"
    if isinstance(error, ValueError):
        return "a line without an end"  # how a StreamReader says it
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
