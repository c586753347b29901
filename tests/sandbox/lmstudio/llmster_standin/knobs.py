# SPDX-License-Identifier: GPL-3.0-or-later
"""Test knobs: a flat JSON object on the sandbox Mac, read again when the file changes.

``llmster.<knob>@<instance>`` hits one instance (the last part of its HOME) and wins over ``llmster.<knob>``.
"""

from __future__ import annotations

import os

from llmster_standin import home

_seen = {"stamp": None, "values": {}}


def _path():
    return os.environ.get("LMFLEET_SANDBOX_KNOBS", "/var/db/lmfleet-sandbox/knobs.json")


def _values():
    try:
        status = os.stat(_path())
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
    except OSError:
        stamp = None
    if stamp != _seen["stamp"]:
        values = home.read_json(_path()) if stamp else {}
        _seen["values"] = values if isinstance(values, dict) else {}
        _seen["stamp"] = stamp
    return _seen["values"]


def machine(key, default):
    """Return a knob of the whole Mac, such as memory_gb."""
    return _values().get(key, default)


def get(name, default=None):
    """Return the value of ``llmster.<name>`` for this instance."""
    values = _values()
    key = "llmster." + name
    return values.get(f"{key}@{home.instance_name()}", values.get(key, default))


def slow_factor():
    """Return by how much every fake-engine duration is multiplied (1.0 = normal, 2.0 = twice as slow)."""
    return max(0.0, float(get("slow_factor", 1.0) or 1.0))
