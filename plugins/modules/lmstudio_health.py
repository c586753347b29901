#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module lmstudio_health."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lmstudio_health
short_description: Tell whether LM Studio servers serve their models
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Looks at several LM Studio servers at once and waits until each serves the models it shall serve.
  - A server is judged by the body of its greeting, by the models it has loaded with their settings and, if asked, by
    one real request to each model. Status codes prove nothing there and are not looked at.
  - Changes nothing. It works from the Mac itself and from any machine that reaches the servers, except for O(lms).
attributes:
  check_mode:
    description: Looks once, sends no probes and does not fail. Nothing was changed, so there is nothing to wait for.
    support: full
  diff_mode:
    description: Never changes anything, so there is nothing to show.
    support: none
options:
  instances:
    description: The servers.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the instance, for messages.
        type: str
        required: true
      url:
        description: Where the server listens, without a path. Required unless O(idle).
        type: str
      home:
        description: The home of the instance, for O(lms).
        type: path
      api_token:
        description: Token for a server that asks for one.
        type: str
      models:
        description: The models it shall serve. Others that are loaded as well count against it only with O(exact).
        type: list
        elements: dict
        default: []
        suboptions:
          identifier:
            description: The identifier clients ask for.
            type: str
            required: true
          type:
            description: The kind of model, which also decides how it is probed.
            type: str
            choices: [llm, embedding]
            default: llm
          context_length:
            description: Context length in tokens it must be loaded with. Not compared when absent.
            type: int
          parallel:
            description: Number of requests served at a time it must be loaded with. Not compared when absent.
            type: int
  exact:
    description: Whether a model that is loaded and not among O(instances[].models) counts against an instance.
    type: bool
    default: false
  lms:
    description:
      - The CLI on this Mac. It is then asked as well what each instance with an O(instances[].home) has loaded, which
        also shows models that are unloaded after a while.
      - An instance that says in its C(instance.json) which C(lms) belongs to its version is asked with that one.
    type: path
  idle:
    description:
      - Whether to wait, instead of anything else, until none of O(instances[].models) has a request running or waiting,
        as O(lms) tells, which this needs.
      - Where it does not tell, an instance has none only if its daemon is gone or does not answer either.
    type: bool
    default: false
  probe:
    description: V(completion) sends one short completion, or one embedding, to each model once it is loaded.
    type: str
    choices: [none, completion]
    default: none
  timeout:
    description: Seconds to wait for everything, probes included. With V(0) each server is asked once.
    type: int
    default: 60
  request_timeout:
    description: Seconds one question to a server may take. A probe may take as long as O(timeout) leaves.
    type: int
    default: 5
  fail:
    description: Whether the task fails when an instance is not ready. Otherwise it only tells.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Wait for a server and let its model answer
  lmfleet.mac.lmstudio_health:
    instances:
      - name: chat-a
        url: http://127.0.0.1:1234
        models:
          - {identifier: smollm2, type: llm, context_length: 4096, parallel: 4}
    probe: completion
    timeout: 120
  register: health

- name: Look once, without failing
  lmfleet.mac.lmstudio_health:
    instances:
      - {name: chat-b, url: "http://127.0.0.1:1235"}
    timeout: 0
    fail: false

- name: Wait until a model has nothing to do
  lmfleet.mac.lmstudio_health:
    instances:
      - name: chat-a
        home: /Users/admin/.lmfleet/instances/chat-a
        models: [{identifier: smollm2}]
    lms: /Users/admin/.lmfleet/llmster/0.0.25-1/.lmstudio/bin/lms
    idle: true
    timeout: 300

- name: Look whether exactly the declared models are loaded
  lmfleet.mac.lmstudio_health:
    instances:
      - name: chat-a
        url: http://127.0.0.1:1234
        home: /Users/admin/.lmfleet/instances/chat-a
        models: [{identifier: smollm2}]
    lms: /Users/admin/.lmfleet/llmster/0.0.25-1/.lmstudio/bin/lms
    exact: true
    timeout: 0
"""

RETURN = r"""
instances:
  description: The servers in the order given.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the instance.
      type: str
      returned: always
    ready:
      description: Whether it greets, has everything loaded as wanted, and every probe was answered.
      type: bool
      returned: always
    greeting:
      description: Whether the greeting was that of LM Studio.
      type: bool
      returned: always
    loaded:
      description: Identifiers of all loaded models.
      type: list
      elements: str
      returned: always
    missing:
      description: Identifiers that shall be loaded and are not.
      type: list
      elements: str
      returned: always
    unmanaged:
      description: Identifiers of models that are loaded and not wanted.
      type: list
      elements: str
      returned: always
    differences:
      description: What is loaded with other settings than wanted, in words.
      type: list
      elements: str
      returned: always
    busy:
      description: Number of requests running or waiting by identifier, where there are any.
      type: dict
      returned: with O(idle), and then beside name, ready and last_seen only
    probes:
      description: One entry per model when probes were asked for and the models are loaded.
      type: list
      elements: dict
      returned: always
      contains:
        identifier:
          description: The model.
          type: str
          returned: always
        ok:
          description: Whether the answer was a real one.
          type: bool
          returned: always
        latency_seconds:
          description: Seconds until the whole answer was there, null when it failed.
          type: float
          returned: always
        error:
          description: What came instead, empty when it was answered.
          type: str
          returned: always
    last_seen:
      description: What was seen last, in words.
      type: str
      returned: always
