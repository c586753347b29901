# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transport: JSON over HTTP with a total timeout, judged by what the body says.

LM Studio answers 200 on every unknown path, so a status code proves nothing; callers look at `Reply.body`.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

#: Bytes read at most from one answer; more is cut and then is not JSON.
BODY_LIMIT = 16 * 1024 * 1024


class Reply(NamedTuple):
    """One answer: `status` is None when no answer came; `body` is the parsed JSON or None when it is not JSON.

    `error` is a short reason when nothing usable came (no connection, timeout, not JSON), else "".
    """

    status: int | None
    body: object | None
    error: str
    text: str = ""

    @property
    def answered(self) -> bool:
        return self.status is not None

    def said(self, limit: int = 300) -> str:
        """Return what was seen, for an error message."""
        if not self.answered:
            return self.error
        text = self.text.strip()
        return f"HTTP {self.status}: {text[:limit] or '(empty body)'}"


def request_json(
    url: str,
    method: str = "GET",
    payload: object | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 5.0,
    context: ssl.SSLContext | None = None,
) -> Reply:
    """Send one request and return its Reply; never raises for what the network or the server does.

    `payload` is sent as JSON. `timeout` is seconds for the whole exchange, also against a server that sends one byte
    at a time. `context` says whom https trusts, otherwise it is the certificates of this machine. Proxies of the
    environment are not used and redirects are not followed: the peer is a known address.
    """
    deadline = time.monotonic() + timeout
    parts = urllib.parse.urlsplit(url)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    data = None if payload is None else json.dumps(payload).encode("utf-8")
    sent = {"Accept": "application/json", "Connection": "close"}
    if data is not None:
        sent["Content-Type"] = "application/json"
    sent.update(headers or {})
    connection = None
    try:
        connection = _connection(parts, timeout, context)
        connection.request(method, target, body=data, headers=sent)
        peer = connection.sock  # getresponse() lets go of it
        response = connection.getresponse()
        content = _read(peer, response, deadline)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(None, None, _reason(error, timeout))
    finally:
        if connection is not None:
            connection.close()
    text = content.decode("utf-8", "replace")
    try:
        return Reply(response.status, json.loads(content), "", text)
    except ValueError:
        return Reply(response.status, None, "the answer is not JSON", text)


def _connection(
    parts: urllib.parse.SplitResult, timeout: float, context: ssl.SSLContext | None
) -> http.client.HTTPConnection:
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError("not an http(s) URL")
    if parts.scheme == "https":
        context = context or ssl.create_default_context()
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)


def _read(peer: socket.socket, response: http.client.HTTPResponse, deadline: float) -> bytes:
    blocks = []
    size = 0
    while size < BODY_LIMIT:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        peer.settimeout(remaining)
        block = response.read1(65536)
        if not block:
            break
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return f"no answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
