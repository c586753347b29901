# SPDX-License-Identifier: GPL-3.0-or-later
"""launchd's error numbers, which launchctl prints and exits with."""

from __future__ import annotations

NOT_PERMITTED = 1
NO_SUCH_PROCESS = 3
INPUT_OUTPUT = 5
IN_PROGRESS = 36
USAGE = 64
NO_SUCH_SERVICE = 113
DISABLED = 119
BAD_OWNERSHIP = 122
NO_SUCH_DOMAIN = 125

TEXTS = {
    NOT_PERMITTED: "Operation not permitted",
    NO_SUCH_PROCESS: "No such process",
    INPUT_OUTPUT: "Input/output error",
    IN_PROGRESS: "Operation now in progress",
    37: "Operation already in progress",
    78: "Function not implemented",
    NO_SUCH_SERVICE: "Could not find specified service",
    DISABLED: "Service is disabled",
    BAD_OWNERSHIP: "Path had bad ownership/permissions",
    NO_SUCH_DOMAIN: "Domain does not support specified action",
}

# How `launchctl print` annotates the exit code of a job.
SYSEXITS = {
    64: "EX_USAGE",
    65: "EX_DATAERR",
    66: "EX_NOINPUT",
    67: "EX_NOUSER",
    68: "EX_NOHOST",
    69: "EX_UNAVAILABLE",
    70: "EX_SOFTWARE",
    71: "EX_OSERR",
    72: "EX_OSFILE",
    73: "EX_CANTCREAT",
    74: "EX_IOERR",
    75: "EX_TEMPFAIL",
    76: "EX_PROTOCOL",
    77: "EX_NOPERM",
    78: "EX_CONFIG",
}


class LaunchdError(Exception):
    """A request that launchd refuses; `code` is what launchctl exits with."""

    def __init__(self, code: int, text: str = ""):
        self.code = code
        super().__init__(text or TEXTS.get(code, "Unknown error"))
