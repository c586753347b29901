# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an LM Studio server says of itself over HTTP, and how that compares with what it shall serve."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import NamedTuple

from ._addresses import from_here, url_host
from ._http import Reply, request_json

#: Settings that a server shows of a loaded model. The instance runner knows the same.
READ_BACK = (
    "context_length",
    "eval_batch_size",
    "flash_attention",
    "num_experts",
    "offload_kv_cache_to_gpu",
    "parallel",
)

_GREETING = {"lmstudio": True}


class WantedModel(NamedTuple):
    """A model an instance shall serve; None for context_length or parallel: whatever it is.

    Of `load`, its settings by our names, those are compared that a server shows.
    """

    identifier: str
    type: str = "llm"
    context_length: int | None = None
    parallel: int | None = None
    load: dict | None = None


class Server(NamedTuple):
    """What was seen, in words in `seen`; `loaded` is {identifier: settings}, None when the server did not tell."""

    greeting: bool
    loaded: dict[str, dict] | None
    seen: str


class Probe(NamedTuple):
    """One real request to a model: `latency_seconds` is None when it failed, `error` is "" when it did not."""

    identifier: str
    ok: bool
    latency_seconds: float | None
    error: str


def url_of(address: str, port: int) -> str:
    """Return the URL at which a server bound to `address` is reached from this Mac."""
    return f"http://{url_host(from_here(address))}:{port}"


def _authorized(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def look(url: str, timeout: float, token: str = "", request: Callable[..., Reply] = request_json) -> Server:
    """Ask the server at `url` for its greeting and, when it greets, for what it has loaded.

    `token` is for a server that asks for one, "" for none.
    """
    greeting = request(f"{url}/lmstudio-greeting", headers=_authorized(token), timeout=timeout)
    if greeting.body != _GREETING:
        return Server(False, None, f"no greeting of LM Studio: {greeting.said()}")
    models = request(f"{url}/api/v1/models", headers=_authorized(token), timeout=timeout)
    loaded = _loaded(models.body)
    if loaded is None:
        return Server(True, None, f"greeting, but no list of models: {models.said()}")
    return Server(True, loaded, f"loaded: {', '.join(sorted(loaded)) or 'nothing'}")


def _loaded(body: object) -> dict[str, dict] | None:
    try:
        return {
            str(instance["id"]): dict(instance.get("config") or {}, type=model.get("type"))
            for model in body["models"]
            for instance in model["loaded_instances"]
        }
    except (KeyError, TypeError, AttributeError):
        return None


def missing(wanted: list[WantedModel], server: Server) -> list[str]:
    """Return the identifiers that are not loaded."""
    return [model.identifier for model in wanted if model.identifier not in (server.loaded or {})]


def differences(wanted: list[WantedModel], server: Server) -> list[str]:
    """Return in words what is loaded otherwise than wanted; a setting the server does not show is not judged."""
    found = []
    for model in wanted:
        settings = (server.loaded or {}).get(model.identifier)
        if settings is None:
            continue
        shown = {"type": model.type, **{name: (model.load or {}).get(name) for name in READ_BACK}}
        for name in ("context_length", "parallel"):
            if getattr(model, name) is not None:
                shown[name] = getattr(model, name)
        for name, want in shown.items():
            have = settings.get(name)
            if want is not None and have is not None and want != have:
                found.append(f"{model.identifier}: {name} is {json.dumps(have)}, declared {json.dumps(want)}")
    return found


def probe(
    url: str, model: WantedModel, timeout: float, token: str = "", request: Callable[..., Reply] = request_json
) -> Probe:
    """Ask a model one real question: the shortest completion, or one embedding."""
    if model.type == "embedding":
        path, payload = "/v1/embeddings", {"model": model.identifier, "input": "ready?"}
    else:
        question = [{"role": "user", "content": "Say ok."}]
        payload = {"model": model.identifier, "messages": question, "max_tokens": 8, "temperature": 0, "stream": False}
        path = "/v1/chat/completions"
    began = time.monotonic()
    reply = request(url + path, method="POST", payload=payload, headers=_authorized(token), timeout=timeout)
    latency = round(time.monotonic() - began, 3)
    if _answers(model.type, reply.body):
        return Probe(model.identifier, True, latency, "")
    return Probe(model.identifier, False, None, reply.said())


def _answers(kind: str, body: object) -> bool:
    try:
        if kind == "embedding":
            vector = body["data"][0]["embedding"]
            return bool(vector) and any(vector)
        choice = body["choices"][0]
        return isinstance(choice["message"], dict) and bool(choice.get("finish_reason"))
    except (KeyError, TypeError, IndexError):
        return False
