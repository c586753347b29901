# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of a gateway: which deployments it routes to and which of them are paused.

A folder with `deployments.json` and `paused/<owner>.json`, which the gateway's plugin follows, and with
`applied/<pid>.json`, in which each worker says what it has applied. `applied/kept` is the workers' copy of the first
two, which they go on with when a file is broken or gone.
First the pure part, which decides; at the end the part with files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from ._files import atomic_write, canonical_json, make_directory, read_bytes, read_json
from ._processes import alive

FORMAT = 1
DEPLOYMENTS = "deployments.json"
#: What the deployments were before their last change. Nobody but `wanted_entries` reads it.
FORMER = "former.json"
#: The workers' copy of what they have applied.
KEPT = "applied/kept"
ROUTINGS = ("round_robin", "shuffle", "least_busy", "usage")
OWNERS = ("operator", "rollout", "guard")

#: Seconds after which a worker that has not reported counts as gone; a healthy one reports every second.
FRESH_SECONDS = 6.0
#: Seconds after which a report is of no worker, also when its process id belongs to somebody again.
REPORT_SECONDS = 60.0
#: No number in a file is larger. Python's JSON has NaN and Infinity, too.
LARGEST = 1e15

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
#: Limits for a minute. Among LiteLLM's own params they would limit the requests in flight, too, and refuse more.
RATES = ("rpm", "tpm")
INFORMATION = ("host", "instance", "status_url", "parallel", "parallel_limit", "max_input_tokens", *RATES)
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
    "rpm": 1,
    "tpm": 1,
}


class State(NamedTuple):
    """What the files say. `deployments` is id to entry, or None when the file is absent, or broken without a copy.

    `pauses` is owner to {"generation", "paused": {id: {"reason", "since", "until"?, "expire_after"?}}}. `generation` is
    the highest one seen anywhere, so that the next one is new to every worker. `broken` names the files that make no
    sense, or that are gone although the workers had them; what is known of them comes from the workers' copy. `groups`
    is model group to {"fallbacks"?, "context_window_fallbacks"?}, lists of model groups. `former` is id to the entry
    that it had before its last change.
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

    `reason` None keeps the one there is. `expire_after` is in seconds from when it was first asked for, 0 for never;
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

    `interim` is to be written before: with it nothing that is added paused, or stays, gets a request in between.
    `resumed` is id to the seconds of a pause that ends with it.
    """

    files: dict
    state: State
    added: list
    changed: list
    removed: list
    resumed: dict
    interim: Mapping = {}


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


def wanted_entries(
    deployments: Iterable[Mapping],
    purge: bool,
    state: State,
    keep_hosts: Container = (),
    keep_orders: bool = False,
) -> dict:
    """Return id to entry as it is to be. Without `purge`, and on `keep_hosts`, what is not named stays as it is.

    What is named without being described stays as it is too, if it is there. What is to be as it was before its last
    change is so, where that is known. With `keep_orders` each model group stays with the orders that it has.
    """
    before = state.deployments or {}
    wanted = {
        name: stays for name, stays in before.items() if not purge or stays["model_info"].get("host") in keep_hosts
    }
    for deployment in deployments:
        name = deployment["id"]
        if deployment.get("state") == "absent":
            wanted.pop(name, None)
        elif deployment.get("state") == "former" and name in state.former:
            wanted[name] = state.former[name]
        elif is_defined(deployment):
            wanted[name] = entry(deployment)
        elif name in before:
            wanted[name] = before[name]
    return _in_orders_of(before, wanted) if keep_orders else wanted


def _in_orders_of(before: Mapping, wanted: Mapping) -> dict:
    """Return `wanted` (id to entry) with the orders of `before`; what is new in a group comes with its last ones."""
    orders: dict = {}
    for one in before.values():
        orders.setdefault(one["model_name"], []).append(one["litellm_params"].get("order"))
    found = {}
    for name, one in wanted.items():
        group, params = one["model_name"], one["litellm_params"]
        if name in before and before[name]["model_name"] == group:
            order = before[name]["litellm_params"].get("order")
        elif group in orders:
            order = max((known for known in orders[group] if known is not None), default=None)
        else:
            order = params.get("order")
        params = {key: value for key, value in params.items() if key != "order"}
        found[name] = {**one, "litellm_params": params if order is None else {**params, "order": order}}
    return found


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


