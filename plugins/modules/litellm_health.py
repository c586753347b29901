#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module litellm_health."""

from __future__ import annotations

DOCUMENTATION = r"""
module: litellm_health
short_description: Ask a LiteLLM gateway and its deployments whether they answer
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Waits until the gateway is ready, then asks each of the deployments for one token, or one embedding, through the
    gateway and by its id. So it also shows whether the gateway's own process can reach the deployment, which a check
    over ssh does not.
  - Changes nothing.
attributes:
  check_mode:
    description:
      - Whether the task can run in check mode. It then asks the gateway once whether it is ready, asks no deployments
        and does not fail. Nothing was changed, so there is nothing to wait for.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  url:
    description:
      - Address of the gateway, as V(http://127.0.0.1:4000).
    type: str
    required: true
  master_key:
    description:
      - The gateway's master key.
    type: str
  master_key_file:
    description:
      - File on the target with the master key.
    type: path
  deployments:
    description:
      - Ids of the deployments to ask. Needs the master key.
    type: list
    elements: str
    default: []
  doubtful:
    description:
      - Those of O(deployments) that will hardly answer. They are asked with the others, for O(doubtful_timeout) only.
    type: list
    elements: str
    default: []
  doubtful_timeout:
    description:
      - Seconds to wait until those in O(doubtful) have answered.
    type: float
    default: 5
  registry:
    description:
      - Folder of the gateway's registry. With it the task also waits until each worker of the gateway knows every
        deployment of the registry. What C(/model/info) of the gateway shows is the view of one worker only.
    type: path
  idle:
    description:
      - Ids of deployments. The task also waits until no worker has a request in flight to one of them. Needs
        O(registry). Pause them first, or there is no end to it.
    type: list
    elements: str
  watch:
    description:
      - Ids of deployments that have just been changed. The task then looks at the requests of O(watch_seconds), and
        fails as soon as more of them fail there, or the first token takes longer there, than at the other deployments
        of the same model group. Needs O(registry).
      - Worse is a share of failed attempts that is 5 points larger, with at least 2 of them, or a first token that
        takes on average more than twice as long and half a second, with at least 5 streams on both sides. Where there
        is less to compare, nothing is found.
    type: list
    elements: str
  watch_seconds:
    description:
      - How long to look at the deployments in O(watch).
    type: float
    default: 60
  timeout:
    description:
      - Seconds to wait until the gateway is ready and all deployments have answered.
    type: float
    default: 60
  probe_timeout:
    description:
      - Seconds one answer may take.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Wait until the gateway is ready
  lmfleet.mac.litellm_health:
    url: http://127.0.0.1:4000

- name: Ask two deployments something
  lmfleet.mac.litellm_health:
    url: http://127.0.0.1:4000
    master_key_file: ~/.lmfleet/gateway/master_key
    deployments: [mac-1-chat-a-smollm2, mac-2-chat-a-smollm2]

- name: Wait until nobody waits for an answer of a deployment
  lmfleet.mac.litellm_health:
    url: http://127.0.0.1:4000
    registry: ~/.lmfleet/gateway/registry
    idle: [mac-2-chat-a-smollm2]
    timeout: 300

- name: See that a deployment does as well as the others for a minute
  lmfleet.mac.litellm_health:
    url: http://127.0.0.1:4000
    registry: ~/.lmfleet/gateway/registry
    watch: [mac-2-chat-a-smollm2]
    watch_seconds: 60

- name: See that each worker knows all deployments
  lmfleet.mac.litellm_health:
    url: http://127.0.0.1:4000
    registry: ~/.lmfleet/gateway/registry
"""

