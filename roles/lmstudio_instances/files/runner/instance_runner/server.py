# SPDX-License-Identifier: GPL-3.0-or-later
"""The server over HTTP, and whether its port is free."""

from __future__ import annotations

import errno
import http.client
import json
import socket
from typing import Any

HTTP_TIMEOUT = 5.0  # seconds for one request to the server

#: The ports a daemon tries for `lms`; the first free one is its.
CONTROL_PORTS = (41343, 52993, 16141, 39414, 22931)


def reachable_address(address: str) -> str:
    """Return where a server bound to `address` is reached from this Mac."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def get_json(address: str, port: int, path: str, token: str) -> Any:
    """Return the JSON body of a GET, None when there is none; the status code proves nothing and is not looked at.

    `token` is for a server that asks for one, "" for none.
    """
    headers = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {})}
    connection = http.client.HTTPConnection(reachable_address(address), port, timeout=HTTP_TIMEOUT)
    try:
        connection.request("GET", path, headers=headers)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def greets(address: str, port: int, token: str = "") -> bool:
    """Tell whether an LM Studio answers there."""
    return get_json(address, port, "/lmstudio-greeting", token) == {"lmstudio": True}


def served_models(address: str, port: int, token: str = "") -> dict[str, dict[str, Any]] | None:
    """Return {identifier: settings} of what the server serves, None when it does not tell."""
    body = get_json(address, port, "/api/v1/models", token)
    try:
        return {
            str(loaded["id"]): dict(loaded.get("config") or {})
            for model in body["models"]
            for loaded in model["loaded_instances"]
        }
    except (KeyError, TypeError, ValueError):
        return None


def port_trouble(address: str, port: int) -> str:
    """Return why a server could not listen there, "" when it could.

    Connecting comes first: on macOS a socket may be bound beside one that listens on all addresses.
    """
    if _answers(address, port):
        return f"port {port} on {address} is in use by another program"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {port} on {address} is in use by another program"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"this Mac does not have the address {address} (now)"
            return f"cannot listen on port {port} of {address}: {error.strerror}"
    return ""


def no_control_port() -> str:
    """Return in words that every control port is in use, "" when one is free."""
    if not all(_answers("127.0.0.1", port) for port in CONTROL_PORTS):
        return ""
    ports = ", ".join(map(str, CONTROL_PORTS))
    return (
        f"all five control ports of LM Studio on this Mac ({ports}) are in use, so another daemon finds none; "
        f"see who has them with: lsof -nP -iTCP:{ports.replace(' ', '')} -sTCP:LISTEN"
    )


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((reachable_address(address), port), timeout=1).close()
        return True
    except OSError:
        return False
