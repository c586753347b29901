# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests between two looks; how counts are compared is in module_utils/test_outcomes.py."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.filter.requests_since import requests_since


def look(gateway, failed, ended):
    outcomes = {"failed_requests": failed, "deployments": {"a": {"ended": ended}}}
    return {"gateway": gateway, "workers": [{"pid": 1, "started_at": 1.0, "outcomes": outcomes}]}


def test_all_gateways_that_were_seen_twice_count():
    before = [look("one", 1, 10), look("two", 0, 0), {"gateway": "gone", "skipped": True}]
    after = [look("one", 2, 30), look("two", 1, 5), look("new", 9, 9), {"gateway": "gone", "failed": True}]
    assert requests_since(before, after) == {"ended": 25, "failed": 2}
