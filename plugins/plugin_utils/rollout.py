# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which order a live fleet is changed, so that every model group keeps serving. Pure: no Ansible, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: What an instance cannot do while it serves. To start one that is new takes nothing away.
INTERRUPTING = ("live", "restart", "remove")
#: What may need the port or the memory that another instance of its Mac has to give up.
TAKING = ("start", "live")


@dataclass(frozen=True)
class Deployment:
    """A deployment that the gateways have, or will have.

    `state`: "serving"; "held" by a pause that is none of a roll-out's business; "paused" by nothing but a roll-out that
    was cut off; "down" otherwise; "new" where no gateway knows it yet. `declared`: whether there is to be one.
    `lacking`: the gateways that do not have it, while others do.
    """

    id: str
    group: str
    host: str
    instance: str
    state: str = "serving"
    declared: bool = True
    lacking: frozenset[str] = frozenset()

    @property
    def missing(self) -> bool:
        """Whether it serves, and a gateway has to learn of it."""
        return self.declared and self.state == "serving" and bool(self.lacking)

    @property
    def stays(self) -> bool:
        """Whether it serves once its instance has had its turn."""
        return self.declared and self.state != "held"


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

    @property
    def interrupting(self) -> bool:
        return self.action in INTERRUPTING if self.deployments is None else bool(self.deployments)

    @property
    def about_ports(self) -> bool:
        """Whether it takes a port or gives one up."""
        moves = self.action == "restart" and self.why.startswith("changed:") and "port" in self.why
        return moves or self.action in ("start", "remove")

    def interrupts(self, deployment: Deployment) -> bool:
        return self.interrupting and (self.deployments is None or deployment.id in self.deployments)


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
    """Instances that are changed at the same time.

    `paused`: the deployments that get no requests meanwhile, `left`: how many each of their groups keeps, `added`:
    deployments that no gateway knows before, and that serve afterwards, `missing`: those that one of them has to learn.
    """

    changes: list[Change]
    paused: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> list[str]:
        return list(dict.fromkeys(change.host for change in self.changes))

    @property
    def interrupting(self) -> bool:
        return any(change.interrupting for change in self.changes)


