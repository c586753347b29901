# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls of lms for one instance. Each has a timeout, because lms may wait for ever."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from typing import Any, Callable, NamedTuple

from .files import Places

LMS_TIMEOUT = 30.0  # seconds for a question to lms; loads have a timeout of their own

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\r\x07]")


class Answer(NamedTuple):
    """What a call of lms left behind.

    `complained`: its exit code was not 0. That it was 0 says nothing.
    """

    out: str
    err: str
    timed_out: bool
    complained: bool = False

    def said(self) -> str:
        """Return the last thing it said, for an error message."""
        if self.timed_out:
            return "no answer in time"
        text = _ESCAPES.sub("", self.err).strip() or _ESCAPES.sub("", self.out).strip()
        return " | ".join(line.strip() for line in text.splitlines()[-5:] if line.strip()) or "it said nothing"

    def parsed(self) -> list[dict[str, Any]] | None:
        """Return stdout as a JSON list of objects, None when it is not one."""
        value = self.value()
        return value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else None

    def value(self) -> Any:
        """Return stdout as JSON, None when it is not."""
        try:
            return json.loads(self.out)
        except ValueError:
            return None


class Lms:
    """lms of one instance. `pause` sleeps, and raises when there is a reason to stop waiting."""

    def __init__(self, places: Places, pause: Callable[[float], None]) -> None:
        self._places = places
        self._pause = pause

    def ask(
        self,
        program: str,
        arguments: list[str],
        timeout: float = LMS_TIMEOUT,
        meanwhile: Callable[[], None] | None = None,
        interval: float = 5.0,
    ) -> Answer:
        """Call lms for at most `timeout` seconds; `meanwhile` is called every `interval` seconds."""
        # Files, not pipes: whatever lms leaves running must not keep this waiting.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    [program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self._places.environment(),
                    cwd=self._places.home,
                )
            except OSError as error:
                return Answer("", f"cannot run {program}: {error.strerror}", False)
            ended = self._wait(process, time.monotonic() + timeout, meanwhile, interval)
            return Answer(_content(out), _content(err), not ended, ended and process.returncode != 0)

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        deadline: float,
        meanwhile: Callable[[], None] | None,
        interval: float,
    ) -> bool:
        """Return whether the process ended by itself before the deadline; it is gone afterwards in any case."""
        next_call = time.monotonic() + interval
        try:
            while process.poll() is None:
                now = time.monotonic()
                if now >= deadline:
                    return False
                if now >= next_call:
                    next_call = now + interval
                    if meanwhile:
                        meanwhile()
                self._pause(min(deadline, next_call) - time.monotonic())
            return True
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _content(stream: Any) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")
