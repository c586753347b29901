# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner finds out about ports."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading

from instance_runner import server


def test_a_daemon_that_found_no_control_port_is_explained_only_when_all_are_taken(monkeypatch):
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _number in range(5)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
        ports = tuple(listener.getsockname()[1] for listener in listeners)
        monkeypatch.setattr(server, "CONTROL_PORTS", ports)
        told = server.no_control_port()
        assert "all five control ports of LM Studio on this Mac" in told
        assert f"lsof -nP -iTCP:{','.join(map(str, ports))} -sTCP:LISTEN" in told
        listeners[2].close()
        assert server.no_control_port() == ""


def test_the_token_of_a_server_is_sent_to_it():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers["Authorization"] == "Bearer sk-lm-1"
            answers = {"/lmstudio-greeting": b'{"lmstudio": true}', "/api/v1/models": b'{"models": []}'}
            body = answers[self.path] if known else b'{"error": {"code": "invalid_api_key"}}'
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        place = listening.server_address[:2]
        assert (server.greets(*place), server.served_models(*place)) == (False, None)
        assert (server.greets(*place, "sk-lm-1"), server.served_models(*place, "sk-lm-1")) == (True, {})
        listening.shutdown()
