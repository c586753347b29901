# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the instances of a Mac need, and whether they are ready. Pure: no I/O, no Ansible."""

from __future__ import annotations

import hashlib
import json
import re
from typing import NamedTuple

from ._addresses import EVERYWHERE
from ._files import canonical_json
from ._launchd import Actual, Job, Service, parse_plist, plan
from ._lmstudio_http import Server, WantedModel, differences, missing
from ._names import instance_label

#: LM Studio tries five control ports; a sixth daemon finds none.
MOST_INSTANCES = 5

#: Parts of a declaration that the runner cannot take up while it runs; it applies all others live.
NEEDS_NEW_START = ("name", "address", "port", "llmster", "lms")

#: Seconds on top of three polls after which a runner that has not written its status counts as hung.
STALE_RESERVE = 30.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class InstanceError(Exception):
    """A declaration that cannot be used, or an instance that does not become ready."""


class Wanted(NamedTuple):
    """An instance as declared: `content` is its instance.json, `generation` the sha256 of that."""

    name: str
    declaration: dict
    content: str
    generation: str
    service: Service

    @property
    def address(self) -> str:
        return self.declaration["address"]

    @property
    def port(self) -> int:
        return self.declaration["port"]

    @property
    def api_token(self) -> str:
        return self.declaration.get("api_token") or ""

    def stale_after(self) -> float:
        """Return the age in seconds beyond which a status of this instance is not believed."""
        return 3 * float(self.declaration.get("poll_interval") or 0) + STALE_RESERVE

    def models(self) -> list[WantedModel]:
        """Return the declared models as a server would show them."""
        return [
            WantedModel(
                model["identifier"],
                model.get("type", "llm"),
                model.get("context_length"),
                model.get("parallel"),
                model.get("load"),
            )
            for model in self.declaration["models"]
        ]


class Found(NamedTuple):
    """An instance as it is: instance.json as text, status.json and its age in seconds, the job, the models link."""

    declaration: str | None
    status: dict
    status_age: float
    service: Actual
    models_link_right: bool
    runner_right: bool
    moved_from: str | None
    disabled: bool

    def pid(self) -> int | None:
        return self.service.job.pid if self.service.job else None


class Decision(NamedTuple):
    """What one instance needs: `action` is nothing, live, restart, start or remove; `why` is in words."""

    action: str
    why: str
    service_actions: list[str]


def shown(before: str | None, after: str) -> tuple[str | None, str]:
    """Return two texts of instance.json for a diff: without tokens, and different where only the token is."""
    old = None if before is None else _without_token(before, "(hidden)")
    new = _without_token(after, "(hidden)")
    return old, (_without_token(after, "(hidden, new)") if old == new and before != after else new)


def _without_token(content: str, instead: str) -> str:
    try:
        declaration = json.loads(content)
    except ValueError:
        # Edited by hand; there is no telling where a token is in it.
        return "(not JSON)\n" if "api_token" in content else content
    if not isinstance(declaration, dict) or not declaration.get("api_token"):
        return content
    return canonical_json({**declaration, "api_token": instead})


def parse_wanted(entry: dict) -> Wanted:
    """Return the Wanted of one entry of the module. Raises InstanceError, LaunchdError (for the plist)."""
    name = entry["name"]
    if not _NAME.fullmatch(name):
        raise InstanceError(f"instance {name!r}: a name has letters, digits, '.', '_' and '-', at most 63 of them")
    try:
        declaration = json.loads(entry["declaration"])
    except json.JSONDecodeError as error:
        raise InstanceError(
            f"instance {name}: declaration: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})"
        ) from None
    trouble = _trouble_with(declaration, name)
    if trouble:
        raise InstanceError(f"instance {name}: declaration: {trouble}")
    content = canonical_json(declaration)
    generation = hashlib.sha256(content.encode("utf-8")).hexdigest()
    label = instance_label(name)
    plist = parse_plist(label, entry["plist"])
    service = Service(label, "started", plist, (entry["plist"].strip() + "\n").encode("utf-8"))
    return Wanted(name, declaration, content, generation, service)


def _trouble_with(declaration: object, name: str) -> str:
    if not isinstance(declaration, dict):
        return "the top level must be an object"
    if declaration.get("name") != name:
        return f"its name is {declaration.get('name')!r}"
    port = declaration.get("port")
    if not isinstance(port, int) or not 1 <= port <= 65535:
        return f"port {port!r} is not a number from 1 to 65535"
    if not isinstance(declaration.get("address"), str):
        return "address is missing"
    models = declaration.get("models")
    if not isinstance(models, list) or not all(isinstance(one, dict) and one.get("identifier") for one in models):
        return "models must be a list of objects with an identifier"
    return ""


