# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema of the inventory: names that exist, shapes of values, and what is said of others."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.fleet_schema import name_problems, shared_options, validate

ROLES = {"lmstudio": {"lmstudio_version": {}}, "litellm": {"litellm_port": {}}}
FILLED = {"lmstudio_models"}
OPTIONS = shared_options()


def test_known_and_foreign_names_are_left_alone():
    assert name_problems(["lmfleet_models", "litellm_port", "ansible_host", "my_lmfleet_note"], ROLES, FILLED) == []


def test_misspelt_names_are_told_with_the_likely_one():
    assert name_problems(["lmfleet_instnaces", "litellm_prot"], ROLES, FILLED) == [
        ("litellm_prot", "no such variable. Did you mean litellm_port?"),
        ("lmfleet_instnaces", "no such variable. Did you mean lmfleet_instances?"),
    ]


def test_variables_that_the_plan_fills_cannot_be_set():
    variable, message = name_problems(["lmstudio_models"], ROLES, FILLED)[0]
    assert variable == "lmstudio_models"
    assert "is worked out from the lmfleet_ variables" in message


BAD_VALUES = {
    "no list": ("lmfleet_instances", {"a": 1}, "lmfleet_instances", "must be a list, not a dict"),
    "no mapping in a list": ("lmfleet_instances", ["x"], "lmfleet_instances[0]", "must be a mapping, not a str"),
    "a port in words": (
        "lmfleet_instances",
        [{"name": "a", "port": "many", "models": []}],
        "lmfleet_instances[0] (a).port",
        "must be of type int, not 'many'",
    ),
    "a port that is true": (
        "lmfleet_instances",
        [{"name": "a", "port": True, "models": []}],
        "lmfleet_instances[0] (a).port",
        "must be a whole number",
    ),
    "a setting misspelt": (
        "lmfleet_instances",
        [{"name": "a", "port": 1, "models": [], "prot": 2}],
        "lmfleet_instances[0] (a)",
        "no setting 'prot'. Did you mean port?",
    ),
    "no checksum": (
        "lmfleet_models",
        {"m": {"source": {"url": "http://x/y", "files": [{"file": "z"}]}}},
        "lmfleet_models.m.source.files[0]",
        "sha256 is missing",
    ),
    "a wrong choice": (
        "lmfleet_launchd_domain",
        "user",
        "lmfleet_launchd_domain",
        "must be one of gui, system, not 'user'",
    ),
    "no source": ("lmfleet_models", {"m": {}}, "lmfleet_models.m", "source is missing"),
    "a model that is nothing": ("lmfleet_models", {"m": None}, "lmfleet_models.m", "must be a mapping, not nothing"),
}


@pytest.mark.parametrize(("variable", "value", "place", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_named_with_its_place(variable, value, place, message):
    _checked, problems = validate(value, OPTIONS[variable], variable)
    assert [found for found in problems if found[0] == place and message in found[1]], problems


def test_a_secret_of_the_wrong_type_is_not_shown():
    _checked, problems = validate("sk-lm-0123", OPTIONS["lmfleet_api_tokens"], "lmfleet_api_tokens")
    assert problems == [("lmfleet_api_tokens", "must be of type dict, not a str.")]
    _checked, problems = validate({"sk": 1}, {"type": "list", "no_log": True}, "litellm_keys")
    assert problems == [("litellm_keys", "must be of type list, not a dict.")]


def test_types_are_converted_and_defaults_filled_in():
    checked, problems = validate(
        [{"name": "a", "port": "1234", "models": [{"name": "m"}]}], OPTIONS["lmfleet_instances"], "lmfleet_instances"
    )
    assert problems == []
    assert checked[0]["port"] == 1234
    assert checked[0]["models"][0]["copies"] == 1
