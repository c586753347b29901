# SPDX-License-Identifier: GPL-3.0-or-later
"""What has come of requests, and who does worse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils._outcomes import Outcomes, between, worse


def worker(pid, failed_requests=0, started_at=1.0, **deployments):
    outcomes = {"failed_requests": failed_requests, "deployments": deployments}
    return SimpleNamespace(pid=pid, started_at=started_at, outcomes=outcomes)


def test_only_what_has_come_since_counts():
    before = [worker(1, 2, a={"ended": 5, "failed": 1}), worker(2, 0, a={"ended": 7}), worker(3, 9, a={"ended": 9})]
    again = worker(3, 1, started_at=2.0, b={"ended": 4, "streams": 2, "first_token_seconds": 0.5})
    seen = between(before, [worker(1, 3, a={"ended": 6, "failed": 3}), worker(2, 0, a={"ended": 17}), again])
    assert seen.failed_requests == 2
    assert seen.of("a") == {"ended": 11, "failed": 2, "streams": 0, "first_token_seconds": 0}
    assert seen.of("ab")["ended"] == 15
    assert seen.of("b")["first_token_seconds"] == 0.5


def test_a_worker_that_does_not_count_yet():
    former = SimpleNamespace(pid=1, started_at=1.0, outcomes={})
    assert between([former], [former]) == Outcomes(0, {})


def counts(ended=0, failed=0, streams=0, seconds=0.0):
    return {"ended": ended, "failed": failed, "streams": streams, "first_token_seconds": seconds}


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        (counts(50, 1), counts(50), ""),
        (counts(10, 2), counts(50), "17% of 12 requests failed, elsewhere 0%"),
        (counts(10, 2), counts(10, 2), ""),
        (counts(100, 4), counts(100), ""),
        (counts(9, 0, 5, 10.0), counts(9, 0, 5, 2.0), "the first token takes 2.0 s on average, elsewhere 0.4 s"),
        (counts(9, 0, 4, 10.0), counts(9, 0, 5, 2.0), ""),
        (counts(9, 0, 5, 10.0), counts(9, 0, 4, 2.0), ""),
        (counts(9, 0, 5, 4.0), counts(9, 0, 5, 2.0), ""),
        (counts(), counts(), ""),
    ],
)
def test_worse_is_what_chance_does_not_explain(mine, theirs, told):
    assert told in worse(Outcomes(0, {"a": mine, "b": theirs}), ["a"], ["b"])
    assert bool(told) == bool(worse(Outcomes(0, {"a": mine, "b": theirs}), ["a"], ["b"]))
