# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a command inside a Mac that is up, as its administrator or as root."""

from __future__ import annotations

import os

from . import namespaces as ns
from .skeleton import ADMIN_UID, STAFF_GID

ADMIN_GROUP = 80
_NAMESPACES = {"ipc": ns.CLONE_NEWIPC, "uts": ns.CLONE_NEWUTS, "net": ns.CLONE_NEWNET, "pid": ns.CLONE_NEWPID}


def run(pid: int, command: list[str], as_root: bool) -> int:
    """Run `command` (a login shell when empty) in the Mac whose process 1 has this pid; returns its exit code.

    126 and 127 stand for a command that cannot be run, as in a shell; 128 + N for one that signal N ended.
    """
    descriptors = {kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in [*_NAMESPACES, "mnt"]}
    helper = os.fork()
    if helper == 0:
        try:
            for kind, flag in _NAMESPACES.items():
                ns.setns(descriptors[kind], flag)
            ns.setns(descriptors["mnt"], ns.CLONE_NEWNS)
            # A process enters a pid namespace with its first child.
            child = os.fork()
            if child == 0:
                _execute(command, as_root)
            os._exit(_code(os.waitpid(child, 0)[1]))
        finally:
            os._exit(126)
    for descriptor in descriptors.values():
        os.close(descriptor)
    return _code(os.waitpid(helper, 0)[1])


def _code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _execute(command: list[str], as_root: bool) -> None:
    name, home = ("root", "/var/root") if as_root else ("admin", "/Users/admin")
    variables = {
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "SHELL": "/bin/sh" if as_root else "/bin/bash",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    }
    variables.update({key: os.environ[key] for key in ("TERM", "LANG") if key in os.environ})
    try:
        if as_root:
            os.setgroups([0, ADMIN_GROUP])
        else:
            os.setgroups([STAFF_GID, ADMIN_GROUP])
            os.setgid(STAFF_GID)
            os.setuid(ADMIN_UID)
        os.umask(0o022)
        os.chdir(home)
        words = command or [variables["SHELL"], "-l"]
        os.execvpe(words[0], words, variables)
    except OSError as error:
        os.write(2, f"sandbox: {' '.join(command)}: {error.strerror}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
