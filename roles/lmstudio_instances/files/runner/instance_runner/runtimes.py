# SPDX-License-Identifier: GPL-3.0-or-later
"""The inference runtimes of this instance: the declared versions are selected, and read back.

Nothing is downloaded: `lms runtime get` knows versions, but no checksums.
"""

from __future__ import annotations

import time
from typing import Callable

from .lms import Answer
from .logs import log

RUNTIME_CHECK = 300.0  # seconds between two looks at which runtimes are selected


def parse_list(text: str) -> dict[str, bool] | None:
    """Return {name@version: whether it is selected} of `lms runtime ls`, None when that is not what it is."""
    rows = [line.split() for line in text.splitlines()]
    found = {words[0]: any(word in ("✓", "✔") for word in words[1:]) for words in rows if words and "@" in words[0]}
    return found if found or any("SELECTED" in words for words in rows) else None


def missing(name: str, version: str, installed: dict[str, bool]) -> str:
    """Return in words that a runtime is not there, and what to do."""
    there = [one.partition("@")[2] for one in installed if one.partition("@")[0] == name]
    known = f"installed is {', '.join(there)}" if there else "no version of it is installed"
    return (
        f"runtime {name}: version {version} is not installed ({known}). Declare one that is, or install it with "
        f"`lms runtime get {name}@{version}`, called with HOME and LMS_API_SERVER_INFO_PATH of this instance"
    )


class Runtimes:
    """Which runtimes are selected, as last seen. `ask` calls lms."""

    def __init__(self, ask: Callable[..., Answer]) -> None:
        self._ask = ask
        self._next_check = 0.0
        self.pending = True  # whether what is declared has not been looked at yet
        self.selected: dict[str, str] = {}
        self.problems: list[str] = []

    def check_soon(self) -> None:
        """Make the next check due, for what is declared anew."""
        self._next_check = 0.0
        self.pending = True

    def check(self, declared: dict[str, str]) -> bool:
        """When it is due, select what is declared; return whether a selection changed."""
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + RUNTIME_CHECK
        selected_anew = self._select(declared)
        self.pending = False
        return selected_anew

    def _select(self, declared: dict[str, str]) -> bool:
        self.problems, self.selected = [], {}
        wanted = [f"{name}@{version}" for name, version in declared.items()]
        installed = self._list() if wanted else {}
        to_select = [one for one in wanted if installed is not None and installed.get(one) is False]
        for one in to_select:
            log(f"selecting runtime {one}: {self._ask(['runtime', 'select', one]).said()}")
        if to_select:
            installed = self._list()
        if installed is None:
            return bool(to_select)
        for name, version in declared.items():
            selected = installed.get(f"{name}@{version}")
            if selected:
                self.selected[name] = version
            elif selected is False:
                self.problems.append(f"runtime {name}: version {version} is installed and does not get selected")
            else:
                self.problems.append(missing(name, version, installed))
        return bool(to_select)

    def _list(self) -> dict[str, bool] | None:
        answer = self._ask(["runtime", "ls"])
        installed = parse_list(f"{answer.out}\n{answer.err}")
        if installed is None:
            self.problems = [f"lms runtime ls does not tell which runtimes there are: {answer.said()}"]
        return installed
