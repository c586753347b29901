# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one LM Studio instance: ``instance_runner.pyz <instance home>``, as the program of a launchd job."""

from __future__ import annotations

import sys

from instance_runner.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
