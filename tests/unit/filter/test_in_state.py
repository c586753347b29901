# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids become entries of litellm_deployments."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.filter.in_state import in_state


def test_every_id_gets_the_state():
    assert in_state(["a", "b"], "absent") == [{"id": "a", "state": "absent"}, {"id": "b", "state": "absent"}]
    assert in_state([], "paused") == []
