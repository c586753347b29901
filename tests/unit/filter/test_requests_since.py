# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests between two looks; how counts are compared is in module_utils/test_outcomes.py."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.filter.requests_since import requests_since


def look(gateway, failed, ended, pids=(1,)):
    outcomes = {"failed_requests": failed, "deployments": {"a": {"ended": ended}}}
    return {"gateway": gateway, "workers": [{"pid": pid, "started_at": 1.0, "outcomes": outcomes} for pid in pids]}


def test_all_gateways_that_were_seen_twice_count():
    before = [look("one", 1, 10), look("two", 0, 0), {"gateway": "by-api", "skipped": True}]
    after = [look("one", 2, 30), look("two", 1, 5, pids=(1, 2)), {"gateway": "by-api", "skipped": True}]
    assert requests_since(before, after) == {"ended": 30, "failed": 3, "unknown": []}


def test_gateways_that_were_not_seen_twice_are_named():
    before = [look("one", 1, 10), look("gone", 5, 5), look("restarted", 9, 9), look("one-worker-died", 9, 9, (1, 2))]
    after = [look("one", 2, 30), {"gateway": "gone", "failed": True}, look("restarted", 0, 0, pids=(2,))]
    after += [look("one-worker-died", 10, 10, (1, 3)), look("new", 9, 9)]
    unknown = ["gone", "new", "one-worker-died", "restarted"]
    assert requests_since(before, after) == {"ended": 20, "failed": 1, "unknown": unknown}
    assert requests_since(before, [])["unknown"] == ["gone", "one", "one-worker-died", "restarted"]


def test_a_gateway_without_a_worker_is_not_known():
    assert requests_since([look("one", 0, 0, pids=())], [look("one", 0, 0)])["unknown"] == ["one"]
