# SPDX-License-Identifier: GPL-3.0-or-later
"""LiteLLM plugin: every worker follows the registry, a folder of small JSON files, without a restart or a database.

LiteLLM loads it through ``litellm_settings.callbacks: [lmfleet_registry.registry]``; it runs in the gateway's Python.
The folder is named by the environment variable LMFLEET_REGISTRY; without it the plugin does nothing.

    deployments.json      read: {"format": 1, "generation", "routing", "deployments": [as in LiteLLM's model_list],
                          "groups"?: {model group: {"fallbacks"?: [group], "context_window_fallbacks"?: [group]}}}
    paused/<owner>.json   read: {"format": 1, "generation", "paused": {id: {"reason", "since", "until"?}}}
    applied/<pid>.json    written by each worker: what it has applied, at least once a second
    applied/kept/         written by the workers: a copy of the files above as they were last applied

Deployments that litellm_deployments has put into LiteLLM's database instead are found in the router. For these, too,
the plugin says who may have a request; LiteLLM's own routing_strategy chooses among them.

A file that is missing, unreadable or broken changes nothing: the worker keeps what it has, or what the copy says when
it has just started, and says so in its report.
Everything runs on the event loop that also serves the requests, so no request ever sees a half-changed router.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import operator
import os
import sys
import time
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import HTTPException
from litellm import register_model
from litellm._logging import verbose_proxy_logger
from litellm.exceptions import RateLimitError
from litellm.integrations.custom_logger import CustomLogger
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.llms.openai.common_utils import OpenAIError
from litellm.llms.openai.completion.handler import OpenAITextCompletion
from litellm.main import openai_chat_completions
from litellm.types.router import Deployment, RouterRateLimitError
from litellm.utils import get_order_filtered_deployments

FORMAT = 1
POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 1.0
ROUTER_POLL_SECONDS = 0.001
UPSERTS_IN_A_ROW = 20
LARGEST = 1e15
ROUTINGS = ("round_robin", "shuffle", "least_busy", "usage")
# Leaves the choice to LiteLLM.
SHUFFLE = "shuffle"
FALLBACKS = ("fallbacks", "context_window_fallbacks")
# What litellm_deployments notes in model_info of a deployment in the database (plugins/module_utils/_registry_api.py).
NOTE = "lmfleet"
# A report that is older is of no worker, also when its process id belongs to somebody again.
REPORT_SECONDS = 60.0
# The guard only steers load: where it has paused all, it has paused none, and its file may go.
ADVISORY_OWNER = "guard"
# A deployment that was passed over catches up one turn. (Sums of fractions are not exact, so there is some room.)
TURNS_OWED = 1.5
USAGE_SECONDS = 60.0
# What a deployment may have limits of, and what a request counts before it is sent: its tokens are known afterwards.
RATES = {"rpm": 1, "tpm": 0}
# What LiteLLM makes of a backend that is gone, broken or too slow, and of a model group that has none left.
BACKEND_FAULTS = (408, 429, 500, 502, 503, 504)
# What a backend says of a request that is wrong, or too large for it.
CLIENT_FAULTS = (400, 413, 422)
# How often a request is asked anew whose backend sent a page, such as that of a proxy, instead of a stream.
ASKED_ANEW = 2
EMBEDDING_CALLS = ("embeddings", "embedding", "aembedding")
CHAT_CALLS = ("completion", "acompletion", "text_completion", "atext_completion", "anthropic_messages", "aresponses")


class Rotation:
    """Gives the deployments of a model group their turns, in proportion to their weights.

    Each has a time at which it is due, in turns; the next turn is the earliest, and among equals that of the one whose
    last turn is the longest ago. So the work for a request is one look at each candidate, whatever came before.
    """

    def __init__(self) -> None:
        self._due: dict[str, dict[str, tuple[float, int]]] = {}
        self._now: dict[str, float] = {}
        self._turns = 0

    def due(self, group: str, ids: list[str]) -> dict[str, tuple[float, int]]:
        """Return id to when it is due and the number of its last turn, for at least `ids`."""
        due = self._due.setdefault(group, {})
        if not due.keys() >= set(ids):
            now = self._now.get(group, 0.0)
            due.update((deployment, (now, 0)) for deployment in ids if deployment not in due)
        return due

    def take(self, group: str, chosen: str, weight: float) -> None:
        """Note that it was the turn of `chosen`, which due() knows."""
        due = self._due[group]
        when = due[chosen][0]
        now = self._now[group] = max(self._now.get(group, 0.0), when)
        turn = 1.0 / weight
        if now - when > TURNS_OWED * turn:
            when = now
        self._turns += 1
        due[chosen] = (when + turn, self._turns)

    def forget(self, ids: set[str]) -> None:
        """Let these deployments begin anew: nobody owes them a turn."""
        for group, due in list(self._due.items()):
            self._due[group] = {deployment: turn for deployment, turn in due.items() if deployment not in ids}

    def keep(self, ids: set[str]) -> None:
        """Forget the deployments that are not in `ids`, and the groups that have none left."""
        for group, due in list(self._due.items()):
            self._due[group] = {deployment: turn for deployment, turn in due.items() if deployment in ids}
            if not self._due[group]:
                del self._due[group]
                self._now.pop(group, None)


class Attempt:
    """Where a client's request is in flight at the moment, if anywhere, and since when (monotonic seconds)."""

    deployment: str | None = None
    since = 0.0
    over = False
    #: What the client has asked for, and the deployment that the attempt is counted at.
    model: str | None = None
    counted: str | None = None
    #: Whether the last backend answered as no LM Studio does that the client may use.
    stranger = False


