# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP/1.1 on one socket, no more of it than the APIs need (http.server would double the daemon's memory)."""

from __future__ import annotations

import json

_REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    500: "Internal Server Error",
}
_LARGEST_BODY = 64 * 1024 * 1024


class GoneError(Exception):
    """The client closed the connection, or spoke something else than HTTP."""


class Request:
    """One HTTP request; header names are lower-case."""

    def __init__(self, method, path, headers, body):
        self.method = method
        self.target = path
        self.path = path.split("?", 1)[0]
        self.headers = headers
        self.body = body


class HttpConnection:
    """Reads requests from a socket and writes answers to it."""

    def __init__(self, sock, cors=False):
        self.socket = sock
        self.cors = cors
        self.keep = True
        self.streaming = False
        self._data = b""

    def _more(self):
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise GoneError
        self._data += data

    def _until(self, mark):
        while mark not in self._data:
            if len(self._data) > 1 << 16:
                raise GoneError
            self._more()
        part, self._data = self._data.split(mark, 1)
        return part

    def _exactly(self, count):
        if count > _LARGEST_BODY:
            raise GoneError
        while len(self._data) < count:
            self._more()
        part, self._data = self._data[:count], self._data[count:]
        return part

    def read_request(self):
        """Return the next Request. Raises GoneError."""
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        try:
            method, target, version = lines[0].split(" ")
            pairs = [line.split(":", 1) for line in lines[1:]]
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            length = int(headers.get("content-length", 0))
        except ValueError:
            raise GoneError from None
        wish = headers.get("connection", "").lower()
        self.keep = wish != "close" and (version != "HTTP/1.0" or wish == "keep-alive")
        if headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            body = b"".join(self._chunks())
        else:
            body = self._exactly(length)
        return Request(method, target, headers, body)

    def _chunks(self):
        while True:
            try:
                size = int(self._until(b"\r\n").split(b";")[0], 16)
            except ValueError:
                raise GoneError from None
            part = self._exactly(size)
            self._until(b"\r\n")
            if not size:
                return
            yield part

    def take_buffered(self):
        """Return bytes that were read beyond the request (the first WebSocket frames)."""
        data, self._data = self._data, b""
        return data

    def send(self, data):
        """Send bytes. Raises GoneError."""
        try:
            self.socket.sendall(data)
        except OSError:
            raise GoneError from None

    def _head(self, status, headers):
        lines = ["HTTP/1.1 {} {}".format(status, _REASONS.get(status, "Unknown")), "X-Powered-By: Express"]
        if self.cors:
            lines.append("Access-Control-Allow-Origin: *")
            lines.append("Access-Control-Allow-Headers: *")
        lines.append("Connection: %s" % ("keep-alive" if self.keep else "close"))
        return "\r\n".join(lines + headers + ["", ""]).encode()

    def answer(self, value, status=200):
        """Send a JSON answer."""
        body = json.dumps(value, separators=(",", ":")).encode()
        headers = ["Content-Type: application/json; charset=utf-8", f"Content-Length: {len(body)}"]
        self.send(self._head(status, headers) + body)

    def start_events(self):
        """Begin a stream of server-sent events."""
        headers = ["Content-Type: text/event-stream", "Cache-Control: no-cache", "Transfer-Encoding: chunked"]
        self.streaming = True
        self.send(self._head(200, headers))

    def event(self, value, name=None):
        """Send one event; ``value`` is JSON, or the text [DONE]."""
        data = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        text = (f"event: {name}\n" if name else "") + f"data: {data}\n\n"
        body = text.encode()
        self.send(b"%x\r\n%s\r\n" % (len(body), body))

    def end_events(self):
        """End the stream."""
        self.send(b"0\r\n\r\n")
        self.streaming = False
