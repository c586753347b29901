# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Transport: have LM Studio fetch a model of its catalogue, into a home of its own, by a daemon that ends with us.

No instance's daemon does it: `lms get` writes below the models folder at once, whatever it fetches.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable

from . import _lms, _mac
from ._command import Result, run
from ._files import make_directory, read_json, remove_file
from ._processes import alive

#: Seconds that llmster may take to say where it is, and to end; and lms to tell which models there are.
START_TIMEOUT = 60.0
END_TIMEOUT = 30.0
LIST_TIMEOUT = 30.0
_WATCH_INTERVAL = 5.0

# llmster takes the place of the shell, so that its process is ours. Beside it another one reads from a pipe that ends
# with this process, also when that is killed: llmster never stays behind, with a control port and a download.
_WITH_US = 'exec 3<&0; (read -r _ <&3 || kill "$$") & exec "$0" </dev/null 3<&-'
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\r\x07]")


class GetError(Exception):
    """LM Studio has not fetched the model; the text says what it did."""


class WrongModelError(GetError):
    """LM Studio has fetched something else, so going on with it makes no sense."""


def get_arguments(name: str, weights: str) -> list[str]:
    """Return the arguments of lms that fetch a model of the catalogue, its weights in the format gguf or mlx."""
    return ["get", name, f"--{weights}", "-y"]


def fetch(
    install: _lms.Install, home: str, name: str, weights: str, timeout: float, has_room: Callable[[], bool]
) -> None:
    """Have an LM Studio fetch a model into the home folder `home`, not its own, in at most `timeout` seconds.

    It goes on where an earlier try has ended. When `has_room` says no in between, that ends it. Raises GetError, and
    WrongModelError when LM Studio does not know exactly this model afterwards: it takes the next best without a word,
    and its exit code says nothing.
    """
    make_directory(home, 0o700)
    with _daemon(install.llmster, home) as end_daemon:
        with _watched(has_room, end_daemon) as full:
            got = _lms.call([install.lms, *get_arguments(name, weights)], home, timeout)
        if full.is_set():
            raise GetError(f"lms get {name} was ended, because the disk of {home} is nearly full: make room")
        if got.timed_out:
            raise GetError(f"lms get {name} was not complete within {timeout:g} s; run again to go on")
        _require_key(install.lms, home, name, got)


def _require_key(lms: str, home: str, name: str, got: Result) -> None:
    """Wait until LM Studio lists the model, as long as that may be. Raises GetError, WrongModelError."""
    wanted = name.split("@")[0]
    deadline = time.monotonic() + (LIST_TIMEOUT if got.rc == 0 else 0)
    while True:
        keys, trouble = _keys(lms, home)
        if any(wanted in (key, key.split("/")[-1]) for key in keys):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    said = _said(got.err) or _said(got.out) or "nothing"
    has = f"LM Studio has no model with the key {wanted}. It has: {', '.join(keys) or trouble or 'none'}"
    if got.rc != 0:
        raise GetError(f"lms get {name} failed, {has}. lms said: {said}")
    raise WrongModelError(f"after lms get {name} {has}. Nothing was kept. Correct source.catalog. lms said: {said}")


def _keys(lms: str, home: str) -> tuple[list[str], str]:
    answer = _lms.call([lms, "ls", "--json"], home, LIST_TIMEOUT)
    try:
        return sorted(entry["modelKey"] for entry in json.loads(answer.out)), ""
    except (ValueError, KeyError, TypeError):
        return [], f"lms ls does not tell: {_said(answer.said())}"


@contextlib.contextmanager
def _daemon(llmster: str, home: str):
    """Run llmster for a home while the body runs; give what ends it."""
    _wait_for_the_last(home)
    remove_file(_info(home))
    log = os.path.join(home, "llmster.log")
    with open(log, "wb") as output:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _WITH_US, llmster],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_lms.environment(home),
            cwd=home,
            start_new_session=True,
        )
    try:
        _wait_until_up(child, home, log)
        yield child.terminate
    finally:
        child.terminate()
        try:
            child.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(b"\n")  # it has ended: nothing is to be killed any more
            child.stdin.close()


def _info(home: str) -> str:
    return os.path.join(home, ".lmstudio", ".internal", "http-server.json")


def _published(home: str) -> int | None:
    info = read_json(_info(home))
    pid = info.get("pid") if isinstance(info, dict) and isinstance(info.get("port"), int) else None
    return pid if isinstance(pid, int) and pid > 1 else None


def _wait_for_the_last(home: str) -> None:
    """Wait for the daemon of a run that was killed: it has been told to end."""
    pid, deadline = _published(home), time.monotonic() + END_TIMEOUT
    while alive(pid, of_this_user=True) and time.monotonic() < deadline:
        time.sleep(0.5)


def _wait_until_up(child: subprocess.Popen, home: str, log: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while _published(home) is None:
        if child.poll() is not None:
            raise GetError(
                f"llmster, which is to fetch it, ended with exit code {child.returncode}: {_tail(log)}. "
                "It needs one of LM Studio's five control ports for itself: end an instance, or another LM Studio."
            )
        if time.monotonic() > deadline:
            raise GetError(f"llmster, which is to fetch it, was not up within {START_TIMEOUT:g} s: {_tail(log)}")
        time.sleep(0.2)
    parent_of = _mac.parents(run(["/bin/ps", "-axo", "pid=,ppid="], timeout=30).out)
    pid = _published(home)
    if not _mac.descends_from(pid, child.pid, parent_of):
        raise GetError(
            f"llmster, which is to fetch it, works with another daemon (process {pid}). LM Studio does not run "
            "two daemons side by side here: give the model a source huggingface or url"
        )


@contextlib.contextmanager
def _watched(has_room: Callable[[], bool], end: Callable[[], None]):
    """While the body runs, see that there is room, and `end` when there is not; give the event that tells so."""
    over, full = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_INTERVAL):
            if not has_room():
                full.set()
                end()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield full
    finally:
        over.set()
        watcher.join()


def _said(text: str) -> str:
    lines = [line.strip() for line in _ESCAPES.sub("", text).splitlines() if line.strip()]
    return " | ".join(lines[-5:])[-500:]


def _tail(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as stream:
        return _said(stream.read()[-4000:]) or "it said nothing"
