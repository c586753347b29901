# SPDX-License-Identifier: GPL-3.0-or-later
"""WebSocket frames (RFC 6455) carrying JSON, for both ends of the control API."""

from __future__ import annotations

import base64
import json
import os
import struct
import threading
from contextlib import suppress

try:  # hashlib would load OpenSSL: 4 MB more in every idle daemon
    from _sha1 import sha1
except ImportError:
    from hashlib import sha1

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10


class ClosedError(Exception):
    """The other end closed the WebSocket."""


def accept_key(key):
    """Return the Sec-WebSocket-Accept value for a client's key."""
    return base64.b64encode(sha1(key.encode() + _GUID).digest()).decode()


def _mask(data, mask):
    repeated = int.from_bytes((mask * (len(data) // 4 + 1))[: len(data)], "big")
    return (int.from_bytes(data, "big") ^ repeated).to_bytes(len(data), "big")


class WebSocket:
    """JSON messages over an upgraded socket; a client masks what it sends, a server does not."""

    def __init__(self, sock, buffered=b"", client=False):
        self._socket = sock
        self._data = buffered
        self._client = client
        self._sending = threading.Lock()

    def _exactly(self, count):
        while len(self._data) < count:
            try:
                data = self._socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                raise ClosedError
            self._data += data
        part, self._data = self._data[:count], self._data[count:]
        return part

    def _frame(self):
        first, second = self._exactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._exactly(8))
        mask = self._exactly(4) if second & 0x80 else None
        data = self._exactly(length)
        return first & 0x80, first & 0x0F, _mask(data, mask) if mask else data

    def _send_frame(self, opcode, data):
        mark = 0x80 if self._client else 0
        if len(data) < 126:
            head = struct.pack(">BB", 0x80 | opcode, mark | len(data))
        elif len(data) < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, mark | 126, len(data))
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, mark | 127, len(data))
        if self._client:
            mask = os.urandom(4)
            head += mask
            data = _mask(data, mask)
        try:
            with self._sending:
                self._socket.sendall(head + data)
        except OSError:
            raise ClosedError from None

    def send(self, value):
        """Send one JSON message. Raises ClosedError."""
        self._send_frame(_TEXT, json.dumps(value, separators=(",", ":")).encode())

    def receive(self):
        """Return the next JSON message. Raises ClosedError, and ValueError for something else than JSON."""
        message = b""
        while True:
            final, opcode, data = self._frame()
            if opcode == _CLOSE:
                with suppress(ClosedError):
                    self._send_frame(_CLOSE, data[:2])
                raise ClosedError
            if opcode == _PING:
                self._send_frame(_PONG, data)
            elif opcode != _PONG:
                message += data
                if final:
                    return json.loads(message)
