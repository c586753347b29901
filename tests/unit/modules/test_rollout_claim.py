# SPDX-License-Identifier: GPL-3.0-or-later
"""Module rollout_claim: one controller at a time, its own runs whenever they like, nobody for ever."""

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.modules import rollout_claim

HERE = {"controller": "here", "holder": "anna on here"}
THERE = {"controller": "there", "holder": "ben on there"}


@pytest.fixture
def claim(run_module, tmp_path):
    def claim(who, check=False, **arguments):
        return run_module(rollout_claim, {"path": str(tmp_path / "rollout.json"), **who, **arguments}, check)

    return claim


def test_another_controller_is_refused_until_the_claim_is_given_up(claim):
    assert claim(HERE)["holder"] == "anna on here"
    refused = claim(THERE)
    assert refused["failed"]
    for words in ("anna on here has been changing", "Run again when", "-e lmfleet_take_over=true"):
        assert words in refused["msg"]
    assert claim(THERE, state="absent")["holder"] == "anna on here"
    assert claim(THERE)["failed"]
    assert claim(HERE, state="absent")["changed"]
    assert claim(THERE)["holder"] == "ben on there"


def test_a_claim_that_is_taken_again_holds_longer_and_remembers_its_begin(claim, tmp_path, monkeypatch):
    claim(HERE, seconds=60)
    first = json.loads((tmp_path / "rollout.json").read_text())
    now = time.time()
    monkeypatch.setattr(rollout_claim.time, "time", lambda: now + 50)
    claim(HERE, seconds=60)
    again = json.loads((tmp_path / "rollout.json").read_text())
    assert again["since"] == first["since"]
    assert again["until"] == pytest.approx(now + 110)


def test_without_a_gateway_nothing_is_claimed(claim, tmp_path):
    for state in ("present", "absent"):
        result = claim(HERE, path=str(tmp_path / "nothing" / "rollout.json"), state=state)
        assert (result["changed"], result["holder"]) == (False, "")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_lapses(claim, monkeypatch):
    claim(HERE, seconds=60)
    now = time.time()
    monkeypatch.setattr(rollout_claim.time, "time", lambda: now + 59)
    assert claim(THERE)["failed"]
    monkeypatch.setattr(rollout_claim.time, "time", lambda: now + 61)
    assert claim(THERE)["holder"] == "ben on there"


def test_a_claim_is_taken_over_on_request_only(claim):
    claim(HERE)
    assert claim(THERE)["failed"]
    assert claim(THERE, take_over=True)["holder"] == "ben on there"
    assert claim(HERE)["failed"]


def test_check_mode_refuses_as_it_would_and_writes_nothing(claim, tmp_path):
    assert claim(HERE, check=True)["changed"]
    assert not (tmp_path / "rollout.json").exists()
    claim(HERE)
    before = (tmp_path / "rollout.json").read_text()
    assert claim(THERE, check=True)["failed"]
    assert claim(HERE, check=True, state="absent")["changed"]
    assert (tmp_path / "rollout.json").read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"controller": "here"}',
        '{"controller": "h", "holder": "h", "since": "x", "until": 9e99}',
    ],
)
def test_what_cannot_be_read_keeps_nobody_off(claim, tmp_path, text):
    (tmp_path / "rollout.json").write_text(text)
    assert claim(THERE)["holder"] == "ben on there"


def test_only_the_owner_may_read_it(claim, tmp_path):
    claim(HERE)
    assert (tmp_path / "rollout.json").stat().st_mode & 0o077 == 0