def groups_there(model_groups: Iterable[Mapping], after: Mapping) -> list:
    """Return the model groups that have a deployment in `after` (id to entry), with those of their fallbacks alike."""
    names = {deployment["model_name"] for deployment in after.values()}
    return [
        {**group, **{key: [other for other in group.get(key) or () if other in names] for key in FALLBACKS}}
        for group in model_groups
        if group["name"] in names
    ]


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
        if deployment.get("state") != "absent" and deployment["id"] not in after
    )
    unknown = pausing and pause_file(pausing.owner) in state.broken and pausing.owner not in state.pauses
    if unknown and not pausing.only:
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
    mending = known and DEPLOYMENTS in state.broken
    if (wanted is not None and not known) or mending or after != before or other_settings:
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
    resumed, interim = {}, {}
    pauses = dict(state.pauses)
    for owner, (held, kept) in _pauses(pausing, before, after, state, now).items():
        name, asked = pause_file(owner), pausing is not None and pausing.owner == owner
        if asked:
            resumed = {one: max(0.0, now - pause.get("since", now)) for one, pause in held.items() if one not in kept}
        if kept != held or (asked and name in state.broken):
            if DEPLOYMENTS in files:
                # Not the new generation: whoever has applied this has not applied all.
                interim[name] = {"format": FORMAT, "generation": state.generation, "paused": {**held, **kept}}
            pauses[owner] = {"generation": generation, "paused": kept}
            files[name] = {"format": FORMAT, **pauses[owner]}
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
        interim=interim,
    )


def _pauses(pausing: Pausing | None, before: Mapping, after: Mapping, state: State, now: float) -> dict:
    """Return owner to two times id to pause: what it pauses at `now`, and what once `after` holds."""
    held = {owner: current_pauses(pauses["paused"], now) for owner, pauses in state.pauses.items()}
    if pausing:
        held.setdefault(pausing.owner, {})
    kept = dict(held)
    if pausing:
        kept[pausing.owner] = pauses_after(pausing, held[pausing.owner], now)
    if "rollout" in kept:
        # It pauses what it changes: with that, its pause is gone.
        gone = set(before) - set(after)
        kept["rollout"] = {name: pause for name, pause in kept["rollout"].items() if name not in gone}
    if "operator" in kept and not (pausing and pausing.owner == "operator"):
        kept["operator"] = {**_drained_as_well(before, after, kept["operator"]), **kept["operator"]}
    return {owner: (held[owner], kept[owner]) for owner in kept}


def _drained_as_well(before: Mapping, after: Mapping, paused: Mapping) -> dict:
    """Return id to pause for what is new on a Mac, or an instance, of which all is paused: whoever drained it meant it.

    It ends as the last one there.
    """
    free, drained = set(), {}
    for name, deployment in before.items():
        for place in _places_of(deployment):
            if name not in paused:
                free.add(place)
            else:
                drained[place] = max(drained.get(place, paused[name]), paused[name], key=_end)
    new = {name: _places_of(after[name]) for name in after if name not in before}
    return {
        name: drained[place] for name, found in new.items() for place in found if place in drained and place not in free
    }


def _places_of(deployment: Mapping) -> list:
    """Return the Mac and the instance of an entry, [] where it does not tell."""
    host, instance = (deployment["model_info"].get(key) for key in ("host", "instance"))
    return [(host, None), (host, instance)] if host else []


def _end(pause: Mapping) -> float:
    return float("inf") if pause.get("until") is None else pause["until"]


def places(entries: Mapping) -> dict:
    """Return id to {"host", "instance"} of the entries that tell it."""
    known = {name: deployment["model_info"] for name, deployment in entries.items()}
    return {
        name: {key: info[key] for key in ("host", "instance")} for name, info in known.items() if info.get("instance")
    }


