# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of a gateway: which deployments it routes to and which of them are paused.

A folder with `deployments.json` and `paused/<owner>.json`, which the gateway's plugin follows, and with
`applied/<pid>.json`, in which each worker says what it has applied.
First the pure part, which decides; at the end the part with files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ._files import atomic_write, canonical_json, make_directory, read_json

FORMAT = 1
DEPLOYMENTS = "deployments.json"
#: What the deployments were before their last change. Nobody but `wanted_entries` reads it.
FORMER = "former.json"
ROUTINGS = ("round_robin", "shuffle", "least_busy", "usage")
OWNERS = ("operator", "rollout", "guard")

#: Seconds after which a worker that has not reported counts as gone; a healthy one reports every second.
FRESH_SECONDS = 6.0

#: Stand for the token of a backend in a diff.
HIDDEN = "(hidden)"
HIDDEN_CHANGED = "(hidden, another one)"

#: Any token does for a backend without tokens, but LiteLLM insists on one.
NO_TOKEN = "none"

OPTIONAL_PARAMS = (
    "weight",
    "order",
    "timeout",
    "stream_timeout",
    "num_retries",
    "cooldown_time",
    "max_parallel_requests",
)
INFORMATION = ("host", "instance", "status_url", "parallel", "parallel_limit", "max_input_tokens")
FALLBACKS = ("fallbacks", "context_window_fallbacks")
#: What a deployment needs to be one.
DEFINITION = ("model_group", "model", "api_base")
#: The smallest value that makes sense.
LEAST = {
    "weight": 0,
    "order": 0,
    "timeout": 0.001,
    "stream_timeout": 0.001,
    "num_retries": 0,
    "cooldown_time": 0,
    "max_parallel_requests": 1,
    "parallel": 1,
    "parallel_limit": 1,
    "max_input_tokens": 1,
}


class State(NamedTuple):
    """What the files say. `deployments` is id to entry, or None when the file is absent or broken.

    `pauses` is owner to {"generation", "paused": {id: {"reason", "since", "until"?}}}. `generation` is the highest one
    seen anywhere, so that the next one is new to every worker. `broken` names the files that are there but make no
    sense. `groups` is model group to {"fallbacks"?, "context_window_fallbacks"?}, lists of model groups. `former` is id
    to the entry that it had before its last change.
    """

    generation: int
    routing: str | None
    deployments: dict | None
    deployments_generation: int | None
    pauses: dict
    broken: tuple = ()
    groups: Mapping = {}
    former: Mapping = {}


class Pausing(NamedTuple):
    """What becomes of the pauses of one owner: `pause` and `resume` are ids; with `only`, all others are lifted.

    `reason` None keeps the one there is. `expire_after` is in seconds from the beginning of a pause, 0 for never;
    None keeps the end there is.
    """

    owner: str
    pause: list
    resume: list
    only: bool = False
    reason: str | None = None
    expire_after: float | None = None


class Plan(NamedTuple):
    """What to write (`files`: name to document), the state after it, and in lists of ids what that means.

    `resumed` is id to the seconds of a pause that ends with it.
    """

    files: dict
    state: State
    added: list
    changed: list
    removed: list
    resumed: dict


def entry(deployment: Mapping) -> dict:
    """Return a deployment as LiteLLM's model_list has it."""
    params = {
        "model": "openai/" + deployment["model"],
        "api_base": deployment["api_base"],
        "api_key": deployment.get("api_key") or NO_TOKEN,
    }
    params.update({key: deployment[key] for key in OPTIONAL_PARAMS if deployment.get(key) is not None})
    info = {"id": deployment["id"], "mode": deployment.get("mode") or "chat"}
    info.update({key: deployment[key] for key in INFORMATION if deployment.get(key) is not None})
    return {"model_name": deployment["model_group"], "litellm_params": params, "model_info": info}


def is_defined(deployment: Mapping) -> bool:
    """Return whether a deployment is described, rather than only named."""
    return any(deployment.get(key) for key in DEFINITION)


def wanted_entries(deployments: Iterable[Mapping], purge: bool, state: State) -> dict:
    """Return id to entry as it is to be. Without `purge` what is not named stays as it is.

    What is named without being described stays as it is too, if it is there. What is to be as it was before its last
    change is so, where that is known.
    """
    before = state.deployments or {}
    wanted = {} if purge else dict(before)
    for deployment in deployments:
        name = deployment["id"]
        if deployment.get("state") == "absent":
            wanted.pop(name, None)
        elif deployment.get("state") == "former" and name in state.former:
            wanted[name] = state.former[name]
        elif is_defined(deployment) and deployment.get("state") != "kept":
            wanted[name] = entry(deployment)
        elif name in before:
            wanted[name] = before[name]
    return wanted


