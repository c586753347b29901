# SPDX-License-Identifier: GPL-3.0-or-later
"""A live fleet is changed under load: every request is answered whole, and what goes wrong stops the roll-out."""

from __future__ import annotations

import json
import time

import pytest

from as_declared import assert_as_declared
from fleet_under_test import ALL_AT_ONCE, NETWORK, Fleet
from traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

UNCHANGED = {"mac-1": 0, "mac-2": 0}
REGISTRY = "/Users/admin/.lmfleet/gateway/registry"
CHAT = [{"name": "chat-a", "port": 1234}, {"name": "chat-b", "port": 1235}]
EMBED = {"name": "embed", "port": 1236, "models": [{"name": "pretender-embed"}]}


def declare(fleet: Fleet, chat: list[dict] = CHAT, embed: dict = EMBED) -> Fleet:
    """Have instances of one model group on both Macs, and the only one of another group on mac-2."""
    instances = [{**instance, "models": [{"name": "pretender"}]} for instance in chat]
    hosts = fleet.hosts["all"]["children"]["macs"]["hosts"]
    hosts["mac-1"]["lmfleet_instances"] = instances
    hosts["mac-2"]["lmfleet_instances"] = [*instances, embed]
    return fleet


@pytest.fixture(scope="module")
def live(fleet: Fleet) -> Fleet:
    """A fleet that serves, and may not be without a model for a moment."""
    for name in ALL_AT_ONCE:
        del fleet.variables["all"][name]
    fleet.variables["all"]["lmfleet_canary_bake_seconds"] = 0
    declare(fleet).play().succeeded()
    return fleet


@pytest.fixture
def traffic(live):
    key = live.on("mac-1", "cat /Users/admin/.lmfleet/gateway/master_key").strip()
    return Traffic(f"http://{NETWORK}.11:4000", key, "pretender", pause=0.05)


def paused(fleet: Fleet, owner: str) -> set[str]:
    try:
        return set(json.loads(fleet.on("mac-1", f"cat {REGISTRY}/paused/{owner}.json"))["paused"])
    except AssertionError:
        return set()


def wait_for(condition, process, seconds: float = 120) -> None:
    """Wait until a run has brought about a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def changed(fleet: Fleet, folder, **load) -> Fleet:
    other = fleet.copy(folder)
    other.variables["all"]["lmfleet_models"]["pretender"]["load"].update(load)
    return other


def stopped(run) -> None:
    """Assert that a run has failed and tells how to go on."""
    assert run.code != 0, run.output
    run.said("Mend the cause and go on: ansible-playbook -i", "site.yml")


def test_new_settings_of_every_instance_cost_no_request(live, traffic, tmp_path):
    new = changed(live, tmp_path, context_length=6000)
    with traffic:
        traffic.wait_for(20)
        run = new.play()
        traffic.wait_for(20)
    run.succeeded().said("mac-1 chat-a live its models changed", "mac-2 chat-b live its models changed")
    run.said("Batch 1 of", "mac-1 was out for", "mac-2 was out for", "ended, 0 failed")
    traffic.assert_none_failed()
    assert_as_declared(new)
    assert paused(new, "rollout") == set()


def test_other_ports_and_removed_instances_cost_no_request(live, traffic, tmp_path):
    new = declare(changed(live, tmp_path, context_length=6000), [{"name": "chat-a", "port": 1244}])
    with traffic:
        traffic.wait_for(20)
        new.play().succeeded()
        traffic.wait_for(20)
    traffic.assert_none_failed()
    assert_as_declared(new)
    again = new.play().succeeded()
    assert again.changed == UNCHANGED
    assert "Show what will be changed" not in again.output


def test_what_does_not_come_back_is_restored_and_stops_the_roll_out(live, traffic, tmp_path):
    new = declare(changed(live, tmp_path, context_length=6000), [{"name": "chat-a", "port": 1244}])
    bad = changed(new, tmp_path / "bad", context_length=30_000)
    bad.variables["macs"]["lmstudio_instances_ready_timeout"] = 15
    # Enough memory for the settings that it has, and too little for the new ones.
    new.sandbox("knob", "mac-1", "llmster.load_memory_mb@chat-a=1092")
    with traffic:
        traffic.wait_for(20)
        run = bad.play()
        traffic.wait_for(20)
    new.sandbox("knob", "mac-1", "--clear")
    stopped(run)
    run.said("mac-1: instance chat-a", "It has its former declaration back, and serves")
    assert run.changed["mac-2"] == 0
    traffic.assert_none_failed()
    assert_as_declared(new)
    assert paused(new, "rollout") == set()


def slim(live: Fleet, folder, port: int = 1244, length: int = 6000) -> Fleet:
    """One instance of the model group on each Mac, as the tests above leave them."""
    return declare(changed(live, folder, context_length=length), [{"name": "chat-a", "port": port}])


def repaired(fleet: Fleet, traffic: Traffic) -> None:
    """Assert that a run puts everything right, and that nobody has noticed anything since the traffic began."""
    fleet.play().succeeded()
    traffic.wait_for(20)
    assert_as_declared(fleet)
    assert paused(fleet, "rollout") == set()
    traffic.assert_none_failed()


def test_requests_that_do_not_end_stop_the_roll_out_and_are_answered(live, traffic, tmp_path):
    before, new = slim(live, tmp_path), slim(live, tmp_path / "new", port=1254)
    new.variables["all"]["lmfleet_drain_timeout"] = 3
    new.sandbox("knob", "mac-1", "llmster.slow_factor@chat-a=20")
    url, key = f"http://{NETWORK}.11:4000", live.on("mac-1", "cat /Users/admin/.lmfleet/gateway/master_key").strip()
    long = Traffic(url, key, "mac-1-chat-a-pretender", clients=2, pause=0.05)
    with traffic:
        with long:
            traffic.wait_for(20)
            run = new.play()
        new.sandbox("knob", "mac-1", "--clear")
        traffic.wait_for(20)
    stopped(run)
    run.said("requests to end: mac-1-chat-a-pretender has")
    assert not long.failed(), long.said()
    traffic.assert_none_failed()
    assert_as_declared(before)
    assert paused(before, "rollout") == set()


def test_a_killed_roll_out_is_repaired_and_the_pauses_of_others_stay(live, traffic, tmp_path):
    live.play("-e", "target=mac-2/embed", "-e", "reason=dust", playbook="drain.yml").succeeded()
    new = slim(live, tmp_path, port=1260, length=5000)
    with traffic:
        process = new.start()
        wait_for(lambda: paused(live, "rollout"), process)
        new.kill(process)
        told = slim(live, tmp_path / "before").play(playbook="verify.yml")
        assert told.code != 0
        told.said("mac-1 gateway_deployments", "mac-1 rollout")
        repaired(new, traffic)
    assert paused(new, "operator") == {"mac-2-embed-pretender-embed"}
    new.play("-e", "target=mac-2", playbook="undrain.yml").succeeded()
    assert paused(new, "operator") == set()


def test_what_would_leave_nothing_is_refused(live, tmp_path):
    new = declare(changed(live, tmp_path), [{"name": "chat-a", "port": 1260}], {**EMBED, "port": 1280})
    refused = new.play()
    assert refused.code != 0
    refused.said("model group pretender-embed", "embed on mac-2", "lmfleet_allow_downtime: true")
    assert refused.changed == UNCHANGED