#: The request that the current task serves.
_attempt: ContextVar[Attempt | None] = ContextVar("lmfleet_attempt", default=None)


class Load:
    """What this worker asks of each deployment: requests in flight, and tokens of about the last minute."""

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()
        self._tokens: dict[str, list[float]] = {}

    def begin(self, attempt: Attempt | None, deployment: str) -> None:
        """Note that a request goes to `deployment`, and to no other one any more."""
        if attempt is None or attempt.over or attempt.deployment == deployment:
            return
        self.end(attempt)
        attempt.deployment, attempt.since = deployment, time.monotonic()
        self.in_flight[deployment] += 1

    def end(self, attempt: Attempt | None) -> None:
        """Note that a request is not in flight any more, if it was."""
        if attempt is None or attempt.deployment is None:
            return
        self.in_flight[attempt.deployment] -= 1
        if self.in_flight[attempt.deployment] <= 0:
            del self.in_flight[attempt.deployment]
        attempt.deployment = None

    def add_tokens(self, deployment: str, tokens: int, now: float) -> None:
        """Note what a request has used."""
        self._tokens[deployment] = [now, self.tokens(deployment, now) + tokens]

    def tokens(self, deployment: str, now: float) -> float:
        """Return how many tokens were used lately; they fade away within about a minute."""
        at, used = self._tokens.get(deployment, (now, 0.0))
        return used * 0.5 ** ((now - at) / (USAGE_SECONDS / 2))

    def keep(self, ids: set[str]) -> None:
        """Forget the tokens of the deployments that are not in `ids`."""
        self._tokens = {deployment: used for deployment, used in self._tokens.items() if deployment in ids}


class Rates:
    """Requests and tokens of this minute, at deployments that have limits of them.

    Where there is a Redis, it counts for all gateways that use it. Otherwise each worker has its share of the limits.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._minute = 0
        self._counts: Counter[str] = Counter()
        self._full: dict[str, int] = {}

    def left(self, ids: list[str]) -> list[str]:
        """Return those of `ids` that are not known to have reached a limit in this minute."""
        minute = _minute()
        return [name for name in ids if self._full.get(name) != minute]

    async def take(self, redis, name: str, limits: dict[str, int]) -> bool:
        """Count a request to a deployment; return whether it may be sent."""
        minute = _minute()
        for kind in limits:
            counted, workers = await self.add(redis, name, kind, RATES[kind])
            if counted - RATES[kind] >= -(-limits[kind] // workers):
                self._full[name] = minute
                return False
        return True

    async def add(self, redis, name: str, kind: str, amount: int) -> tuple[float, int]:
        """Count, and return how much it is in this minute, and how many such workers share the limit."""
        minute = _minute()
        if minute != self._minute:
            self._minute, self._counts = minute, Counter()
        key = f"lmfleet:{name}:{kind}:{minute}"
        own = self._counts[key] = self._counts[key] + amount
        if redis is not None:
            # One that is down costs no request.
            with contextlib.suppress(Exception):
                return await redis.async_increment(key, amount, ttl=2 * 60), 1
        return own, self._workers


class Outcomes:
    """What has come of the requests of this worker, since it began.

    `failed_requests` are those of clients, whatever was tried for them; the rest is by deployment: requests that
    ended there, attempts that failed, streams and the seconds until their first token, all together.
    """

    def __init__(self) -> None:
        self.failed_requests = 0
        self._of: dict[str, Counter[str]] = {}

    def note(self, deployment: str | None, **amounts: float) -> None:
        """Add to what came of requests to `deployment`, if there is one."""
        if deployment is not None:
            self._of.setdefault(deployment, Counter()).update(amounts)

    def keep(self, ids: set[str]) -> None:
        """Forget the deployments that are not in `ids`."""
        self._of = {deployment: counts for deployment, counts in self._of.items() if deployment in ids}

    def report(self) -> dict:
        return {"failed_requests": self.failed_requests, "deployments": self._of}


class Facts:
    """What choosing needs to know of the declared deployments, looked up once for each declaration."""

    def __init__(self, deployments: dict[str, dict], workers: int) -> None:
        self.ids = set(deployments)
        self.group_of = {name: deployment["model_name"] for name, deployment in deployments.items()}
        self.groups = set(self.group_of.values())
        self.ordered = {
            deployment["model_name"]
            for deployment in deployments.values()
            if deployment["litellm_params"].get("order") is not None
        }
        self.weightless = {name for name, deployment in deployments.items() if _weight(deployment) <= 0}
        # A limit holds for the gateway: each worker has its share of it.
        self.limits = {
            name: -(-deployment["model_info"]["parallel_limit"] // workers)
            for name, deployment in deployments.items()
            if deployment["model_info"].get("parallel_limit")
        }
        rates = {name: _rates(deployment) for name, deployment in deployments.items()}
        self.rates = {name: limits for name, limits in rates.items() if limits}
        self.windows = {
            name: deployment["model_info"]["max_input_tokens"]
            for name, deployment in deployments.items()
            if deployment["model_info"].get("max_input_tokens")
        }
        windows_of: dict[str, set] = {}
        for name in deployments if self.windows else ():
            windows_of.setdefault(deployments[name]["model_name"], set()).add(self.windows.get(name))
        # The groups in which a prompt may be too long for one and not for another.
        self.uneven = {group for group, windows in windows_of.items() if len(windows) > 1}
        # What backends are asked for, by whether a deployment of it has a window, or has none.
        self.windowed = {_model(deployments[name]) for name in self.windows}
        self.windowless = {_model(deployment) for name, deployment in deployments.items() if name not in self.windows}
        self.places = {name: _place(deployment) for name, deployment in deployments.items()}
        self.modes = {}
        for name, deployment in deployments.items():
            mode = deployment["model_info"].get("mode") or "chat"
            self.modes[name] = self.modes[deployment["model_name"]] = mode
        # LiteLLM takes also the name that a backend is asked for, unless it is that of a group.
        self.modes = {**{_model(deployments[name]): self.modes[name] for name in deployments}, **self.modes}


def _id(deployment: dict) -> str:
    return deployment["model_info"]["id"]


def _model(deployment: dict) -> str:
    return deployment["litellm_params"]["model"]


def _place(deployment: dict) -> str:
    """Return what a deployment has in common with those that are gone when it is gone: its Mac, or else its address."""
    place = deployment["model_info"].get("host")
    with contextlib.suppress(ValueError):
        place = place or urlsplit(str(deployment["litellm_params"].get("api_base"))).hostname
    return str(place or _id(deployment))


def _weight(deployment: dict) -> float:
    weight = deployment["litellm_params"].get("weight")
    return 1.0 if weight is None else float(weight)


def _rates(deployment: dict) -> dict[str, int]:
    return {kind: deployment["model_info"][kind] for kind in RATES if deployment["model_info"].get(kind)}


def _minute() -> int:
    return int(time.time() // 60)


def paused_now(pauses: dict[str, dict[str, dict]], now: float) -> tuple[set[str], set[str]]:
    """Return the ids that are stopped, and those that the guard advises against; `pauses` is owner to id to pause."""
    advised: set[str] = set()
    stopped: set[str] = set()
    for owner, paused in pauses.items():
        current = {name for name, pause in paused.items() if pause.get("until") is None or pause["until"] > now}
        (advised if owner == ADVISORY_OWNER else stopped).update(current)
    return stopped, advised


def stored(models: list[dict]) -> dict[str, dict]:
    """Return id to deployment of those of the router's models that litellm_deployments has put into the database."""
    return {
        _id(model): model
        for model in models
        if _is_deployment(model) and model["model_info"].get("db_model") and NOTE in model["model_info"]
    }


