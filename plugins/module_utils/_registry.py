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
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ._files import atomic_write, canonical_json, make_directory, read_json

FORMAT = 1
DEPLOYMENTS = "deployments.json"
ROUTINGS = ("round_robin", "shuffle")
OWNERS = ("operator", "rollout", "guard")

#: Seconds after which a worker that has not reported counts as gone; a healthy one reports every second.
FRESH_SECONDS = 6.0

#: Stands for the token of a backend in a diff.
HIDDEN = "(hidden)"

#: Any token does for a backend without tokens, but LiteLLM insists on one.
NO_TOKEN = "none"

OPTIONAL_PARAMS = ("weight", "order", "timeout", "stream_timeout", "max_parallel_requests")
INFORMATION = ("host", "instance", "parallel")


class State(NamedTuple):
    """What the files say. `deployments` is id to entry, or None when the file is absent or broken.

    `pauses` is owner to {"generation", "paused": {id: {"reason", "since", "until"?}}}. `generation` is the highest one
    seen anywhere, so that the next one is new to every worker.
    """

    generation: int
    routing: str | None
    deployments: dict | None
    deployments_generation: int | None
    pauses: dict


class PauseRequest(NamedTuple):
    """What becomes of one owner's pauses: exactly `ids`, or, with `ids` None, `add` more and `remove` fewer."""

    owner: str
    ids: list | None
    add: list
    remove: list
    reason: str


class Plan(NamedTuple):
    """What to write (`files`: name to document), the state after it, and in lists of ids what that means."""

    files: dict
    state: State
    added: list
    changed: list
    removed: list
    paused: list
    resumed: list


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


def wanted_entries(deployments: Iterable[Mapping], purge: bool, state: State) -> dict:
    """Return id to entry as it is to be. Without `purge` what is not named stays as it is."""
    wanted = {} if purge else dict(state.deployments or {})
    for deployment in deployments:
        if deployment.get("state") == "absent":
            wanted.pop(deployment["id"], None)
        else:
            wanted[deployment["id"]] = entry(deployment)
    return wanted


def deployment_problems(deployments: Iterable[Mapping]) -> list:
    """Return one line for each deployment that cannot be right."""
    found = []
    uses = {}
    for deployment in deployments:
        uses[deployment["id"]] = uses.get(deployment["id"], 0) + 1
        needed = ("id",) if deployment.get("state") == "absent" else ("id", "model_group", "model", "api_base")
        found.extend(
            f"deployment {deployment['id']!r} has no {key}; give it one" for key in needed if not deployment.get(key)
        )
    found.extend(
        f"the deployment id {name} is used {count} times; each deployment needs one of its own"
        for name, count in uses.items()
        if count > 1
    )
    return found


def fleet_problems(after: Mapping, groups: Iterable[str], pause: PauseRequest | None) -> list:
    """Return one line for each reason why `after` (id to entry) cannot be what the gateway routes to."""
    names = {deployment["model_name"] for deployment in after.values()}
    found = [
        f"the model group {group} has no deployment; declare one for it, or do not ask for the group"
        for group in groups
        if group not in names
    ]
    found.extend(
        f"the deployment id {name} is also the name of a model group; rename one of them"
        for name in sorted(names & set(after))
    )
    asked = [*(pause.ids or ()), *pause.add] if pause else []
    known = ", ".join(sorted(after)) or "none"
    found.extend(f"cannot pause {name}: no such deployment. There are: {known}" for name in asked if name not in after)
    return found


