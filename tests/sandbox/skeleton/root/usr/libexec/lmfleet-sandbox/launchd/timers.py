# SPDX-License-Identifier: GPL-3.0-or-later
"""Things to do later, in the one thread of launchd."""

from __future__ import annotations

import heapq
import itertools
import time


class Timer:
    """A call that is due at `when` (monotonic seconds) unless it is cancelled before."""

    def __init__(self, when: float, call):
        self.when = when
        self.call = call

    def cancel(self) -> None:
        self.call = None


class Timers:
    """A heap of timers."""

    def __init__(self):
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def after(self, seconds: float, call) -> Timer:
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._heap, (timer.when, next(self._order), timer))
        return timer

    def seconds_to_next(self) -> float | None:
        """Seconds until the next call is due; None when nothing waits."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def run_due(self) -> None:
        while self._heap and self._heap[0][0] <= time.monotonic():
            call = heapq.heappop(self._heap)[2].call
            if call:
                call()
