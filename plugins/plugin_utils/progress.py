# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Says how far a long download is while a module runs that cannot say so itself."""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
from collections.abc import Callable, Iterator

from ansible.module_utils.common.text.converters import to_text

_GB = 1e9


def command(fetching: str) -> str:
    """Return the shell command that prints what is fetched, one line of JSON, and how much of it is there, in bytes."""
    quoted = shlex.quote(fetching)
    part = f'part="$(sed -n \'s/.*"part": *"\\([^"]*\\)".*/\\1/p\' {quoted})"'
    # wc does not read a plain file to tell its size. LM Studio fetches into a folder.
    size = 'if [ -d "$part" ]; then echo $(($(du -sk "$part" | cut -f1) * 1024)); else wc -c < "$part"; fi'
    return f"cat {quoted} && echo && {part} && {size}"


def line(printed: str) -> str | None:
    """Return how far the download is, for people, from what the command printed; None where it does not tell."""
    try:
        told, have = printed.strip().rsplit("\n", 1)
        fetching = json.loads(told)
        name, total, number, of = (fetching[key] for key in ("name", "total", "number", "of"))
        share = f"{int(have) / _GB:.1f} of {total / _GB:.1f} GB" if total else f"{int(have) / _GB:.1f} GB"
    except (ValueError, KeyError, TypeError):
        return None
    return f"model {name}: {share}" + (f", file {number} of {of}" if of > 1 else "")


@contextlib.contextmanager
def told(run: Callable[[str], dict], show: Callable[[str], None], fetching: str, interval: float) -> Iterator[None]:
    """Show how far it is every `interval` seconds, while the body runs.

    `run` runs a command on the Mac, `fetching` is the file there that tells what is being fetched.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(interval):
            # Nothing of this may disturb the download.
            with contextlib.suppress(Exception):
                text = line(to_text(run(command(fetching)).get("stdout") or ""))
                if text and not ended.is_set():
                    show(text)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(10)
