# SPDX-License-Identifier: GPL-3.0-or-later
"""lms server, daemon, log, version, bootstrap."""

from __future__ import annotations

import json
import sys

from llmster_standin import options
from llmster_standin.cli_models import say
from llmster_standin.client import Client, NotRunningError, find_daemon, start_daemon
from llmster_standin.websocket import ClosedError


def _print_json(value):
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")


def _running(start=False):
    """Return a Client of the running daemon, or None."""
    try:
        return Client(find_daemon(start))
    except NotRunningError:
        return None


def server_start(arguments):
    """lms server start: without --port the last port, without --bind loopback."""
    flags = {"--port": options.whole(0, 65535), "--bind": options.text, "--cors": None}
    _words, values = options.parse(arguments, flags, {"-p": "--port"})
    client = Client(find_daemon())
    parameter = {"networkInterface": values.get("--bind", "127.0.0.1"), "cors": "--cors" in values}
    if "--port" in values:
        parameter["port"] = values["--port"]
    port = client.call("startHttpServer", **parameter)["port"]
    say(f"Success! Server is now running on port {port}")
    return 0


def server_stop(arguments):
    """lms server stop"""
    options.parse(arguments, {})
    client = _running()
    if client and client.call("stopHttpServer")["stopped"]:
        say("Stopped the server.")
    else:
        say("The server is not running.")
    return 0


def server_status(arguments):
    """lms server status: exits 0 whatever is true."""
    _words, values = options.parse(arguments, {"--json": None})
    client = _running()
    status = client.call("serverStatus") if client else {"running": False}
    if not status["running"]:
        status.pop("port", None)
    if "--json" in values:
        _print_json(status)
    elif status["running"]:
        say("The server is running on port {}.".format(status["port"]))
    else:
        say("The server is not running.")
    return 0


def _status(client):
    if client is None:
        return {"status": "not-running"}
    info = client.call("daemonInfo")
    return {"status": "running", "pid": info["pid"], "isDaemon": info["isDaemon"]}


def daemon_status(arguments):
    """lms daemon status: exits 0 whatever is true."""
    _words, values = options.parse(arguments, {"--json": None})
    status = _status(_running())
    if "--json" in values:
        _print_json(status)
    elif status["status"] == "running":
        say("llmster is running (PID: {}).".format(status["pid"]))
    else:
        say("llmster is not running.")
    return 0


def daemon_up(arguments):
    """lms daemon up: starts a detached process, unless any daemon is found, also one of another home."""
    _words, values = options.parse(arguments, {"--json": None})
    client = _running()
    word = "already running" if client else "started"
    client = client or Client(start_daemon())
    status = _status(client)
    if "--json" in values:
        _print_json(status)
    else:
        say("llmster {} (PID: {}).".format(word, status["pid"]))
    return 0


def daemon_down(arguments):
    """lms daemon down"""
    options.parse(arguments, {})
    client = _running()
    if client is None:
        say("llmster is not running.")
        return 0
    client.call("shutdown")
    say("llmster stopped.")
    return 0


def daemon_update(arguments):
    """lms daemon update: would take the latest version; there is no network."""
    options.parse(arguments, {})
    say("Failed to check for updates: network unreachable.")
    return 1


def log_stream(arguments):
    """lms log stream"""
    flags = {"--source": options.text, "--filter": options.text, "--stats": None, "--json": None}
    _words, values = options.parse(arguments, flags, {"-s": "--source"})
    client = Client(find_daemon(), "diagnostics")
    say("Streaming logs from LM Studio")
    try:
        for message in client.stream("streamLogs", {}):
            event = message["log"]
            data = event["data"]
            text = "{}: {}".format(data["type"], data.get("input", data.get("output")))
            sys.stdout.write((json.dumps(event) if "--json" in values else text) + "\n")
            sys.stdout.flush()
    except ClosedError:
        say("The connection to LM Studio was lost.")
        return 1
    return 0


def version(arguments):
    """lms version"""
    options.parse(arguments, {"--json": None})
    sys.stdout.write("lms is LM Studio's CLI utility for your models, server, and inference runtime.\n")
    sys.stdout.write("CLI commit: sandbox\n")
    return 0


def bootstrap(arguments):
    """lms bootstrap: an interactive helper for PATH. It waits for an answer, so without a terminal it may hang."""
    options.parse(arguments, {})
    sys.stderr.write("? Add lms to PATH in your shell profile? (Y/n) ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        say("Aborted.")
        return 1
    from llmster_standin import bootstrap as installer
    from llmster_standin import home

    installer.edit_profile(home.lmstudio_home() + "/bin")
    return 0
