# SPDX-License-Identifier: GPL-3.0-or-later
"""What the gateway runner says, and the keys that clients may send."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _gateway_release as release

DOCUMENT = {"format": 1, "pid": 1, "at": 100.0, "serving": "3", "starting": None, "refused": None}


@pytest.mark.parametrize(
    ("document", "alive", "now"),
    [
        (None, True, 100.0),
        ([], True, 100.0),
        ({**DOCUMENT, "format": 2}, True, 100.0),
        (DOCUMENT, False, 100.0),
        (DOCUMENT, True, 100.0 + release.FRESH_SECONDS + 1),
    ],
)
def test_only_a_live_runner_has_a_status(document, alive, now):
    assert release.live_status(document, alive, now) is None


def test_a_status_tells_what_became_of_a_release():
    status = release.live_status(DOCUMENT, True, 101.0)
    assert release.outcome(status, "3") == ""
    assert release.outcome(status, "4") is None
    assert release.outcome(None, "4") is None
    refused = status._replace(refused={"release": "4", "reason": "no luck"}, starting="5")
    assert release.outcome(refused, "4") == "no luck"
    assert refused.said() == "release 3 serves, release 5 is starting"
    assert status._replace(serving=None).said() == "nothing serves"
    assert refused.running() == {"3", "5"}
    assert release.live_status({**DOCUMENT, "ending": ["1", "2"]}, True, 101.0).running() == {"1", "2", "3"}


@pytest.mark.parametrize(("names", "following"), [([], "1"), (["1", "10", "2"], "11"), (["x"], "1")])
def test_releases_are_numbered(names, following):
    assert release.next_name(names) == following


def test_a_former_key_is_accepted_for_a_while():
    first = release.keys_after(None, "a", 60, 0)
    assert first["keys"] == [{"key": "a", "until": None}]
    assert release.keys_after(first, "a", 60, 5) is first
    second = release.keys_after(first, "b", 60, 10)
    assert second["keys"] == [{"key": "b", "until": None}, {"key": "a", "until": 70}]
    # Time goes by, and nothing is to be written for it.
    assert release.keys_after(second, "b", 60, 11) is second
    assert release.keys_after(second, "b", 60, 71) is second
    third = release.keys_after(second, "c", 60, 20)
    assert third["keys"] == [{"key": "c", "until": None}, {"key": "b", "until": 80}, {"key": "a", "until": 70}]
    # Back to a key that is still in its time of grace.
    assert release.keys_after(third, "a", 60, 30)["keys"][0] == {"key": "a", "until": None}


def test_no_key_ends_while_a_change_is_under_way():
    first = release.keys_after(None, "a", 60, 0)
    during = release.keys_with(first, "b")
    assert during["keys"] == [{"key": "b", "until": None}, {"key": "a", "until": None}]
    second = release.keys_after(during, "b", 60, 10)
    assert second == release.keys_after(first, "b", 60, 10)
    assert release.keys_with(second, "a")["keys"] == [{"key": "a", "until": None}, {"key": "b", "until": None}]


def test_a_shorter_grace_holds_for_keys_that_were_replaced_before():
    keys = release.keys_after(release.keys_after(None, "a", 60, 0), "b", 60, 0)
    assert release.keys_after(keys, "b", 10, 5)["keys"][1] == {"key": "a", "until": 15}
    assert release.keys_after(keys, "b", 0, 5)["keys"] == [{"key": "b", "until": None}]
