# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds a port."""

from __future__ import annotations

import socket

from ansible_collections.lmfleet.mac.plugins.module_utils import _ports


def test_listeners_are_read_from_lsof():
    text = "p10\ncllmster\nf5\nn127.0.0.1:1234\nf6\nn[::1]:1235\np20\ncnginx\nn*:80\n"
    assert _ports.parse_lsof(text) == {1234: {10: "llmster"}, 1235: {10: "llmster"}, 80: {20: "nginx"}}


def test_a_port_is_taken_while_somebody_listens_on_it():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert _ports.is_taken("127.0.0.1", port)
        assert _ports.is_taken("0.0.0.0", port)
    assert not _ports.is_taken("127.0.0.1", port)


def test_a_port_of_an_outgoing_connection_is_taken_but_nobody_listens():
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        port = client.getsockname()[1]
        assert _ports.is_taken("127.0.0.1", port)
        assert not _ports.accepts("127.0.0.1", port)


def test_a_connection_that_meets_itself_is_nobody(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda where, timeout: connect(where, timeout, where))
    assert not _ports.accepts("127.0.0.1", port)
