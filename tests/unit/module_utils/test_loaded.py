# SPDX-License-Identifier: GPL-3.0-or-later
"""What `lms ps` lists, against what shall be loaded."""

from __future__ import annotations

import json

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _loaded
from ansible_collections.lmfleet.mac.plugins.module_utils._command import Result
from ansible_collections.lmfleet.mac.plugins.module_utils._lmstudio_http import WantedModel

WANTED = [WantedModel("m", "llm", 4096, 2)]
ENTRY = {"identifier": "m", "contextLength": 4096, "parallel": 2, "ttlMs": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"parallel": None}, []),
        ({"parallel": 4}, ["m: parallel is 4, declared 2"]),
        ({"contextLength": 1}, ["m: context_length is 1, declared 4096"]),
        ({"ttlMs": 3600000}, ["m: is unloaded when nobody asked it for 3600 s, declared never"]),
        ({"identifier": "m:2"}, ["m: lms ps does not list it"]),
    ],
)
def test_differences(changes, said):
    assert _loaded.differences(WANTED, [{**ENTRY, **changes}]) == said


def test_strangers():
    assert _loaded.strangers(WANTED, "x", "m", "m:2", "x") == ["m:2", "x"]


@pytest.mark.parametrize(
    ("answer", "entries", "trouble"),
    [
        (Result(0, json.dumps([ENTRY]), "a warning"), [ENTRY], ""),
        (Result(0, "", "not running"), [], "not running"),
        (Result(None, "", ""), [], "no answer in time"),
        (Result(0, '{"error": 1}', ""), [], "something else than a list"),
    ],
)
def test_the_answer_is_judged_by_its_text(monkeypatch, answer, entries, trouble):
    asked = []
    monkeypatch.setattr(_loaded, "call", lambda *arguments: asked.append(arguments) or answer)
    got, said = _loaded.listed("/lms", "/home", 30.0)
    assert got == entries and trouble in said and bool(said) == bool(trouble)
    assert asked == [(["/lms", "ps", "--json"], "/home", 30.0)]
