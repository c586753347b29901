# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner finds out about ports."""

from __future__ import annotations

import contextlib
import socket

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
