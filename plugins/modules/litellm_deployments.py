#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module litellm_deployments."""

from __future__ import annotations

DOCUMENTATION = r"""
module: litellm_deployments
short_description: Declare what a LiteLLM gateway routes to
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Registers, changes, pauses and removes deployments of a gateway that the role P(lmfleet.mac.litellm#role) has
    set up. Nothing is restarted, no request is dropped and no database is needed.
  - Runs on the gateway. It returns when every worker of the gateway has applied the declaration, and fails when they
    do not in time.
  - A deployment gets requests only when no owner pauses it. Each owner lifts only its own pauses. V(operator) is a
    person, V(rollout) a run that changes the fleet, V(guard) what watches the queues; where the guard has paused all
    deployments of a model group, it has paused none of them.
attributes:
  check_mode:
    description: Whether the task can run in check mode.
    support: full
  diff_mode:
    description: Whether the task returns a diff. Tokens are left out of it.
    support: full
options:
  registry:
    description:
      - Folder of the gateway's registry, the C(registry) folder below O(lmfleet.mac.litellm_gateway#module:root).
      - V(api) stands for the database of a gateway that has one, behind LiteLLM's admin API at O(url). The options and
        results are the same, with these differences. A paused deployment is not even asked by its id. The end of a
        pause comes with the first run after it. A deployment that loses a setting, other than O(deployments[].weight)
        and O(deployments[].parallel_limit), is removed and added again, so that for a moment it is not there.
        Whatever was not made by this module is left alone.
    type: path
    required: true
  url:
    description:
      - Address of the gateway. Only for O(registry=api), which needs it.
    type: str
  master_key:
    description:
      - The gateway's master key. Only for O(registry=api).
    type: str
  master_key_file:
    description:
      - File with the master key, instead of O(master_key). Only for O(registry=api).
    type: path
  validate_certs:
    description:
      - Whether the certificate of the gateway must be a good one. Only for O(registry=api).
    type: bool
    default: true
  ca_path:
    description:
      - File with the certificates to trust instead of those of this machine. Only for O(registry=api).
    type: path
  reload_interval:
    description:
      - How often, in seconds, each worker looks into the database (C(proxy_config_reload_interval_seconds) of LiteLLM).
        After a change the task takes at least that long. Only for O(registry=api).
    type: float
    default: 30
  deployments:
    description:
      - The deployments. Where this is not set, they stay as they are.
      - One that the gateway has already may be named by its O(deployments[].id) alone, to pause it or to lift a pause.
        It stays as it is otherwise.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - Id of the deployment, unique in the gateway. A request for the model of this name reaches exactly this
            deployment.
        type: str
        required: true
      state:
        description:
          - V(present) is there, V(absent) is not. V(paused) is there, and gets no new requests until O(owner) lifts the
            pause; requests that it has already go on, and a request for its id still reaches it.
          - Where O(owner) is set, V(present) and V(absent) lift the pause of that owner. Otherwise they lift none.
          - V(former) is there as it was before this module changed it last, where that is known, whatever else is said
            of it here. It lifts no pause. Not for O(registry=api).
        type: str
        choices: [present, paused, absent, former]
        default: present
      model_group:
        description:
          - Name that clients ask for. Deployments with the same one share its requests.
        type: str
      model:
        description:
          - Identifier of the model at the backend.
        type: str
      api_base:
        description:
          - Address of the backend with C(/v1), as V(http://mac-1:1234/v1).
        type: str
      api_key:
        description:
          - Token for the backend, where it wants one.
        type: str
      mode:
        description:
          - What the model does.
        type: str
        choices: [chat, embedding]
        default: chat
      weight:
        description:
          - Share of the group's requests, relative to the others. Without it the shares are equal.
        type: float
      order:
        description:
          - Deployments with a higher number get requests only when those with a lower one are not to be had.
        type: int
      timeout:
        description:
          - Seconds an answer may take.
        type: float
      stream_timeout:
        description:
          - Seconds until a stream must have begun.
        type: float
      num_retries:
        description:
          - How many times a request that failed here is tried again, elsewhere if there is another one.
            As often as the gateway's router settings say, when it is not set.
        type: int
      cooldown_time:
        description:
          - Seconds that it gets no requests after it has failed for the second time within the cooldown time of the
            gateway's router settings, which also say it when it is not set.
        type: float
      parallel_limit:
        description:
          - Requests in flight from this gateway, at which it counts as full. Then others of its model group get the
            requests, also those with a higher O(deployments[].order). Where all are full, they go on taking turns,
            and the backends queue. The workers of the gateway share the limit evenly.
        type: int
      rpm:
        description:
          - Requests in a minute that it takes. More go to others of its model group, and where no other one can answer
            either, they are refused with HTTP 429 and a C(Retry-After) header. All gateways that share a Redis share
            the limit; without Redis, the workers of each gateway share it evenly. It is not for requests that ask for
            the deployment by its id.
        type: int
      tpm:
        description:
          - Tokens in a minute, of prompts and answers, after which it gets no more requests, in the same way as for
            O(deployments[].rpm). Tokens are known when a request has ended, so those that are in flight go beyond it.
        type: int
      max_parallel_requests:
        description:
          - Requests that each worker of the gateway sends at a time. LiteLLM refuses more, with HTTP 429, also where
            another deployment has room. O(deployments[].parallel_limit) does not.
        type: int
      max_input_tokens:
        description:
          - Longest prompt it takes, in tokens. A longer one goes to others of its model group that take more. Where
            none does, it goes to one of O(model_groups[].context_window_fallbacks), or is refused before it is sent.
          - Set it for all deployments of a model group, or for none. LiteLLM takes it for every deployment with the
            same O(deployments[].model) that has none of its own.
        type: int
      host:
        description:
          - The Mac that it is on. For those who look, C(/model/info) of the gateway shows it.
        type: str
      instance:
        description:
          - The instance that it is on, for those who look.
        type: str
      status_url:
        description:
          - Where the instance publishes its queues, for a queue guard.
        type: str
      parallel:
        description:
          - How many requests the backend serves at a time, for those who look.
        type: int
  purge:
    description:
      - Whether deployments that O(deployments) does not name are removed, and with them what O(owner) pauses of them.
    type: bool
    default: false
  keep_hosts:
    description:
      - Macs (O(deployments[].host)) of which O(purge) removes nothing. What the gateway has there stays as it is,
        unless O(deployments) names it. That may be less than is declared, so some of O(model_groups) may have no
        deployment then, and are left out.
    type: list
    elements: str
    default: []
  keep_orders:
    description:
      - Whether O(deployments[].order) counts only in model groups that are new. In the others each deployment has the
        one that it has already, if any, and one that is new comes with the last ones. For a part of the deployments,
        which would not fit the order of the rest.
    type: bool
    default: false
  model_groups:
    description:
      - Model groups that must have a deployment, with what goes for them as a whole. The task fails before it changes
        anything when one has none. Where this is not set, the fallbacks stay as they are.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Name of the model group.
        type: str
        required: true
      fallbacks:
        description:
          - Model groups that answer instead, in this order, when no deployment of this one does.
        type: list
        elements: str
        default: []
      context_window_fallbacks:
        description:
          - Model groups that answer instead when a prompt is too long for this one. Needs
            O(deployments[].max_input_tokens), or a backend that says so in words LiteLLM knows.
        type: list
        elements: str
        default: []
  routing:
    description:
      - How requests are spread over the deployments of a group, in each worker of the gateway. V(round_robin) takes
        turns exactly, V(shuffle) draws, V(least_busy) takes the one with the fewest requests in flight, V(usage) the
        one with the fewest tokens in about the last minute.
      - Where this is not set, it stays as it is, and is V(round_robin) in a new registry.
    type: str
    choices: [round_robin, shuffle, least_busy, usage]
  owner:
    description:
      - In whose name O(deployments[].state) pauses and lifts pauses. Required when one of them is V(paused).
        The pauses of other owners stay as they are, but for two things. A pause of V(rollout) ends with its deployment.
        Where V(operator) has paused all deployments of a Mac or an instance (O(deployments[].host),
        O(deployments[].instance)), what is new there is paused as well, as long as they are.
    type: str
    choices: [operator, rollout, guard]
  purge_pauses:
    description:
      - Whether all pauses of O(owner) that O(deployments) does not name are lifted.
    type: bool
    default: false
  reason:
    description:
      - Why O(owner) pauses, for those who look. Where this is not set, a pause keeps the reason it has.
    type: str
  expire_after:
    description:
      - Seconds after which a pause ends by itself, counted from the first run that asked for as many, so that a second
        run does not prolong it; V(0) for never. Where this is not set, a pause keeps the end it has, and a new one has
        none.
    type: float
  claim:
    description:
      - File with the claim of a controller on the fleet, as M(lmfleet.mac.rollout_claim) makes it. While another one
        than O(controller) has it, nothing is changed.
    type: path
  controller:
    description:
      - What tells this user's controller from others, as M(lmfleet.mac.fleet_lock) returns it. Required with O(claim).
    type: str
  workers:
    description:
      - How many workers of the gateway must at least have applied the declaration. As many as the gateway was started
        with, when it is not set.
    type: int
  timeout:
    description:
      - Seconds to wait for the workers, for O(registry=api) after O(reload_interval). With V(0) the task does not wait.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Route one model to two Macs
  lmfleet.mac.litellm_deployments:
    registry: ~/.lmfleet/gateway/registry
    purge: true
    deployments:
      - id: mac-1-chat-a-smollm2
        model_group: smollm2
        model: smollm2
        api_base: http://mac-1:1234/v1
      - id: mac-2-chat-a-smollm2
        model_group: smollm2
        model: smollm2
        api_base: http://mac-2:1234/v1

- name: Send no new requests to one of them, for two hours at most
  lmfleet.mac.litellm_deployments:
    registry: ~/.lmfleet/gateway/registry
    owner: operator
    reason: memory upgrade
    expire_after: 7200
    deployments:
      - id: mac-2-chat-a-smollm2
        state: paused

- name: Send requests to it again
  lmfleet.mac.litellm_deployments:
    registry: ~/.lmfleet/gateway/registry
    owner: operator
    deployments:
      - id: mac-2-chat-a-smollm2

- name: Lift all pauses that a roll-out has left behind
  lmfleet.mac.litellm_deployments:
    registry: ~/.lmfleet/gateway/registry
    owner: rollout
    purge_pauses: true

- name: The same at a gateway that keeps its deployments in a database
  lmfleet.mac.litellm_deployments:
    registry: api
    url: https://gateway.example.com
    master_key: "{{ litellm_master_key }}"
    deployments:
      - id: mac-1-chat-a-smollm2
        model_group: smollm2
        model: smollm2
        api_base: http://mac-1:1234/v1
"""