def without_unknown(pausing: Pausing, after: Iterable, state: State) -> Pausing:
    """Return `pausing` that also lifts the owner's pauses of what is not in `after` (ids) any more."""
    held = state.pauses[pausing.owner]["paused"] if pausing.owner in state.pauses else {}
    return pausing._replace(resume=[*pausing.resume, *sorted(set(held) - set(after))])


def current_pauses(paused: Mapping, now: float) -> dict:
    """Return the pauses (id to pause) that have not ended by themselves."""
    return {name: pause for name, pause in paused.items() if pause.get("until") is None or pause["until"] > now}


def pauses_after(pausing: Pausing, held: Mapping, now: float) -> dict:
    """Return id to pause of one owner after the request; a pause that goes on keeps its beginning."""
    kept = {} if pausing.only else {name: held[name] for name in held if name not in pausing.resume}
    for name in pausing.pause:
        old = held.get(name, {})
        pause = {"since": now, "reason": "", **old}
        if pausing.reason is not None:
            pause["reason"] = pausing.reason
        if pausing.expire_after is not None and pausing.expire_after != (old.get("expire_after") or 0):
            pause["expire_after"], pause["until"] = pausing.expire_after, now + pausing.expire_after
        if pausing.expire_after == 0:
            pause = {key: value for key, value in pause.items() if key not in ("expire_after", "until")}
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
    #: Which start of the gateway it belongs to.
    run: str | None = None

    def said(self) -> str:
        """Return the report in a few words, for a message."""
        error = f", {self.error}" if self.error else ""
        return f"worker {self.pid} has applied generation {self.generation} ({self.age:.0f} s ago{error})"


def waiting_for(workers: Iterable[Worker], state: State, expected: int | None) -> str:
    """Return what is still missing until every worker has applied `state`, "" when nothing is.

    `expected` is the least number of workers; None takes what they say themselves.
    """
    fresh = [worker for worker in workers if worker.age <= FRESH_SECONDS]
    # A former start that still answers its last requests has workers, too, but any number of them.
    newest = max(fresh, key=lambda worker: worker.started_at).run if fresh else None
    current = [worker for worker in fresh if worker.run == newest]
    least = expected or max([worker.workers for worker in current] or [1])
    if len(current) < least:
        return f"{least} of the gateway's workers to report, and {len(current)} did"
    behind = [worker for worker in fresh if not _has_applied(worker, state)]
    return f"{len(behind)} of the gateway's {len(fresh)} workers to apply it" if behind else ""


def _has_applied(worker: Worker, state: State) -> bool:
    # Somebody may have written again meanwhile, building upon this: another run, or the queue guard.
    if state.deployments_generation is not None and (worker.generation or 0) < state.deployments_generation:
        return False
    return all(worker.paused_generations.get(owner, -1) >= held["generation"] for owner, held in state.pauses.items())


def unknown_to(worker: Worker, state: State) -> list:
    """Return the ids of the deployments of `state` that a worker does not know."""
    return sorted(set(state.deployments or {}) - set(worker.deployments))


def rejections(workers: Iterable[Worker], state: State) -> list:
    """Return one line for each deployment of `state` that LiteLLM has refused."""
    refused = {}
    for worker in workers:
        if (worker.generation or 0) >= (state.deployments_generation or 0):
            refused.update({name: why for name, why in worker.rejected.items() if name in (state.deployments or {})})
    return [f"the gateway refused the deployment {name}: {refused[name]}" for name in sorted(refused)]


class RegistryError(Exception):
    """A file of the registry cannot be read; the text says which, why, and what to do."""


