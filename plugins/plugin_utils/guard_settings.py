# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes no sense in the settings of the queue guard. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "queue_guard_"
#: The smallest value that makes sense.
LEAST = {
    "interval": 0.5,
    "timeout": 0.1,
    "max_status_age": 1,
    "max_queue": 0,
    "max_queue_factor": 0.1,
    "resume_queue_factor": 0,
    "max_first_token": 0,
    "pause_after": 1,
    "resume_after": 1,
    "min_pause": 0,
    "max_paused_share": 0,
    "slow_factor": 1,
    "trial_timeout": 0.1,
    "trial_interval": 1,
    "log_max_mb": 1,
    "log_keep": 0,
    "start_timeout": 1,
}


def least_ttl(values: Mapping[str, Any]) -> float:
    """Return the shortest end of a pause that a guard can renew in time: twice what a look may take."""
    return 2 * (values["queue_guard_interval"] + 2 * values["queue_guard_timeout"] + 0.5)


def problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (variable, message); `values` are the variables of the role with its defaults, as numbers."""
    for name, least in LEAST.items():
        if values[PREFIX + name] < least:
            yield PREFIX + name, f"must be at least {least:g}, not {values[PREFIX + name]:g}."
    if values["queue_guard_max_paused_share"] > 1:
        yield "queue_guard_max_paused_share", f"must be from 0 to 1, not {values['queue_guard_max_paused_share']:g}."
    if values["queue_guard_ttl"] < least_ttl(values):
        yield (
            "queue_guard_ttl",
            f"must be at least {least_ttl(values):g}, twice what a look may take (queue_guard_interval, "
            f"queue_guard_timeout), not {values['queue_guard_ttl']:g}: pauses would end before they are renewed.",
        )
