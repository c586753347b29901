# SPDX-License-Identifier: GPL-3.0-or-later
"""The molecule scenarios, each a test: roles used on their own, without a fleet plan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

BIN = Path(sys.executable).parent
SCENARIOS = sorted(path.parent.name for path in REPOSITORY.glob("extensions/molecule/*/converge.yml"))

pytestmark = [pytest.mark.molecule, pytest.mark.sandbox, pytest.mark.timeout(600)]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario, tmp_path):
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path / "molecule"),
        "NO_COLOR": "1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    answer = subprocess.run(
        [BIN / "molecule", "test", "--scenario-name", scenario],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
