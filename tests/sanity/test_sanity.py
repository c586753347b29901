# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-test sanity as a test among the others, which it need not hold up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_collection_as_it_ships_is_sane():
    command = [sys.executable, Path(__file__).with_name("run.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
