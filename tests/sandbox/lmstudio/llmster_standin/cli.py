# SPDX-License-Identifier: GPL-3.0-or-later
"""The lms command line: which command runs what. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import importlib
import sys

from llmster_standin import client, options

# command -> (module, function); a group's commands are "group command".
_COMMANDS = {
    "load": ("cli_models", "load"),
    "unload": ("cli_models", "unload"),
    "ps": ("cli_models", "ps"),
    "ls": ("cli_models", "ls"),
    "get": ("cli_files", "get"),
    "import": ("cli_files", "import_"),
    "server start": ("cli_daemon", "server_start"),
    "server stop": ("cli_daemon", "server_stop"),
    "server status": ("cli_daemon", "server_status"),
    "daemon up": ("cli_daemon", "daemon_up"),
    "daemon down": ("cli_daemon", "daemon_down"),
    "daemon status": ("cli_daemon", "daemon_status"),
    "daemon update": ("cli_daemon", "daemon_update"),
    "runtime ls": ("cli_runtime", "ls"),
    "runtime get": ("cli_runtime", "get"),
    "runtime select": ("cli_runtime", "select"),
    "runtime remove": ("cli_runtime", "remove"),
    "runtime update": ("cli_runtime", "update"),
    "runtime survey": ("cli_runtime", "survey"),
    "log stream": ("cli_daemon", "log_stream"),
    "version": ("cli_daemon", "version"),
    "bootstrap": ("cli_daemon", "bootstrap"),
}


def _help(prefix=""):
    names = [name for name in _COMMANDS if name.startswith(prefix)]
    sys.stdout.write("Usage: lms <command> [options]\n\nCommands:\n  {}\n".format("\n  ".join(names)))
    return 0


def _find(arguments):
    """Return (command, its arguments). Raises UsageError."""
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if len(arguments) >= length and name in _COMMANDS:
            return name, arguments[length:]
    group = any(name.startswith(arguments[0] + " ") for name in _COMMANDS)
    unknown = arguments[1] if group and len(arguments) > 1 else arguments[0]
    raise options.UsageError(f"error: unknown command '{unknown}'")


def main(arguments):
    """Run one command and return the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        return _help()
    if arguments[0] in ("--version", "-v"):
        arguments = ["version"]
    if arguments[-1] in ("--help", "-h"):
        return _help(arguments[0])
    try:
        name, rest = _find(arguments)
        module, function = _COMMANDS[name]
        return getattr(importlib.import_module("llmster_standin." + module), function)(rest)
    except (options.UsageError, client.NotRunningError, client.CommandError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    except (OSError, EOFError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