RETURN = r"""
generation:
  description: Number of the newest change in the registry. In check mode, the number it would get.
  returned: success
  type: int
routing:
  description: How requests are spread. For O(registry=api) there is none.
  returned: success
  type: str
deployments:
  description: Ids of all deployments of the gateway, sorted.
  returned: success
  type: list
  elements: str
groups:
  description: Model group of each deployment of the gateway, by id.
  returned: success
  type: dict
places:
  description: Mac and instance of each deployment that was declared with them, by id.
  returned: success
  type: dict
  sample: {mac-2-chat-a-smollm2: {host: mac-2, instance: chat-a}}
added:
  description: Ids that are new.
  returned: success
  type: list
  elements: str
updated:
  description: Ids that are not new but different.
  returned: success
  type: list
  elements: str
removed:
  description: Ids that are gone.
  returned: success
  type: list
  elements: str
paused:
  description:
    - Id of each paused deployment, with the owners of its pauses, why, since when and until when, in seconds since the
      epoch, and with the O(expire_after) that was asked for. In check mode those that are, not those that would be.
  returned: success
  type: dict
  sample: {mac-2-chat-a-smollm2: {operator: {reason: memory upgrade, since: 1795382112.5, until: 1795389312.5}}}
resumed:
  description: Id of each deployment whose pause by O(owner) has ended with this task, to the seconds that it took.
  returned: success
  type: dict
  sample: {mac-2-chat-a-smollm2: 41.7}
problem:
  description:
    - What the gateway's workers have not applied of what the registry had before this task. For O(registry=api), why
      the gateway cannot be asked; it is then taken for one that has nothing yet.
  returned: in check mode, when there is something
  type: str
workers:
  description:
    - Process ids of the workers that have applied the declaration. Empty in check mode, with O(timeout=0) and with
      O(registry=api).
  returned: success
  type: list
  elements: int
"""