RETURN = r"""
ready_after:
  description: Seconds until the gateway was ready.
  returned: when the gateway was ready
  type: float
problem:
  description: What was seen instead of a gateway that is ready and whose workers know every deployment.
  returned: in check mode, when it was not so
  type: str
deployments:
  description: The deployments that were asked, in the order given.
  returned: when the gateway was ready
  type: list
  elements: dict
  contains:
    id:
      description: Id of the deployment.
      type: str
      returned: always
    healthy:
      description: Whether it answered.
      type: bool
      returned: always
    latency:
      description: Seconds the last question took.
      type: float
      returned: always
    problem:
      description: What was seen instead of an answer, empty when it answered.
      type: str
      returned: always
  sample: [{id: mac-1-chat-a-smollm2, healthy: true, latency: 0.21, problem: ""}]
busy:
  description: Number of requests in flight by id, of those deployments in O(idle) that still have some.
  returned: when O(idle) was waited for in vain
  type: dict
  sample: {mac-1-chat-a-smollm2: 2}
worse:
  description: In which way the deployments in O(watch) do worse than the others.
  returned: when they do
  type: str
workers:
  description: What the workers of the gateway say.
  returned: when O(registry) is set and the gateway was ready
  type: list
  elements: dict
  contains:
    pid:
      description: Process id.
      type: int
      returned: always
    age:
      description: Seconds since it said so.
      type: float
      returned: always
    generation:
      description: The newest declaration that it has applied.
      type: int
      returned: always
    deployments:
      description: Ids of the deployments that it knows.
      type: list
      elements: str
      returned: always
    in_flight:
      description: Number of requests in flight by id of the deployment, where there are any.
      type: dict
      returned: always
    started_at:
      description: When it began, in seconds since 1970.
      type: float
      returned: always
    outcomes:
      description:
        - What has come of its requests since it began. C(failed_requests) are those of clients that failed whatever was
          tried for them. C(deployments) has for each deployment requests that ended there (C(ended)), attempts that
          failed (C(failed)), streams (C(streams)) and the seconds until their first token in all
          (C(first_token_seconds)).
      type: dict
      returned: always
      sample:
        failed_requests: 0
        deployments: {mac-1-chat-a-smollm2: {ended: 9, streams: 4, first_token_seconds: 0.8}}
    error:
      description: What is wrong with the files of the registry, or nothing.
      type: str
      returned: always
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import read_bytes
from ..module_utils._litellm_http import Gateway, KeyRefusedError, Probe
from ..module_utils._outcomes import between, worse
from ..module_utils._registry import Registry, RegistryError, unknown_to, waiting_for

POLL_SECONDS = 0.5
READINESS_TIMEOUT = 5.0
#: Enough to be quick on a large fleet, too few to be a load.
PARALLEL_PROBES = 8


def wait_until_ready(gateway: Gateway, deadline: float) -> str:
    """Return "" once the gateway is ready, or what was last seen when it was not by `deadline` (monotonic seconds)."""
    while True:
        problem = gateway.readiness(READINESS_TIMEOUT)
        if not problem or time.monotonic() >= deadline:
            return problem
        time.sleep(POLL_SECONDS)


def wait_for_workers(registry: Registry, deadline: float) -> tuple:
    """Return the workers, and "" once each knows every deployment, or what is missing at `deadline` (monotonic)."""
    while True:
        state, workers = registry.read(), registry.workers(time.time())
        problem = waiting_for(workers, state, None)
        for worker in workers:
            unknown = unknown_to(worker, state)
            if unknown and not problem:
                problem = f"worker {worker.pid} to know {', '.join(unknown)}"
        if not problem or time.monotonic() >= deadline:
            return workers, problem
        time.sleep(POLL_SECONDS)


def wait_until_idle(registry: Registry, idle: list[str], since: float, deadline: float) -> tuple[dict[str, int], str]:
    """Return ({}, "") once no worker has requests in flight to `idle`, or who has at `deadline` (monotonic seconds).

    A report from before `since` (epoch seconds) says nothing: a request may have begun after it.
    """
    while True:
        workers = registry.workers(time.time())
        late = [worker for worker in workers if time.time() - worker.age < since]
        busy: Counter[str] = Counter()
        for worker in workers:
            busy.update({name: worker.in_flight[name] for name in idle if worker.in_flight.get(name)})
        if not late and not busy:
            return {}, ""
        if time.monotonic() >= deadline:
            requests = ", ".join(f"{name} has {count}" for name, count in sorted(busy.items()))
            return dict(busy), f"requests to end: {requests}" if busy else f"the worker {late[0].pid} to report"
        time.sleep(POLL_SECONDS)


def watch(registry: Registry, chosen: list[str], seconds: float) -> str:
    """Return in which way `chosen` do worse than the others of their model groups in `seconds`, "" when they do not."""
    groups = {name: found["model_name"] for name, found in (registry.read().deployments or {}).items()}
    before, deadline = registry.workers(time.time()), time.monotonic() + seconds
    while True:
        seen = between(before, registry.workers(time.time()))
        for group in sorted({groups[name] for name in chosen if name in groups}):
            members = [name for name in groups if groups[name] == group]
            problem = worse(
                seen, [name for name in members if name in chosen], [name for name in members if name not in chosen]
            )
            if problem:
                return problem
        if time.monotonic() >= deadline:
            return ""
        time.sleep(POLL_SECONDS)


def ask_workers(module: AnsibleModule, registry: Registry, since: float, deadline: float, result: dict) -> None:
    """Put what the workers say into `result`; fails the module when that is not what was asked for.

    In check mode it only tells. `since` is epoch seconds, `deadline` monotonic ones. Raises RegistryError.
    """
    params = module.params
    workers, problem = wait_for_workers(registry, deadline)
    if params["idle"] and not problem and not module.check_mode:
        busy, problem = wait_until_idle(registry, params["idle"], since, deadline)
        result.update({"busy": busy} if problem else {})
    names = ("pid", "age", "generation", "deployments", "in_flight", "started_at", "outcomes", "error")
    result["workers"] = [{name: getattr(worker, name) for name in names} for worker in workers]
    if problem and module.check_mode:
        result["problem"] = f"still waiting for {problem}"
    elif problem:
        module.fail_json(msg=f"Waited {params['timeout']:g} s for {problem}. Look at the gateway's log.", **result)
    if params["watch"] and not module.check_mode:
        problem = watch(registry, params["watch"], params["watch_seconds"])
        if problem:
            msg = f"Since it was changed it does worse than the others. {problem}."
            module.fail_json(msg=msg, worse=problem, **result)


def probe_all(gateway: Gateway, deadlines: dict[str, float], probe_timeout: float) -> list[Probe]:
    """Ask deployments, each until it has answered or its deadline (monotonic seconds) has passed.

    Return the last outcome of each.
    """
    last = {deployment: Probe(deployment, "not asked", 0.0) for deployment in deadlines}
    pending = sorted(deadlines, key=deadlines.get, reverse=True)  # what has little hope keeps nobody waiting
    while pending:
        for outcome in _probe_once(gateway, {name: deadlines[name] for name in pending}, probe_timeout):
            last[outcome.deployment] = outcome
        now = time.monotonic()
        pending = [deployment for deployment in pending if last[deployment].problem and now < deadlines[deployment]]
        if pending:
            time.sleep(POLL_SECONDS)
    return list(last.values())


def _probe_once(gateway: Gateway, deadlines: dict[str, float], probe_timeout: float) -> list[Probe]:
    try:
        modes = gateway.modes(READINESS_TIMEOUT)
    except ValueError as error:
        return [Probe(deployment, str(error), 0.0) for deployment in deadlines]

    def probe(deployment: str) -> Probe:
        if deployment not in modes:
            return Probe(deployment, "the gateway does not know it", 0.0)
        timeout = max(1.0, min(probe_timeout, deadlines[deployment] - time.monotonic()))
        return gateway.probe(deployment, modes[deployment], timeout)

    with ThreadPoolExecutor(PARALLEL_PROBES) as pool:
        return list(pool.map(probe, deadlines))


def deadlines_of(params: dict, deadline: float) -> dict[str, float]:
    """Return until when (monotonic seconds) each deployment is asked."""
    short = min(deadline, time.monotonic() + params["doubtful_timeout"])
    return {name: short if name in params["doubtful"] else deadline for name in params["deployments"]}


def master_key(params: dict) -> str:
    """Return the key. Raises ValueError when one is needed and there is none."""
    key = params["master_key"] or ""
    if params["master_key_file"]:
        try:
            key = (read_bytes(params["master_key_file"]) or b"").decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{params['master_key_file']}: {error}") from None
    if params["deployments"] and not key:
        raise ValueError("asking deployments needs the master key: give master_key, or a master_key_file that holds it")
    return key


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "master_key": {"type": "str", "no_log": True},
            "master_key_file": {"type": "path", "no_log": False},
            "deployments": {"type": "list", "elements": "str", "default": []},
            "doubtful": {"type": "list", "elements": "str", "default": []},
            "doubtful_timeout": {"type": "float", "default": 5},
            "registry": {"type": "path"},
            "idle": {"type": "list", "elements": "str"},
            "watch": {"type": "list", "elements": "str"},
            "watch_seconds": {"type": "float", "default": 60},
            "timeout": {"type": "float", "default": 60},
            "probe_timeout": {"type": "float", "default": 60},
        },
        mutually_exclusive=[("master_key", "master_key_file")],
        required_by={"idle": "registry", "watch": "registry"},
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        params.update(timeout=0, deployments=[], master_key_file=None)
    try:
        gateway = Gateway(params["url"], master_key(params))
    except ValueError as error:
        module.fail_json(msg=str(error))
    began, since = time.monotonic(), time.time()
    deadline = began + params["timeout"]
    problem = wait_until_ready(gateway, deadline)
    if problem and module.check_mode:
        module.exit_json(changed=False, problem=problem)
    if problem:
        module.fail_json(
            msg=f"The gateway at {params['url']} was not ready within {params['timeout']:g} s. Last seen: {problem}. "
            "Look at its log (logs/gateway.log in the gateway's folder)."
        )
    result = {"changed": False, "ready_after": round(time.monotonic() - began, 3)}
    if params["registry"]:
        try:
            ask_workers(module, Registry(params["registry"]), since, deadline, result)
        except RegistryError as error:
            module.fail_json(msg=str(error), **result)
    try:
        outcomes = probe_all(gateway, deadlines_of(params, deadline), params["probe_timeout"])
    except KeyRefusedError as error:
        module.fail_json(msg=f"{error}. Give its master key, with master_key or master_key_file.", **result)
    result["deployments"] = [
        {
            "id": outcome.deployment,
            "healthy": not outcome.problem,
            "latency": outcome.latency,
            "problem": outcome.problem,
        }
        for outcome in outcomes
    ]
    silent = [f"  - {outcome.deployment}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    if silent:
        module.fail_json(
            msg=f"{len(silent)} of {len(outcomes)} deployments did not answer through the gateway within "
            f"{params['timeout']:g} s. Last seen:\n" + "\n".join(silent),
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