def deployment_problems(deployments: Iterable[Mapping]) -> list:
    """Return one line for each deployment that cannot be right."""
    found = []
    uses = {}
    for deployment in deployments:
        uses[deployment["id"]] = uses.get(deployment["id"], 0) + 1
        found.extend(f"deployment {deployment['id']!r} {problem}" for problem in _problems_of(deployment))
    found.extend(
        f"the deployment id {name} is used {count} times; each deployment needs one of its own"
        for name, count in uses.items()
        if count > 1
    )
    return found


def _problems_of(deployment: Mapping) -> Iterable:
    if not deployment["id"]:
        yield "has no id; give it one"
    if deployment.get("state") == "absent" or not is_defined(deployment):
        return
    for key in DEFINITION:
        if not deployment.get(key):
            yield f"has no {key}; give it one"
    address = deployment.get("api_base")
    if address and not re.match(r"https?://[^/\s]+", address):
        yield f"has the api_base {address!r}, which is no http or https address"
    for key, least in LEAST.items():
        value = deployment.get(key)
        if value is not None and value < least:
            yield f"has {key} {value:g}, which must be at least {least:g}"


def wanted_groups(model_groups: Iterable[Mapping]) -> dict:
    """Return the settings of the model groups that have any."""
    settings = {group["name"]: {key: list(group[key]) for key in FALLBACKS if group.get(key)} for group in model_groups}
    return {name: settings[name] for name in sorted(settings) if settings[name]}


def group_problems(model_groups: Iterable[Mapping], after: Mapping) -> list:
    """Return one line for each reason why the model groups do not fit `after` (id to entry)."""
    modes = {}
    for deployment in after.values():
        modes.setdefault(deployment["model_name"], set()).add(deployment["model_info"].get("mode") or "chat")
    found = [
        f"the model group {name} has chat and embedding deployments; give them different names"
        for name in sorted(modes)
        if len(modes[name]) > 1
    ]
    ordered = {d["model_name"] for d in after.values() if d["litellm_params"].get("order") is not None}
    found.extend(
        f"deployment {name} has no order, but another one of the model group {deployment['model_name']} has one, "
        "so it would never be asked; give it an order"
        for name, deployment in after.items()
        if deployment["model_name"] in ordered and deployment["litellm_params"].get("order") is None
    )
    for group in model_groups:
        name = group["name"]
        if name not in modes:
            found.append(f"the model group {name} has no deployment; declare one for it, or do not ask for the group")
        for key in FALLBACKS:
            for other in group.get(key) or ():
                if other == name:
                    found.append(f"the model group {name} has itself among its {key}; leave it out")
                elif other not in modes:
                    found.append(f"the model group {name} has {other} among its {key}, which has no deployment")
                elif name in modes and modes[other] != modes[name]:
                    found.append(f"the model group {name} has {other} among its {key}, which does something else")
    return found


def fleet_problems(named: Iterable[Mapping], after: Mapping, pausing: Pausing | None, state: State) -> list:
    """Return one line for each reason why `after` (id to entry) cannot be what the gateway routes to.

    `named` are the deployments that were given.
    """
    names = {deployment["model_name"] for deployment in after.values()}
    known = ", ".join(sorted(after)) or "none"
    found = []
    found.extend(
        f"the deployment id {name} is also the name of a model group; rename one of them"
        for name in sorted(names & set(after))
    )
    found.extend(
        f"there is no deployment {deployment['id']}: give it a model_group, model and api_base to add it. "
        f"There are: {known}"
        for deployment in named
        if deployment.get("state") not in ("absent", "kept") and deployment["id"] not in after
    )
    if pausing and not pausing.only and pause_file(pausing.owner) in state.broken:
        found.append(
            f"{pause_file(pausing.owner)} is broken, so what {pausing.owner} pauses is not known. Name all of it, "
            "with purge_pauses: true"
        )
    return found


