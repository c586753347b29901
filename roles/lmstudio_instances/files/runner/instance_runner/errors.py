# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a runner ends."""

from __future__ import annotations


class DeclarationError(Exception):
    """instance.json cannot be used; the text says why."""


class StopRequestedError(Exception):
    """launchd wants the job to end."""


class ReplacedError(Exception):
    """The declaration changed in something only a new start can apply."""


class DaemonLostError(Exception):
    """The daemon died, went silent, or never came up; the text says which."""
