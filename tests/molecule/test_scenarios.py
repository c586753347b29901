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


@pytest.fixture(scope="module")
def molecule(tmp_path_factory):
    """Return a function that runs molecule; the sandbox Macs are up meanwhile."""
    home = tmp_path_factory.mktemp("home")

    def run(*words: str) -> None:
        environment = {
            **os.environ,
            "ANSIBLE_HOME": str(home / "ansible"),
            "MOLECULE_EPHEMERAL_DIRECTORY": str(home / "molecule"),
            "NO_COLOR": "1",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        answer = subprocess.run(
            [BIN / "molecule", *words],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout

    run("destroy", "--scenario-name", "default")
    run("create", "--scenario-name", "default")
    yield run
    run("destroy", "--scenario-name", "default")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(molecule, scenario):
    molecule("test", "--scenario-name", scenario)
