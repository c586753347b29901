# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order a live fleet is changed, so that every model group keeps serving. Pure: no Ansible, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: What an instance cannot do while it serves. To start one that is new takes nothing away.
INTERRUPTING = ("live", "restart", "remove")


@dataclass(frozen=True)
class Deployment:
    """A deployment that the gateway has.

    `serving`: nobody pauses it and its Mac can be reached. `leftover`: only a roll-out that was cut off pauses it, so
    that it serves again once its instance has had its turn.
    """

    id: str
    group: str
    host: str
    instance: str
    serving: bool = True
    leftover: bool = False


@dataclass(frozen=True)
class Change:
    """What an instance needs; `action` as module lmstudio_instances names it.

    `deployments`: ids of those that do not answer meanwhile, None for all of the instance.
    """

    host: str
    instance: str
    action: str
    why: str
    deployments: frozenset[str] | None = None

    def interrupts(self, deployment: Deployment) -> bool:
        if self.deployments is not None:
            return deployment.id in self.deployments
        return self.action in INTERRUPTING and (deployment.host, deployment.instance) == (self.host, self.instance)


@dataclass(frozen=True)
class Policy:
    """How much at once.

    `batch`: Macs at the same time, a number or a share such as "25%". `min_capacity`: deployments that each model
    group keeps, a number or a share; None for all but those of one Mac, and at least one. `canary`: begin with one Mac.
    """

    batch: int | str = "25%"
    min_capacity: int | str | None = None
    canary: bool = True
    allow_downtime: bool = False


@dataclass
class Batch:
    """Instances that are changed at the same time, the deployments paused for it, and how many each group keeps."""

    changes: list[Change]
    paused: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)

    @property
    def hosts(self) -> list[str]:
        return list(dict.fromkeys(change.host for change in self.changes))


@dataclass
class Rollout:
    """The batches in their order, or why there can be none."""

    batches: list[Batch] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan_rollout(
    deployments: Iterable[Deployment],
    changes: Iterable[Change],
    policy: Policy,
    macs: int,
    departing: Collection[str] = (),
) -> Rollout:
    """Put `changes` in batches. `macs` is the number of Macs that a share of `policy.batch` is of.

    Nothing is promised for the model groups in `departing`, which are no longer declared.

    All instances of a Mac change at once where the fleet can spare them, otherwise one after the other. Raises
    ValueError for a policy that makes no sense.
    """
    everything = list(deployments)
    known = [deployment for deployment in everything if deployment.group not in departing]
    most = amount(policy.batch, macs)
    rollout = Rollout()
    batches: list[list[Change]] = []
    units = _units(known, changes, policy)
    # What a former run has left paused comes first: it costs nothing, and serves afterwards.
    units.sort(key=lambda unit: not any(one.leftover and _returns(one, unit) for one in known))
    for unit in units:
        trouble = _troubles(_later(known, unit), [unit], policy)
        place = None if trouble else _place(known, batches, unit, policy, most)
        if place is None and not trouble:
            trouble = _troubles(known, [*batches, unit], policy)  # what was removed before may be missing now
        if trouble and not policy.allow_downtime:
            rollout.problems += trouble
            continue
        if place is None:
            batches.append(unit)
        else:
            batches[place] = [*batches[place], *unit]
    if not rollout.problems:
        rollout.batches = _described(everything, batches)
    return rollout


def from_results(
    needs: Mapping[str, list[Mapping[str, Any]]],
    declared: list[Mapping[str, Any]],
    registered: Iterable[Mapping[str, Any]],
    policy: Policy,
    unreachable: Collection[str] = (),
) -> dict[str, Any]:
    """Return batches, rows and problems from what modules have told, as plain values.

    `needs`: by host, the instances of lmstudio_instances; `declared`: the deployments of the fleet plan; `registered`:
    of each gateway groups and paused, as litellm_deployments returns them; `unreachable`: Macs that are left out, so
    that nobody knows whether they serve. Raises ValueError as plan_rollout does.
    """
    changes = [_change(host, entry) for host, entries in needs.items() for entry in entries if _needs(entry)]
    loud = [change for change in changes if change.deployments]
    deployments = _registered(declared, registered, loud, unreachable)
    # What takes nothing away needs no care: all of it at once, and first, since it adds to what serves. But a new
    # instance may want the port or the memory that another of its Mac has to give up before.
    giving = {change.host for change in loud if change.action != "live"}
    quiet = [change for change in changes if not change.deployments] + _resumptions(deployments, changes)
    last = [change for change in quiet if change.action == "start" and change.host in giving]
    first = [change for change in quiet if change not in last]
    departing = {deployment.group for deployment in deployments} - {entry["model_group"] for entry in declared}
    healed = [replace(one, serving=one.serving or _returns(one, first)) for one in deployments]
    planned = plan_rollout(healed, loud, policy, len(needs), departing)
    batches = [*_quietly(first, deployments), *planned.batches, *_quietly(last, deployments)]
    ids = {entry["id"] for entry in declared}
    hosts = {deployment.id: deployment.host for deployment in deployments}
    first_loud = planned.batches[0] if policy.canary and len(planned.batches) > 1 else None
    return {
        "batches": [
            {
                "title": f"Batch {number} of {len(batches)}: {_summary(batch)}",
                "canary": batch is first_loud,
                **_told(batch, ids, hosts),
            }
            for number, batch in enumerate(batches, start=1)
        ],
        "rows": _rows(batches) if batches else [],
        "problems": planned.problems,
    }


