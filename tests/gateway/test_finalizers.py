# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker does not crash on the streams that are over, whenever Python clears them away."""

from __future__ import annotations

import os
import subprocess

import pytest

from gateway_under_test import REPOSITORY

pytestmark = pytest.mark.gateway

# Streams whose clients are gone, cleared away by the garbage collector while a context variable is being set.
SCRIPT = """
import gc, sys, types
from contextvars import ContextVar
sys.path.insert(0, {files!r})
{prepare}
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper

variables = [ContextVar(str(number)) for number in range(200)]
for variable in variables:
    variable.set(object())
gc.set_threshold(1, 1, 1)
for number in range(20_000):
    stream = CustomStreamWrapper.__new__(CustomStreamWrapper)
    stream.logging_obj = types.SimpleNamespace(
        _restore_correlation_context_if_unclaimed=lambda: variables[0].set(object())
    )
    stream.itself = stream
    del stream
    variables[number % 200].set(object())
"""


def clear_away(installed, prepare):
    python = installed / "current" / "venv" / "bin" / "python"
    script = SCRIPT.format(files=str(REPOSITORY / "roles" / "litellm" / "files"), prepare=prepare)
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [python, "-c", script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_stream_that_is_cleared_away_touches_nothing(installed):
    code, output = clear_away(installed, "import gateway_server")
    assert code == 0, output


def test_without_that_the_worker_would_crash(installed):
    """Once this fails, LiteLLM or Python has mended it, and gateway_server.py need not."""
    assert clear_away(installed, "")[0] < 0
