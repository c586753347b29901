# SPDX-License-Identifier: GPL-3.0-or-later
"""Two fresh sandbox Macs for each file of tests."""

from __future__ import annotations

import pytest

from fleet_under_test import Fleet, gateway_url
from lent_gateway import lent
from live_fleet import slim, without_a_gap
from traffic import Traffic


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Two fresh Macs on which nothing is installed."""
    fleet = Fleet(tmp_path_factory.mktemp("inventory"))
    fleet.sandbox("down")
    fleet.sandbox("up", "2")
    yield fleet
    fleet.sandbox("down")


@pytest.fixture(scope="module")
def served(fleet):
    """The fleet after a first run of site.yml."""
    fleet.variables["gateways"]["litellm_workers"] = 2
    fleet.play().succeeded()
    return fleet


@pytest.fixture(scope="module")
def live(fleet, tmp_path_factory):
    """The fleet with one instance of a model group on each Mac, changed as a live fleet is."""
    live = slim(without_a_gap(fleet), tmp_path_factory.mktemp("live"))
    with lent(live, "mac-1"):
        live.play().succeeded()
    return live


@pytest.fixture
def traffic(live):
    """Clients that ask the gateway of the fixture `live` without end, and have not begun."""
    # With less of a pause, clients would take the time of all that is tested here.
    return Traffic(gateway_url("mac-1"), live.master_key(), "pretender", pause=4)