def plan(
    wanted: Mapping | None,
    groups: Mapping | None,
    routing: str | None,
    pausing: Pausing | None,
    state: State,
    now: float,
) -> Plan:
    """Work out what to write. `wanted` is id to entry and `groups` model group to settings; None leaves them alone.

    `now` is epoch seconds.
    """
    generation = state.generation + 1
    before = state.deployments or {}
    after = before if wanted is None else dict(wanted)
    routing = routing or state.routing or ROUTINGS[0]
    groups = state.groups if groups is None else groups
    files = {}
    known = state.deployments is not None
    other_settings = known and (routing, groups) != (state.routing, state.groups)
    if (wanted is not None and not known) or after != before or other_settings:
        files[DEPLOYMENTS] = {
            "format": FORMAT,
            "generation": generation,
            "routing": routing,
            "groups": groups,
            "deployments": [after[name] for name in sorted(after)],
        }
    changed = sorted(name for name in after if name in before and after[name] != before[name])
    former = {**state.former, **{name: before[name] for name in changed}}
    if former != state.former:
        files[FORMER] = {
            "format": FORMAT,
            "generation": generation,
            "deployments": [former[name] for name in sorted(former)],
        }
    resumed = {}
    pauses = dict(state.pauses)
    if pausing:
        name = pause_file(pausing.owner)
        held = current_pauses(pauses[pausing.owner]["paused"], now) if pausing.owner in pauses else {}
        kept = pauses_after(pausing, held, now)
        resumed = {name: max(0.0, now - pause.get("since", now)) for name, pause in held.items() if name not in kept}
        if kept != held or name in state.broken:
            pauses[pausing.owner] = {"generation": generation, "paused": kept}
            files[name] = {"format": FORMAT, **pauses[pausing.owner]}
    state_after = State(
        generation=generation if files else state.generation,
        routing=routing if known or DEPLOYMENTS in files else None,
        deployments=after if known or DEPLOYMENTS in files else None,
        deployments_generation=generation if DEPLOYMENTS in files else state.deployments_generation,
        pauses=pauses,
        broken=tuple(name for name in state.broken if name not in files),
        groups=groups if known or DEPLOYMENTS in files else {},
        former=former,
    )
    return Plan(
        files=files,
        state=state_after,
        added=sorted(set(after) - set(before)),
        changed=changed,
        removed=sorted(set(before) - set(after)),
        resumed=resumed,
    )


def current_pauses(paused: Mapping, now: float) -> dict:
    """Return the pauses (id to pause) that have not ended by themselves."""
    return {name: pause for name, pause in paused.items() if pause.get("until") is None or pause["until"] > now}


def pauses_after(pausing: Pausing, held: Mapping, now: float) -> dict:
    """Return id to pause of one owner after the request; a pause that goes on keeps its beginning."""
    kept = {} if pausing.only else {name: held[name] for name in held if name not in pausing.resume}
    for name in pausing.pause:
        old = held.get(name, {})
        pause = {"reason": old.get("reason", ""), "since": old.get("since", now)}
        if pausing.reason is not None:
            pause["reason"] = pausing.reason
        until = old.get("until") if pausing.expire_after is None else pause["since"] + pausing.expire_after
        if until is not None and pausing.expire_after != 0:
            pause["until"] = until
        kept[name] = pause
    return kept


def pause_file(owner: str) -> str:
    """Return the name of an owner's file, below the registry."""
    return f"paused/{owner}.json"


def paused_by(state: State, now: float) -> dict:
    """Return id to owner to pause, for what is paused at `now`."""
    owners = {}
    for owner in sorted(state.pauses):
        for name, pause in current_pauses(state.pauses[owner]["paused"], now).items():
            owners.setdefault(name, {})[owner] = {"until": None, **pause}
    return {name: owners[name] for name in sorted(owners)}


def groups_without_traffic(state: State, now: float) -> list:
    """Return the model groups whose deployments are all paused. Where the guard pauses all, it has paused none."""
    pauses = paused_by(state, now)
    open_groups = set()
    groups = set()
    for name, deployment in (state.deployments or {}).items():
        groups.add(deployment["model_name"])
        if not set(pauses.get(name, ())) - {"guard"}:
            open_groups.add(deployment["model_name"])
    return sorted(groups - open_groups)


def describe(state: State, former: State | None = None) -> str:
    """Return the state as text for a diff: no generations, no times, no tokens.

    A token that is another one than in `former` shows as such.
    """
    entries = state.deployments or {}
    formerly = (former.deployments if former else None) or entries
    shown = {}
    for name, deployment in entries.items():
        token = deployment["litellm_params"].get("api_key")
        same = name not in formerly or formerly[name]["litellm_params"].get("api_key") == token
        hidden = HIDDEN if same else HIDDEN_CHANGED
        shown[name] = dict(deployment, litellm_params=dict(deployment["litellm_params"], api_key=hidden))
    pauses = {
        owner: {
            name: {key: pause[key] for key in ("reason", "until") if pause.get(key)} for name, pause in held.items()
        }
        for owner, held in ((owner, state.pauses[owner]["paused"]) for owner in state.pauses)
    }
    return canonical_json({"routing": state.routing, "groups": state.groups, "deployments": shown, "paused": pauses})


class Worker(NamedTuple):
    """What one live worker of the gateway last reported."""

    pid: int
    age: float
    generation: int | None
    paused_generations: dict
    workers: int
    rejected: dict
    error: str | None
    deployments: list
    in_flight: dict
    started_at: float
    outcomes: dict

    def said(self) -> str:
        """Return the report in a few words, for a message."""
        error = f", {self.error}" if self.error else ""
        return f"worker {self.pid} has applied generation {self.generation} ({self.age:.0f} s ago{error})"


