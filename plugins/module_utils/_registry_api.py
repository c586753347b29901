# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of a gateway that keeps its deployments in a database, behind LiteLLM's own admin API.

What is wanted, and what becomes of it, is worked out in _registry.py for both kinds. Here is how a State is read from
`/v1/model/info`, which calls lead from one State to another (pure), and the calls.

LiteLLM gives no token back, and completes what it is given. So each deployment carries notes in its `model_info`: what
was declared, with a salted hash for the token, and one for each owner's pause. What has no note is not ours, and is
left alone.
Each worker knows the database as of its last look, and there is no lock. So each owner writes its own notes only, which
LiteLLM merges with the others, and looks whether they are there once every worker has looked. Whether a deployment
gets requests follows from all of them; the last who wrote sees to it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ._files import canonical_json
from ._http import Reply, request_json
from ._registry import FORMAT, OWNERS, ROUTINGS, State, paused_by

#: The keys in model_info. Their values are text, so that LiteLLM has nothing to complete in them.
NOTE = "lmfleet"
PAUSE_NOTES = {owner: f"{NOTE}_paused_{owner}" for owner in OWNERS}
#: How what stands for a token begins.
HASHED = "sha256:"
CALL_SECONDS = 30.0
#: The type of error with which LiteLLM refuses to look a key up.
NO_DATABASE = "no_db_connection"
#: A worker's look into the database takes a while, too: until when it counts as done, in intervals.
LOOKED = 1.5
#: How many times a run puts right what others, at the same time, have undone.
MENDINGS = 3
#: Settings to the value that says as much as none. LiteLLM can change a setting, but not take one away.
NEUTRAL = {"weight": 1, "parallel_limit": 0, "parallel": 0, "host": "", "instance": "", "status_url": ""}
#: Answers that must agree, at least; which worker answers is chance.
AGREEING = 6


class ApiError(Exception):
    """The gateway did not do what it was asked; the text names the next step."""


class RefusedError(ApiError):
    """The gateway answered, and refused."""


class AbsentError(ApiError):
    """The gateway is not there, or has no database yet. In check mode it may be that it is still to be set up."""


class Seen(NamedTuple):
    """What one worker knows: the state of what is ours, which of it is blocked, and the ids that are not ours."""

    state: State
    blocked: frozenset
    foreign: tuple


class Call(NamedTuple):
    """One call of the admin API for one deployment. `pauses`: owner to the pause that it sets, None for one lifted."""

    deployment: str
    method: str
    path: str
    payload: dict
    pauses: Mapping = {}


def fingerprint(token: str, salt: str) -> str:
    """Return what stands for a token in a note, and in a State where the token is not known."""
    return f"{HASHED}{salt}:" + hashlib.sha256(f"{salt}\0{token}".encode()).hexdigest()


def _fits(token: str, found: str) -> bool:
    return found.startswith(HASHED) and fingerprint(token, found.split(":")[1]) == found


def note(entry: Mapping, generation: int) -> str:
    """Return the note of what is declared of a deployment."""
    token = entry["litellm_params"]["api_key"]
    kept = token if token.startswith(HASHED) else fingerprint(token, secrets.token_hex(8))
    declared = dict(entry, litellm_params=dict(entry["litellm_params"], api_key=kept))
    return canonical_json({"format": FORMAT, "generation": generation, "entry": declared})


def pause_notes(pauses: Mapping, generation: int) -> dict:
    """Return the notes of pauses, as they go into model_info; `pauses` is owner to pause, None for one lifted."""
    return {
        PAUSE_NOTES[owner]: canonical_json({"format": FORMAT, "generation": generation, "pause": pause})
        for owner, pause in pauses.items()
    }


def seen(infos: list, tokens: Mapping) -> Seen:
    """Return what the answer of `/v1/model/info` says. `tokens` is id to token, where one is known.

    A token that fits the one in a note stands in the entry; otherwise its fingerprint does. Raises KeyError, TypeError
    or ValueError when the answer is not one.
    """
    entries, pauses, blocked, foreign, generations = {}, {}, set(), [], [0]
    for info in infos:
        details = info["model_info"]
        name = details["id"]
        noted = _noted(details, NOTE) if details.get("db_model") else None
        if noted is None:
            foreign.append(name)
            continue
        entry = noted["entry"]
        params = entry["litellm_params"]
        if name in tokens and _fits(tokens[name], params["api_key"]):
            params["api_key"] = tokens[name]
        # What somebody else has changed since counts as different, and is put right.
        entry["model_name"] = info["model_name"]
        params.update({key: info["litellm_params"].get(key) for key in params if key != "api_key"})
        entries[name] = entry
        generations.append(noted["generation"])
        for owner, key in PAUSE_NOTES.items():
            pause_note = _noted(details, key)
            if pause_note:
                generations.append(pause_note["generation"])
                if pause_note["pause"]:
                    pauses.setdefault(owner, {})[name] = pause_note["pause"]
        if info.get("blocked", details.get("blocked")):
            blocked.add(name)
    held = {owner: {"generation": 0, "paused": pauses[owner]} for owner in OWNERS if owner in pauses}
    state = State(max(generations), ROUTINGS[0], entries, max(generations), held)
    return Seen(state, frozenset(blocked), tuple(sorted(foreign)))


