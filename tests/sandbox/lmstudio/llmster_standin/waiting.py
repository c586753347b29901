# SPDX-License-Identifier: GPL-3.0-or-later
"""A wait that ends early when its client goes away, without polling."""

from __future__ import annotations

import os
import select
import socket
import threading
import time


class CancelledError(Exception):
    """The client left, cancelled, or the model was unloaded."""


class Watch:
    """One request's way to be woken: by cancel(), by wake(), or by its client hanging up."""

    def __init__(self, client=None):
        self._client = client
        self._reader, self._writer = os.pipe()
        self._lock = threading.Lock()
        self._reason = None
        self._closed = False

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        with self._lock:
            self._closed = True
            os.close(self._reader)
            os.close(self._writer)

    def wake(self):
        """Make the wait look at the world again."""
        with self._lock:
            if not self._closed:
                os.write(self._writer, b"x")

    def cancel(self, reason):
        """Make the wait raise CancelledError."""
        self._reason = self._reason or reason
        self.wake()

    def _client_left(self):
        try:
            if self._client.recv(1, socket.MSG_PEEK) == b"":
                return True
        except OSError:
            return True
        self._client = None  # the next request is already here: its bytes would wake every wait
        return False

    def check(self):
        """Raise CancelledError when the request has been cancelled."""
        if self._reason:
            raise CancelledError(self._reason)

    def wait(self, seconds=None, file=None):
        """Wait for a time, for a readable file, or (with neither) for wake().

        Returns True when ``file`` is readable or wake() was called, False after ``seconds``.
        Raises CancelledError.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self.check()
            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            if self._client is not None:
                poll.register(self._client, select.POLLIN | select.POLLHUP)
            if file is not None:
                poll.register(file, select.POLLIN)
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = {number for number, _event in poll.poll(left)}
            if self._reader in ready:
                os.read(self._reader, 4096)
                self.check()
                if deadline is None and file is None:
                    return True
            if self._client is not None and self._client.fileno() in ready and self._client_left():
                raise CancelledError("client disconnected")
            if file is not None and file.fileno() in ready:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
