# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# The folders by the time that their tests take; one that is not listed comes before those.
QUICK_TO_SLOW = ["unit", "sandbox", "molecule", "gateway", "e2e"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run the quick tests first, so that a mistake shows soon, and say which may run side by side.

    Each file of tests/e2e has sandbox Macs of its own. All others share ports and a realm.
    """
    items.sort(key=lambda item: _rank(_folder(item)))
    for item in items:
        group = item.path.stem if _folder(item) == "e2e" else "others"
        item.add_marker(pytest.mark.xdist_group(group))


def _folder(item) -> str:
    return item.path.relative_to(FOLDER).parts[0]


def _rank(folder: str) -> int:
    return QUICK_TO_SLOW.index(folder) if folder in QUICK_TO_SLOW else -1
