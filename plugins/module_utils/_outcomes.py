# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has come of a gateway's requests, as its workers count, and whether a deployment does worse. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ._registry import Worker

#: A single failure, or a single slow answer, is no reason.
FEWEST_FAILURES = 2
FEWEST_STREAMS = 5
#: How much larger the share of failed attempts may be than that of the others.
FAILED_SHARE = 0.05
#: How many times as long the first token may take as elsewhere, beyond so many seconds.
TIMES_SLOWER = 2.0
SECONDS_SLOWER = 0.5

_COUNTS = ("ended", "failed", "streams", "first_token_seconds")


class Outcomes(NamedTuple):
    """Requests of clients that failed, and by deployment the counts that the plugin of the gateway keeps."""

    failed_requests: int
    deployments: dict

    def of(self, ids: Iterable[str]) -> dict:
        """Return the sum of the counts of some deployments."""
        found = [self.deployments.get(name, {}) for name in ids]
        return {count: sum(one.get(count, 0) for one in found) for count in _COUNTS}


def between(before: Iterable[Worker], after: Iterable[Worker]) -> Outcomes:
    """Return what has come of the requests since `before`. A worker that has ended meanwhile took its counts along."""
    known = {(worker.pid, worker.started_at): worker.outcomes for worker in before}
    failed, deployments = 0, {}
    for worker in after:
        former = known.get((worker.pid, worker.started_at), {})
        failed += worker.outcomes.get("failed_requests", 0) - former.get("failed_requests", 0)
        for name, counts in worker.outcomes.get("deployments", {}).items():
            old = former.get("deployments", {}).get(name, {})
            sums = deployments.setdefault(name, dict.fromkeys(_COUNTS, 0))
            for count in _COUNTS:
                sums[count] += counts.get(count, 0) - old.get(count, 0)
    return Outcomes(failed, deployments)


def worse(seen: Outcomes, chosen: Iterable[str], others: Iterable[str]) -> str:
    """Return in which way `chosen` did worse than `others` of the same model group, "" when they did not."""
    chosen = list(chosen)
    mine, theirs = seen.of(chosen), seen.of(others)
    names = ", ".join(chosen)
    if mine["failed"] >= FEWEST_FAILURES and _share(mine) > _share(theirs) + FAILED_SHARE:
        return f"{names}: {_share(mine):.0%} of {_attempts(mine)} requests failed, elsewhere {_share(theirs):.0%}"
    if min(mine["streams"], theirs["streams"]) >= FEWEST_STREAMS:
        own, usual = _first_token(mine), _first_token(theirs)
        if own > TIMES_SLOWER * usual + SECONDS_SLOWER:
            return f"{names}: the first token takes {own:.1f} s on average, elsewhere {usual:.1f} s"
    return ""


def _attempts(counts: dict) -> int:
    return counts["ended"] + counts["failed"]


def _share(counts: dict) -> float:
    return counts["failed"] / max(1, _attempts(counts))


def _first_token(counts: dict) -> float:
    return counts["first_token_seconds"] / counts["streams"]