def untried(ids: list[str], tried: list[str]) -> list[str]:
    """Return the deployments this request has not failed on; else all but the last one it failed on; else all."""
    if not tried:
        return ids
    return [name for name in ids if name not in tried] or [name for name in ids if name != tried[-1]] or ids


def is_stranger(status: int | None) -> bool:
    """Tell whether a status is none of an LM Studio with our token: another program has its port, or a proxy asks."""
    return status is not None and 400 <= status < 500 and status not in (*BACKEND_FAULTS, *CLIENT_FAULTS)


def is_page(response) -> bool:
    """Tell whether a backend has answered with HTML where a stream was asked for."""
    headers = (getattr(response, "_hidden_params", None) or {}).get("additional_headers") or {}
    return is_html(headers.get("llm_provider-content-type"))


def is_html(content_type: str | None) -> bool:
    return str(content_type).lower().startswith("text/html")


async def ask_for_text(
    _handler, *, logging_obj, api_key, api_base, data, model, timeout, client=None, organization=None, **_others
):
    """Ask for a stream of /v1/completions now, in place of LiteLLM, which asks when the client reads it.

    So LiteLLM learns of a backend that fails while it can ask another one, as it does with chats.
    """
    client = openai_chat_completions._get_openai_client(
        is_async=True,
        api_key=api_key,
        api_base=api_base,
        timeout=timeout,
        max_retries=0,
        organization=organization,
        client=client,
    )
    answer = await client.completions.with_raw_response.create(**data, timeout=timeout)
    if is_html(answer.headers.get("content-type")):
        await answer.http_response.aclose()
        raise OpenAIError(503, "The backend answered with a page instead of a stream.")
    return CustomStreamWrapper(
        completion_stream=answer.parse(),
        model=model,
        custom_llm_provider="text-completion-openai",
        logging_obj=logging_obj,
        stream_options=data.get("stream_options"),
    )


def _tried(request_kwargs: dict) -> list[str]:
    # LiteLLM leaves one record for each failed attempt in the request's metadata.
    for name in ("litellm_metadata", "metadata"):
        metadata = request_kwargs.get(name)
        if isinstance(metadata, dict) and metadata.get("previous_models"):
            records = metadata["previous_models"]
            return [
                record["deployment_id"]
                for record in records
                if isinstance(record, dict) and record.get("deployment_id")
            ]
    return []


def parse_deployments(content: bytes) -> dict:
    """Return the parsed deployments.json with `deployments` as id to deployment.

    Raises ValueError for anything that is not a whole and sound file. The modules judge by the same rules
    (plugins/module_utils/_registry.py).
    """
    document = _document(content, "deployments", list)
    if document.get("routing") not in ROUTINGS:
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, not {document.get('routing')!r}")
    by_id: dict[str, dict] = {}
    for deployment in document["deployments"]:
        if not _is_deployment(deployment):
            raise ValueError(
                "a deployment without model_info.id, model_name or litellm_params.model, or with a weight, order, "
                "parallel_limit, rpm, tpm or mode of the wrong type"
            )
        if _id(deployment) in by_id:
            raise ValueError(f"the deployment id {_id(deployment)} is used twice")
        by_id[_id(deployment)] = deployment
    groups = document.get("groups", {})
    if not isinstance(groups, dict) or not all(_is_group(settings) for settings in groups.values()):
        raise ValueError("groups must be a mapping of mappings, with lists of model groups as fallbacks")
    return {**document, "deployments": by_id, "groups": groups}