def _resumptions(deployments: Iterable[Deployment], changes: Iterable[Change]) -> list[Change]:
    """Return the instances that need nothing but that the pause of a former run ends."""
    changing = {(change.host, change.instance) for change in changes}
    left = dict.fromkeys((one.host, one.instance) for one in deployments if one.leftover)
    why = "a run that was cut off has paused it"
    return [Change(*place, "resume", why, frozenset()) for place in left if place not in changing]


def _quietly(changes: list[Change], deployments: Iterable[Deployment]) -> list[Batch]:
    paused = [deployment.id for deployment in deployments if _returns(deployment, changes)]
    return [Batch(changes, paused)] if changes else []


def amount(value: int | str, whole: int, least: int = 1) -> int:
    """Return a number, at least `least`, or a share such as "25%" of `whole`, rounded down, at least 1.

    Raises ValueError.
    """
    text = str(value).strip()
    number = text.removesuffix("%")
    smallest = 1 if text.endswith("%") else least
    if not number.isdecimal() or int(number) < smallest or (text.endswith("%") and int(number) > 100):
        raise ValueError(f"{value!r} is neither a number from {least} nor a share from 1% to 100%")
    return max(1, whole * int(number) // 100) if text.endswith("%") else int(number)


def _units(deployments: list[Deployment], changes: Iterable[Change], policy: Policy) -> list[list[Change]]:
    """Return what is changed together: the instances of a Mac, or each by itself."""
    by_host: dict[str, list[Change]] = {}
    for change in changes:
        by_host.setdefault(change.host, []).append(change)
    units = []
    for wanted in by_host.values():
        whole = len(wanted) == 1 or not _troubles(_later(deployments, wanted), [wanted], policy)
        units += [wanted] if whole else [[change] for change in wanted]
    return units


def _place(
    deployments: list[Deployment], batches: list[list[Change]], unit: list[Change], policy: Policy, most: int
) -> int | None:
    """Return the first batch that can take `unit` as well, None when there is none."""
    for place in range(1 if policy.canary else 0, len(batches)):
        joined = [*batches[place], *unit]
        hosts = {change.host for change in joined}
        if len(hosts) <= most and not _troubles(deployments, [*batches[:place], joined, *batches[place + 1 :]], policy):
            return place
    return None


def _troubles(deployments: list[Deployment], batches: list[list[Change]], policy: Policy) -> list[str]:
    """Return one line for each model group that a batch would leave with too little."""
    troubles = []
    for batch, before in _with_serving(deployments, batches):
        for group in sorted({deployment.group for deployment in before}):
            members = [deployment for deployment in before if deployment.group == group]
            out = [deployment for deployment in members if _interrupted(deployment, batch)]
            left = len(members) - len(out)
            if not out or _enough(group, deployments, out, left, policy):
                continue
            where = ", ".join(dict.fromkeys(f"{deployment.instance} on {deployment.host}" for deployment in out))
            troubles.append(
                f"model group {group}: to change {where} leaves {left} of {len(members)} serving deployments, "
                f"{_promise(policy)}. Add a deployment to the group elsewhere, or accept that its requests fail "
                "meanwhile: lmfleet_allow_downtime: true"
            )
    return troubles


def _enough(group: str, deployments: list[Deployment], out: list[Deployment], left: int, policy: Policy) -> bool:
    if policy.min_capacity is None:
        return left >= 1 and len({deployment.host for deployment in out}) == 1
    whole = sum(deployment.group == group for deployment in deployments)
    return left >= amount(policy.min_capacity, whole, least=0)


def _promise(policy: Policy) -> str:
    if policy.min_capacity is None:
        return "and at least one must go on, with no more than one Mac away at a time"
    return f"and lmfleet_min_capacity is {policy.min_capacity}"


def _interrupted(deployment: Deployment, batch: list[Change]) -> bool:
    return any(change.interrupts(deployment) for change in batch)


def _returns(deployment: Deployment, batch: list[Change]) -> bool:
    """Tell whether a deployment that was left paused serves after the turn of its instance."""
    places = [(change.host, change.instance) for change in batch if change.action != "remove"]
    return deployment.leftover and (deployment.host, deployment.instance) in places


def _later(deployments: list[Deployment], unit: list[Change]) -> list[Deployment]:
    """Return the deployments as they are when all that was left paused has had its turn, but for `unit`."""
    return [replace(one, serving=one.serving or (one.leftover and not _returns(one, unit))) for one in deployments]


def _with_serving(
    deployments: list[Deployment], batches: list[list[Change]]
) -> Iterator[tuple[list[Change], list[Deployment]]]:
    """Yield each batch with the deployments that serve before it.

    What an earlier one removed does not, what was left paused does after its turn.
    """
    serving = [deployment for deployment in deployments if deployment.serving]
    for batch in batches:
        yield batch, serving
        removals = [change for change in batch if change.action == "remove"]
        serving = [deployment for deployment in serving if not _interrupted(deployment, removals)]
        serving += [
            deployment for deployment in deployments if _returns(deployment, batch) and deployment not in serving
        ]


def _described(deployments: list[Deployment], batches: list[list[Change]]) -> list[Batch]:
    described = []
    for changes, before in _with_serving(deployments, batches):
        paused = [one for one in deployments if _interrupted(one, changes) or _returns(one, changes)]
        left = {
            group: sum(one.group == group and not _interrupted(one, changes) for one in before)
            for group in sorted({deployment.group for deployment in paused})
        }
        described.append(Batch(changes, [deployment.id for deployment in paused], left))
    return described


def _needs(entry: Mapping[str, Any]) -> bool:
    return entry["action"] != "nothing" or entry["tuning"] or not entry["ready"]


def _change(host: str, entry: Mapping[str, Any]) -> Change:
    ids = frozenset(f"{host}-{entry['name']}-{model}" for model in entry["interrupted"])
    if entry["action"] != "nothing":
        return Change(host, entry["name"], entry["action"], entry["why"], ids)
    action, why = ("write", "a tuning file differs") if entry["tuning"] else ("wait", "it is not ready")
    return Change(host, entry["name"], action, why, ids)


def _registered(
    declared: Iterable[Mapping[str, Any]],
    gateways: Iterable[Mapping[str, Any]],
    changes: Iterable[Change],
    unreachable: Collection[str],
) -> list[Deployment]:
    """Return what the gateways route to now, as far as it is declared, or about to go."""
    places = {entry["id"]: (entry["host"], entry["instance"]) for entry in declared}
    places |= {name: (change.host, change.instance) for change in changes for name in change.deployments}
    groups: dict[str, str] = {}
    owners: dict[str, set[str]] = {}
    for gateway in gateways:
        groups |= gateway["groups"]
        for name, pauses in gateway["paused"].items():
            owners.setdefault(name, set()).update(pauses)
    found = []
    for name, group in sorted(groups.items()):
        if name in places:
            reached = places[name][0] not in unreachable
            leftover = owners.get(name) == {"rollout"}
            found.append(Deployment(name, group, *places[name], reached and name not in owners, reached and leftover))
    return found


def _models(change: Change) -> list[str]:
    prefix = f"{change.host}-{change.instance}-"
    return [name.removeprefix(prefix) for name in sorted(change.deployments)]


def _summary(batch: Batch) -> str:
    by_host = {
        host: ", ".join(f"{change.instance} {change.action}" for change in batch.changes if change.host == host)
        for host in batch.hosts
    }
    return "; ".join(f"{host} ({changes})" for host, changes in by_host.items())


def _told(batch: Batch, declared: Collection[str], places: Mapping[str, str]) -> dict[str, Any]:
    hosts: dict[str, list[str]] = {}
    replaced: dict[str, list[str]] = {}
    busy: dict[str, list[dict[str, Any]]] = {}
    out: dict[str, list[str]] = {}
    for name in batch.paused:
        out.setdefault(places[name], []).append(name)
    for change in batch.changes:
        hosts.setdefault(change.host, []).append(change.instance)
        if change.deployments and change.action in ("live", "restart"):
            replaced.setdefault(change.host, []).append(change.instance)
        models = [{"identifier": name} for name in _models(change)]
        if models:
            busy.setdefault(change.host, []).append({"name": change.instance, "models": models})
    return {
        "hosts": hosts,
        "replaced": replaced,
        "busy": busy,
        "out": out,
        "paused": batch.paused,
        "left": batch.left,
        "removed": [name for name in batch.paused if name not in declared],
    }


def _rows(batches: list[Batch]) -> list[list[str]]:
    rows = [["Batch", "Mac", "Instance", "Action", "Why", "Paused", "Left meanwhile"]]
    for number, batch in enumerate(batches, start=1):
        left = ", ".join(f"{group}: {count}" for group, count in batch.left.items())
        for change in batch.changes:
            models = ", ".join(_models(change))
            rows.append([number, change.host, change.instance, change.action, change.why, models, left])
    return rows