import contextlib
import os
import ssl
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._claim import ClaimedError, current, refuse_others
from ..module_utils._files import LockTimeoutError, exclusive, file_diff
from ..module_utils._registry import (
    NO_TOKEN,
    OWNERS,
    ROUTINGS,
    Pausing,
    Registry,
    RegistryError,
    deployment_problems,
    describe,
    fleet_problems,
    group_problems,
    groups_there,
    groups_without_traffic,
    paused_by,
    places,
    plan,
    rejections,
    waiting_for,
    wanted_entries,
    wanted_groups,
    without_unknown,
)
from ..module_utils._registry_api import (
    AbsentError,
    ApiError,
    ApiRegistry,
    RefusedError,
    calls,
    foreign_problems,
    seen,
)

#: Stands for the registry in a database, in place of a folder.
API = "api"
POLL_SECONDS = 0.1

DEPLOYMENT = {
    "id": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "paused", "absent", "former"], "default": "present"},
    "model_group": {"type": "str"},
    "model": {"type": "str"},
    "api_base": {"type": "str"},
    "api_key": {"type": "str", "no_log": True},
    "mode": {"type": "str", "choices": ["chat", "embedding"], "default": "chat"},
    "weight": {"type": "float"},
    "order": {"type": "int"},
    "timeout": {"type": "float"},
    "stream_timeout": {"type": "float"},
    "num_retries": {"type": "int"},
    "cooldown_time": {"type": "float"},
    "parallel_limit": {"type": "int"},
    "rpm": {"type": "int"},
    "tpm": {"type": "int"},
    "max_parallel_requests": {"type": "int"},
    "max_input_tokens": {"type": "int", "no_log": False},
    "host": {"type": "str"},
    "instance": {"type": "str"},
    "status_url": {"type": "str"},
    "parallel": {"type": "int"},
}

