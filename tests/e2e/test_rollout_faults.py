# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of a live fleet that does no good: no request fails, and what it changed goes back where it can."""

from __future__ import annotations

import pytest

from as_declared import assert_as_declared
from fleet_under_test import Run, gateway_url
from live_fleet import UNCHANGED, paused, repaired, slim, stopped, wait_for
from traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

# Too little memory for LENGTH_THAT_DOES_NOT_FIT, and enough for all the others.
LITTLE_MEMORY = "llmster.load_memory_mb@chat-a=1092"
LENGTH_THAT_DOES_NOT_FIT = 30_000


def test_what_comes_back_and_does_not_answer_is_put_back_and_stops_the_roll_out(live, traffic, tmp_path):
    bad = slim(live, tmp_path, port=1254, length=9000)
    bad.variables["macs"]["lmstudio_instances_probe_timeout"] = 5
    live.sandbox("knob", "mac-1", "llmster.computes_up_to_context@chat-a=8000")
    with traffic:
        traffic.wait_for(8)
        run = bad.play()
        traffic.wait_for(8)
    live.sandbox("knob", "mac-1", "--clear")
    stopped(run)
    run.said("mac-1 (chat-a):", "Compute error.", "mac-1: chat-a has again what it had before this run")
    assert run.changed["mac-2"] == 0
    traffic.assert_none_failed()
    assert_as_declared(live)
    assert paused(live, "rollout") == set()
    assert live.play().succeeded().changed == UNCHANGED


def test_what_does_not_come_back_is_restored_and_what_was_changed_before_it_too(live, traffic, tmp_path):
    bad = slim(live, tmp_path, port=1254, length=LENGTH_THAT_DOES_NOT_FIT)
    bad.variables["macs"].update(lmstudio_instances_ready_timeout=15, lmfleet_rollback="fleet")
    live.sandbox("knob", "mac-2", LITTLE_MEMORY)
    with traffic:
        traffic.wait_for(8)
        run = bad.play()
        traffic.wait_for(8)
    live.sandbox("knob", "mac-2", "--clear")
    stopped(run)
    run.said("mac-2: instance chat-a", "It has its former declaration back, and serves")
    run.said("mac-1: chat-a has again what it had before this run")
    traffic.assert_none_failed()
    assert_as_declared(live)
    assert paused(live, "rollout") == set()


def test_the_first_mac_gets_back_what_it_had_when_it_does_worse_than_the_others(live, tmp_path):
    slower = slim(live, tmp_path, port=1254)
    slower.variables["all"]["lmfleet_canary_bake_seconds"] = 120
    with Traffic(gateway_url("mac-1"), live.master_key(), "pretender", pause=1) as traffic:
        traffic.wait_for(20)
        process = slower.start()
        wait_for(lambda: paused(live, "rollout"), process)
        wait_for(lambda: not paused(live, "rollout"), process)
        # Its first word then takes a second.
        live.sandbox("knob", "mac-1", "llmster.slow_factor@chat-a=40")
        wait_for(lambda: paused(live, "rollout"), process)
        live.sandbox("knob", "mac-1", "--clear")
        run = Run(process, process.communicate()[0])
        traffic.wait_for(20)
    stopped(run)
    run.said("the first token takes", "mac-1: chat-a has again what it had before this run")
    assert run.changed["mac-2"] == 0
    traffic.assert_none_failed()
    assert_as_declared(live)


def test_requests_that_do_not_end_stop_the_roll_out_and_are_answered(live, traffic, tmp_path):
    new = slim(live, tmp_path, port=1254)
    new.variables["all"]["lmfleet_drain_timeout"] = 3
    live.sandbox("knob", "mac-1", "llmster.slow_factor@chat-a=20")
    long = Traffic(gateway_url("mac-1"), live.master_key(), "mac-1-chat-a-pretender", clients=2, pause=0.05)
    with traffic:
        with long:
            traffic.wait_for(8)
            run = new.play()
        live.sandbox("knob", "mac-1", "--clear")
        traffic.wait_for(8)
    stopped(run)
    run.said("requests to end: mac-1-chat-a-pretender has")
    assert not long.failed(), long.said()
    traffic.assert_none_failed()
    assert_as_declared(live)
    assert paused(live, "rollout") == set()


def test_a_mac_whose_launchd_refuses_stays_paused_and_the_other_one_serves(live, traffic, tmp_path):
    new = slim(live, tmp_path, port=1254)
    new.variables["macs"].update(lmstudio_instances_ready_timeout=20, lmfleet_rollback="fleet")
    live.sandbox("knob", "mac-2", "bootstrap_fails=true")
    with traffic:
        traffic.wait_for(8)
        run = new.play()
        stopped(run)
        run.said("mac-2: instance chat-a", "Still paused", "mac-2 was out for good")
        run.said("mac-1: stays changed, because nothing else serves pretender now")
        assert paused(live, "rollout") == {"mac-2-chat-a-pretender"}
        live.sandbox("knob", "mac-2", "--clear")
        repaired(new, traffic)