def _noted(details: Mapping, key: str) -> dict | None:
    try:
        noted = json.loads(details[key])
    except (KeyError, TypeError, ValueError):
        return None
    return noted if isinstance(noted, dict) and noted.get("format") == FORMAT else None


def to_block(state: State, now: float) -> frozenset:
    """Return the ids that get no requests: all that are paused, but the guard alone never empties a group."""
    entries = state.deployments or {}
    pauses = paused_by(state, now)
    hard = {name for name, owners in pauses.items() if set(owners) - {"guard"}}
    served = {entries[name]["model_name"] for name in entries if name not in pauses}
    soft = {name for name in pauses if name in entries and entries[name]["model_name"] in served}
    return frozenset((hard | soft) & set(entries))


def calls(before: Seen, after: State, now: float) -> list:
    """Return the calls that lead from one state to the other: what gets requests comes before what gets none."""
    old, new = before.state.deployments or {}, after.deployments or {}
    blocked = to_block(after, now)
    adding, opening, closing = [], [], []
    for name in sorted(new):
        held = _pauses_of(after, name)
        pauses = _difference(_pauses_of(before.state, name), held)
        whole = name not in old or _has_less(old[name], new[name])
        if whole or old[name] != new[name]:
            payload = _declaration(new[name], after.generation, {} if whole else old[name]["model_info"])
        elif pauses or _differs(before, name, blocked):
            payload = {"model_info": {"id": name}}
        else:
            continue
        payload["blocked"] = name in blocked
        payload["model_info"].update(pause_notes(held if whole else pauses, after.generation))
        if whole:
            # For a moment it is not there: nothing else takes such a setting away.
            adding += [_removal(name)] * (name in old) + [Call(name, "POST", "/model/new", payload, pauses)]
        else:
            (closing if name in blocked else opening).append(_update(name, payload, pauses))
    removing = [_removal(name) for name in sorted(set(old) - set(new))]
    return adding + opening + closing + removing


def mending(actual: Seen, made: Iterable, now: float) -> list:
    """Return the calls for what others have undone of the pauses of `made` (calls), and for what is blocked wrongly."""
    pauses = {owner: dict(held["paused"]) for owner, held in actual.state.pauses.items()}
    for call in made:
        for owner, pause in call.pauses.items():
            pauses.setdefault(owner, {})[call.deployment] = pause
    held = {
        owner: {"generation": 0, "paused": {name: pause for name, pause in paused.items() if pause}}
        for owner, paused in pauses.items()
    }
    return calls(actual, actual.state._replace(generation=actual.state.generation + 1, pauses=held), now)


def _declaration(entry: Mapping, generation: int, former_info: Mapping) -> dict:
    params, info = entry["litellm_params"], entry["model_info"]
    # Where one has a weight, LiteLLM gives nothing to those that have none.
    sent = {"weight": NEUTRAL["weight"], **params}
    if params["api_key"].startswith(HASHED):
        del sent["api_key"]
    lost = {key: NEUTRAL[key] for key in sorted(set(former_info) - set(info)) if key in NEUTRAL}
    return dict(entry, litellm_params=sent, model_info={**info, **lost, NOTE: note(entry, generation)})


def _difference(old: Mapping, new: Mapping) -> dict:
    return {owner: new.get(owner) for owner in sorted(set(old) | set(new)) if old.get(owner) != new.get(owner)}


def _differs(before: Seen, name: str, blocked: frozenset) -> bool:
    return (name in before.blocked) != (name in blocked)


def _update(name: str, payload: dict, pauses: Mapping) -> Call:
    return Call(name, "PATCH", f"/model/{name}/update", payload, pauses)


def _removal(name: str) -> Call:
    return Call(name, "POST", "/model/delete", {"id": name})


def _has_less(old: Mapping, new: Mapping) -> bool:
    return any(
        {key for key, value in old[part].items() if value is not None} - set(new[part]) - set(NEUTRAL)
        for part in ("litellm_params", "model_info")
    )


def _pauses_of(state: State, name: str) -> dict:
    return {owner: held["paused"][name] for owner, held in state.pauses.items() if name in held["paused"]}