def check_together(wanted: list[Wanted]) -> None:
    """Raise InstanceError when the instances cannot run on one Mac: too many, or two of one name or port."""
    if len(wanted) > MOST_INSTANCES:
        names = ", ".join(one.name for one in wanted)
        raise InstanceError(f"{len(wanted)} instances ({names}): LM Studio has room for {MOST_INSTANCES} on one Mac")
    for position, one in enumerate(wanted):
        for other in wanted[:position]:
            if one.name.lower() == other.name.lower():  # APFS ignores case
                raise InstanceError(f"instance {one.name} is declared twice")
            everywhere = EVERYWHERE.keys() & {one.address, other.address}
            if one.port == other.port and (one.address == other.address or everywhere):
                raise InstanceError(f"instances {other.name} and {one.name} both declare port {one.port}")


def decide(wanted: Wanted, found: Found, plist_path: str, runner_version: str) -> Decision:
    """Return what one instance needs. `runner_version` is the sha256 of the runner it shall run."""
    service_actions = plan(wanted.service, plist_path, found.service)
    if found.service.job is None:
        return Decision("start", _why_start(found), service_actions)
    why = _why_restart(wanted, found, service_actions, runner_version)
    if why:
        rest = [action for action in service_actions if action not in ("bootout", "bootstrap")]
        return Decision("restart", why, ["bootout", *rest, "bootstrap"])
    if found.disabled:
        service_actions = [*service_actions, "enable"]
    if found.declaration != wanted.content:
        return Decision("live", _why_live(wanted, found), service_actions)
    if found.disabled:
        return Decision("live", "its launchd job was disabled: it would not start again", service_actions)
    if service_actions:
        return Decision("live", "owner or mode of its property list", service_actions)
    return Decision("nothing", "", [])


def interrupted(wanted: Wanted, found: Found, decision: Decision) -> list[str]:
    """Return the identifiers of the models that do not answer while a decision is carried out, of those that do now."""
    before = served(found.declaration)
    if decision.action == "restart" or found.moved_from:
        return sorted(before if _parsed(found.declaration) else _loaded(found))
    if decision.action != "live" or found.declaration == wanted.content:
        return []
    if _runtimes(wanted.declaration).items() - _runtimes(_parsed(found.declaration)).items():
        return sorted(before)  # what runs with another runtime is loaded anew
    after = {model["identifier"]: model for model in wanted.declaration["models"]}
    return sorted(name for name in before if before[name].get("fingerprint") != after.get(name, {}).get("fingerprint"))


def only_gives(wanted: Wanted, found: Found, decision: Decision) -> bool:
    """Tell whether a decision takes models away and loads none, so that others can have their memory."""
    if decision.action != "live":
        return False
    before = {name: model.get("fingerprint") for name, model in served(found.declaration).items()}
    after = {model["identifier"]: model.get("fingerprint") for model in wanted.declaration["models"]}
    return before != after and after.items() <= before.items()


def served(declaration: str | None) -> dict[str, dict]:
    """Return the models of a declaration on disk, by identifier; none of one that is broken."""
    models = _parsed(declaration).get("models")
    entries = models if isinstance(models, list) else []
    return {one["identifier"]: one for one in entries if isinstance(one, dict) and one.get("identifier")}


def _loaded(found: Found) -> set[str]:
    """Return what an instance serves by its own word, for one whose declaration is gone or broken."""
    return {model["identifier"] for model in found.status.get("models") or [] if model.get("key")}


def _runtimes(declaration: dict) -> dict[str, str]:
    return declaration.get("runtimes") or {}


def _parsed(declaration: str | None) -> dict:
    try:
        parsed = json.loads(declaration or "")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _why_start(found: Found) -> str:
    if found.moved_from:
        return f"it moves from launchd domain {found.moved_from}"
    return "it is new" if found.declaration is None else "its launchd job is not loaded"


def _why_restart(wanted: Wanted, found: Found, service_actions: list[str], runner_version: str) -> str:
    if "bootout" in service_actions:
        return "its property list changed"
    if not found.runner_right or (reports(found) and found.status.get("runner") != runner_version):
        return "the instance runner changed"
    if not found.models_link_right:
        return "its models folder changed"
    if reports(found) and found.status_age > wanted.stale_after():
        return f"its runner has not reported for {found.status_age:.0f} s"
    return _why_not_live(wanted, found)


def _why_not_live(wanted: Wanted, found: Found) -> str:
    if found.declaration in (None, wanted.content):
        return "" if found.declaration else "its instance.json is missing"
    try:
        before = json.loads(found.declaration)
    except ValueError:
        before = None
    if not isinstance(before, dict):
        # Broken by hand: a runner that still holds what we want needs the file back, nothing more.
        same = found.status.get("generation") == wanted.generation
        return "" if same else "its instance.json is invalid"
    changed = [name for name in changed_names(before, wanted.declaration) if name in NEEDS_NEW_START]
    return f"changed: {', '.join(changed)}" if changed else ""


