# SPDX-License-Identifier: GPL-3.0-or-later
"""Two Macs that are gateways both, with a master key from a vault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from as_declared import assert_as_declared
from fleet_under_test import Fleet, Run, chat, gateway_url
from lent_gateway import lent
from live_fleet import REGISTRY, UNCHANGED, slim, without_a_gap
from traffic import Traffic

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

GATEWAYS = ("mac-1", "mac-2")
KEYS = ("sk-first-0123456789", "sk-second-0123456789")
UNREACHABLE = 4  # what ansible-playbook ends with when nothing else is wrong


@pytest.fixture(scope="module")
def two(fleet: Fleet, tmp_path_factory) -> Fleet:
    fleet.hosts["all"]["children"]["gateways"]["hosts"]["mac-2"] = None
    two = slim(without_a_gap(fleet), tmp_path_factory.mktemp("two"))
    two.variables["gateways"]["litellm_workers"] = 1  # there are two gateways
    return two


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    """Return a function that plays site.yml with a master key from a vault, and sees to it that no key is shown."""
    folder = tmp_path_factory.mktemp("vault")
    (folder / "password").write_text("open sesame")
    password = {"ANSIBLE_VAULT_PASSWORD_FILE": str(folder / "password")}

    def play(fleet: Fleet, key: str, *arguments: str) -> Run:
        vault = folder / "secrets"
        subprocess.run(
            [str(Path(sys.executable).parent / "ansible-vault"), "encrypt", "--output", str(vault)],
            input=f"litellm_master_key: {key}\n",
            env={**os.environ, **password},
            check=True,
            text=True,
            capture_output=True,
        )
        run = fleet.play("-e", f"@{vault}", "-e", "ansible_ssh_timeout=5", *arguments, **password)
        assert not [key for key in KEYS if key in run.output]
        return run

    return play


def test_a_gateway_joins_another_while_the_fleet_is_changed(two, play, tmp_path):
    alone = slim(two, tmp_path, port=1234)
    del alone.hosts["all"]["children"]["gateways"]["hosts"]["mac-2"]
    with lent(alone, *GATEWAYS):
        play(alone, KEYS[0]).succeeded()
    with Traffic(gateway_url("mac-1"), KEYS[0], "pretender", pause=4) as traffic:
        traffic.wait_for(8)
        run = play(two, KEYS[0]).succeeded()
        traffic.wait_for(8)
    traffic.assert_none_failed()
    assert_as_declared(two)
    run.said(*(f"Clients: {gateway_url(host)}/v1 (gateway on {host})" for host in GATEWAYS))
    assert deployments(two, "mac-1") == deployments(two, "mac-2")
    for host in GATEWAYS:
        for deployment in ("mac-1-chat-a-pretender", "mac-2-chat-a-pretender"):
            assert answered(two, host, KEYS[0], deployment)


def test_another_master_key_costs_no_request(two, play):
    """Who keeps the former key in its time of grace loses none, nor who gets the new one after the run."""
    former = [Traffic(gateway_url(host), KEYS[0], "pretender", clients=4, pause=4) for host in GATEWAYS]
    new = [Traffic(gateway_url(host), KEYS[1], "pretender", clients=4, pause=4) for host in GATEWAYS]
    with former[0], former[1]:
        for traffic in former:
            traffic.wait_for(8)
        run = play(two, KEYS[1], "--diff").succeeded()
        assert all(run.changed.values())
        with new[0], new[1]:
            for traffic in [*former, *new]:
                traffic.wait_for(16)
    for traffic in [*former, *new]:
        traffic.assert_none_failed(least=2)
    play(two, KEYS[1], "-e", "litellm_master_key_grace=0").succeeded()
    for host in GATEWAYS:
        assert answered(two, host, KEYS[1], "pretender")
        assert not answered(two, host, KEYS[0], "pretender")


def test_a_gateway_that_was_away_is_brought_up_to_date(two, play, tmp_path):
    changed = slim(two, tmp_path)
    changed.hosts["all"]["children"]["macs"]["hosts"]["mac-1"]["lmfleet_instances"][0]["models"][0]["weight"] = 2
    before = deployments(two, "mac-2")
    two.plug("mac-2", "down")
    try:
        stopped = play(changed, KEYS[1], "-e", "lmfleet_all_gateways=true")
        assert stopped.code != 0
        assert deployments(two, "mac-1") == before
        run = play(changed, KEYS[1], "--limit", "mac-1")
        assert run.code == 0, run.output
        assert run.changed["mac-1"] > 0
        assert answered(two, "mac-1", KEYS[1], "pretender")
        assert deployments(two, "mac-1") != before == deployments(two, "mac-2")
    finally:
        two.plug("mac-2", "up")
    assert play(changed, KEYS[1]).succeeded().changed["mac-2"] > 0
    assert deployments(two, "mac-1") == deployments(two, "mac-2")
    assert play(changed, KEYS[1]).succeeded().changed == UNCHANGED


def deployments(fleet: Fleet, host: str) -> list:
    """Return the deployments that a gateway has been told of."""
    return json.loads(fleet.read(host, f"{REGISTRY}/deployments.json"))["deployments"]


def answered(fleet: Fleet, host: str, key: str, model: str) -> bool:
    try:
        with fleet.ask_gateway(host, key, "/v1/chat/completions", chat(model)) as response:
            return response.status == 200
    except urllib.error.HTTPError as error:
        assert error.code in (400, 401), error
        return False
