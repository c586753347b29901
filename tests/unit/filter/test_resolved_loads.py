# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.filter.resolved_loads import resolved_loads

INSTANCE = {"name": "chat-a", "models": [{"name": "chat", "load": {"cpu_threads": "performance_cores", "parallel": 2}}]}


def test_only_what_depends_on_the_mac_changes():
    (instance,) = resolved_loads([INSTANCE], 8, 4)
    assert instance == {"name": "chat-a", "models": [{"name": "chat", "load": {"cpu_threads": 8, "parallel": 2}}]}


def test_an_error_names_instance_and_model():
    with pytest.raises(ValueError, match=r"instance chat-a, model chat: load.cpu_threads"):
        resolved_loads([INSTANCE], 0, 4)