def changed_names(before: dict, after: dict) -> list[str]:
    """Return the names of what differs between two declarations."""
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def _why_live(wanted: Wanted, found: Found) -> str:
    try:
        changed = changed_names(json.loads(found.declaration or ""), wanted.declaration)
    except (ValueError, TypeError):
        return "its instance.json was edited"
    return "its models changed" if changed in ([], ["models"]) else f"changed: {', '.join(changed)}"


def reports(found: Found) -> bool:
    """Tell whether status.json is from the process that launchd has running now."""
    return found.pid() is not None and found.status.get("pid") == found.pid()


def serves_as_declared(found: Found) -> bool:
    """Tell whether an instance says that it serves what its instance.json has."""
    generation = hashlib.sha256((found.declaration or "").encode("utf-8")).hexdigest()
    return reports(found) and (found.status.get("state"), found.status.get("generation")) == ("ready", generation)


class Verdict(NamedTuple):
    """Whether an instance is ready; if not, `seen` says what is in the way, and `lasting` that waiting rarely helps."""

    ready: bool
    lasting: bool
    seen: str


def judge_status(wanted: Wanted, status: dict, age: float, job: Job | None) -> Verdict:
    """Judge by what launchd and the runner say; whether the server serves is judged by `judge_server`."""
    if job is None or job.pid is None:
        last = f", last exit code {job.last_exit}" if job else ""
        said = f"; it said: {status['error']}" if status.get("error") else ""
        return Verdict(False, False, f"its job has no process{last}{said}")
    if status.get("pid") != job.pid:
        return Verdict(False, False, f"its runner (process {job.pid}) has not reported yet")
    if age > wanted.stale_after():
        return Verdict(False, False, f"its runner (process {job.pid}) has not reported for {age:.0f} s")
    state = status.get("state")
    error = status.get("error") or ""
    seen = f"state {state}" + (f": {error}" if error else "")
    if status.get("generation") != wanted.generation:
        return Verdict(False, False, f"the runner has not taken up the declaration; {seen}")
    if state == "ready":
        return Verdict(True, False, seen)
    waiting_for_port = state == "starting" and bool(error) and not error.startswith("before this start")
    return Verdict(False, waiting_for_port or (state == "degraded" and _tried_enough(status)), seen)


def _tried_enough(status: dict) -> bool:
    attempts = [model.get("attempts") or 0 for model in status.get("models") or []]
    return not any(attempts) or max(attempts) > 1


def judge_server(wanted: Wanted, server: Server) -> Verdict:
    """Judge by what the server itself answers."""
    if server.loaded is None:
        return Verdict(False, False, server.seen)
    absent = missing(wanted.models(), server)
    if absent:
        return Verdict(False, False, f"not loaded: {', '.join(absent)}; {server.seen}")
    wrong = differences(wanted.models(), server)
    if wrong:
        return Verdict(False, True, "; ".join(wrong))
    return Verdict(True, False, server.seen)


class Evidence(NamedTuple):
    """What tells one running instance from another: where its LM Studio home really is, its processes and ports, what
    its own http-server.json says, who listens on its ports (empty: unknown), and what is declared and loaded.
    """

    name: str
    home: str
    daemon_pid: int | None
    control_port: int | None
    published: tuple
    listeners: set[int]
    declared: set[str]
    loaded: set[str]


#: What to do when LM Studio does not keep two instances apart.
_CURE = (
    "They are one server, not two: LM Studio shares a daemon between homes on this Mac. Declare one instance here, "
    "with all the models and with copies of them."
)


def indistinct(found: list[Evidence]) -> list[str]:
    """Return in words what instances share that must be their own."""
    troubles = [trouble for one in found for trouble in _not_its_own(one)]
    for position, one in enumerate(found):
        for other in found[:position]:
            shared = _shared(other, one)
            if shared:
                troubles.append(f"instances {other.name} and {one.name} share {', '.join(shared)}. {_CURE}")
    return troubles


def _not_its_own(one: Evidence) -> list[str]:
    told = (one.daemon_pid, one.control_port)
    if None in told or None in one.published or one.published == told:
        return []
    return [
        f"instance {one.name}: its runner has process {told[0]} at control port {told[1]}, but its http-server.json "
        f"names process {one.published[0]} at port {one.published[1]}: lms would talk to another daemon. Restart the "
        f"instance: launchctl kickstart -k gui/$(id -u)/{instance_label(one.name)}"
    ]


def _shared(first: Evidence, second: Evidence) -> list[str]:
    shared = [
        f"{what} {getattr(first, part)}"
        for part, what in (("home", "the home"), ("daemon_pid", "daemon"), ("control_port", "control port"))
        if getattr(first, part) is not None and getattr(first, part) == getattr(second, part)
    ]
    if first.listeners & second.listeners:
        shared.append(f"process {min(first.listeners & second.listeners)}, which listens for both")
    if first.declared != second.declared and first.loaded and first.loaded == second.loaded:
        shared.append(f"the loaded models ({', '.join(sorted(first.loaded))}), though they declare different ones")
    return shared