def parse_pauses(content: bytes) -> dict:
    """Return the parsed paused/<owner>.json. Raises ValueError for anything that is not a whole and sound file."""
    document = _document(content, "paused", dict)
    if not all(_is_pause(pause) for pause in document["paused"].values()):
        raise ValueError("a pause is not a mapping, or has a since or until that is no number")
    return document


def _document(content: bytes, key: str, kind: type) -> dict:
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"not a file of format {FORMAT}")
    generation = document.get("generation")
    if not isinstance(generation, int) or isinstance(generation, bool) or not isinstance(document.get(key), kind):
        raise ValueError(f"generation or {key} is missing or of the wrong type")
    return document


def _is_deployment(entry) -> bool:
    try:
        params, info = entry["litellm_params"], entry["model_info"]
        names = (info["id"], entry["model_name"], params["model"], info.get("mode", "chat"))
        numbers = (params.get("weight"), params.get("order"), *(info.get(key) for key in ("parallel_limit", *RATES)))
    except (KeyError, TypeError, AttributeError):
        return False
    return all(isinstance(name, str) and name for name in names) and all(
        number is None or _is_number(number) for number in numbers
    )


def _is_group(settings) -> bool:
    return isinstance(settings, dict) and all(
        isinstance(settings.get(name, []), list) and all(isinstance(other, str) for other in settings.get(name, []))
        for name in FALLBACKS
    )


def _is_pause(pause) -> bool:
    return (
        isinstance(pause, dict)
        and _is_number(pause.get("since", 0))
        and (pause.get("until") is None or _is_number(pause["until"]))
    )


def _is_number(value) -> bool:
    # JSON as Python reads it has NaN and Infinity, too.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


class WatchedFile:
    """A file that is read again when it has changed. Keeps the last content that could be parsed.

    `copy` is where it is kept over a restart, None for nowhere.
    """

    def __init__(self, path: Path, parse, copy: Path | None) -> None:
        self.path = path
        self.content: dict | None = None
        self.error: str | None = None
        self.missing = False
        self._parse = parse
        self._copy = copy
        self._seen: tuple | None = None
        self._unsaved: bytes | None = None

    def refresh(self) -> bool:
        """Read the file if it has changed; return whether there is new content."""
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return False
            text = self.path.read_bytes()
            content = self._parse(text)
        except (OSError, ValueError) as error:
            # Not marked as seen: what could not be read is tried again at the next look.
            self._seen = None
            self.missing = isinstance(error, FileNotFoundError)
            recalled = self.content is None and self._recall()
            reason = error.strerror if isinstance(error, OSError) else error
            kept = f"keeping generation {self.content['generation']}" if self.content else "nothing to keep"
            self.error = f"{self.path.name}: {reason}; {kept}"
            return recalled
        self._seen, self.content, self.error, self._unsaved = seen, content, None, text
        self.missing = False
        return True

    def _recall(self) -> bool:
        if self._copy is not None:
            with contextlib.suppress(OSError, ValueError):
                self.content = self._parse(self._copy.read_bytes())
        return self.content is not None

    def save(self) -> None:
        """Copy the content, which has been applied, for a worker that starts when the file is broken or gone."""
        if self._unsaved is None or self._copy is None:
            return
        # Other workers write the same. What cannot be written is tried again at the next look.
        with contextlib.suppress(OSError):
            if not self._copy.exists() or self._copy.read_bytes() != self._unsaved:
                self._copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                temporary = self._copy.with_suffix(f".{os.getpid()}")
                with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
                    stream.write(self._unsaved)
                temporary.replace(self._copy)
            self._unsaved = None