def waiting_for(workers: Iterable[Worker], state: State, expected: int | None) -> str:
    """Return what is still missing until every worker has applied `state`, "" when nothing is.

    `expected` is the least number of workers; None takes what they say themselves.
    """
    fresh = [worker for worker in workers if worker.age <= FRESH_SECONDS]
    least = expected or max([worker.workers for worker in fresh] or [1])
    if len(fresh) < least:
        return f"{least} of the gateway's workers to report, and {len(fresh)} did"
    behind = [worker for worker in fresh if not _has_applied(worker, state)]
    return f"{len(behind)} of the gateway's {len(fresh)} workers to apply it" if behind else ""


def _has_applied(worker: Worker, state: State) -> bool:
    if state.deployments is not None and worker.generation != state.deployments_generation:
        return False
    # An owner may have written again meanwhile: the queue guard renews its pauses.
    return all(worker.paused_generations.get(owner, -1) >= held["generation"] for owner, held in state.pauses.items())


def unknown_to(worker: Worker, state: State) -> list:
    """Return the ids of the deployments of `state` that a worker does not know."""
    return sorted(set(state.deployments or {}) - set(worker.deployments))


def rejections(workers: Iterable[Worker], state: State) -> list:
    """Return one line for each deployment of `state` that LiteLLM has refused."""
    refused = {}
    for worker in workers:
        if worker.generation == state.deployments_generation:
            refused.update(worker.rejected)
    return [f"the gateway refused the deployment {name}: {refused[name]}" for name in sorted(refused)]


class Registry:
    """The files. Raises OSError for what the file system refuses."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def read(self) -> State:
        """Return what the files say; a broken file counts as absent, and is named as broken."""
        names = [DEPLOYMENTS, *map(pause_file, OWNERS)]
        there = {name for name in names if os.path.lexists(os.path.join(self.folder, name))}
        document = _checked(read_json(os.path.join(self.folder, DEPLOYMENTS)), "deployments", list)
        entries = _by_id(document["deployments"]) if document else None
        sound = {DEPLOYMENTS} if entries is not None else set()
        pauses = {}
        for owner in OWNERS:
            held = _checked(read_json(os.path.join(self.folder, pause_file(owner))), "paused", dict)
            if held and all(isinstance(pause, dict) for pause in held["paused"].values()):
                pauses[owner] = {"generation": held["generation"], "paused": held["paused"]}
                sound.add(pause_file(owner))
        broken = tuple(sorted(there - sound))
        seen = [held["generation"] for held in pauses.values()]
        for worker in self.workers(now=0.0):
            seen.extend(number for number in (worker.generation, *worker.paused_generations.values()) if number)
        if document is None or entries is None:
            return State(max(seen, default=0), None, None, None, pauses, broken)
        generation = document["generation"]
        kept = _checked(read_json(os.path.join(self.folder, FORMER)), "deployments", list)
        return State(
            max([generation, *seen]),
            document.get("routing"),
            entries,
            generation,
            pauses,
            broken,
            document.get("groups") or {},
            (_by_id(kept["deployments"]) if kept else None) or {},
        )

    def write(self, files: Mapping) -> None:
        """Write the documents of a plan. The pauses come first: what is added paused gets no request in between."""
        for name in sorted(files, key=lambda name: name == DEPLOYMENTS):
            atomic_write(os.path.join(self.folder, name), canonical_json(files[name]), 0o600)

    def prepare(self) -> None:
        """Make the folders."""
        for name in ("paused", "applied"):
            make_directory(os.path.join(self.folder, name), 0o700)

    def workers(self, now: float) -> list:
        """Return the last report of each worker that is alive; `now` is seconds since the epoch."""
        folder = os.path.join(self.folder, "applied")
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
        reports = [read_json(os.path.join(folder, name)) for name in names if name.endswith(".json")]
        return [
            Worker(
                pid=report["pid"],
                age=now - report["at"],
                generation=report["generation"],
                paused_generations=report["paused_generations"],
                workers=report["workers"],
                rejected=report["rejected"],
                error=report["error"],
                deployments=report.get("deployments", []),
                in_flight=report.get("in_flight", {}),
                started_at=report.get("started_at", 0.0),
                outcomes=report.get("outcomes", {}),
            )
            for report in reports
            if isinstance(report, dict)
            and report.get("format") == FORMAT
            and (report.get("container") or _alive(report["pid"]))
        ]


def _checked(document: object, key: str, kind: type) -> dict | None:
    sound = (
        isinstance(document, dict)
        and document.get("format") == FORMAT
        and isinstance(document.get("generation"), int)
        and isinstance(document.get(key), kind)
    )
    return document if sound else None


def _by_id(entries: list) -> dict | None:
    try:
        return {entry["model_info"]["id"]: entry for entry in entries}
    except (KeyError, TypeError):
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
