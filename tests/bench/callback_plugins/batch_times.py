# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell for each batch of a roll-out how long it was out, and what of that was needed.

One line of JSON for each, with the seconds of `out`, `drain` and `change`, is added to the file that the environment
variable LMFLEET_BENCH_BATCHES names. `out` is how long the pause of a deployment lasted, as the gateway tells, `drain`
what the run waited for requests to end, `change` what it took to restart the instances and to load their models.
"""

from __future__ import annotations

import json
import os
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: batch_times
type: aggregate
short_description: Tells how long each batch of a roll-out was out
description: Writes one line for each to a file.
"""

BEGINS = "Send no new requests to what is changed"
PARTS = {
    "Wait until the gateways have no requests at it": "drain",
    "Wait until it has nothing to do": "drain",
    "Run the instances": "change",
}


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NEEDS_ENABLED = True  # the other one stands in the same folder
    CALLBACK_NAME = "batch_times"

    def __init__(self) -> None:
        super().__init__()
        self._part = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def v2_playbook_on_task_start(self, task, is_conditional) -> None:
        now = time.monotonic()
        if self._part:
            self._seconds[self._part] += now - self._since
        if task.name == BEGINS:
            self._seconds = {"drain": 0.0, "change": 0.0}
        self._part = PARTS.get(task.name) if self._seconds else None
        self._since = now

    def v2_runner_item_on_ok(self, result) -> None:
        resumed = result.result.get("resumed")
        if resumed and self._seconds:
            batch = {"out": max(resumed.values()), **self._seconds}
            self._seconds = {}
            with open(os.environ["LMFLEET_BENCH_BATCHES"], "a", encoding="utf-8") as batches:
                batches.write(json.dumps(batch) + "\n")