@dataclass
class Rollout:
    """The batches in their order; what can be in none, and why."""

    batches: list[Batch] = field(default_factory=list)
    refused: list[Batch] = field(default_factory=list)
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

    What takes nothing away needs no care: all of it at once, and first, since it adds to what serves. After that, all
    instances of a Mac change at once where the fleet can spare them, otherwise one after the other. Raises ValueError
    for a policy that makes no sense.
    """
    fleet = _Fleet(deployments, policy, departing)
    most = amount(policy.batch, macs)
    rollout = Rollout()
    free, pending = _units(fleet, list(changes))
    if free:
        rollout.batches.append(fleet.described(free))
        fleet.advance(free)
    room = 1 if policy.canary else most
    while pending:
        batch, rest = _filled(fleet, pending, room)
        if not batch:
            place = next((n for n, unit in enumerate(pending) if _divisible(unit, policy)), None)
            if place is not None:
                pending[place : place + 1] = [[change] for change in pending[place]]
                continue
            if not policy.allow_downtime:
                break
            batch, *rest = pending
        rollout.batches.append(fleet.described(batch))
        fleet.advance(batch)
        pending, room = rest, most
    rollout.refused = [fleet.described(unit) for unit in pending]
    rollout.problems = [line for unit in pending for line in fleet.troubles(fleet.out(unit))]
    return rollout


def from_results(
    needs: Mapping[str, list[Mapping[str, Any]]],
    declared: list[Mapping[str, Any]],
    registered: Collection[Mapping[str, Any]],
    policy: Policy,
    unreachable: Collection[str] = (),
    silent: Collection[str] = (),
) -> dict[str, Any]:
    """Return batches, rows and problems from what modules have told, as plain values.

    `needs`: by host, the instances of lmstudio_instances; `declared`: the deployments of the fleet plan; `registered`:
    of each gateway its name, and groups, paused and places as litellm_deployments returns them; `unreachable`: Macs
    that are left out, so that nobody knows whether they serve; `silent`: ids of deployments that do not answer. Raises
    ValueError as plan_rollout does.
    """
    changes = [_change(host, entry) for host, entries in needs.items() for entry in entries if _needs(entry)]
    entries = {(host, entry["name"]): entry for host, found in needs.items() for entry in found}
    deployments = _deployments(declared, registered, changes, unreachable, silent, entries)
    changes += _resumptions(deployments, changes, entries)
    planned = plan_rollout(deployments, changes, policy, len(needs), _departing(deployments, declared))
    batches = planned.batches
    ids = {entry["id"] for entry in declared}
    hosts = {deployment.id: deployment.host for deployment in deployments}
    loud = [batch for batch in batches if batch.interrupting]
    canary = loud[0] if policy.canary and len(loud) > 1 else None
    return {
        "batches": [
            {
                "title": f"Batch {number} of {len(batches)}: {_summary(batch)}",
                "canary": batch is canary,
                **_told(batch, ids, hosts),
            }
            for number, batch in enumerate(batches, start=1)
        ]
        if not planned.problems
        else [],
        "rows": _rows(planned),
        "problems": planned.problems,
    }


def shortage(
    batch: Mapping[str, Any],
    needs: Mapping[str, list[Mapping[str, Any]]],
    declared: list[Mapping[str, Any]],
    registered: Collection[Mapping[str, Any]],
    policy: Policy,
    unreachable: Collection[str] = (),
    silent: Collection[str] = (),
) -> list[str]:
    """Return one line for each model group that would have too little if `batch` of from_results were paused now.

    `registered`, `unreachable` and `silent` as they are now, the others as they were given to from_results.
    """
    changes = [_change(host, entry) for host, entries in needs.items() for entry in entries if _needs(entry)]
    # What an instance had loaded when the run began says nothing by now.
    found = _deployments(declared, registered, changes, unreachable, silent, {})
    # What an instance has given up stays paused to the end of the run, and counts for nothing any more.
    deployments = [one for one in found if one.declared or one.state != "paused"]
    fleet = _Fleet(deployments, policy, _departing(deployments, declared))
    out = [one for one in deployments if one.id in batch["paused"] and one.state == "serving"]
    return [] if policy.allow_downtime else fleet.troubles(out)


def amount(value: int | str, whole: int, least: int = 1, up: bool = False) -> int:
    """Return a number, at least `least`, or a share such as "25%" of `whole`, at least 1, rounded down or `up`.

    Raises ValueError.
    """
    text = str(value).strip()
    number = text.removesuffix("%")
    smallest = 1 if text.endswith("%") else least
    if not number.isdecimal() or int(number) < smallest or (text.endswith("%") and int(number) > 100):
        raise ValueError(f"{value!r} is neither a number from {least} nor a share from 1% to 100%")
    if not text.endswith("%"):
        return int(number)
    return max(1, (whole * int(number) + (99 if up else 0)) // 100)


class _Fleet:
    """All deployments as they are at a time of the roll-out, and what is promised of them."""

    def __init__(self, deployments: Iterable[Deployment], policy: Policy, departing: Collection[str]) -> None:
        self._policy = policy
        self._departing = departing
        self._all = list(deployments)
        self._places: dict[tuple[str, str], list[Deployment]] = {}
        for one in self._all:
            self._places.setdefault((one.host, one.instance), []).append(one)
        # One that lacks nothing, and those that do: each has clients of its own.
        gateways = ["", *sorted({name for one in self._all for name in one.lacking})]
        self._views = [_View(gateway, self._all) for gateway in gateways]

    def advance(self, batch: Iterable[Change]) -> None:
        """Go on to the time when the batch has had its turn."""
        touched = {one for change in batch for one in self.at(change)}
        for view in self._views:
            view.learn(touched)

    def at(self, change: Change) -> list[Deployment]:
        """Return the deployments of the instance that is changed."""
        return self._places.get((change.host, change.instance), [])

    def out(self, batch: Iterable[Change]) -> list[Deployment]:
        """Return what serves, and does not while the batch is changed."""
        serving = self._views[0].serving
        return [one for change in batch for one in self.at(change) if one in serving and change.interrupts(one)]

    def gain(self, batch: Iterable[Change]) -> int:
        """Return how many more deployments serve when the batch has had its turn, for good."""
        touched = [one for change in batch for one in self.at(change)]
        return sum(one.stays - (one.state == "serving" and not one.missing) for one in touched)

    def troubles(self, out: Iterable[Deployment]) -> list[str]:
        """Return one line for each model group that has too little without `out`, at one gateway or at all."""
        troubles: dict[str, str] = {}
        out = list(out)
        for view in self._views:
            for group, members in view.by_group(out).items():
                if group in self._departing or group in troubles or self._enough(view, group, members):
                    continue
                where = ", ".join(dict.fromkeys(f"{one.instance} on {one.host}" for one in members))
                serve = view.serve[group]
                troubles[group] = (
                    f"model group {group}: to change {where} leaves {serve - len(members)} of {serve} serving "
                    f"deployments{view.gateway and f' at gateway {view.gateway}'}, {self._promise()}. Add a deployment "
                    "to the group elsewhere, or accept that its requests fail meanwhile: lmfleet_allow_downtime: true"
                )
        return [troubles[group] for group in sorted(troubles)]

    def _enough(self, view: _View, group: str, out: list[Deployment]) -> bool:
        left = view.serve[group] - len(out)
        if self._policy.min_capacity is None:
            return left >= 1 and len({one.host for one in out}) == 1
        return left >= amount(self._policy.min_capacity, view.whole[group], least=0, up=True)

    def _left(self, group: str, out: Collection[Deployment]) -> int:
        """Return how many serve without `out`: at the gateway with the fewest, of those that lose any."""
        losses = {view: len(view.by_group(out).get(group, ())) for view in self._views}
        return min(view.serve[group] - loss for view, loss in losses.items() if loss or view is self._views[0])

    def _promise(self) -> str:
        if self._policy.min_capacity is None:
            return "and at least one must go on, with no more than one Mac away at a time"
        return f"and lmfleet_min_capacity is {self._policy.min_capacity}"

    def described(self, batch: list[Change]) -> Batch:
        pairs = [(change, one) for change in batch for one in self.at(change)]
        known = [(change, one) for change, one in pairs if one.state != "new"]
        paused = {one for change, one in known if one.state == "paused" or change.interrupts(one)}
        out = self.out(batch)
        return Batch(
            batch,
            sorted(one.id for one in paused),
            {group: self._left(group, out) for group in sorted({one.group for one in paused})},
            sorted(one.id for _change, one in pairs if one.state == "new"),
            sorted(one.id for _change, one in known if one.missing and one not in paused),
        )


class _View:
    """What a gateway knows at a time of the roll-out, and what serves; `whole` and `serve` of each model group."""

    def __init__(self, gateway: str, deployments: Iterable[Deployment]) -> None:
        self.gateway = gateway
        self._known = {one for one in deployments if one.state != "new" and gateway not in one.lacking}
        self.serving = {one for one in self._known if one.state == "serving"}
        self._count()

    def _count(self) -> None:
        self.serve = Counter(one.group for one in self.serving)
        self.whole = Counter(one.group for one in self._known)

    def learn(self, touched: set[Deployment]) -> None:
        """Take in deployments that have had their turn."""
        self.serving = (self.serving - touched) | {one for one in touched if one.stays}
        self._known = (self._known - touched) | {one for one in touched if one.declared}
        self._count()

    def by_group(self, out: Iterable[Deployment]) -> dict[str, list[Deployment]]:
        """Return what it loses without `out`, by model group."""
        lost: dict[str, list[Deployment]] = {}
        for one in out:
            if one in self.serving:
                lost.setdefault(one.group, []).append(one)
        return lost


def _units(fleet: _Fleet, changes: list[Change]) -> tuple[list[Change], list[list[Change]]]:
    """Return what takes nothing away, and what is changed together: the other instances of each Mac.

    What may need a port or memory that an instance of its Mac gives up goes with that, behind it.
    """
    giving = {change.host for change in changes if _gives_up(fleet, change)}
    free, by_host = [], {}
    for change in changes:
        if change.interrupting or (change.action in TAKING and change.host in giving):
            by_host.setdefault(change.host, []).append(change)
        else:
            free.append(change)
    units = [
        sorted(wanted, key=lambda change: (not change.interrupting, change.action != "remove"))
        for wanted in by_host.values()
    ]
    # What adds to what serves comes first, such as what a former run has left paused; what takes away for good last.
    # Of the others those that serve: from one that somebody has taken out, the first batch would learn nothing.
    return free, sorted(units, key=lambda unit: (fleet.gain(unit), bool(fleet.out(unit))), reverse=True)


def _gives_up(fleet: _Fleet, change: Change) -> bool:
    lasting = change.action == "live" and all(one.stays for one in fleet.at(change) if change.interrupts(one))
    return change.interrupting and not lasting


def _filled(fleet: _Fleet, pending: list[list[Change]], room: int) -> tuple[list[Change], list[list[Change]]]:
    """Return a batch of those units that can change together now, on at most `room` Macs, and the other units."""
    batch: list[Change] = []
    hosts: set[str] = set()
    rest: list[list[Change]] = []
    waiting: set[str] = set()  # the units of a Mac keep their order
    for unit in pending:
        host = unit[0].host
        full = host not in hosts and len(hosts) >= room
        if full or host in waiting or fleet.troubles(fleet.out([*batch, *unit])):
            rest.append(unit)
            waiting.add(host)
        else:
            batch += unit
            hosts.add(host)
    return batch, rest


def _divisible(unit: list[Change], policy: Policy) -> bool:
    """Tell whether the instances of a Mac may change one after the other.

    Where one may wait for the port of another they go together, once downtime is accepted.
    """
    return len(unit) > 1 and not (policy.allow_downtime and sum(change.about_ports for change in unit) > 1)


def _needs(entry: Mapping[str, Any]) -> bool:
    return entry["action"] != "nothing" or entry["tuning"] or not entry["ready"]


def _change(host: str, entry: Mapping[str, Any]) -> Change:
    ids = frozenset(f"{host}-{entry['name']}-{model}" for model in entry["interrupted"])
    if entry["action"] != "nothing":
        return Change(host, entry["name"], entry["action"], entry["why"], ids)
    action, why = ("write", "a tuning file differs") if entry["tuning"] else ("wait", "it is not ready")
    return Change(host, entry["name"], action, why, ids)


def _resumptions(
    deployments: Iterable[Deployment], changes: Iterable[Change], known: Collection[tuple[str, str]]
) -> list[Change]:
    """Return the instances, of those `known`, that need nothing but that the gateways send them requests."""
    why = {"paused": "a run that was cut off has paused it", "new": "the gateways do not know it yet"}
    waiting = {(one.host, one.instance): "not every gateway knows it yet" for one in deployments if one.missing}
    waiting |= {(one.host, one.instance): why[one.state] for one in deployments if one.state in why}
    changing = {(change.host, change.instance) for change in changes}
    return [
        Change(*place, "resume", reason, frozenset())
        for place, reason in waiting.items()
        if place in known and place not in changing
    ]


def _departing(deployments: Iterable[Deployment], declared: Iterable[Mapping[str, Any]]) -> set[str]:
    return {deployment.group for deployment in deployments} - {entry["model_group"] for entry in declared}


def _deployments(
    declared: Iterable[Mapping[str, Any]],
    gateways: Collection[Mapping[str, Any]],
    changes: Iterable[Change],
    unreachable: Collection[str],
    silent: Collection[str],
    entries: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[Deployment]:
    """Return what the gateways route to now, as far as it is declared or about to go, and what they will route to.

    Where no gateway has told what it knows, nothing is known to be new. One that has nothing yet has no clients, and
    lacks nothing.
    """
    wanted = {entry["id"]: entry for entry in declared}
    places = {name: (change.host, change.instance) for change in changes for name in change.deployments}
    places |= {name: (entry["host"], entry["instance"]) for name, entry in wanted.items()}
    groups: dict[str, str] = {}
    owners: dict[str, set[str]] = {}
    for gateway in gateways:
        groups |= gateway["groups"]
        for name, pauses in gateway["paused"].items():
            # The guard lifts its pauses by itself, and never takes all of a group.
            owners.setdefault(name, set()).update(set(pauses) - {"guard"})
    drained = _drained(gateways, owners)
    found = []
    for name, (host, instance) in sorted(places.items()):
        held = owners.get(name, set())
        if name not in groups:
            state = "held" if {(host, None), (host, instance)} & drained else "new"
        elif held - {"rollout"}:
            state = "held"
        elif held:
            state = "paused"
        elif host in unreachable or name in silent or not _answers(name, host, entries.get((host, instance))):
            state = "down"
        else:
            state = "serving"
        if name in groups:
            lacking = frozenset(one["gateway"] for one in gateways if one["groups"] and name not in one["groups"])
            found.append(Deployment(name, groups[name], host, instance, state, name in wanted, lacking))
        elif gateways and name in wanted:
            found.append(Deployment(name, wanted[name]["model_group"], host, instance, state))
    return found


def _drained(
    gateways: Collection[Mapping[str, Any]], owners: Mapping[str, Collection[str]]
) -> set[tuple[str, str | None]]:
    """Return the instances, and with None the Macs, of which an operator has paused all that the gateways know."""
    free, paused = set(), set()
    for gateway in gateways:
        for name, place in gateway.get("places", {}).items():
            found = paused if "operator" in owners.get(name, ()) else free
            found |= {(place["host"], place["instance"]), (place["host"], None)}
    return paused - free


def _answers(name: str, host: str, entry: Mapping[str, Any] | None) -> bool:
    """Tell whether a deployment answers, by what its Mac has told of the instance: None for nothing."""
    if entry is None or entry["ready"] or entry["action"] == "remove":
        return True
    loaded = {f"{host}-{entry['name']}-{model['identifier']}" for model in entry["models"] if model["key"]}
    return entry["pid"] is not None and name in loaded


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
    given_up: list[str] = []
    for name in batch.paused:
        out.setdefault(places[name], []).append(name)
    for change in batch.changes:
        hosts.setdefault(change.host, []).append(change.instance)
        if change.deployments and change.action in ("live", "restart"):
            replaced.setdefault(change.host, []).append(change.instance)
            given_up += sorted(change.deployments - set(declared))
        models = [{"identifier": name} for name in _models(change)]
        if models:
            busy.setdefault(change.host, []).append({"name": change.instance, "models": models})
    return {
        "hosts": hosts,
        "replaced": replaced,
        "busy": busy,
        "out": out,
        "paused": batch.paused,
        "added": batch.added,
        "missing": batch.missing,
        "left": batch.left,
        "removed": [name for name in batch.paused if name not in declared],
        "given_up": given_up,
    }


def _rows(rollout: Rollout) -> list[list[Any]]:
    rows = [["Batch", "Mac", "Instance", "Action", "Why", "Paused", "Left meanwhile"]]
    numbered = [*enumerate(rollout.batches, start=1), *(("refused", batch) for batch in rollout.refused)]
    for number, batch in numbered:
        left = ", ".join(f"{group}: {count}" for group, count in batch.left.items())
        for change in batch.changes:
            models = ", ".join(_models(change))
            rows.append([number, change.host, change.instance, change.action, change.why, models, left])
    return rows if numbered else []
