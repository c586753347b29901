# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is not as declared, read from the results that the tasks of the roles left behind in check mode. Pure.

Nothing here knows a module by name: whatever a task would change, or says against a host, is drift. So a role that
gets another task, and a module that gets another option, needs no change here. What makes a finding readable are
fields that the modules of this collection use alike; see _ITEM_READERS.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

#: What a task says that failed only because an earlier one did.
_CONSEQUENCE = re.compile(r"is undefined|has no (attribute|element)|was not found in the dict")

#: Keys that name an element of a result, the first of them that it has.
_NAMES = ("name", "label", "id", "identifier", "file", "path", "url")


class Check(NamedTuple):
    """A task of a role, and the variable that its result is in."""

    role: str
    task: str
    variable: str


class Finding(NamedTuple):
    """One thing that is not as declared: what it is, what is wrong with it, and how its text differs, if it is one."""

    what: str
    problem: str
    diff: str = ""


def checks_of(role: str, task_files: Iterable[list]) -> list[Check]:
    """Return the checks of a role; `task_files` are its task lists as YAML has them."""
    return [
        Check(role, task.get("name", task["register"]), task["register"])
        for tasks in task_files
        for task in _flat(tasks or [])
        if "register" in task
    ]


def _flat(tasks: list) -> Iterator[Mapping]:
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from _flat(task.get(part) or [])


