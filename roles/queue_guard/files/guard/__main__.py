# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the queue guard of a gateway: ``queue_guard.pyz <folder>``, as the program of a launchd job."""

from __future__ import annotations

import sys

from queue_guard.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