"""

import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _loaded
from ..module_utils._lms import daemon_is_there, own_lms
from ..module_utils._lmstudio_http import WantedModel, differences, look, missing, probe

#: Seconds between two looks at a server that is not ready.
_INTERVAL = 0.5
#: Seconds that one question to lms may take.
_LMS_TIMEOUT = 30.0


def wanted_models(entry: dict) -> list[WantedModel]:
    """Return the models one server shall serve."""
    return [
        WantedModel(model["identifier"], model["type"], model["context_length"], model["parallel"])
        for model in entry["models"]
    ]


def watch(entry: dict, params: dict, deadline: float) -> dict:
    """Look at one server until it is ready or the deadline (monotonic seconds) is over; return its result."""
    if params["idle"]:
        return watch_idle(entry, params, deadline)
    url = entry["url"].rstrip("/")
    wanted = wanted_models(entry)
    while True:
        result = look_at(entry, wanted, url, params)
        if result["ready"] and params["probe"] == "completion":
            for model in wanted:
                one = probe(url, model, max(params["request_timeout"], deadline - time.monotonic()), entry["api_token"])
                result["probes"].append(one._asdict())
            result["ready"] = all(one["ok"] for one in result["probes"])
        if result["ready"] or time.monotonic() + _INTERVAL >= deadline:
            return result
        time.sleep(_INTERVAL)


def watch_idle(entry: dict, params: dict, deadline: float) -> dict:
    """Ask lms of one instance until its models have nothing to do, or the deadline is over; return the result."""
    names = [model["identifier"] for model in entry["models"]]
    while True:
        entries, trouble = listed(entry, params)
        busy = _loaded.busy(entries, names)
        idle = not (daemon_is_there(entry["home"]) if trouble else busy)
        if idle or time.monotonic() + _INTERVAL >= deadline:
            return {"name": entry["name"], "ready": idle, "busy": busy, "last_seen": trouble or "lms answers"}
        time.sleep(_INTERVAL)


def listed(entry: dict, params: dict) -> tuple[list[dict], str]:
    """Return what lms lists of one instance, and what came instead."""
    return _loaded.listed(own_lms(entry["home"]) or params["lms"], entry["home"], _LMS_TIMEOUT)


def look_at(entry: dict, wanted: list[WantedModel], url: str, params: dict) -> dict:
    """Look at one server once; return what the module tells of it, without probes."""
    server = look(url, params["request_timeout"], entry["api_token"])
    loaded = list(server.loaded or {})
    different = differences(wanted, server)
    if server.loaded is not None and params["lms"] and entry["home"]:
        entries, trouble = listed(entry, params)
        loaded += [one["identifier"] for one in entries if "identifier" in one]
        present = [model for model in wanted if model.identifier in server.loaded]
        different += [trouble] if trouble else _loaded.differences(present, entries)
    result = {
        "name": entry["name"],
        "greeting": server.greeting,
        "loaded": sorted(set(loaded)),
        "missing": missing(wanted, server),
        "unmanaged": _loaded.strangers(wanted, *loaded),
        "differences": list(dict.fromkeys(different)),
        "probes": [],
        "last_seen": server.seen,
    }
    against = [*result["missing"], *result["differences"], *(result["unmanaged"] if params["exact"] else [])]
    return {**result, "ready": server.loaded is not None and not against}


def complaint(url: str, result: dict, exact: bool) -> str:
    """Return in words why an instance is not ready."""
    if "busy" in result and not result["busy"]:
        return f"instance {result['name']}: nobody can tell whether it has requests: {result['last_seen']}"
    if "busy" in result:
        counts = ", ".join(f"{name} has {count}" for name, count in result["busy"].items())
        return f"instance {result['name']} has requests running or waiting: {counts}. Last seen: {result['last_seen']}"
    reasons = [f"not loaded: {', '.join(result['missing'])}"] if result["missing"] else []
    reasons += result["differences"]
    reasons += [f"{name} is loaded, and not declared" for name in result["unmanaged"] if exact]
    reasons += [f"{one['identifier']} does not answer: {one['error']}" for one in result["probes"] if not one["ok"]]
    return f"instance {result['name']} at {url}: {'; '.join(reasons) or 'not ready'}. Last seen: {result['last_seen']}"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "url": {"type": "str"},
                    "home": {"type": "path"},
                    "api_token": {"type": "str", "no_log": True},
                    "models": {
                        "type": "list",
                        "elements": "dict",
                        "default": [],
                        "options": {
                            "identifier": {"type": "str", "required": True},
                            "type": {"type": "str", "choices": ["llm", "embedding"], "default": "llm"},
                            "context_length": {"type": "int"},
                            "parallel": {"type": "int"},
                        },
                    },
                },
            },
            "exact": {"type": "bool", "default": False},
            "lms": {"type": "path"},
            "idle": {"type": "bool", "default": False},
            "probe": {"type": "str", "choices": ["none", "completion"], "default": "none"},
            "timeout": {"type": "int", "default": 60},
            "request_timeout": {"type": "int", "default": 5},
            "fail": {"type": "bool", "default": True},
        },
        required_if=[("idle", True, ["lms"])],
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        params.update(timeout=0, probe="none", fail=False)
    deadline = time.monotonic() + params["timeout"]
    with ThreadPoolExecutor(max_workers=max(1, min(32, len(params["instances"])))) as pool:
        futures = [pool.submit(watch, entry, params, deadline) for entry in params["instances"]]
        results = [future.result() for future in futures]
    complaints = [
        complaint(entry["url"], result, params["exact"])
        for entry, result in zip(params["instances"], results)
        if not result["ready"]
    ]
    if complaints and params["fail"]:
        waited = f"after {params['timeout']} s" if params["timeout"] else "on the one look asked for"
        state = "not idle" if params["idle"] else "not ready"
        module.fail_json(msg=f"{state} {waited}: " + " | ".join(complaints), instances=results)
    module.exit_json(changed=False, instances=results)


if __name__ == "__main__":
    main()
