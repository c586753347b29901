# SPDX-License-Identifier: GPL-3.0-or-later
"""What befalls a live fleet while it is changed: no request fails, and the next run puts everything right."""

from __future__ import annotations

import json
import shlex
import time

import pytest

from as_declared import assert_as_declared
from fleet_under_test import Run
from live_fleet import UNCHANGED, paused, registered, repaired, slim, stopped, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

CLAIM = "/Users/admin/.lmfleet/gateway/rollout.json"
UNREACHABLE = 4  # what ansible-playbook ends with when nothing else is wrong


def test_a_mac_and_a_gateway_that_start_anew_in_the_middle_of_a_batch(live, traffic, tmp_path):
    new = slim(live, tmp_path, port=1254)
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
        declared = "/Users/admin/.lmfleet/instances/chat-a/instance.json"
        wait_for(lambda: json.loads(live.read("mac-2", declared))["port"] == 1264, process)
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
        traffic.wait_for(8)
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
        traffic.wait_for(8)
        # It may serve, but nobody knows.
        run = new.play("-e", "lmfleet_ignore_unreachable=true")
        assert run.code != 0
        run.said("to change chat-a on mac-1 leaves 0 of 1 serving deployments")
        run = new.play("-e", "lmfleet_ignore_unreachable=true", "-e", "lmfleet_allow_downtime=true")
        assert run.code == UNREACHABLE, run.output
        assert_as_declared(new, "mac-1")
        places = {name: one["litellm_params"]["api_base"] for name, one in registered(live).items()}
        assert places["mac-1-chat-a-pretender"].endswith(":1254/v1")
        assert places["mac-2-chat-a-pretender"].endswith(":1244/v1"), "nobody has told mac-2 to move"
        del mac_2["ansible_port"]
        repaired(new, traffic)


def test_macs_outside_of_the_limit_count_as_serving_when_they_answer(live, traffic, tmp_path):
    new = slim(live, tmp_path, port=1274, length=5000)
    [there, *_others] = new.hosts["all"]["children"]["macs"]["hosts"]["mac-2"]["lmfleet_instances"]
    there["name"] = "chat-z"  # while nobody looks at mac-2, the gateway goes on with what is there
    with traffic:
        traffic.wait_for(8)
        live.plug("mac-2", "down")
        try:
            refused = new.play("--limit", "mac-1")
        finally:
            live.plug("mac-2", "up")
        assert refused.code != 0
        refused.said("to change chat-a on mac-1 leaves 0 of 1 serving deployments")
        assert refused.changed == {"mac-1": 0}
        new.play("--limit", "mac-1").succeeded()
        assert_as_declared(new, "mac-1")
        assert "mac-2-chat-a-pretender" in registered(new)
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
