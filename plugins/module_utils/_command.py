# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transport: run a program with a timeout that holds whatever the program does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

NOT_FOUND = 127


class Result(NamedTuple):
    """Outcome of one program. `rc` is None when it was killed for taking too long."""

    rc: int | None
    out: str
    err: str

    @property
    def timed_out(self) -> bool:
        return self.rc is None

    def said(self) -> str:
        """Return what the program said, for an error message: stderr, else stdout, else its exit code."""
        if self.timed_out:
            return "no answer in time"
        return self.err.strip() or self.out.strip() or f"exit code {self.rc}"


def run(
    argv: Sequence[str],
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    owner: tuple[int, int] | None = None,
) -> Result:
    """Run `argv` for at most `timeout` seconds and return its Result; never raises for what the program does.

    `env` replaces the whole environment. `owner` is the uid and gid of another user to run as. Output goes through
    files, not pipes: a grandchild that keeps a pipe open would make the caller wait beyond the timeout. On a timeout
    the whole process group is killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
                **({"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}),
            )
        except OSError as error:
            return Result(NOT_FOUND, "", f"{argv[0]}: {error.strerror or error}")
        try:
            rc = process.wait(timeout)
        except subprocess.TimeoutExpired:
            rc = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Result(rc, _text(out), _text(err))


def _text(stream) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