MODEL_GROUP = {
    "name": {"type": "str", "required": True},
    "fallbacks": {"type": "list", "elements": "str", "default": []},
    "context_window_fallbacks": {"type": "list", "elements": "str", "default": []},
}


def pausing(params):
    """Return what becomes of pauses, or None. Raises ValueError when the options do not go together."""
    deployments = params["deployments"] or []
    paused = [deployment["id"] for deployment in deployments if deployment["state"] == "paused"]
    if not params["owner"]:
        if paused:
            raise ValueError(f"{paused[0]} is to be paused: set owner, which says in whose name")
        for option in ("purge_pauses", "reason", "expire_after"):
            if params[option]:
                raise ValueError(f"{option} is about pauses: set owner, which says in whose name")
        return None
    if (params["expire_after"] or 0) < 0:
        raise ValueError(f"expire_after must be a number of seconds, or 0, not {params['expire_after']:g}")
    resumed = [deployment["id"] for deployment in deployments if deployment["state"] in ("present", "absent")]
    return Pausing(params["owner"], paused, resumed, params["purge_pauses"], params["reason"], params["expire_after"])


def claim_on(params):
    """Return the claim that somebody has on the fleet, {} where that is of no concern."""
    return current(params["claim"], time.time()) if params["claim"] else {}


