# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads: checksums, going on after an interruption, and servers that misbehave."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import threading

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _download

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def mirror():
    """A file server. Knobs: content, ranges (answers 206), cuts (where an answer ends), statuses (errors first)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            start = 0
            wanted = self.headers.get("Range")
            server.asked.append(wanted)
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            if wanted and server.ranges:
                start = int(wanted[len("bytes=") : -1])
                if start >= len(server.content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(server.content) - start))
            if start:
                first = start + server.shift
                self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(server.content[start : server.cuts.pop(0) if server.cuts else None])
                self.wfile.flush()
                server.stall.wait(5)

        do_HEAD = do_GET  # noqa: N815 (the name http.server looks for)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.asked, server.shift = CONTENT, True, [], 0
    server.cuts, server.statuses = [], []
    server.stall = threading.Event()
    server.stall.set()
    server.url = f"http://127.0.0.1:{server.server_port}/file.gguf"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(_download, "RETRY_PAUSES", (0, 0))


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
    mirror.cuts = [1000, 2000]
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked == [None, "bytes=1000-", "bytes=2000-"] and (tmp_path / "part").read_bytes() == CONTENT


def test_a_download_that_keeps_breaking_is_left_for_the_next_run(mirror, tmp_path):
    mirror.cuts = [1000, 1500, 3000]
    with pytest.raises(_download.DownloadError, match=r"ended after 1500 .*tried 3 times.*after 3000 bytes, .*kept"):
        fetch(mirror.url, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT[:3000]
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked[-1] == "bytes=3000-" and (tmp_path / "part").read_bytes() == CONTENT


def test_a_file_that_changed_on_the_server_meanwhile_is_fetched_anew(mirror, tmp_path):
    (tmp_path / "part").write_bytes(b"old" * 100)
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked == ["bytes=300-", None] and (tmp_path / "part").read_bytes() == CONTENT


def test_a_range_that_was_not_asked_for_is_not_appended(mirror, tmp_path):
    (tmp_path / "part").write_bytes(CONTENT[:100])
    mirror.shift = 1
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked == ["bytes=100-", None]


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


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_page_is_called_one_and_costs_no_earlier_part(mirror, tmp_path, ranges):
    (tmp_path / "part").write_bytes(CONTENT[:10])
    mirror.content, mirror.ranges = b"<!DOCTYPE html><title>log in</title>", False
    with pytest.raises(_download.DownloadError, match="it is a web page, not the file, after 10 bytes"):
        fetch(mirror.url, tmp_path / "part")
    assert len(mirror.asked) == 1
    mirror.content, mirror.ranges = CONTENT, ranges
    assert fetch(mirror.url, tmp_path / "part") == len(CONTENT)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (500, 3), (503, 3)])
def test_errors_of_the_server(mirror, tmp_path, status, tries):
    mirror.statuses = [status] * 9
    with pytest.raises(_download.DownloadError, match=f"{mirror.url}: the server answered {status}"):
        fetch(mirror.url, tmp_path / "part")
    assert len(mirror.asked) == tries


def test_an_error_that_passes(mirror, tmp_path):
    mirror.statuses = [500, 502]
    assert fetch(mirror.url, tmp_path / "part") == len(CONTENT)


def test_a_server_that_stalls_says_how_far_it_came(mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(_download, "STALL_TIMEOUT", 0.3)
    monkeypatch.setattr(_download, "RETRY_PAUSES", ())
    mirror.cuts = [1234]
    mirror.stall.clear()
    with pytest.raises(_download.DownloadError, match=r"no byte for 0.3 s.*, after 1234 bytes"):
        fetch(mirror.url, tmp_path / "part")
    mirror.stall.set()
    fetch(mirror.url, tmp_path / "part")
    assert mirror.asked[-1] == "bytes=1234-"


def test_a_disk_that_gets_full_keeps_what_it_holds(mirror, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, block):
            super().write(block[:700])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_download, "open", Full, raising=False)
    with pytest.raises(_download.DownloadError, match=f"disk of {tmp_path} is full: make room, after 700 bytes"):
        fetch(mirror.url, tmp_path / "part")
    monkeypatch.undo()
    assert fetch(mirror.url, tmp_path / "part") == len(CONTENT)
    assert mirror.asked == [None, "bytes=700-"]


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