def plan(wanted: Mapping | None, routing: str | None, pause: PauseRequest | None, state: State, now: float) -> Plan:
    """Work out what to write. `wanted` is id to entry, None leaves the deployments alone; `now` is epoch seconds."""
    generation = state.generation + 1
    before = state.deployments or {}
    after = before if wanted is None else dict(wanted)
    routing = routing or state.routing or ROUTINGS[0]
    files = {}
    known = state.deployments is not None
    if (wanted is not None and not known) or after != before or (known and routing != state.routing):
        files[DEPLOYMENTS] = {
            "format": FORMAT,
            "generation": generation,
            "routing": routing,
            "deployments": [after[name] for name in sorted(after)],
        }
    pauses = dict(state.pauses)
    held = dict(pauses[pause.owner]["paused"]) if pause and pause.owner in pauses else {}
    kept = pauses_after(pause, held, now) if pause else held
    if set(kept) != set(held):
        pauses[pause.owner] = {"generation": generation, "paused": kept}
        files[pause_file(pause.owner)] = {"format": FORMAT, **pauses[pause.owner]}
    state_after = State(
        generation=generation if files else state.generation,
        routing=routing if known or DEPLOYMENTS in files else None,
        deployments=after if known or DEPLOYMENTS in files else None,
        deployments_generation=generation if DEPLOYMENTS in files else state.deployments_generation,
        pauses=pauses,
    )
    return Plan(
        files=files,
        state=state_after,
        added=sorted(set(after) - set(before)),
        changed=sorted(name for name in after if name in before and after[name] != before[name]),
        removed=sorted(set(before) - set(after)),
        paused=sorted(set(kept) - set(held)),
        resumed=sorted(set(held) - set(kept)),
    )


def pauses_after(pause: PauseRequest, held: Mapping, now: float) -> dict:
    """Return id to pause of one owner after the request; a pause that goes on keeps its reason and its beginning."""
    wanted = set(pause.ids) if pause.ids is not None else (set(held) | set(pause.add)) - set(pause.remove)
    return {name: held.get(name) or {"reason": pause.reason, "since": now} for name in sorted(wanted)}


def pause_file(owner: str) -> str:
    """Return the name of an owner's file, below the registry."""
    return f"paused/{owner}.json"


def paused_by(state: State) -> dict:
    """Return id to the sorted list of owners that pause it."""
    owners = {}
    for owner in sorted(state.pauses):
        for name in state.pauses[owner]["paused"]:
            owners.setdefault(name, []).append(owner)
    return dict(sorted(owners.items()))


def describe(state: State) -> str:
    """Return the state as text for a diff: no generations, no times, no tokens."""
    entries = state.deployments or {}
    shown = {
        name: dict(entries[name], litellm_params=dict(entries[name]["litellm_params"], api_key=HIDDEN))
        for name in entries
    }
    pauses = {
        owner: {name: pause.get("reason", "") for name, pause in held["paused"].items()}
        for owner, held in state.pauses.items()
    }
    return canonical_json({"routing": state.routing, "deployments": shown, "paused": pauses})


class Worker(NamedTuple):
    """What one live worker of the gateway last reported."""

    pid: int
    age: float
    generation: int | None
    paused_generations: dict
    workers: int
    rejected: dict
    error: str | None

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
    return all(worker.paused_generations.get(owner) == held["generation"] for owner, held in state.pauses.items())


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
        """Return what the files say; a broken file counts as absent."""
        document = _checked(read_json(os.path.join(self.folder, DEPLOYMENTS)), "deployments", list)
        entries = _by_id(document["deployments"]) if document else None
        pauses = {}
        for owner in OWNERS:
            held = _checked(read_json(os.path.join(self.folder, pause_file(owner))), "paused", dict)
            if held:
                pauses[owner] = {"generation": held["generation"], "paused": held["paused"]}
        seen = [held["generation"] for held in pauses.values()]
        for worker in self.workers(now=0.0):
            seen.extend(number for number in (worker.generation, *worker.paused_generations.values()) if number)
        if document is None or entries is None:
            return State(max(seen, default=0), None, None, None, pauses)
        generation = document["generation"]
        return State(max([generation, *seen]), document.get("routing"), entries, generation, pauses)

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
            )
            for report in reports
            if isinstance(report, dict) and report.get("format") == FORMAT and _alive(report["pid"])
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