def wait_for_workers(registry, state, expected, timeout):
    """Return the workers that have applied `state`; raises TimeoutError when they did not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        workers = registry.workers(time.time())
        missing = waiting_for(workers, state, expected)
        if not missing:
            return workers
        if time.monotonic() >= deadline:
            seen = "; ".join(worker.said() for worker in workers) or "no worker has reported"
            raise TimeoutError(
                f"Waited {timeout:g} s for {missing}. Wanted: generation {state.deployments_generation} in "
                f"{registry.folder}. Last seen: {seen}. Look whether the gateway runs (launchd job lmfleet.gateway) "
                "and what its log says, then run again."
            )
        time.sleep(POLL_SECONDS)


def refuse(module, problems):
    """Fail the module when there are problems."""
    if problems:
        module.fail_json(msg="Nothing has been changed. " + "\n".join(problems), problems=problems)


def wanted_of(params, state):
    """Return id to entry as it is to be, None where that is not said."""
    if params["deployments"] is None:
        return None
    return wanted_entries(params["deployments"], params["purge"], state, params["keep_hosts"], params["keep_orders"])


def model_groups_of(params, after, state):
    """Return the model groups, None where they are not said.

    On Macs of `keep_hosts` some may still have to come, and others stay that are no longer declared.
    """
    given = params["model_groups"]
    if given is None or not params["keep_hosts"]:
        return given
    names = {group["name"] for group in given}
    former = [{"name": name, **state.groups[name]} for name in state.groups if name not in names]
    return groups_there([*given, *former], after)


def result_of(planned, paused):
    """Return what the module tells of a plan, wherever the registry is."""
    after = planned.state.deployments or {}
    return {
        "generation": planned.state.generation,
        "routing": planned.state.routing,
        "deployments": sorted(after),
        "groups": {name: entry["model_name"] for name, entry in after.items()},
        "places": places(after),
        "added": planned.added,
        "updated": planned.changed,
        "removed": planned.removed,
        "paused": paused,
        "resumed": planned.resumed,
        "workers": [],
    }


def apply(module, registry, asked):
    """Plan and write; return the plan and its diff. Fails the module when the outcome could not work."""
    params = module.params
    state = registry.read()
    wanted = wanted_of(params, state)
    after = (state.deployments or {}) if wanted is None else wanted
    if asked and params["purge"] and wanted is not None:
        asked = without_unknown(asked, wanted, state)
    model_groups = model_groups_of(params, after, state)
    found = fleet_problems(params["deployments"] or [], after, asked, state)
    refuse(module, found + group_problems(model_groups or [], after))
    groups = None if model_groups is None else wanted_groups(model_groups)
    planned = plan(wanted, groups, params["routing"], asked, state, time.time())
    if planned.files and not module.check_mode:
        refuse_others(claim_on(params), params["controller"])
        registry.write(planned)
    for name in planned.state.broken:
        module.warn(f"{registry.folder}/{name} is broken, or gone. The gateway's workers go on with what they had.")
    for group in groups_without_traffic(planned.state, time.time()):
        module.warn(f"All deployments of the model group {group} are paused: requests for it are refused.")
    diff = file_diff(registry.folder, describe(state), describe(planned.state, state))
    return planned, diff if planned.files else {"before": "", "after": ""}


def tell_refusals(module, refused, result):
    """Fail for deployments that LiteLLM has refused, but only warn when this run is about something else."""
    if refused and module.params["deployments"] is not None:
        module.fail_json(msg="\n".join(refused), **result)
    for line in refused:
        module.warn(line)


def api_registry(params):
    """Return the registry behind the admin API. Raises ValueError for options that do not fit, OSError for files."""
    if not params["url"]:
        raise ValueError("registry: api needs url, the address of the gateway")
    if bool(params["master_key"]) == bool(params["master_key_file"]):
        raise ValueError("registry: api needs either master_key or master_key_file")
    if params["routing"]:
        raise ValueError(
            "routing is for the registry in a folder; a gateway with a database takes routing_strategy of "
            "litellm_router_settings"
        )
    if any(deployment["state"] == "former" for deployment in params["deployments"] or []):
        raise ValueError("state former is for the registry in a folder: a database does not say what it had before")
    for group in params["model_groups"] or []:
        if group["fallbacks"] or group["context_window_fallbacks"]:
            raise ValueError(
                f"the model group {group['name']} has fallbacks, which are for the registry in a folder; a gateway "
                "with a database takes them from litellm_router_settings"
            )
    key = params["master_key"]
    if not key:
        # One that is missing is told of when the gateway is looked at.
        with contextlib.suppress(FileNotFoundError), open(params["master_key_file"], encoding="utf-8") as stream:
            key = stream.read().strip()
    context = ssl.create_default_context(cafile=params["ca_path"])
    if not params["validate_certs"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return ApiRegistry(params["url"], key, context, params["timeout"])


def converge_api(module, registry, asked):
    """Do for a database what the rest does for files; return the result."""
    try:
        return apply_api(module, registry, asked)
    except RefusedError:
        # The worker that was asked may have known less than the database, after a run that was killed.
        time.sleep(module.params["reload_interval"])
        return apply_api(module, registry, asked)


def look_at_api(module, registry, tokens):
    """Return what the gateway has, and in check mode, where it is not there yet, that it has nothing, and why."""
    key_file = module.params["master_key_file"]
    try:
        if key_file and not os.path.exists(key_file):
            raise AbsentError(f"There is no {key_file}. Set up the gateway first (role litellm).")
        registry.check()
        return registry.read(tokens), ""
    except AbsentError as error:
        if not module.check_mode:
            raise
        return seen([], tokens), str(error)


def apply_api(module, registry, asked):
    """Plan, call and wait; return the result. Fails the module when the outcome could not work."""
    params = module.params
    given = params["deployments"] or []
    tokens = {deployment["id"]: deployment["api_key"] or NO_TOKEN for deployment in given}
    actual, problem = look_at_api(module, registry, tokens)
    state, now = actual.state, time.time()
    wanted = wanted_of(params, state)
    after = state.deployments if wanted is None else wanted
    model_groups = model_groups_of(params, after, state) or []
    problems = fleet_problems(given, after, asked, state) + group_problems(model_groups, after)
    refuse(module, problems + foreign_problems(after, actual.foreign, registry.url))
    planned = plan(wanted, None, None, asked, state, now)
    todo = calls(actual, planned.state, now)
    for group in groups_without_traffic(planned.state, now):
        module.warn(f"All deployments of the model group {group} are paused: requests for it are refused.")
    if not module.check_mode:
        if todo:
            refuse_others(claim_on(params), params["controller"])
        registry.apply(todo)
        if todo and params["timeout"] > 0:
            registry.wait(planned.state, tokens, params["reload_interval"], params["timeout"])
    diff = file_diff(registry.url, describe(state), describe(planned.state, state))
    found = result_of(planned, paused_by(state if module.check_mode else planned.state, now))
    return {
        **found,
        **({"problem": problem} if problem else {}),
        "changed": bool(todo),
        "routing": None,
        "diff": diff if todo else {"before": "", "after": ""},
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "registry": {"type": "path", "required": True},
            "url": {"type": "str"},
            "master_key": {"type": "str", "no_log": True},
            "master_key_file": {"type": "path", "no_log": False},
            "validate_certs": {"type": "bool", "default": True},
            "ca_path": {"type": "path"},
            "reload_interval": {"type": "float", "default": 30},
            "deployments": {"type": "list", "elements": "dict", "options": DEPLOYMENT},
            "purge": {"type": "bool", "default": False},
            "keep_hosts": {"type": "list", "elements": "str", "default": []},
            "keep_orders": {"type": "bool", "default": False},
            "model_groups": {"type": "list", "elements": "dict", "options": MODEL_GROUP},
            "routing": {"type": "str", "choices": list(ROUTINGS)},
            "owner": {"type": "str", "choices": list(OWNERS)},
            "purge_pauses": {"type": "bool", "default": False},
            "reason": {"type": "str"},
            "expire_after": {"type": "float"},
            "claim": {"type": "path"},
            "controller": {"type": "str"},
            "workers": {"type": "int"},
            "timeout": {"type": "float", "default": 30},
        },
        required_by={"claim": "controller"},
        supports_check_mode=True,
    )
    registry = Registry(module.params["registry"])
    refuse(module, deployment_problems(module.params["deployments"] or []))
    try:
        asked = pausing(module.params)
        if module.params["registry"] == API:
            module.exit_json(**converge_api(module, api_registry(module.params), asked))
    except (ValueError, ApiError, ClaimedError, OSError) as error:
        module.fail_json(msg=str(error))
    try:
        if module.check_mode:
            planned, diff = apply(module, registry, asked)
        elif not os.path.isdir(os.path.dirname(registry.folder)):
            module.fail_json(
                msg=f"{os.path.dirname(registry.folder)} does not exist. Set up the gateway first (role litellm)."
            )
        else:
            registry.prepare()
            with exclusive(registry.folder, "litellm_deployments"):
                planned, diff = apply(module, registry, asked)
    except (RegistryError, ClaimedError) as error:
        module.fail_json(msg=str(error))
    except (LockTimeoutError, OSError) as error:
        module.fail_json(msg=f"{registry.folder}: {error}")
    paused = paused_by(registry.read() if module.check_mode else planned.state, time.time())
    result = {**result_of(planned, paused), "changed": bool(planned.files), "diff": diff}
    if module.check_mode:
        missing = waiting_for(registry.workers(time.time()), registry.read(), module.params["workers"])
        if missing:
            result["problem"] = f"The registry waits for {missing}."
    elif module.params["timeout"] > 0:
        try:
            workers = wait_for_workers(registry, planned.state, module.params["workers"], module.params["timeout"])
        except TimeoutError as error:
            module.fail_json(msg=str(error), **result)
        result["workers"] = sorted(worker.pid for worker in workers)
        tell_refusals(module, rejections(workers, planned.state), result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
