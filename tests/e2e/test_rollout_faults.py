# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever goes wrong while a live fleet is changed: no request fails, and the next run puts everything right."""

from __future__ import annotations

import json
import shlex
import time

import pytest

from as_declared import assert_as_declared
from fleet_under_test import Fleet, Run, gateway_url
from live_fleet import REGISTRY, UNCHANGED, paused, repaired, slim, stopped, wait_for, without_a_gap
from traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

CLAIM = "/Users/admin/.lmfleet/gateway/rollout.json"
UNREACHABLE = 4  # what ansible-playbook ends with when nothing else is wrong
# Too little memory for LENGTH_THAT_DOES_NOT_FIT, and enough for all the others.
LITTLE_MEMORY = "llmster.load_memory_mb@chat-a=1092"
LENGTH_THAT_DOES_NOT_FIT = 30_000


@pytest.fixture(scope="module")
def live(fleet: Fleet, tmp_path_factory) -> Fleet:
    live = slim(without_a_gap(fleet), tmp_path_factory.mktemp("live"))
    live.play().succeeded()
    return live


def test_what_does_not_come_back_is_restored_and_stops_the_roll_out(live, traffic, tmp_path):
    bad = slim(live, tmp_path, length=LENGTH_THAT_DOES_NOT_FIT)
    bad.variables["macs"]["lmstudio_instances_ready_timeout"] = 15
    live.sandbox("knob", "mac-1", LITTLE_MEMORY)
    with traffic:
        traffic.wait_for(20)
        run = bad.play()
        traffic.wait_for(20)
    live.sandbox("knob", "mac-1", "--clear")
    stopped(run)
    run.said("mac-1: instance chat-a", "It has its former declaration back, and serves")
    assert run.changed["mac-2"] == 0
    traffic.assert_none_failed()
    assert_as_declared(live)
    assert paused(live, "rollout") == set()


def test_what_was_changed_before_goes_back_too_where_that_is_wanted(live, traffic, tmp_path):
    bad = slim(live, tmp_path, port=1254, length=LENGTH_THAT_DOES_NOT_FIT)
    bad.variables["macs"].update(lmstudio_instances_ready_timeout=15, lmfleet_rollback="fleet")
    live.sandbox("knob", "mac-2", LITTLE_MEMORY)
    with traffic:
        traffic.wait_for(20)
        run = bad.play()
        traffic.wait_for(20)
    live.sandbox("knob", "mac-2", "--clear")
    stopped(run)
    run.said("mac-2: instance chat-a", "mac-1: chat-a has again what it had before this run")
    traffic.assert_none_failed()
    assert_as_declared(live)
    assert paused(live, "rollout") == set()
    assert live.play().succeeded().changed == UNCHANGED


def test_the_first_mac_gets_back_what_it_had_when_it_does_worse_than_the_others(live, tmp_path):
    slower = slim(live, tmp_path, port=1254)
    slower.variables["all"]["lmfleet_canary_bake_seconds"] = 120
    key = live.on("mac-1", "cat /Users/admin/.lmfleet/gateway/master_key").strip()
    with Traffic(gateway_url("mac-1"), key, "pretender", clients=16, pause=0.2) as traffic:
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
    key = live.on("mac-1", "cat /Users/admin/.lmfleet/gateway/master_key").strip()
    long = Traffic(gateway_url("mac-1"), key, "mac-1-chat-a-pretender", clients=2, pause=0.05)
    with traffic:
        with long:
            traffic.wait_for(20)
            run = new.play()
        live.sandbox("knob", "mac-1", "--clear")
        traffic.wait_for(20)
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
        traffic.wait_for(20)
        run = new.play()
        stopped(run)
        run.said("mac-2: instance chat-a", "Still paused", "mac-2 was out for good")
        run.said("mac-1: stays changed, because nothing else serves pretender now")
        assert paused(live, "rollout") == {"mac-2-chat-a-pretender"}
        live.sandbox("knob", "mac-2", "--clear")
        repaired(new, traffic)


def test_a_mac_and_a_gateway_that_start_anew_in_the_middle_of_a_batch(live, traffic, tmp_path):
    new = slim(live, tmp_path)
    with traffic:
        process = new.start()
        wait_for(lambda: "mac-1-chat-a-pretender" in paused(live, "rollout"), process)
        live.on("mac-1", "launchctl kill SIGHUP system/lmfleet.gateway", root=True)
        wait_for(lambda: "mac-2-chat-a-pretender" in paused(live, "rollout"), process)
        live.sandbox("reboot", "mac-2")
        process.communicate()
        repaired(new, traffic)


