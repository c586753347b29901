# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that serves models to other Macs: files below one folder, in ranges, and nothing else."""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _download

PROGRAM = Path(__file__).resolve().parents[2] / "roles" / "lmstudio" / "files" / "model_server.py"
CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def server(tmp_path):
    """Return a function that asks the server and returns (status, headers, body)."""
    models = tmp_path / "models" / "pub" / "m"
    models.mkdir(parents=True)
    (models / "f 1.gguf").write_bytes(CONTENT)
    (models / ".hidden").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    (models / "link").symlink_to(tmp_path / "secret")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-IS", str(PROGRAM), str(tmp_path / "models"), "127.0.0.1", str(port)])

    def ask(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body

    deadline = time.monotonic() + 20
    while True:
        try:
            ask("/")
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
    ask.url = f"http://127.0.0.1:{port}"
    yield ask
    process.terminate()
    process.wait()


def test_a_file_whole_and_in_ranges(server):
    path = "/pub/m/f%201.gguf"
    status, headers, body = server(path)
    assert (status, body, headers["Content-Length"]) == (200, CONTENT, str(len(CONTENT)))
    status, headers, body = server(path, Range="bytes=10-")
    assert (status, body) == (206, CONTENT[10:])
    assert headers["Content-Range"] == f"bytes 10-{len(CONTENT) - 1}/{len(CONTENT)}"
    assert server(path, Range="bytes=3-5")[2] == CONTENT[3:6]
    assert server(path, Range=f"bytes={len(CONTENT)}-")[0] == 416
    status, headers, body = server(path, "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(CONTENT)))


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/pub", "/pub/m/", "/pub/m", "/nothing", "/../secret", "/pub/m/../../../secret"),
        *("/%2e%2e/secret", "/pub/m/link", "/pub/m/.hidden", "//etc/passwd", "/pub/m/f%00", "/pub%2f..%2f..%2fsecret"),
    ],
)
def test_nothing_else(server, path):
    status, _headers, body = server(path)
    assert status == 404 and b"secret" not in body.replace(path.encode(), b"")


def test_nothing_can_be_written(server):
    assert server("/pub/m/f%201.gguf", "PUT")[0] == 501


def test_a_download_goes_on_from_it(server, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT[:777])
    url = f"{server.url}/pub/m/f%201.gguf"
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert _download.fetch(url, str(tmp_path / "part"), "sha256", digest, 20) == len(CONTENT)
