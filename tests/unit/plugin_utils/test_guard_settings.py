# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of the queue guard that make no sense are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_schema, guard_settings

ROLES = Path(__file__).resolve().parents[3] / "roles"
DEFAULTS = fleet_schema.role_defaults(ROLES, "queue_guard")


def test_the_defaults_are_sound():
    assert list(guard_settings.problems(DEFAULTS)) == []


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("queue_guard_pause_after", 0, "at least 1"),
        ("queue_guard_max_paused_share", 1.5, "from 0 to 1"),
        ("queue_guard_max_paused_share", -1, "at least 0"),
        ("queue_guard_ttl", 22, "at least 23"),
        ("queue_guard_slow_factor", 0.5, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_named(variable, value, words):
    ((named, message),) = guard_settings.problems({**DEFAULTS, variable: value})
    assert named == variable and words in message


def test_every_number_is_looked_at():
    numbers = {name for name, value in DEFAULTS.items() if isinstance(value, (int, float))}
    looked_at = {guard_settings.PREFIX + name for name in guard_settings.LEAST}
    assert numbers - looked_at == {"queue_guard_ttl", "queue_guard_metrics_port"}, "those are checked otherwise"
