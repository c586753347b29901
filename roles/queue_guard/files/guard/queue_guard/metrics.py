# SPDX-License-Identifier: GPL-3.0-or-later
"""The Prometheus text of what the guard knows, and the small HTTP server that hands it out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Callable

Sample = tuple[dict[str, str], float]


def exposition(families: Iterable[tuple[str, str, str, list[Sample]]]) -> str:
    """Return the text format of (name, type, help, samples)."""
    lines = []
    for name, kind, about, samples in families:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


async def serve(address: str, port: int, text: Callable[[], str]) -> asyncio.AbstractServer:
    """Answer GET /metrics with text() until the server is closed. Raises OSError when the port is taken."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            found = request.split(None, 2)[:2] == [b"GET", b"/metrics"]
            body = text().encode() if found else b"only GET /metrics\n"
            head = "200 OK" if found else "404 Not Found"
            kind = "text/plain; version=0.0.4; charset=utf-8"
            lines = [f"HTTP/1.1 {head}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            await asyncio.wait_for(writer.drain(), 5)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # a client that says nothing sensible gets nothing
        finally:
            writer.close()

    return await asyncio.start_server(answer, address, port)