def missing_in(actual: Seen, wanted: State, made: Iterable, now: float) -> str:
    """Return what a worker does not know yet of `wanted`, or "". Of the pauses only those that the calls `made` set.

    Others may pause and lift pauses at the same time; what is blocked has to fit all of it.
    """
    old, new = actual.state.deployments or {}, wanted.deployments or {}
    behind = {name for name in set(old) | set(new) if old.get(name) != new.get(name)}
    behind |= {call.deployment for call in mending(actual, made, now)}
    return ", ".join(sorted(behind))


def foreign_problems(wanted: Mapping, foreign: tuple, url: str) -> list:
    """Return one line for each wanted deployment whose id something else at the gateway has."""
    return [
        f"the gateway at {url} has another deployment with the id {name}, which this module did not make (it is in "
        "config.yaml, or was made by hand). Give one of them another id, or remove the other"
        for name in sorted(set(wanted) & set(foreign))
    ]


class ApiRegistry:
    """The gateway at `url`. Raises ApiError. `patience`: seconds for a worker that is about to find its database."""

    def __init__(self, url: str, key: str, context: ssl.SSLContext | None = None, patience: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._context = context
        self._patience = patience
        self._made: list = []

    def _ask_once(self, path: str, method: str = "GET", payload: object | None = None) -> Reply:
        return request_json(self.url + path, method, payload, self._headers, CALL_SECONDS, self._context)

    def _ask(self, path: str, method: str = "GET", payload: object | None = None) -> Reply:
        deadline = time.monotonic() + self._patience
        while True:
            reply = self._ask_once(path, method, payload)
            # After an outage LiteLLM is ready again a while before it looks keys up again. Nothing has been done then.
            if reply.status != 503 or NO_DATABASE not in reply.text or time.monotonic() >= deadline:
                return reply
            self.check()
            time.sleep(0.5)

    def check(self) -> None:
        """Raise ApiError when the gateway, or its database, is down."""
        reply = self._ask_once("/health/readiness")
        told = reply.body if isinstance(reply.body, dict) else {}
        if told.get("db") == "Not connected" and reply.status == 200:
            raise AbsentError(
                f"The gateway at {self.url} has no database, so deployments cannot be kept there. Set "
                "litellm_database_url, or use the registry that needs none."
            )
        if reply.answered and told.get("db") != "connected":
            raise ApiError(
                f"The gateway at {self.url} does not reach its database (Postgres), and changes nothing without it: "
                f"{reply.said()}. Start the database; the gateway finds it by itself within seconds. Then run again."
            )
        if not reply.answered:
            raise AbsentError(
                f"The gateway at {self.url} does not answer: {reply.said()}. Start it (launchd job lmfleet.gateway), "
                "then run again."
            )

    def read(self, tokens: Mapping) -> Seen:
        """Return what one worker knows."""
        reply = self._ask("/v1/model/info")
        try:
            if reply.status != 200:
                raise ValueError
            return seen(reply.body["data"], tokens)
        except (KeyError, TypeError, ValueError):
            hint = " Look at the master key." if reply.status in (400, 401, 403) else ""
            raise ApiError(f"{self.url}/v1/model/info: {reply.said()}.{hint}") from None

    def apply(self, planned: list) -> None:
        """Make the calls. Stops at the first that fails; what is missing then is done by the next run."""
        self._made = planned
        self._make(planned)

    def _make(self, planned: list) -> None:
        for number, call in enumerate(planned):
            reply = self._ask(call.path, call.method, call.payload)
            if reply.status == 200:
                continue
            self.check()
            raise RefusedError(
                f"{self.url}{call.path} for the deployment {call.deployment}: {reply.said()}. {number} of "
                f"{len(planned)} changes were made before it; run again for the others."
            )

    def wait(self, wanted: State, tokens: Mapping, interval: float, timeout: float) -> None:
        """Return when every worker knows `wanted`: each looks into the database every `interval` seconds.

        What others have undone meanwhile of the pauses that apply() has set is set again.
        """
        began = time.monotonic()
        agreeing, left = 0, MENDINGS
        while True:
            actual, now = self.read(tokens), time.time()
            missing = missing_in(actual, wanted, self._made, now)
            agreeing = 0 if missing else agreeing + 1
            elapsed = time.monotonic() - began
            if agreeing >= AGREEING and elapsed >= interval:
                return
            undone = mending(actual, self._made, now) if left and elapsed >= LOOKED * interval else []
            if undone:
                self._make(undone)
                began, left = time.monotonic(), left - 1
            elif elapsed >= interval + timeout:
                raise ApiError(
                    f"Waited {elapsed:.0f} s for every worker of the gateway at {self.url} to know its deployments. "
                    f"Last seen: one that does not know {missing or 'them all the time'}. Look at its log, run again."
                )
            time.sleep(0.2 if missing or agreeing >= AGREEING else 0.02)
