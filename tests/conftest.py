# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all tests."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# The folders by the time that their tests take; one that is not listed comes before those.
QUICK_TO_SLOW = ["unit", "sandbox", "molecule", "gateway", "e2e"]


def pytest_collection_modifyitems(items):
    """Run the quick tests first, so that a mistake shows soon."""
    items.sort(key=lambda item: _rank(item.path.relative_to(FOLDER).parts[0]))


def _rank(folder: str) -> int:
    return QUICK_TO_SLOW.index(folder) if folder in QUICK_TO_SLOW else -1