def test_a_mac_that_vanishes_in_the_middle_of_its_batch(live, traffic, tmp_path):
    new = slim(live, tmp_path, port=1264)
    with traffic:
        process = new.start(ANSIBLE_SSH_ARGS="-o ControlMaster=auto -o ServerAliveInterval=2 -o ServerAliveCountMax=3")
        declared = "cat /Users/admin/.lmfleet/instances/chat-a/instance.json"
        wait_for(lambda: json.loads(live.on("mac-2", declared))["port"] == 1264, process)
        live.plug("mac-2", "down")
        try:
            run = Run(process, process.communicate()[0])
        finally:
            live.plug("mac-2", "up")
        stopped(run)
        run.said("mac-2: it cannot be reached any more.", "Still paused", "mac-2 was out for good")
        assert paused(live, "rollout") == {"mac-2-chat-a-pretender"}
        repaired(new, traffic)


def test_a_second_operator_has_to_wait_and_changes_nothing(live, traffic, tmp_path):
    new, other = slim(live, tmp_path), slim(live, tmp_path / "other", port=1274)
    # One on another controller, whose run was killed there.
    claim = {"controller": "elsewhere", "holder": "ben on elsewhere", "since": time.time(), "until": time.time() + 900}
    live.on("mac-1", f"sh -c {shlex.quote(f'echo {shlex.quote(json.dumps(claim))} > {CLAIM}')}")
    with traffic:
        refused = other.play()
        assert refused.code != 0
        refused.said("ben on elsewhere has been changing this fleet", "No instance has been changed")
        assert refused.changed == UNCHANGED
        process = new.start("-e", "lmfleet_take_over=true")
        wait_for(lambda: paused(live, "rollout"), process)
        refused = other.play("-e", "lmfleet_lock_timeout=0")
        assert refused.code != 0
        refused.said("Another run works on this fleet", f"process {process.pid}", "Nothing has been changed")
        assert refused.changed == UNCHANGED
        Run(process, process.communicate()[0]).succeeded()
        traffic.wait_for(20)
    traffic.assert_none_failed()
    assert_as_declared(new)
    assert "rollout.json" not in live.on("mac-1", f"ls {CLAIM.rpartition('/')[0]}")


def test_a_mac_that_cannot_be_reached_is_left_out_on_request(live, traffic, tmp_path):
    new = slim(live, tmp_path, port=1254, length=5000)
    mac_2 = new.hosts["all"]["children"]["macs"]["hosts"]["mac-2"]
    mac_2["ansible_port"] = 9
    refused = new.play()
    assert refused.code != 0
    assert refused.changed == UNCHANGED
    with traffic:
        traffic.wait_for(20)
        # It may serve, but nobody knows.
        run = new.play("-e", "lmfleet_ignore_unreachable=true")
        assert run.code != 0
        run.said("to change chat-a on mac-1 leaves 0 of 1 serving deployments")
        run = new.play("-e", "lmfleet_ignore_unreachable=true", "-e", "lmfleet_allow_downtime=true")
        assert run.code == UNREACHABLE, run.output
        assert_as_declared(new, "mac-1")
        known = json.loads(live.on("mac-1", f"cat {REGISTRY}/deployments.json"))["deployments"]
        places = {one["model_info"]["id"]: one["litellm_params"]["api_base"] for one in known}
        assert places["mac-1-chat-a-pretender"].endswith(":1254/v1")
        assert places["mac-2-chat-a-pretender"].endswith(":1244/v1"), "nobody has told mac-2 to move"
        del mac_2["ansible_port"]
        repaired(new, traffic)


def test_a_killed_roll_out_is_repaired_and_the_pauses_of_others_stay(live, traffic, tmp_path):
    live.play("-e", "target=mac-2/embed", "-e", "reason=dust", playbook="drain.yml").succeeded()
    new = slim(live, tmp_path, port=1260, length=5000)
    with traffic:
        process = new.start()
        wait_for(lambda: paused(live, "rollout"), process)
        new.kill(process)
        told = slim(live, tmp_path / "before", port=1254, length=5000).play(playbook="verify.yml")
        assert told.code != 0
        told.said("mac-1 gateway_deployments", "mac-1 rollout")
        repaired(new, traffic)
    assert paused(new, "operator") == {"mac-2-embed-pretender-embed"}
    new.play("-e", "target=mac-2", playbook="undrain.yml").succeeded()
    assert paused(new, "operator") == set()