class Registry(CustomLogger):
    """One per worker: follows the files, steers the requests and reports."""

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self.rotation = Rotation()
        self.load = Load()
        self.outcomes = Outcomes()
        self.routing = ROUTINGS[0]
        self.pauses: dict[str, dict[str, dict]] = {}
        self.stopped: set[str] = set()
        self.advised: set[str] = set()
        self.rejected: dict[str, str] = {}
        # Those that answered as something else than LM Studio, to the time until which they are avoided.
        self.unfit: dict[str, float] = {}
        self.workers = int(os.environ.get("LMFLEET_WORKERS", "1"))
        self.rates = Rates(self.workers)
        self.facts = Facts({}, self.workers)
        self._applied: dict[str, dict] = {}
        self._stored: dict[str, dict] = {}
        # The router's models at the last look. Kept, so that no new one can have the identity of an old one.
        self._models: list[dict] = []
        self._own_fallbacks: dict[str, list] | None = None
        self._own_checks: bool | None = None
        # What backends are asked for of which LiteLLM was told a window since it began.
        self._windowed: set[str] = set()
        # Kept, for the event loop itself holds tasks only weakly.
        self._forgetting: set[asyncio.Future] = set()
        self._generation: int | None = None
        self._started_at = time.time()
        self._failure: str | None = None
        self._pending: dict | None = None
        if folder:
            # Until a file says otherwise.
            self.routing = SHUFFLE
            self._folder = Path(folder)
            self._report_path = self._folder / "applied" / f"{os.getpid()}.json"
            self._copies = self._folder / "applied" / "kept"
            self._deployments = WatchedFile(
                self._folder / "deployments.json", parse_deployments, self._copies / "deployments.json"
            )
            self._pause_files: dict[str, WatchedFile] = {}
            # None of LiteLLM's hooks comes between a stream of /v1/completions and its backend.
            OpenAITextCompletion.async_streaming = ask_for_text
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        """Refuse what a model cannot do, and follow the others to their end (LiteLLM's hook)."""
        mode = self._mode(data.get("model"))
        if mode == "embedding" and call_type in CHAT_CALLS:
            raise HTTPException(400, f"{data['model']} is an embedding model: ask /v1/embeddings for it.")
        if mode == "chat" and call_type in EMBEDDING_CALLS:
            raise HTTPException(400, f"{data['model']} is no embedding model: ask another one for embeddings.")
        attempt = Attempt()
        attempt.model = data.get("model")
        _attempt.set(attempt)
        # The task ends when the answer is sent, also one that is streamed, or when the client has gone.
        asyncio.current_task().add_done_callback(lambda _task: self._over(attempt))

    def _mode(self, model) -> str | None:
        """Return what a model is for that a client asks for, in one of LiteLLM's ways; None for one of others."""
        if not isinstance(model, str):
            return None
        target = (getattr(self._router(), "model_group_alias", None) or {}).get(model, model)
        return self.facts.modes.get(target["model"] if isinstance(target, dict) else target)

    def _over(self, attempt: Attempt) -> None:
        self.outcomes.note(attempt.deployment, ended=1)
        self.load.end(attempt)
        attempt.over = True

    async def async_post_call_failure_hook(
        self, request_data, original_exception, user_api_key_dict, traceback_str=None
    ):
        """Say plainly that the backends are to blame, and when to come back (LiteLLM's hook)."""
        # When nothing could be asked, because all are paused or rest, LiteLLM adds the status later.
        nobody = isinstance(original_exception, RouterRateLimitError)
        status = getattr(original_exception, "status_code", 429 if nobody else None)
        attempt = _attempt.get()
        stranger = attempt is not None and attempt.stranger
        ours = self._mode(request_data.get("model")) is not None
        if not ours or (status not in BACKEND_FAULTS and not stranger):
            return None
        self.outcomes.failed_requests += 1
        self._failed(attempt)  # in the middle of a stream nobody has said so yet
        wait = getattr(original_exception, "cooldown_time", None) or getattr(self._router(), "cooldown_time", None)
        headers = {"Retry-After": str(max(1, math.ceil(wait or 1)))}
        # /v1/completions and streams look only at the exception itself.
        original_exception.status_code = 429 if status == 429 else 503
        return HTTPException(original_exception.status_code, str(original_exception), headers)

    async def async_post_call_streaming_iterator_hook(self, user_api_key_dict, response, request_data):
        """Ask another deployment where one sent a page, which LiteLLM takes for an empty stream (LiteLLM's hook)."""
        for again in range(ASKED_ANEW + 1):
            if not is_page(response):
                break
            deployment = response._hidden_params.get("model_id")
            wait = self._avoid(deployment)
            self.outcomes.note(deployment, failed=1)
            verbose_proxy_logger.warning("lmfleet: %s answered with a page instead of a stream", deployment)
            if again == ASKED_ANEW or not request_data.get("messages"):
                headers = {"Retry-After": str(max(1, math.ceil(wait)))}
                raise HTTPException(503, f"The backend {deployment} answered with a page instead of a stream.", headers)
            response = await self._router().acompletion(**request_data)
        attempt = _attempt.get()
        async for chunk in response:
            if attempt is not None and attempt.deployment is not None:
                first_token = time.monotonic() - attempt.since
                self.outcomes.note(attempt.deployment, streams=1, first_token_seconds=first_token)
            attempt = None
            yield chunk

    def _avoid(self, deployment: str | None) -> float:
        """Prefer all others for a while; return how long, in seconds."""
        wait = getattr(self._router(), "cooldown_time", None) or 1
        if deployment is not None:
            self.unfit[deployment] = time.monotonic() + wait
        return wait

    async def async_filter_deployments(
        self, model, healthy_deployments, messages, request_kwargs=None, parent_otel_span=None
    ):
        """Narrow the candidates of one attempt of one request (LiteLLM's hook)."""
        ids = [candidate["model_info"]["id"] for candidate in healthy_deployments]
        attempt = _attempt.get()
        if attempt is not None:
            attempt.counted = None
        request_kwargs = request_kwargs or {}
        too_small = frozenset()
        if model in self.facts.uneven and len(ids) > 1:
            too_small = await self._too_small(model, healthy_deployments, messages, request_kwargs)
        while True:
            allowed = self._allowed(model, healthy_deployments, ids, request_kwargs, too_small)
            if not allowed or (len(allowed) > 1 and self.routing == SHUFFLE):
                if len(allowed) == len(ids):
                    return healthy_deployments
                keep = set(allowed)
                return [candidate for candidate, name in zip(healthy_deployments, ids, strict=True) if name in keep]
            chosen = healthy_deployments[ids.index(self._choose(model, allowed))]
            self.rotation.take(model, _id(chosen), _weight(chosen) or 1.0)
            self.load.begin(attempt, _id(chosen))
            if await self._count(attempt, _id(chosen)):
                return [chosen]
            self.load.end(attempt)

    async def _too_small(self, model, candidates, messages, request_kwargs: dict) -> frozenset[str]:
        """Return the deployments that the prompt is too long for, where those of a group differ in that.

        LiteLLM itself looks only at what has been chosen, and asks no other one then.
        """
        tokens = None
        # It counts in a thread of its own. Another LiteLLM may count in another way; then it is as without this.
        with contextlib.suppress(AttributeError, TypeError):
            tokens = await self._router()._acount_pre_call_check_tokens(
                model=model,
                healthy_deployments=candidates,
                messages=messages,
                input=request_kwargs.get("input"),
                request_kwargs=request_kwargs,
            )
        windows = self.facts.windows
        names = map(_id, candidates) if tokens is not None else ()
        return frozenset(name for name in names if windows.get(name, tokens) < tokens)

    def _allowed(self, model, candidates, ids: list[str], request_kwargs: dict, too_small) -> list[str]:
        target, tried = request_kwargs.get("_target_order"), _tried(request_kwargs)
        # When it wants another order, LiteLLM drops the others after the hook: those must not be all that is left.
        within = ids if target is None else self._first_in_order(model, candidates, ids, ids, target)
        within = self._open(within, too_small)
        if self.facts.rates and within:
            within = self.rates.left(within)
            if not within:
                raise self._refusal(model)
        allowed = untried(within, tried)
        # A full one with a weight comes before one with room that is to get nothing.
        allowed = [name for name in allowed if name not in self.facts.weightless] or allowed
        allowed = self._with_room(self._elsewhere(allowed, tried))
        if len(allowed) > 1 and self.routing != SHUFFLE:
            return self._first_in_order(model, candidates, ids, allowed, target)
        return allowed

    def _elsewhere(self, ids: list[str], tried: list[str]) -> list[str]:
        """Prefer other Macs than those where a request has failed: one that is gone has many deployments."""
        if not tried:
            return ids
        places = self.facts.places
        failed = {places.get(name) for name in tried}
        return [name for name in ids if places.get(name, name) not in failed] or ids

    async def _count(self, attempt: Attempt | None, deployment: str) -> bool:
        """Count an attempt at a deployment that has limits; return whether it may go there."""
        if deployment not in self.facts.rates:
            return True
        if attempt is not None:
            attempt.counted = deployment
        return await self.rates.take(self._redis(), deployment, self.facts.rates[deployment])

    def _redis(self):
        return getattr(getattr(self._router(), "cache", None), "redis_cache", None)

    @staticmethod
    def _refusal(model: str) -> RateLimitError:
        # LiteLLM would wait before it tries again where it wants to.
        error = RateLimitError(f"{model} has had its requests or tokens of this minute.", "", model, num_retries=0)
        error.cooldown_time = 60 - time.time() % 60
        return error

    def _open(self, ids: list[str], too_small: frozenset[str] = frozenset()) -> list[str]:
        if self.stopped:
            ids = [name for name in ids if name not in self.stopped]
        if too_small:
            # Where it is too long for all that are left, LiteLLM says so.
            ids = [name for name in ids if name not in too_small] or ids
        if self.advised:
            ids = [name for name in ids if name not in self.advised] or ids
        if self.unfit:
            now = time.monotonic()
            self.unfit = {name: until for name, until in self.unfit.items() if until > now}
            ids = [name for name in ids if name not in self.unfit] or ids
        return ids

    def _with_room(self, ids: list[str]) -> list[str]:
        limits, in_flight = self.facts.limits, self.load.in_flight
        if not limits:
            return ids
        # Where all are full, they queue: to refuse is not up to the choice.
        return [name for name in ids if name not in limits or in_flight[name] < limits[name]] or ids

    def _first_in_order(self, model, candidates, ids: list[str], allowed: list[str], target) -> list[str]:
        # LiteLLM narrows by order only after the hook, and must find the one that was chosen still in.
        if target is None and model in self.facts.groups and model not in self.facts.ordered:
            return allowed
        keep = set(allowed)
        left = [candidate for candidate, name in zip(candidates, ids, strict=True) if name in keep]
        return [_id(candidate) for candidate in get_order_filtered_deployments(left, target_order=target)]

    def _choose(self, model: str, ids: list[str]) -> str:
        due = self.rotation.due(model, ids)
        if self.routing == "least_busy":
            in_flight = self.load.in_flight
            return min(ids, key=lambda name: (in_flight[name], due[name]))
        if self.routing == "usage":
            now = time.monotonic()
            return min(ids, key=lambda name: (self.load.tokens(name, now), due[name]))
        return min(ids, key=due.__getitem__)

    async def async_pre_call_deployment_hook(self, kwargs, call_type):
        """Note where an attempt goes (LiteLLM's hook)."""
        deployment = (kwargs.get("model_info") or {}).get("id")
        if deployment not in self.facts.ids:
            return
        attempt = _attempt.get()
        self.load.begin(attempt, deployment)
        # What LiteLLM has chosen is not counted yet. Who asks for one deployment by its id gets it.
        uncounted = attempt is not None and attempt.counted != deployment and attempt.model != deployment
        if uncounted and not await self._count(attempt, deployment):
            raise RateLimitError(f"{deployment} has had its requests or tokens of this minute.", "", deployment)

    async def async_post_call_failure_deployment_hook(self, request_data, exception, call_type, fallback_depth=None):
        """Note the end of an attempt that failed (LiteLLM's hook)."""
        attempt, status = _attempt.get(), getattr(exception, "status_code", None)
        if attempt is not None:
            attempt.stranger = is_stranger(status)
            if attempt.stranger:
                # For some of these LiteLLM has no cooldown.
                self._avoid(attempt.deployment)
        self._failed(attempt, status)

    def _failed(self, attempt: Attempt | None, status: int | None = None) -> None:
        if attempt is not None and status not in CLIENT_FAULTS:
            self.outcomes.note(attempt.deployment, failed=1)
        self.load.end(attempt)

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        """Note what a request has used (LiteLLM's hook)."""
        told = kwargs.get("standard_logging_object") or {}
        deployment, tokens = told.get("model_id"), told.get("total_tokens")
        limited = "tpm" in self.facts.rates.get(deployment, ())
        if deployment and tokens and (limited or self.routing == "usage"):
            self.load.add_tokens(deployment, tokens, time.monotonic())
            if limited:
                await self.rates.add(self._redis(), deployment, "tpm", tokens)

    async def _follow(self) -> None:
        while self._router() is None:
            await asyncio.sleep(ROUTER_POLL_SECONDS)
        reported_at = 0.0
        while True:
            before = self._errors()
            changed, failure = False, None
            try:
                changed = await self._refresh(self._router())
            except Exception as error:
                # Whatever goes wrong, the worker goes on with what it has, and tries again.
                failure = f"{type(error).__name__}: {error}"
                if failure != self._failure:
                    verbose_proxy_logger.exception("lmfleet registry: cannot apply %s", self._folder)
            self._failure = failure
            self._tell(before)
            if changed or before != self._errors() or time.monotonic() - reported_at >= HEARTBEAT_SECONDS:
                # A report that cannot be written is late: whoever waits for it sees that it is old.
                with contextlib.suppress(OSError):
                    self._report()
                reported_at = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)

    def _tell(self, before: list[str]) -> None:
        for error in self._errors():
            if error not in before:
                verbose_proxy_logger.error("lmfleet registry: %s", error)
        if before and not self._errors():
            verbose_proxy_logger.warning("lmfleet registry: all files can be read again")

    @staticmethod
    def _router():
        return getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None)

    async def _refresh(self, router) -> bool:
        # Pauses first: a deployment that is added paused must not get a request in between.
        changed = self._refresh_pauses()
        stopped, advised = self.stopped, self.advised
        self.stopped, self.advised = paused_now(self.pauses, time.time())
        self.rotation.forget((stopped | advised) - self.stopped - self.advised)
        self._trust(router, (stopped - self.stopped) | self._left_by(self.stopped - stopped))
        if self._deployments.refresh():
            self._pending = self._deployments.content
        if self._pending:
            await self._apply(router, self._pending)
            self._pending = None
            changed = True
        changed |= await self._adopt(router)
        for file in (self._deployments, *self._pause_files.values()):
            file.save()
        return changed

    async def _adopt(self, router) -> bool:
        """Learn what the database has, which LiteLLM itself puts into the router; return whether that is news."""
        models = router.model_list
        if len(models) == len(self._models) and all(map(operator.is_, models, self._models)):
            return False
        self._models = list(models)
        former, self._stored = self._stored, stored(models)
        if self._stored == former:
            return False
        self.routing = self._declared_routing()
        self._know(router)
        self._set_retries(router)
        self._trust(router, {name for name in former if self._stored.get(name, former[name]) != former[name]})
        return True

    def _declared_routing(self) -> str:
        declared = self._deployments.content
        return SHUFFLE if self._stored or declared is None else declared["routing"]

    def _know(self, router) -> None:
        """Look up what choosing needs to know, and forget what is gone."""
        self.facts = Facts({**self._applied, **self._stored}, self.workers)
        for memory in (self.rotation, self.load, self.outcomes):
            memory.keep(self.facts.ids)
        self._set_windows(router)

    def _left_by(self, deployments: set[str]) -> set[str]:
        """Return what has to answer in the place of deployments that get no requests from now on."""
        groups = {self.facts.group_of[name] for name in deployments if name in self.facts.group_of}
        return {name for name, group in self.facts.group_of.items() if group in groups} - self.stopped

    def _trust(self, router, deployments: set[str]) -> None:
        """Forget the failures of deployments.

        Whoever ends a pause, or moves one, has seen to it that they answer, and whoever begins one, that the others do.
        """
        for deployment in deployments:
            self.unfit.pop(deployment, None)
        cooldowns = getattr(router, "cooldown_cache", None)
        store = getattr(cooldowns, "cooldown_store", None)
        if store is None:  # so it may be with another LiteLLM
            return
        keys = [cooldowns.get_cooldown_cache_key(deployment) for deployment in deployments]
        for key in keys:
            store.in_memory_cache.delete_cache(key)
        if keys and store.redis_cache is not None:
            # Nobody waits for one that is down or hangs.
            forgetting = asyncio.gather(*map(store.redis_cache.async_delete_cache, keys), return_exceptions=True)
            self._forgetting.add(forgetting)
            forgetting.add_done_callback(self._forgetting.discard)

    def _refresh_pauses(self) -> bool:
        for folder in (self._folder, self._copies):
            with contextlib.suppress(OSError):
                for path in (folder / "paused").glob("*.json"):
                    if path.stem not in self._pause_files and not path.name.startswith("."):
                        self._watch_pauses(path.stem)
        changed = [owner for owner, file in self._pause_files.items() if file.refresh()]
        for owner in changed:
            self.pauses[owner] = self._pause_files[owner].content["paused"]
        if ADVISORY_OWNER in self._pause_files and self._pause_files[ADVISORY_OWNER].missing:
            del self._pause_files[ADVISORY_OWNER]
            self.pauses.pop(ADVISORY_OWNER, None)
        return bool(changed)

    def _watch_pauses(self, owner: str) -> None:
        name = f"paused/{owner}.json"
        # Advice is renewed all the time: it is not worth a copy.
        copy = None if owner == ADVISORY_OWNER else self._copies / name
        self._pause_files[owner] = WatchedFile(self._folder / name, parse_pauses, copy)

    async def _apply(self, router, document: dict) -> None:
        wanted: dict[str, dict] = document["deployments"]
        self.rejected = {}
        self.routing = self._declared_routing()
        # What is known to choosing before it can be chosen, and until it no longer can.
        self.facts = Facts({**self._applied, **wanted, **self._stored}, self.workers)
        self._set_windows(router)
        self._set_retries(router)
        self._set_fallbacks(router, document["groups"])
        # A worker that starts has nothing to serve yet: it takes all before it answers anyone.
        pause_after = UPSERTS_IN_A_ROW if self._applied else len(wanted) + 1
        different = [item for item in wanted.items() if self._applied.get(item[0]) != item[1]]
        moved = {deployment_id for deployment_id, _deployment in different if deployment_id in self._applied}
        for count, (deployment_id, deployment) in enumerate(different, start=1):
            reason = self._upsert(router, deployment_id, deployment)
            if reason:
                verbose_proxy_logger.error("lmfleet registry: deployment %s: %s", deployment_id, reason)
                self.rejected[deployment_id] = reason
            else:
                self._applied[deployment_id] = deployment
            if count % pause_after == 0:
                self._set_windows(router)
                await asyncio.sleep(0)
        self._trust(router, moved)
        # Last: a group whose only deployment gets a new id is never empty.
        for deployment_id in [known for known in self._applied if known not in wanted]:
            router.delete_deployment(id=deployment_id)
            del self._applied[deployment_id]
        self._know(router)
        self._generation = document["generation"]

    def _set_windows(self, router) -> None:
        if self._own_checks is None:
            self._own_checks = router.enable_pre_call_checks
        # Otherwise LiteLLM does not look at the size of a context before it asks.
        router.enable_pre_call_checks = self._own_checks or bool(self.facts.windows)
        # It takes a window for that of all who have the same model, and never forgets it.
        self._windowed |= self.facts.windowed
        endless = self._windowed & self.facts.windowless
        if endless:
            register_model({model: {"max_input_tokens": int(LARGEST)} for model in endless})

    def _set_retries(self, router) -> None:
        # LiteLLM asks nobody else after 404, unless there is a policy for it: a backend's address may be another's now.
        policy = getattr(router, "retry_policy", None)
        own = policy.model_dump(exclude_none=True) if policy else {}
        router.update_settings(retry_policy={"NotFoundErrorRetries": router.num_retries, **own})

    def _set_fallbacks(self, router, groups: dict[str, dict]) -> None:
        if self._own_fallbacks is None:
            self._own_fallbacks = {name: list(getattr(router, name) or []) for name in FALLBACKS}
        settings = {
            name: own + [{group: groups[group][name]} for group in sorted(groups) if groups[group].get(name)]
            for name, own in self._own_fallbacks.items()
        }
        router.update_settings(**settings)

    def _upsert(self, router, deployment_id: str, raw: dict) -> str | None:
        if deployment_id not in self._applied and router.get_deployment(model_id=deployment_id) is not None:
            return "the id belongs to a model of config.yaml"
        # Where one has a weight, LiteLLM gives nothing to those that have none.
        params = {**raw["litellm_params"], "weight": _weight(raw)}
        try:
            wanted = Deployment(**{**raw, "litellm_params": params})
            router.upsert_deployment(wanted)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        # LiteLLM logs and swallows what it refuses, and keeps the former version.
        current = router.get_deployment(model_id=deployment_id)
        if current is None or (current.model_name, current.litellm_params) != (
            wanted.model_name,
            wanted.litellm_params,
        ):
            return "LiteLLM refused it; the reason is in the gateway's log"
        return None

    def _errors(self) -> list[str]:
        files = [self._deployments, *self._pause_files.values()]
        if self._stored and self._deployments.content is None:
            files.remove(self._deployments)
        return [file.error for file in files if file.error] + [self._failure] * bool(self._failure)

    def _report(self) -> None:
        report = {
            "format": FORMAT,
            "pid": os.getpid(),
            # Which start of the gateway this worker belongs to: the runner waits for the workers of a new one.
            "run": os.environ.get("LMFLEET_RUN"),
            # In a container: its process ids say nothing to those outside.
            "container": bool(os.environ.get("LMFLEET_CONTAINER")),
            "workers": self.workers,
            "started_at": self._started_at,
            "at": time.time(),
            "generation": self._generation,
            "paused_generations": {
                owner: file.content["generation"] for owner, file in self._pause_files.items() if file.content
            },
            "routing": self.routing,
            "deployments": sorted(self.facts.ids),
            "in_flight": dict(self.load.in_flight),
            "outcomes": self.outcomes.report(),
            "rejected": self.rejected,
            "error": "; ".join(self._errors()) or None,
        }
        self._report_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._report_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(report), encoding="utf-8")
        temporary.replace(self._report_path)
        for other in self._report_path.parent.glob("*.json"):
            if other.stem.isdigit() and (not _alive(int(other.stem)) or _age(other) > REPORT_SECONDS):
                other.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


registry = Registry(os.environ.get("LMFLEET_REGISTRY"))
