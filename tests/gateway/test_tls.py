# SPDX-License-Identifier: GPL-3.0-or-later
"""The real nginx with the template of role gateway_tls: nothing is held back, reloads cut nothing off."""

from __future__ import annotations

import http.client
import signal
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import jinja2
import pytest
import yaml
from ansible_collections.lmfleet.mac.plugins.filter.url_host import url_host

from certificates import NGINX, certificate
from gateway_under_test import REPOSITORY, free_port

ROLE = REPOSITORY / "roles" / "gateway_tls"
CHUNKS, PAUSE = 5, 0.3


class Backend(BaseHTTPRequestHandler):
    """Streams a few chunks with a pause between them; notes that a prompt begins, and how each answer ended."""

    protocol_version = "HTTP/1.1"
    begun: ClassVar[threading.Event] = threading.Event()
    ends: ClassVar[list[str]] = []

    def do_POST(self):
        self.rfile.read(1)
        self.begun.set()
        self.rfile.read(int(self.headers["Content-Length"]) - 1)
        if self.path == "/nothing":
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Seen-Proto", self.headers.get("X-Forwarded-Proto", ""))
        self.end_headers()
        try:
            for _number in range(CHUNKS):
                self.wfile.write(b"8\r\ndata: x\n\r\n")
                time.sleep(PAUSE)
            self.wfile.write(b"0\r\n\r\n")
            self.ends.append("whole")
        except OSError:
            self.ends.append("cut off")
            self.close_connection = True

    def log_message(self, *_words):
        pass


@pytest.fixture(scope="module")
def upstream():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Front:
    """nginx in the foreground, as launchd runs it."""

    def __init__(self, folder, upstream, **changes):
        defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
        self.port, self.folder = free_port(), folder
        values = {**defaults, "gateway_tls_upstream": upstream, "gateway_tls_address": "127.0.0.1"}
        values["gateway_tls_port"] = self.port
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
        environment.filters["lmfleet.mac.url_host"] = url_host
        template = environment.from_string((ROLE / "templates" / "nginx.conf.j2").read_text())
        self.config = template.render(values)
        for before, after in changes.items():
            self.config = self.config.replace(f"{before} off;", f"{before} {after};")
        (folder / "temp").mkdir()
        (folder / "nginx.conf").write_text(self.config)
        self.certify()
        command = [str(NGINX), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
        with (folder / "nginx.log").open("wb") as log:
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command], stderr=log)
        deadline = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, (folder / "nginx.log").read_text()
            time.sleep(0.05)

    def certify(self):
        """Have a new certificate in the file; return it as clients will see it."""
        text, key = certificate()
        (self.folder / "server.pem").write_text(text + key)
        return ssl.PEM_cert_to_DER_cert(text)

    def connect(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        connection.connect()
        return connection

    def answers(self):
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def stream(self):
        connection = self.connect()
        connection.request("POST", "/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture
def front(tmp_path, upstream):
    running = []

    def front(**changes):
        running.append(Front(tmp_path, upstream, **changes))
        return running[-1]

    yield front
    for one in running:
        one.stop()


def spread(front) -> float:
    """Return the seconds between the first and the last chunk of a stream, as its client sees them."""
    connection, reply = front.stream()
    seen = []
    while reply.read1(64):
        seen.append(time.monotonic())
    connection.close()
    return seen[-1] - seen[0]


def test_a_stream_comes_as_it_is_made(front):
    served = front()
    connection, reply = served.stream()
    assert reply.headers["X-Seen-Proto"] == "https"
    connection.close()
    assert spread(served) > PAUSE * (CHUNKS - 2)


def test_with_buffers_it_would_come_at_once(front):
    """So the test above can fail."""
    assert spread(front(proxy_buffering="on")) < PAUSE


def is_passed_on_early(front) -> bool:
    """Tell whether the backend has the beginning of a prompt before its client has sent all of it."""
    Backend.begun.clear()
    connection, half = front.connect(), b"x" * 100_000
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(2 * len(half)))
    connection.endheaders(half)
    early = Backend.begun.wait(2)
    connection.send(half)
    connection.getresponse().read()
    connection.close()
    return early


def test_a_prompt_goes_on_as_it_comes(front):
    assert is_passed_on_early(front())


def test_with_buffers_it_would_wait_for_its_end(front):
    """So the test above can fail."""
    assert not is_passed_on_early(front(proxy_request_buffering="on"))


def test_the_log_gets_no_line_for_a_request(front):
    served = front()
    for path, status in (("/v1/chat/completions", 200), ("/nothing", 502)):
        connection = served.connect()
        connection.request("POST", path, b"x" * 200_000)
        assert connection.getresponse().status == status
        connection.close()
    assert (served.folder / "nginx.log").read_text() == ""


def test_a_client_that_goes_ends_its_request(front):
    Backend.ends.clear()
    connection, reply = front().stream()
    reply.read1(64)
    connection.sock.close()
    connection.close()
    reply.close()
    deadline = time.monotonic() + 30
    while not Backend.ends:
        assert time.monotonic() < deadline, "the backend goes on for nobody"
        time.sleep(0.05)
    assert Backend.ends == ["cut off"]


def test_a_new_certificate_cuts_nobody_off(front):
    served = front()
    connection, reply = served.stream()
    wanted = served.certify()
    served.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while True:
        other = served.connect()
        seen = other.sock.getpeercert(binary_form=True)
        other.close()
        if seen == wanted:
            break
        assert time.monotonic() < deadline, "the new certificate is not shown"
        time.sleep(0.05)
    assert reply.read().count(b"data: x") == CHUNKS
    connection.close()
