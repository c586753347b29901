# SPDX-License-Identifier: GPL-3.0-or-later
"""How the CLI finds its daemon and talks to it."""

from __future__ import annotations

import base64
import os
import socket
import time

from llmster_standin import home
from llmster_standin.websocket import WebSocket

_PROBE_SECONDS = 2.0


class NotRunningError(Exception):
    """No daemon was found."""


class CommandError(Exception):
    """The daemon answered with an error."""


def _connect(host, port):
    return socket.create_connection((host, int(port)), _PROBE_SECONDS)


def _greets(host, port):
    """Return whether an LM Studio answers on the port; a daemon that never answers counts as one that does.

    The probe must not hang the CLI, but the CLI hangs later on the daemon it chose: as the real one does.
    """
    try:
        with _connect(host, port) as sock:
            sock.sendall(b"GET /lmstudio-greeting HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b""
            while True:
                data = sock.recv(4096)
                if not data:
                    return answer.endswith(b'{"lmstudio":true}')
                answer += data
    except socket.timeout:
        return True
    except OSError:
        return False


def _process_lives(pid):
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError):
        return False
    return True


def _from_file(path):
    info = home.read_json(path)
    if not isinstance(info, dict) or not _process_lives(info.get("pid")):
        return None
    place = (info.get("host") or "127.0.0.1", info.get("port"))
    return place if place[1] and _greets(*place) else None


def strict_path():
    """Return the info file the caller insists on, or None."""
    return os.environ.get("LMS_API_SERVER_INFO_PATH")


def find_daemon(start=True):
    """Return (host, port) of the control API. Raises NotRunningError.

    With LMS_API_SERVER_INFO_PATH only the daemon of that file counts and none is started. Otherwise: the file in
    the LM Studio home, then any daemon on the five ports, whoever it belongs to, then (``start``) a new one.
    """
    path = strict_path()
    if path:
        place = _from_file(path)
        if place is None:
            raise NotRunningError(f"LM Studio is not running: no reachable instance in {path}")
        return place
    place = _from_file(home.internal("http-server.json"))
    if place:
        return place
    for port in home.CONTROL_PORTS:
        if _greets("127.0.0.1", port):
            return ("127.0.0.1", port)
    if not start:
        raise NotRunningError("LM Studio is not running")
    return start_daemon()


def start_daemon(seconds=30.0):
    """Start the installed daemon detached and return (host, port) of its control API. Raises NotRunningError."""
    import subprocess

    location = home.read_json(home.internal("llmster-install-location.json"))
    if not isinstance(location, dict) or not os.path.exists(location.get("path") or ""):
        raise NotRunningError("LM Studio is not running, and llmster is not installed for this user")
    subprocess.Popen(
        location.get("argv") or [location["path"]], cwd=location.get("cwd"), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    info = strict_path() or home.internal("http-server.json")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        place = _from_file(info)
        if place:
            return place
        time.sleep(0.05)
    raise NotRunningError(f"llmster did not start within {seconds} s")


class Client:
    """A WebSocket to one namespace of the control API. No timeout: waits as long as the daemon takes."""

    def __init__(self, place, namespace="system"):
        sock = _connect(*place)
        sock.settimeout(None)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            "GET /%s HTTP/1.1\r\nHost: %s:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n"
        )
        sock.sendall((head % (namespace, place[0], place[1], key)).encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = sock.recv(4096)
            if not data:
                raise CommandError("the daemon closed the connection")
            answer += data
        if b" 101 " not in answer.split(b"\r\n", 1)[0]:
            raise CommandError("this port does not speak the LM Studio control protocol")
        self._websocket = WebSocket(sock, answer.split(b"\r\n\r\n", 1)[1], client=True)
        self._websocket.send({"authVersion": 1, "clientIdentifier": "lms-cli", "clientPasskey": key})
        if not self._websocket.receive().get("success"):
            raise CommandError("the daemon refused the connection")

    def call(self, endpoint, **parameter):
        """Return the result of a remote call. Raises CommandError."""
        self._websocket.send({"type": "rpcCall", "endpoint": endpoint, "callId": 1, "parameter": parameter})
        message = self._websocket.receive()
        if message["type"] == "rpcError":
            raise CommandError(message["error"].get("title") or "unknown error")
        return message.get("result")

    def stream(self, endpoint, parameter):
        """Yield what a channel sends. Raises CommandError."""
        create = {"type": "channelCreate", "endpoint": endpoint, "channelId": 1, "creationParameter": parameter}
        self._websocket.send(create)
        while True:
            message = self._websocket.receive()
            if message["type"] == "channelSend":
                yield message["message"]
            elif message["type"] == "channelError":
                raise CommandError(message["error"].get("title") or "unknown error")
            else:
                return
