# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that is changed while clients ask it, and may not be without a model for a moment."""

from __future__ import annotations

import json
import time
from subprocess import Popen

from as_declared import assert_as_declared
from fleet_under_test import ALL_AT_ONCE, Fleet, Run
from traffic import Traffic

UNCHANGED = {"mac-1": 0, "mac-2": 0}
REGISTRY = "/Users/admin/.lmfleet/gateway/registry"
CHAT = [{"name": "chat-a", "port": 1234}, {"name": "chat-b", "port": 1235}]
EMBED = {"name": "embed", "port": 1236, "models": [{"name": "pretender-embed"}]}


def without_a_gap(fleet: Fleet) -> Fleet:
    """Have no change take out more than the collection would by itself, and compare the first Mac with none."""
    for name in ALL_AT_ONCE:
        del fleet.variables["all"][name]
    fleet.variables["all"]["lmfleet_canary_bake_seconds"] = 0
    fleet.variables["gateways"]["litellm_workers"] = 2  # all of them have to follow a pause
    return fleet


def declare(fleet: Fleet, chat: list[dict] = CHAT, embed: dict = EMBED) -> Fleet:
    """Have instances of one model group on both Macs, and the only one of another group on mac-2."""
    instances = [{**instance, "models": [{"name": "pretender"}]} for instance in chat]
    hosts = fleet.hosts["all"]["children"]["macs"]["hosts"]
    hosts["mac-1"]["lmfleet_instances"] = instances
    hosts["mac-2"]["lmfleet_instances"] = [*instances, embed]
    return fleet


def changed(fleet: Fleet, folder, **load) -> Fleet:
    """Return the fleet with other settings of its model."""
    other = fleet.copy(folder)
    other.variables["all"]["lmfleet_models"]["pretender"]["load"].update(load)
    return other


def slim(fleet: Fleet, folder, port: int = 1244, length: int = 6000) -> Fleet:
    """Return the fleet with one instance of the model group on each Mac."""
    return declare(changed(fleet, folder, context_length=length), [{"name": "chat-a", "port": port}])


def registered(fleet: Fleet) -> dict[str, dict]:
    """Return by id what the gateway on mac-1 routes to."""
    known = json.loads(fleet.read("mac-1", f"{REGISTRY}/deployments.json"))["deployments"]
    return {one["model_info"]["id"]: one for one in known}


def paused(fleet: Fleet, owner: str) -> set[str]:
    try:
        return set(json.loads(fleet.read("mac-1", f"{REGISTRY}/paused/{owner}.json"))["paused"])
    except FileNotFoundError:
        return set()


def wait_for(condition, process: Popen, seconds: float = 120) -> None:
    """Wait until a run has brought about a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.5)


def stopped(run: Run) -> None:
    """Assert that a run has failed and tells how to go on."""
    assert run.code != 0, run.output
    run.said("Mend the cause and go on: ansible-playbook -i", "site.yml")


def repaired(fleet: Fleet, traffic: Traffic) -> None:
    """Assert that a run puts everything right, and that nobody has noticed anything since the traffic began."""
    fleet.play().succeeded()
    traffic.wait_for(8)
    assert_as_declared(fleet)
    assert paused(fleet, "rollout") == set()
    traffic.assert_none_failed()
