# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves the files below a folder to the other Macs of the fleet, read-only and with ranges.

usage: model_server.py FOLDER ADDRESS PORT
"""

from __future__ import annotations

import http.server
import os
import re
import socket
import sys
import urllib.parse

#: Seconds after which a client that takes nothing is hung up on.
CLIENT_TIMEOUT = 60
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD for regular files; there are no listings."""

    timeout = CLIENT_TIMEOUT
    server_version = "lmfleet-models"
    sys_version = ""

    def do_GET(self):
        stream = self._open()
        if stream is None:
            self.send_error(404)
            return
        with stream:
            size = os.fstat(stream.fileno()).st_size
            wanted = _RANGE.fullmatch(self.headers.get("Range") or "")
            first = int(wanted[1]) if wanted else 0
            last = min(int(wanted[2]), size - 1) if wanted and wanted[2] else size - 1
            if wanted and (first >= size or last < first):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if self.command == "GET":
                self._send(stream, first, last - first + 1)

    def do_HEAD(self):
        self.do_GET()

    def _open(self):
        """Return the file asked for, None when it is none below the folder."""
        folder = os.path.realpath(self.server.folder)
        parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).split("/")[1:]
        if not parts or any(part.startswith(".") or not part or "\0" in part for part in parts):
            return None
        path = os.path.realpath(os.path.join(folder, *parts))
        if os.path.commonpath([folder, path]) != folder or not os.path.isfile(path):
            return None
        try:
            return open(path, "rb")
        except OSError:
            return None

    def _send(self, stream, first, count):
        stream.seek(first)
        try:
            while count > 0:
                block = stream.read(min(count, 1 << 20))
                if not block:
                    break
                self.wfile.write(block)
                count -= len(block)
        except OSError:  # the client has gone, or takes nothing any more
            self.close_connection = True

    def log_message(self, format, *values):
        sys.stderr.write(f"{self.log_date_time_string()} {self.address_string()} {format % values}\n")


class Server(http.server.ThreadingHTTPServer):
    """Listens on an IPv4 or IPv6 address."""

    def __init__(self, folder, address, port):
        self.folder = folder
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)


def main():
    folder, address, port = sys.argv[1:]
    with Server(folder, address, int(port)) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
