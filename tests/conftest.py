# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

import leftovers

FOLDER = Path(__file__).parent
# The folders by the time that their tests take; one that is not listed comes before those.
QUICK_TO_SLOW = ["sanity", "unit", "sandbox", "molecule", "gateway", "e2e"]
# Files of tests/e2e that take minutes, the longest first: none shall be left over for one process at the end.
LONG = [
    "test_instances.py",
    "test_site.py",
    "test_drift.py",
    "test_rollout_interrupted.py",
    "test_rollout_faults.py",
    "test_two_gateways.py",
    "test_rollout.py",
    "test_model_cache.py",
]


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        leftovers.end_of_dead_runs()
        os.environ[leftovers.MARK] = leftovers.this_run()


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        leftovers.end_of(os.environ.pop(leftovers.MARK, ""))


def pytest_collection_modifyitems(items):
    """Run the quick tests first, so that a mistake shows soon."""
    items.sort(key=lambda item: _rank(item.path.relative_to(FOLDER)))


def _rank(file: Path) -> tuple[int, int]:
    folder = file.parts[0]
    return (
        QUICK_TO_SLOW.index(folder) if folder in QUICK_TO_SLOW else -1,
        LONG.index(file.name) if file.name in LONG else len(LONG),
    )


class SideBySide(LoadScopeScheduling):
    """What may run at the same time.

    Each process has a realm of sandbox Macs for the files of tests/e2e. All others share one, and its address with it;
    those of tests/gateway start LiteLLM, which takes a core, one after the other.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        if file.startswith(("tests/e2e/", "tests/unit/", "tests/sanity/")):
            return file
        return "gateway" if file.startswith("tests/gateway/") else "sandbox"

    def _reschedule(self, node) -> None:
        """Give a process its next file with its last test: until then another one may come to be idle."""
        if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
            super()._reschedule(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return SideBySide(config, log)
