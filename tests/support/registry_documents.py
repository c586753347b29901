# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a registry that are whole, and all the ways in which they are not: for whoever reads them."""

from __future__ import annotations

import json


def _entry(name="a", **params):
    return {"model_name": "g", "litellm_params": {"model": "openai/m", **params}, "model_info": {"id": name}}


def _deployments(*entries, **more):
    return json.dumps({"format": 1, "generation": 2, "routing": "shuffle", "deployments": list(entries), **more})


def _pauses(paused, **more):
    return json.dumps({"format": 1, "generation": 2, "paused": paused, **more})


DEPLOYMENTS = {
    "none": _deployments(),
    "one": _deployments(_entry(weight=0.5, order=1)),
    "no weight": _deployments(_entry(weight=None)),
    "fallbacks": _deployments(_entry(), groups={"g": {"fallbacks": ["h"], "context_window_fallbacks": []}}),
}

BROKEN_DEPLOYMENTS = {
    "empty": "",
    "cut off": '{"format": 1, "gener',
    "no object": "[]",
    "empty object": "{}",
    "other format": _deployments(_entry(), format=2),
    "generation": _deployments(_entry(), generation="2"),
    "list": json.dumps({"format": 1, "generation": 2, "routing": "shuffle", "deployments": {}}),
    "routing": _deployments(_entry(), routing="x"),
    "no routing": _deployments(_entry(), routing=None),
    "groups": _deployments(_entry(), groups=["g"]),
    "group": _deployments(_entry(), groups={"g": ["h"]}),
    "fallbacks": _deployments(_entry(), groups={"g": {"fallbacks": "h"}}),
    "fallback": _deployments(_entry(), groups={"g": {"fallbacks": [{}]}}),
    "twice": _deployments(_entry(), _entry()),
    "nothing": _deployments({}),
    "null": _deployments(None),
    "no parameters": _deployments({"model_name": "g", "model_info": {"id": "a"}}),
    "parameters": _deployments({**_entry(), "litellm_params": []}),
    "no model": _deployments({**_entry(), "litellm_params": {}}),
    "no id": _deployments({**_entry(), "model_info": {}}),
    "id": _deployments(_entry(7)),
    "mode": _deployments({**_entry(), "model_info": {"id": "a", "mode": ["chat"]}}),
    "weight": _deployments(_entry(weight="heavy")),
    "weight that is no number": _deployments(_entry(weight=float("nan"))),
    "order": _deployments(_entry(order="first")),
    "limit": _deployments({**_entry(), "model_info": {"id": "a", "parallel_limit": "2"}}),
    "rate": _deployments({**_entry(), "model_info": {"id": "a", "rpm": "2"}}),
}

PAUSES = {
    "none": _pauses({}),
    "for ever": _pauses({"a": {"reason": "r", "since": 1.5, "until": None}}),
    "until": _pauses({"a": {"since": 1, "until": 2.5}}),
}

BROKEN_PAUSES = {
    "empty": "",
    "cut off": '{"format": 1, "gener',
    "empty object": "{}",
    "list": _pauses(["a"]),
    "generation": _pauses({}, generation=None),
    "null": _pauses({"a": None}),
    "until": _pauses({"a": {"until": "tomorrow"}}),
    "since": _pauses({"a": {"since": None}}),
}
