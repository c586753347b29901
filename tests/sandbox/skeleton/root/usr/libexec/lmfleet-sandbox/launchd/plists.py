# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads launchd property lists and refuses those launchd would refuse."""

from __future__ import annotations

import os
import plistlib
import stat
from xml.parsers.expat import ExpatError

from .errors import BAD_OWNERSHIP, INPUT_OUTPUT, LaunchdError

# What this stand-in acts upon. Any other key is named in launchd's log and left alone.
KNOWN_KEYS = {
    "AbandonProcessGroup", "Disabled", "EnvironmentVariables", "ExitTimeOut", "GroupName", "HardResourceLimits",
    "KeepAlive", "Label", "Nice", "Program", "ProgramArguments", "RunAtLoad", "SoftResourceLimits",
    "StandardErrorPath", "StandardInPath", "StandardOutPath", "StartInterval", "ThrottleInterval", "Umask",
    "UserName", "WorkingDirectory",
}  # fmt: skip
# Harmless without a Mac's scheduler, power and session management.
IGNORED_KEYS = {"LowPriorityIO", "LowPriorityBackgroundIO", "ProcessType", "LimitLoadToSessionType", "SessionCreate"}


def read(path: str, domain_uid: int) -> dict:
    """The job in a property list (XML or binary) that belongs to root or, in a user's domain, to that user.

    Raises LaunchdError: 122 for an owner or a mode that would let somebody else write it, 5 for anything else.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise LaunchdError(INPUT_OUTPUT) from error
    if not stat.S_ISREG(status.st_mode):
        raise LaunchdError(INPUT_OUTPUT)
    if status.st_uid not in (0, domain_uid) or status.st_mode & 0o022:
        raise LaunchdError(BAD_OWNERSHIP)
    try:
        job = plistlib.loads(content)
    except (plistlib.InvalidFileException, ExpatError, ValueError, OverflowError, IndexError) as error:
        raise LaunchdError(INPUT_OUTPUT) from error
    if not isinstance(job, dict) or not _makes_sense(job):
        raise LaunchdError(INPUT_OUTPUT)
    return job


def _makes_sense(job: dict) -> bool:
    label = job.get("Label")
    arguments = job.get("ProgramArguments", [])
    program = job.get("Program", arguments[0] if isinstance(arguments, list) and arguments else None)
    return (
        isinstance(label, str)
        and bool(label)
        and "/" not in label
        and isinstance(arguments, list)
        and all(isinstance(argument, str) for argument in arguments)
        and isinstance(program, str)
        and all(isinstance(value, str) for value in job.get("EnvironmentVariables", {}).values())
    )


def unknown_keys(job: dict) -> list[str]:
    """Keys that neither this stand-in acts upon nor a test needs."""
    return sorted(set(job) - KNOWN_KEYS - IGNORED_KEYS)
