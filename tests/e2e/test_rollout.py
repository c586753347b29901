# SPDX-License-Identifier: GPL-3.0-or-later
"""A live fleet is changed under load: every request is answered whole. What may go wrong has files of its own."""

from __future__ import annotations

import pytest

from as_declared import assert_as_declared
from fleet_under_test import Fleet
from lent_gateway import lent
from live_fleet import EMBED, UNCHANGED, changed, declare, paused, registered, without_a_gap

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def live(fleet: Fleet) -> Fleet:
    with lent(fleet, "mac-1"):
        declare(without_a_gap(fleet)).play().succeeded()
    return fleet


def test_new_settings_of_every_instance_cost_no_request(live, traffic, tmp_path):
    new = changed(live, tmp_path, context_length=6000)
    with traffic:
        traffic.wait_for(8)
        run = new.play()
        traffic.wait_for(8)
    run.succeeded().said("mac-1 chat-a live its models changed", "mac-2 chat-b live its models changed")
    run.said("Batch 1 of", "mac-1 was out for", "mac-2 was out for", "ended, 0 failed")
    traffic.assert_none_failed()
    assert_as_declared(new)
    assert paused(new, "rollout") == set()


def test_other_ports_and_instances_that_take_the_place_of_others_cost_no_request(live, traffic, tmp_path):
    """All models of the group move: at each time, the gateway must know where they are now, and which come first."""
    places = [{"name": "chat-a", "port": 1244}, {"name": "chat-c", "port": 1235}]  # the port of chat-b
    new = declare(changed(live, tmp_path, context_length=6000), places)
    new.variables["all"]["lmfleet_local_first"] = True
    with traffic:
        traffic.wait_for(8)
        new.play().succeeded()
        traffic.wait_for(8)
    traffic.assert_none_failed()
    assert_as_declared(new)
    orders = {name: one["litellm_params"].get("order") for name, one in registered(new).items()}
    assert (orders["mac-1-chat-a-pretender"], orders["mac-2-chat-a-pretender"]) == (1, 2)
    again = new.play().succeeded()
    assert again.changed == UNCHANGED
    assert "Show what will be changed" not in again.output


def test_what_would_leave_nothing_is_refused(live, tmp_path):
    new = declare(changed(live, tmp_path), [{"name": "chat-a", "port": 1260}], {**EMBED, "port": 1280})
    refused = new.play()
    assert refused.code != 0
    refused.said("model group pretender-embed", "embed on mac-2", "lmfleet_allow_downtime: true")
    assert refused.changed == UNCHANGED