class Registry:
    """The files. Raises OSError for what the file system refuses to write."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def read(self) -> State:
        """Return what the files say, and of a broken one what the workers keep of it. Raises RegistryError."""
        pauses, broken = {}, []
        document, sound = self._document(DEPLOYMENTS, sound_deployments)
        if not sound:
            broken.append(DEPLOYMENTS)
        for owner in OWNERS:
            held, sound = self._document(pause_file(owner), sound_pauses)
            if held:
                pauses[owner] = {"generation": held["generation"], "paused": held["paused"]}
            if not sound:
                broken.append(pause_file(owner))
        seen = [held["generation"] for held in pauses.values()]
        for worker in self.workers(now=0.0):
            seen.extend(number for number in (worker.generation, *worker.paused_generations.values()) if number)
        if document is None:
            return State(max(seen, default=0), None, None, None, pauses, tuple(broken))
        generation = document["generation"]
        former = _parsed(_content(os.path.join(self.folder, FORMER)))
        return State(
            max([generation, *seen]),
            document["routing"],
            _by_id(document),
            generation,
            pauses,
            tuple(broken),
            document.get("groups", {}),
            _by_id(former) if _has_deployments(former) else {},
        )

    def deployments(self) -> tuple:
        """Return deployments.json as it stands, or what the workers keep of it, else None; and whether it is sound.

        Raises RegistryError.
        """
        return self._document(DEPLOYMENTS, sound_deployments)

    def _document(self, name: str, is_sound) -> tuple:
        content = _content(os.path.join(self.folder, name))
        document = _parsed(content)
        if is_sound(document):
            return document, True
        kept = None
        # In a container the copy may be another user's.
        with contextlib.suppress(RegistryError):
            kept = _parsed(_content(os.path.join(self.folder, KEPT, name)))
        return (kept if is_sound(kept) else None), content is None and kept is None

    def write(self, planned: Plan) -> None:
        """Write what is planned. Pauses are set before the deployments change, and lifted after it."""
        for files in (planned.interim, planned.files):
            for name in sorted(files, key=lambda name: name.startswith("paused/")):
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
                run=report.get("run"),
            )
            for report in reports
            if isinstance(report, dict)
            and report.get("format") == FORMAT
            and (report.get("container") or alive(report["pid"]))
            and now - report["at"] <= REPORT_SECONDS
        ]


def sound_deployments(document: object) -> bool:
    """Tell whether this is a whole deployments.json. The plugin judges by the same rules (lmfleet_registry.py)."""
    if not _has_deployments(document) or document.get("routing") not in ROUTINGS:
        return False
    groups = document.get("groups", {})
    return isinstance(groups, dict) and all(_is_group(settings) for settings in groups.values())


def sound_pauses(document: object) -> bool:
    """Tell whether this is a whole file of pauses."""
    return _has(document, "paused", dict) and all(_is_pause(pause) for pause in document["paused"].values())


def _has_deployments(document: object) -> bool:
    return (
        _has(document, "deployments", list)
        and all(_is_deployment(deployment) for deployment in document["deployments"])
        and len(_by_id(document)) == len(document["deployments"])
    )


def _has(document: object, key: str, kind: type) -> bool:
    return (
        isinstance(document, dict)
        and document.get("format") == FORMAT
        and isinstance(document.get("generation"), int)
        and not isinstance(document["generation"], bool)
        and isinstance(document.get(key), kind)
    )


def _is_deployment(deployment: object) -> bool:
    try:
        params, info = deployment["litellm_params"], deployment["model_info"]
        names = (info["id"], deployment["model_name"], params["model"], info.get("mode", "chat"))
        numbers = (params.get("weight"), params.get("order"), *(info.get(key) for key in ("parallel_limit", *RATES)))
    except (KeyError, TypeError, AttributeError):
        return False
    return all(isinstance(name, str) and name for name in names) and all(
        number is None or _is_number(number) for number in numbers
    )


def _is_group(settings: object) -> bool:
    return isinstance(settings, dict) and all(
        isinstance(settings.get(name, []), list) and all(isinstance(other, str) for other in settings.get(name, []))
        for name in FALLBACKS
    )


def _is_pause(pause: object) -> bool:
    return (
        isinstance(pause, dict)
        and _is_number(pause.get("since", 0))
        and (pause.get("until") is None or _is_number(pause["until"]))
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _by_id(document: Mapping) -> dict:
    return {deployment["model_info"]["id"]: deployment for deployment in document["deployments"]}


def _content(path: str) -> bytes | None:
    try:
        return read_bytes(path)
    except OSError as error:
        raise RegistryError(
            f"{path} cannot be read ({error.strerror}). It must be a file of the user that the gateway runs as, with "
            "mode 0600: put that right, or move it away, and run again."
        ) from None


def _parsed(content: bytes | None) -> object | None:
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None
