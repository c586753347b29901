# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror of a realm: a static HTTP server with directory listings and byte ranges.

Runs as `python -m lmfleet_sandbox.mirror ADDRESS PORT FOLDER`.
"""

from __future__ import annotations

import functools
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path

from .errors import SandboxError
from .processes import MIRROR_MARK, kill, marked
from .realm import CACHE, MIRROR_PORT, Realm

_START_TIMEOUT = 10.0


class MirrorHandler(http.server.SimpleHTTPRequestHandler):
    """Files, listings, and one byte range a request."""

    protocol_version = "HTTP/1.1"
    _rest: int | None = None

    def send_head(self):
        self._rest = None
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        path = self.translate_path(self.path)
        if not wanted or wanted.groups() == ("", "") or not os.path.isfile(path):
            return super().send_head()
        return self._send_range(path, *wanted.groups())

    def _send_range(self, path: str, first_text: str, last_text: str) -> io.BufferedReader | None:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        status = os.fstat(file.fileno())
        size = status.st_size
        if first_text:
            first, last = int(first_text), min(int(last_text or size - 1), size - 1)
        else:
            first, last = max(size - int(last_text), 0), size - 1
        if first > last:
            file.close()
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self._rest = last - first + 1
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(self._rest))
        self.send_header("Last-Modified", self.date_time_string(status.st_mtime))
        self.end_headers()
        file.seek(first)
        return file

    def end_headers(self):
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def copyfile(self, source, outputfile):
        if self._rest is None:
            shutil.copyfileobj(source, outputfile, 1 << 20)
            return
        remaining = self._rest
        while remaining > 0 and (chunk := source.read(min(remaining, 1 << 20))):
            outputfile.write(chunk)
            remaining -= len(chunk)


def serve(address: str, port: int, folder: str) -> None:
    handler = functools.partial(MirrorHandler, directory=folder)
    http.server.ThreadingHTTPServer((address, port), handler).serve_forever()


def start(realm: Realm) -> None:
    """Start the mirror of a realm unless it runs. Raises SandboxError when it does not answer in time."""
    if marked(MIRROR_MARK).get(realm.name):
        return
    folder = CACHE / "mirror"
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(__file__).resolve().parents[1]
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": str(package), MIRROR_MARK: realm.name}
    module = "lmfleet_sandbox.mirror"
    command = [sys.executable, "-B", "-m", module, realm.bridge_address, str(MIRROR_PORT), str(folder)]
    with open(realm.state / "mirror.log", "ab") as log:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(realm.mirror_url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise SandboxError(f"the mirror does not answer on {realm.mirror_url}: {error}") from error
            time.sleep(0.02)


def stop(realm: Realm) -> None:
    """End the mirror of a realm, if it runs."""
    for pid in marked(MIRROR_MARK).get(realm.name, []):
        kill(pid, MIRROR_MARK)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