def drift_of_host(host: str, checks: Iterable[Check], results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what is not as declared on one host; `results` is variable to result of the tasks that ran there."""
    drift: list[dict[str, str]] = []
    looked_at = set()
    for check in checks:
        result = results.get(check.variable)
        if not isinstance(result, Mapping):
            continue
        looked_at.add(check.role)
        if result.get("unreachable"):
            return [*drift, _entry(host, check, Finding("host", f"cannot be reached: {_first_lines(result)}"))]
        # Two tasks may see the same thing.
        seen = {(entry["what"], entry["problem"]) for entry in drift}
        found = dict.fromkeys(findings(check, result))
        drift += [_entry(host, check, finding) for finding in found if finding[:2] not in seen]
    for role in dict.fromkeys(check.role for check in checks):
        if role not in looked_at:
            drift.append(_entry(host, Check(role, "", ""), Finding("host", "was not looked at")))
    return drift


def _entry(host: str, check: Check, finding: Finding) -> dict[str, str]:
    return {"host": host, "role": check.role, "task": check.task, **finding._asdict()}


def findings(check: Check, result: Mapping[str, Any]) -> list[Finding]:
    """Return what the result of one task says against a host."""
    if "results" in result:  # of a task in a loop
        return [found for one in result["results"] for found in findings(check, one)]
    found = [*_from_items(result), *_from_words(result), *_from_diff(result)]
    if result.get("failed") and (not found or not result.get("changed")):
        message = _first_lines(result)
        if _CONSEQUENCE.search(message):
            message = "was not looked at, because something it needs could not be looked at"
            return [*found, Finding(check.task, message)]
        return found or [Finding(check.task, f"cannot be looked at: {message}")]
    if result.get("changed") and not found:
        found.append(Finding(check.task, "is not done: a run would change it"))
    return found


def _first_lines(result: Mapping[str, Any], most: int = 300) -> str:
    text = " ".join(str(result.get("msg") or "it said nothing").split())
    return text if len(text) <= most else f"{text[:most]} …"


# -- What differs as a text ---------------------------------------------------------------------------------------


def _from_diff(result: Mapping[str, Any]) -> Iterator[Finding]:
    diffs = result.get("diff") or []
    for diff in [diffs] if isinstance(diffs, Mapping) else diffs:
        before, after = (_lines(diff.get(side)) for side in ("before", "after"))
        if before == after:
            continue
        headers = [str(diff.get(f"{side}_header") or "") for side in ("before", "after")]
        what = headers[1].removesuffix(" (absent)") or headers[0] or "a file"
        yield Finding(
            what, _difference(before, after), "\n".join(difflib.unified_diff(before, after, *headers, "", "", 2, ""))
        )


def _lines(text: object) -> list[str]:
    return [] if text is None else str(text).splitlines()


def _difference(before: list[str], after: list[str]) -> str:
    if not before:
        return "is missing"
    if not after:
        return "is not declared"
    changes = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ")]
    gone = [line[2:].strip() for line in changes if line[0] == "-"]
    come = [line[2:].strip() for line in changes if line[0] == "+"]
    if len(gone) > 1 or len(come) > 1:
        return f"differs in {max(len(gone), len(come))} lines"
    if gone and come:
        return f"has {_short(gone[0])}, declared is {_short(come[0])}"
    return f"has a line too many: {_short(gone[0])}" if gone else f"lacks the line {_short(come[0])}"


def _short(line: str, most: int = 60) -> str:
    return line if len(line) <= most else f"{line[:most]}…"


# -- What the modules say of single things ------------------------------------------------------------------------


def _from_items(result: Mapping[str, Any]) -> Iterator[Finding]:
    for key, items in result.items():
        if key in ("diff", "results") or not isinstance(items, list):
            continue
        for item in items:
            if isinstance(item, Mapping):
                what = f"{key.removesuffix('s')} {_name_of(item)}"
                yield from (Finding(what, problem) for problem in _problems_of(item))


def _name_of(item: Mapping[str, Any]) -> str:
    names = [str(item[key]) for key in _NAMES if item.get(key)]
    return names[0] if names else " ".join(str(value) for value in item.values() if isinstance(value, str))


def _action(item: Mapping[str, Any]) -> list[str]:
    action = item.get("action")
    return [f"{item.get('why') or 'is not as declared'} (to do: {action})"] if action not in (None, "nothing") else []


def _unready(item: Mapping[str, Any]) -> list[str]:
    if item.get("ready") is not False or item.get("action") not in (None, "nothing"):
        return []
    return [f"is not ready: {item.get('last_seen') or item.get('error') or 'its runner says so'}"]


#: Field of an element to the problems that stand in it.
_ITEM_READERS = (
    _action,
    lambda item: (
        [f"needs {', '.join(item['actions'])}"] if isinstance(item.get("actions"), list) and item["actions"] else []
    ),
    lambda item: [f"{name} is not loaded" for name in item.get("missing") or []],
    lambda item: [f"{name} is loaded, and not declared" for name in item.get("unmanaged") or []],
    lambda item: [str(text) for text in item.get("differences") or []],
    lambda item: [str(item.get("problem") or "does not answer")] if item.get("healthy") is False else [],
)


def _problems_of(item: Mapping[str, Any]) -> list[str]:
    found = [problem for reader in _ITEM_READERS for problem in reader(item)]
    return found or _unready(item)


#: Lists of names in a result: key to what is wrong with each of them.
_WORD_LISTS = {
    "added": "is not registered",
    "updated": "is registered otherwise",
    "removed": "is registered, and not declared",
}


def _from_words(result: Mapping[str, Any]) -> Iterator[Finding]:
    for key, problem in _WORD_LISTS.items():
        names = result.get(key) or []
        if isinstance(names, list):
            yield from (Finding(str(name), problem) for name in names)
    problems = result.get("problems") or result.get("problem") or []
    for problem in [problems] if isinstance(problems, str) else problems:
        yield Finding(str(result.get("url") or "host"), str(problem))
    shown = " ".join(
        str(diff.get("after_header", "")) for diff in result.get("diff") or [] if isinstance(diff, Mapping)
    )
    actions = [str(action) for action in result.get("actions") or [] if str(action) not in shown]
    if actions:
        yield Finding(str(result.get("root") or "host"), f"needs {', '.join(actions)}")


# -- Who paused what ----------------------------------------------------------------------------------------------


def pauses(gateway: str, results: Iterable[object]) -> list[dict[str, Any]]:
    """Return the pauses that a gateway has, oldest first. They are wishes of their owners, not drift."""
    found = [
        {
            "gateway": gateway,
            "id": deployment,
            "owner": owner,
            "reason": pause.get("reason") or "",
            "since": _utc(pause.get("since")),
            "until": _utc(pause.get("until")),
        }
        for result in results
        if isinstance(result, Mapping) and isinstance(result.get("paused"), Mapping)
        for deployment, owners in result["paused"].items()
        for owner, pause in owners.items()
    ]
    return sorted(found, key=lambda pause: (pause["since"], pause["id"], pause["owner"]))


def _utc(seconds: object) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if isinstance(seconds, (int, float)) else ""
