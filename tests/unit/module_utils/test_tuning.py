# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging the fields we manage into a file of LM Studio."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils._tuning import TuningError, managed_keys, merge, parse_tuning


def fields(**values):
    return {"fields": [{"key": key, "value": value} for key, value in values.items()]}


WANTED = {"preset": "", "operation": fields(), "load": fields(a=1, b=True)}


def test_an_absent_or_broken_file_becomes_what_is_wanted():
    assert merge(None, WANTED, {}) == WANTED


def test_what_is_not_ours_stays_in_its_order():
    found = {
        "preset": "mine",
        "extra": [1],
        "load": {"fields": [{"key": "x", "value": 0}, {"key": "a", "value": 9, "note": "n"}], "more": 1},
    }
    assert merge(found, WANTED, {}) == {
        "preset": "mine",
        "extra": [1],
        "load": {
            "fields": [{"key": "x", "value": 0}, {"key": "a", "value": 1, "note": "n"}, {"key": "b", "value": True}],
            "more": 1,
        },
        "operation": {"fields": []},
    }


def test_merging_twice_changes_nothing():
    once = merge({"load": fields(x=1)}, WANTED, {})
    assert merge(once, WANTED, managed_keys(WANTED)) == once


def test_a_setting_no_longer_declared_goes_others_stay():
    found = {"load": fields(x=1, a=1, b=True)}
    assert merge(found, {"load": fields(a=1)}, managed_keys(WANTED)) == {"load": fields(x=1, a=1)}


def test_a_model_no_longer_served_leaves_only_what_is_not_ours():
    managed = managed_keys(WANTED)
    assert merge({**WANTED, "load": fields(a=1, b=True)}, None, managed) is None
    assert merge({"load": fields(a=1, x=2)}, None, managed) == {"load": fields(x=2)}


def test_a_field_given_twice_in_the_file_is_given_once_afterwards():
    found = {"load": {"fields": [{"key": "a", "value": 1}, {"key": "a", "value": 2}]}}
    assert merge(found, {"load": fields(a=3)}, {}) == {"load": fields(a=3)}


def test_managed_keys():
    assert managed_keys(WANTED) == {"load": ["a", "b"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n "load": ,}', "here: line 2, column 10: not valid JSON"),
        ("[]", "here: the top level must be an object"),
        ('{"load": {"fields": [{"key": 1, "value": 2}]}}', "here: load.fields: each must have a key and a value"),
        ('{"load": {"fields": ["x"]}}', "found 'x'"),
    ],
)
def test_bad_texts_say_where(text, said):
    with pytest.raises(TuningError) as error:
        parse_tuning(text, "here")
    assert said in str(error.value)
