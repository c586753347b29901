# SPDX-License-Identifier: GPL-3.0-or-later
"""The errors the command line turns into one line and an exit code."""


class SandboxError(Exception):
    """Something the user can act on; the message is one line."""

    exit_code = 1


class NamespacesUnavailableError(SandboxError):
    """This machine cannot give us namespaces: not Linux, not root, or a container without the rights."""

    exit_code = 3


class PackagesMissingError(SandboxError):
    """Commands are missing that an ordinary package provides."""

    exit_code = 4
