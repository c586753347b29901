# SPDX-License-Identifier: GPL-3.0-or-later
"""The program: ``queue_guard.pyz <folder>``.

It asks every instance how long its queue is, and pauses deployments at the gateway while they are slow, by writing
``paused/guard.json`` in the gateway's registry: nothing else. Each pause ends by itself when the guard no longer
renews it. ``<folder>/settings.json`` tells it what to do; ``<folder>/guard.log`` has one JSON line per decision.

Exit codes: 0 stopped; 69 another guard is running, or the metrics port is taken; 78 the settings are invalid.

Needs nothing but the Python 3.9 of the Command Line Tools.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import signal
import sys

from .files import AnotherGuardError, only_one
from .guard import Guard
from .metrics import serve
from .settings import read_plan

EX_UNAVAILABLE = 69
EX_CONFIG = 78


async def guard_until_stopped(guard: Guard) -> None:
    server = await serve(guard.plan.metrics_address, guard.plan.metrics_port, guard.metrics)
    task = asyncio.ensure_future(guard.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        server.close()


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: queue_guard.pyz FOLDER", file=sys.stderr)
        return EX_CONFIG
    folder = os.path.abspath(arguments[1])
    try:
        plan = read_plan(os.path.join(folder, "settings.json"))
    except ValueError as error:
        print(f"queue_guard: {error}", file=sys.stderr)
        return EX_CONFIG
    try:
        lock = only_one(folder)
    except AnotherGuardError as error:
        print(f"queue_guard: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    log = logging.getLogger("queue_guard")
    log.setLevel(logging.INFO)
    log.addHandler(
        logging.handlers.RotatingFileHandler(
            os.path.join(folder, "guard.log"), maxBytes=plan.log_bytes, backupCount=plan.log_files
        )
    )
    logging.raiseExceptions = False  # a full disk must not stop the guard
    try:
        asyncio.run(guard_until_stopped(Guard(folder, plan, log)))
    except OSError as error:
        print(f"queue_guard: {plan.metrics_address}:{plan.metrics_port}: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    finally:
        os.close(lock)
    return 0
