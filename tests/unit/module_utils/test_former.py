# SPDX-License-Identifier: GPL-3.0-or-later
"""What an instance gets back when its change goes wrong."""

from __future__ import annotations

import json
import plistlib

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _former as former
from ansible_collections.lmfleet.mac.plugins.module_utils._instances import Found, parse_wanted
from ansible_collections.lmfleet.mac.plugins.module_utils._launchd import Actual, Job, canonical

PLIST = {"Label": "lmfleet.instance.a", "ProgramArguments": ["/usr/bin/python3"], "KeepAlive": True}


def wanted(port):
    declaration = {"name": "a", "address": "127.0.0.1", "port": port, "models": [{"identifier": "m"}]}
    return parse_wanted({"name": "a", "declaration": json.dumps(declaration), "plist": plistlib.dumps(PLIST).decode()})


def found(port, state):
    one = wanted(port)
    status = {"pid": 7, "state": state, "generation": one.generation}
    actual = Actual(canonical(one.service.plist), True, Job("running", 7, None, "/L/a.plist"))
    return Found(one.content, status, 1.0, actual, True, True, None, False)


@pytest.mark.parametrize(
    ("came_to", "port"),
    [("loading", 1), ("degraded", 1), ("ready", 2)],
)
def test_it_is_what_served_last_also_when_a_run_was_cut_off(tmp_path, came_to, port):
    """The change from port 1 to 2 was cut off; then comes one from 2 to 3."""
    home = str(tmp_path)
    former.remember(home, found(1, "ready"), None)
    former.remember(home, found(2, came_to), None)
    assert former.unfinished(home)
    assert former.recall("a", home).wanted.port == port
