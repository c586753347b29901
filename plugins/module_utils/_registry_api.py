# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry of a gateway that keeps its deployments in a database, behind LiteLLM's own admin API.

What is wanted, and what becomes of it, is worked out in _registry.py for both kinds. Here is how a State is read from
`/v1/model/info`, which calls lead from one State to another (pure), and the calls.

LiteLLM gives no token back, and completes what it is given. So each deployment carries a note in its `model_info`: what
was declared, with a salted hash for the token, and its pauses. What has no note is not ours, and is left alone.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple

from ._files import canonical_json
from ._http import Reply, request_json
from ._registry import FORMAT, OWNERS, ROUTINGS, State, paused_by

#: The key in model_info. Its value is text, so that LiteLLM has nothing to complete in it.
NOTE = "lmfleet"
#: How what stands for a token begins.
HASHED = "sha256:"
CALL_SECONDS = 30.0
#: The type of error with which LiteLLM refuses to look a key up.
NO_DATABASE = "no_db_connection"
#: Answers that must agree, at least; which worker answers is chance.
AGREEING = 6


class ApiError(Exception):
    """The gateway did not do what it was asked; the text names the next step."""


class RefusedError(ApiError):
    """The gateway answered, and refused."""


class Seen(NamedTuple):
    """What one worker knows: the state of what is ours, which of it is blocked, and the ids that are not ours."""

    state: State
    blocked: frozenset
    foreign: tuple


class Call(NamedTuple):
    """One call of the admin API for one deployment."""

    deployment: str
    method: str
    path: str
    payload: dict


def fingerprint(token: str, salt: str) -> str:
    """Return what stands for a token in a note, and in a State where the token is not known."""
    return f"{HASHED}{salt}:" + hashlib.sha256(f"{salt}\0{token}".encode()).hexdigest()


def _fits(token: str, found: str) -> bool:
    return found.startswith(HASHED) and fingerprint(token, found.split(":")[1]) == found


def note(entry: Mapping, pauses: Mapping, generation: int) -> str:
    """Return the note for a deployment; `pauses` is owner to pause."""
    token = entry["litellm_params"]["api_key"]
    kept = token if token.startswith(HASHED) else fingerprint(token, secrets.token_hex(8))
    declared = dict(entry, litellm_params=dict(entry["litellm_params"], api_key=kept))
    return canonical_json({"format": FORMAT, "generation": generation, "pauses": dict(pauses), "entry": declared})


def seen(infos: list, tokens: Mapping) -> Seen:
    """Return what the answer of `/v1/model/info` says. `tokens` is id to token, where one is known.

    A token that fits the one in a note stands in the entry; otherwise its fingerprint does. Raises KeyError, TypeError
    or ValueError when the answer is not one.
    """
    entries, pauses, blocked, foreign, generations = {}, {}, set(), [], [0]
    for info in infos:
        details = info["model_info"]
        name = details["id"]
        noted = _noted(details)
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
        for owner, pause in noted["pauses"].items():
            pauses.setdefault(owner, {})[name] = pause
        if info.get("blocked", details.get("blocked")):
            blocked.add(name)
    held = {owner: {"generation": 0, "paused": pauses[owner]} for owner in OWNERS if owner in pauses}
    state = State(max(generations), ROUTINGS[0], entries, max(generations), held)
    return Seen(state, frozenset(blocked), tuple(sorted(foreign)))


def _noted(details: Mapping) -> dict | None:
    if not details.get("db_model"):
        return None
    try:
        noted = json.loads(details[NOTE])
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
    adding, opening, closing, removing = [], [], [], []
    for name in sorted(new):
        pauses = _pauses_of(after, name)
        payload = dict(new[name], blocked=name in blocked, litellm_params=_without_fingerprint(new[name]))
        payload["model_info"] = dict(new[name]["model_info"], **{NOTE: note(new[name], pauses, after.generation)})
        if name not in old:
            adding.append(Call(name, "POST", "/model/new", payload))
        elif _has_less(old[name], new[name]):
            # LiteLLM can change a setting, but not take one away.
            adding += [_removal(name), Call(name, "POST", "/model/new", payload)]
        elif old[name] != new[name] or _pauses_of(before.state, name) != pauses or _differs(before, name, blocked):
            changed = closing if name in blocked else opening
            changed.append(Call(name, "PATCH", f"/model/{name}/update", payload))
    removing = [_removal(name) for name in sorted(set(old) - set(new))]
    return adding + opening + closing + removing


def _without_fingerprint(entry: Mapping) -> dict:
    params = entry["litellm_params"]
    return {key: params[key] for key in params if key != "api_key" or not params[key].startswith(HASHED)}


def _differs(before: Seen, name: str, blocked: frozenset) -> bool:
    return (name in before.blocked) != (name in blocked)


def _removal(name: str) -> Call:
    return Call(name, "POST", "/model/delete", {"id": name})


def _has_less(old: Mapping, new: Mapping) -> bool:
    return any(
        {key for key, value in old[part].items() if value is not None} - set(new[part])
        for part in ("litellm_params", "model_info")
    )


def _pauses_of(state: State, name: str) -> dict:
    return {owner: held["paused"][name] for owner, held in state.pauses.items() if name in held["paused"]}


def missing_in(actual: Seen, wanted: State, now: float) -> str:
    """Return what a worker does not know yet of `wanted`, or ""."""
    old, new = actual.state.deployments or {}, wanted.deployments or {}
    behind = {name for name in set(old) | set(new) if old.get(name) != new.get(name)}
    behind |= {name for name in new if _pauses_of(actual.state, name) != _pauses_of(wanted, name)}
    behind |= actual.blocked ^ to_block(wanted, now)
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
            raise ApiError(
                f"The gateway at {self.url} has no database, so deployments cannot be kept there. Set "
                "litellm_database_url, or use the registry that needs none."
            )
        if reply.answered and told.get("db") != "connected":
            raise ApiError(
                f"The gateway at {self.url} does not reach its database (Postgres), and changes nothing without it: "
                f"{reply.said()}. Start the database; the gateway finds it by itself within seconds. Then run again."
            )
        if not reply.answered:
            raise ApiError(
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
        """Return when every worker knows `wanted`: each looks into the database every `interval` seconds."""
        began = time.monotonic()
        agreeing = 0
        while True:
            missing = missing_in(self.read(tokens), wanted, time.time())
            agreeing = 0 if missing else agreeing + 1
            elapsed = time.monotonic() - began
            if agreeing >= AGREEING and elapsed >= interval:
                return
            if elapsed >= interval + timeout:
                raise ApiError(
                    f"Waited {elapsed:.0f} s for every worker of the gateway at {self.url} to know its deployments. "
                    f"Last seen: one that does not know {missing or 'them all the time'}. Look at its log, run again."
                )
            time.sleep(0.2 if missing or agreeing >= AGREEING else 0.02)
