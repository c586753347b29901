# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads: checksums, going on after an interruption, and servers that misbehave."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _download

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def mirror():
    """A file server. Knobs on it: content, ranges (answers 206), cut (bytes after which it hangs up), status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            start = 0
            wanted = self.headers.get("Range")
            server.asked.append(wanted)
            if server.status != 200:
                self.send_error(server.status)
                return
            if wanted and server.ranges:
                start = int(wanted[len("bytes=") : -1])
                if start >= len(server.content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(server.content) - start))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(server.content[start : server.cut])

        do_HEAD = do_GET  # noqa: N815 (the name http.server looks for)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.cut, server.status, server.asked = CONTENT, True, None, 200, []
    server.url = f"http://127.0.0.1:{server.server_port}/file.gguf"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(source, part, expected=SHA256):
    return _download.fetch(source, str(part), "sha256", expected, timeout=20)


def test_http_file_url_and_path_give_the_same(mirror, tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    for source in (mirror.url, f"file://{tmp_path}/source", f"{tmp_path}/source"):
        assert fetch(source, tmp_path / "part") == len(CONTENT)
        assert (tmp_path / "part").read_bytes() == CONTENT
        assert _download.size_of(source) == len(CONTENT)
        (tmp_path / "part").unlink()


def test_an_interrupted_download_goes_on_where_it_was(mirror, tmp_path):
    mirror.cut = 1000
    with pytest.raises(_download.DownloadError, match=f"after 1000 of {len(CONTENT)} bytes"):
        fetch(mirror.url, tmp_path / "part")
    mirror.cut = None
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked == [None, "bytes=1000-"] and (tmp_path / "part").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(mirror, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT[:10])
    mirror.ranges = False
    assert fetch(mirror.url, tmp_path / "part") == len(CONTENT)


def test_a_part_of_something_else_is_fetched_anew(mirror, tmp_path):
    (tmp_path / "part").write_bytes(b"x" * 10)
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked == ["bytes=10-", None]


def test_a_complete_part_needs_no_more_bytes(mirror, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT)
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked == [f"bytes={len(CONTENT)}-"]


def test_a_wrong_checksum_names_everything_and_leaves_nothing(mirror, tmp_path):
    with pytest.raises(_download.ChecksumError, match=f"{mirror.url}: wrong sha256: expected {'0' * 64}, got {SHA256}"):
        fetch(mirror.url, tmp_path / "part", "0" * 64)
    assert not (tmp_path / "part").exists()


def test_a_web_page_is_called_one(mirror, tmp_path):
    mirror.content = b"<!DOCTYPE html><title>log in</title>"
    with pytest.raises(_download.ChecksumError, match="it is a web page"):
        fetch(mirror.url, tmp_path / "part")


@pytest.mark.parametrize("status", [404, 500])
def test_errors_of_the_server(mirror, tmp_path, status):
    mirror.status = status
    with pytest.raises(_download.DownloadError, match=f"{mirror.url}: the server answered {status}"):
        fetch(mirror.url, tmp_path / "part")


def test_a_server_that_stalls(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(_download, "STALL_TIMEOUT", 0.3)
    mirror.content = CONTENT
    handler = mirror.RequestHandlerClass
    monkeypatch.setattr(handler, "send_response", lambda *_: threading.Event().wait(1))
    with pytest.raises(_download.DownloadError, match="no answer in time"):
        fetch(mirror.url, tmp_path / "part")


def test_nobody_there(tmp_path):
    with pytest.raises(_download.DownloadError, match="Connection refused"):
        fetch("http://127.0.0.1:1/x", tmp_path / "part")
    with pytest.raises(_download.DownloadError, match="No such file"):
        fetch("/nowhere/x", tmp_path / "part")
    with pytest.raises(_download.DownloadError, match="neither an http"):
        fetch("ftp://host/x", tmp_path / "part")


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("a" * 64, "a" * 64),
        ("A" * 64 + "\n", "a" * 64),
        (f"{'a' * 64}  one\n{'b' * 64} *two\n", "b" * 64),
        (f"# comment\n{'c' * 64}  elsewhere/two\n", "c" * 64),
        (f"{'d' * 64}  another-name\n", "d" * 64),
    ],
)
def test_checksum_files(text, digest):
    assert _download.parse_checksum(text, "two", "sha256") == digest


@pytest.mark.parametrize("text", ["", "<html>not found</html>", f"{'a' * 64} x\n{'b' * 64} y\n", "a" * 63])
def test_checksum_files_that_say_nothing(text):
    with pytest.raises(_download.DownloadError, match="no sha256 of two"):
        _download.parse_checksum(text, "two", "sha256")
