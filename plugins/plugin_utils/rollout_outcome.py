# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a part of a roll-out, and what is put back for it. Pure: no Ansible, no I/O.

A part is a batch as plan_rollout tells it, or what is taken out again to be put back. The results are those of the
tasks of a roll-out, as plain values; a task that was not needed has the result {}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

GONE = "it cannot be reached any more."


def outcome(
    part: Mapping[str, Any],
    deployments: Iterable[Mapping[str, Any]],
    macs: Mapping[str, Mapping[str, Mapping[str, Any]]],
    gateways: Mapping[str, list[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Return what came of `part`.

    `deployments`: those of the fleet plan; `macs`: by host, what came of `idle`, `run` and `health`; `gateways`: by
    task (`held`, `drained`, `told`, `answers`, `back`), one result for each gateway.

    In it, `in_the_way` has lines on gateways that kept the part from being changed. `untouched` says by host why it was
    not changed or got back at once what it had, `mute` why it is to get that back now. `gone` and `new` are ids that
    the gateways have to forget and to learn, `asked` those that are asked, of which what is `doubtful` will hardly
    answer: it could not be changed and does not serve as before either. `silent` has by id why it does not serve,
    `resumed` those that do: what was not changed because it answers all the time is not asked, for it would be the
    last in a queue. What an instance has given up for others stays paused: it may be put back until the run ends.
    `behind` has lines on gateways that were not told. `well`: nothing of that went wrong.
    """
    in_the_way = _lines(gateways["held"]) + _lines(gateways["drained"])
    untouched = _untouched(part["hosts"], macs, bool(in_the_way))
    deaf = {host: _why(macs[host]["health"]) for host in part["hosts"] if _bad(macs[host]["health"])}
    changed = [host for host in part["hosts"] if host not in untouched and host not in deaf]
    deployments = list(deployments)
    places = {one["id"]: one["host"] for one in deployments}
    places |= {name: host for host, names in part["out"].items() for name in names}
    leaving = [name for name in part["removed"] if places[name] in changed]
    gone = [name for name in leaving if name not in part["given_up"]]
    new = [name for name in [*part["added"], *part["missing"]] if places[name] in changed]
    paused = [name for name in part["paused"] if name not in leaving]
    at_work = [name for name in _at_work(macs, gateways["drained"]) if name in paused and places[name] in untouched]
    asked = [name for name in paused if name not in at_work] + new
    silent = _silent(asked, gateways["answers"])
    behind = _lines(gateways["told"]) + _lines(gateways["back"])
    mute = {host: why for host, why in deaf.items() if host not in untouched}
    for name, why in silent.items():
        if places[name] not in untouched:
            mute.setdefault(places[name], f"{name} does not answer through the gateway: {why}")
    return {
        "in_the_way": in_the_way,
        "untouched": untouched,
        "mute": mute,
        "gone": gone,
        "new": new,
        "asked": asked,
        "doubtful": _doubtful(part["hosts"], deployments, macs),
        "silent": silent,
        "resumed": at_work + [name for name in asked if name not in silent],
        "behind": behind,
        "well": not (in_the_way or untouched or mute or silent or behind),
    }


def to_put_back(
    done: list[Mapping[str, Any]],
    deployments: Iterable[Mapping[str, Any]],
    outcome: Mapping[str, Any],
    whole: bool,
    worse: bool,
) -> list[dict[str, Any]]:
    """Return the parts that get back what they had, the last one first.

    `done`: the batches so far; `outcome`: of the last of them. With `whole` all go back, otherwise the last one where
    it does `worse` than the others, or else its Macs on which something does not answer.
    """
    parts = []
    deployments = list(deployments)
    for batch in reversed(done):
        last = batch is done[-1]
        mute = outcome["mute"] if last else {}
        hosts = batch["replaced"] if whole or (last and worse) else mute
        as_before = outcome["untouched"] if last else ()
        hosts = [host for host in batch["replaced"] if host in hosts and host not in as_before]
        if hosts:
            replaced = {host: batch["replaced"][host] for host in hosts}
            gained = [
                one
                for one in deployments
                if one["id"] in batch["added"] and one["instance"] in replaced.get(one["host"], ())
            ]
            parts.append(_put_back(batch, replaced, gained, mute))
    return parts


def _put_back(
    batch: Mapping[str, Any],
    replaced: Mapping[str, list[str]],
    gained: list[Mapping[str, Any]],
    mute: Mapping[str, str],
) -> dict[str, Any]:
    """Return the part in which instances (`replaced`, by host) get back what they had.

    What they have `gained` leaves the gateways, and what they have given up serves again. Instances that were removed,
    or are new, stay so.
    """
    out, busy = {}, {}
    for host, instances in replaced.items():
        paused = batch["out"].get(host, [])
        new = [one for one in gained if one["host"] == host]
        out[host] = [name for name in paused if name not in batch["removed"] or name in batch["given_up"]]
        out[host] += [one["id"] for one in new]
        models = {entry["name"]: entry["models"] for entry in batch["busy"].get(host, [])}
        # What does not answer is not waited for; nobody asks it anything.
        for name in instances if host not in mute else ():
            gains = [{"identifier": one["model"]} for one in new if one["instance"] == name]
            busy.setdefault(host, []).append({"name": name, "models": models.get(name, []) + gains})
    return {
        **batch,
        "hosts": replaced,
        "replaced": replaced,
        "busy": busy,
        "out": out,
        "paused": [name for names in out.values() for name in names],
        "removed": [one["id"] for one in gained],
        "given_up": [],
        "added": [],
        "missing": [],
    }


def _untouched(
    hosts: Iterable[str], macs: Mapping[str, Mapping[str, Mapping[str, Any]]], hindered: bool
) -> dict[str, str]:
    if hindered:
        return dict.fromkeys(hosts, "")
    return {
        host: _why(next(result for result in (macs[host]["idle"], macs[host]["run"]) if _bad(result)))
        for host in hosts
        if _bad(macs[host]["idle"]) or _bad(macs[host]["run"])
    }


def _doubtful(
    hosts: Iterable[str],
    deployments: Iterable[Mapping[str, Any]],
    macs: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[str]:
    serving: dict[str, set[str]] = {}
    for host in hosts:
        run = macs[host]["run"]
        if _bad(run):
            found = run.get("instances", ())
            serving[host] = {entry["name"] for entry in found if entry["ready"] or entry["restored"]}
    return [one["id"] for one in deployments if one["host"] in serving and one["instance"] not in serving[one["host"]]]


def _at_work(macs: Mapping[str, Mapping[str, Mapping[str, Any]]], drained: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the ids that were seen to have requests in hand to the end of the time for it."""
    at_work = {name for result in drained for name in result.get("busy", ())}
    for host, results in macs.items():
        for instance in results["idle"].get("instances", ()):
            at_work |= {f"{host}-{instance['name']}-{model}" for model in instance.get("busy", ())}
    return sorted(at_work)


def _silent(asked: list[str], answers: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return by id why it is not to get requests: one gateway that hears nothing of it is enough."""
    verdicts = [result["deployments"] for result in answers if "deployments" in result]
    told = [one for verdict in verdicts for one in verdict if one["id"] in asked]
    silent = {one["id"]: one["problem"] for one in told if not one["healthy"]}
    troubles = _lines(answers)
    # A gateway that cannot ask knows nothing of them; only where all are like that, nobody does.
    if troubles and not verdicts:
        silent = dict.fromkeys(asked, "; ".join(troubles))
    return silent


def _lines(results: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"{result.get('gateway')}: {_why(result)}" for result in results if _bad(result)]


def _bad(result: Mapping[str, Any]) -> bool:
    return bool(result.get("failed") or result.get("unreachable"))


def _why(result: Mapping[str, Any]) -> str:
    return GONE if result.get("unreachable") else str(result.get("msg", "it failed"))
