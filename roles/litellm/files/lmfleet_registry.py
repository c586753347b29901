# SPDX-License-Identifier: GPL-3.0-or-later
"""LiteLLM plugin: every worker follows the registry, a folder of small JSON files, without a restart or a database.

LiteLLM loads it through ``litellm_settings.callbacks: [lmfleet_registry.registry]``; it runs in the gateway's Python.
The folder is named by the environment variable LMFLEET_REGISTRY; without it the plugin does nothing.

    deployments.json      read: {"format": 1, "generation", "routing", "deployments": [as in LiteLLM's model_list]}
    paused/<owner>.json   read: {"format": 1, "generation", "paused": {id: {"reason", "since", "until"?}}}
    applied/<pid>.json    written by each worker: what it has applied, at least once a second

A file that is missing, unreadable or broken changes nothing: the worker keeps what it has and says so in its report.
Everything runs on the event loop that also serves the requests, so no request ever sees a half-changed router.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path

from litellm._logging import verbose_proxy_logger
from litellm.integrations.custom_logger import CustomLogger
from litellm.types.router import Deployment
from litellm.utils import get_order_filtered_deployments

FORMAT = 1
POLL_SECONDS = 0.2
HEARTBEAT_SECONDS = 1.0
ROUTER_POLL_SECONDS = 0.001
UPSERTS_IN_A_ROW = 20
ROUTINGS = ("round_robin", "shuffle")
# The guard only steers load: where it has paused all, it has paused none.
ADVISORY_OWNER = "guard"


class Rotation:
    """Picks the candidates of a model group in turn, in proportion to their weights (smooth weighted round robin)."""

    def __init__(self) -> None:
        self._credit: dict[str, dict[str, float]] = {}

    def pick(self, group: str, candidates: list[dict]) -> dict:
        """Return whose turn it is; `candidates` must not be empty."""
        weighted = [(candidate, _weight(candidate)) for candidate in candidates]
        weighted = [pair for pair in weighted if pair[1] > 0] or [(candidate, 1.0) for candidate in candidates]
        credit = self._credit.setdefault(group, {})
        for candidate, weight in weighted:
            credit[_id(candidate)] = credit.get(_id(candidate), 0.0) + weight
        chosen = max(weighted, key=lambda pair: credit[_id(pair[0])])[0]
        credit[_id(chosen)] -= sum(pair[1] for pair in weighted)
        return chosen

    def keep(self, ids: set[str]) -> None:
        """Forget the deployments that are not in `ids`."""
        for group, credit in list(self._credit.items()):
            self._credit[group] = {deployment: value for deployment, value in credit.items() if deployment in ids}


def _id(deployment: dict) -> str:
    return deployment["model_info"]["id"]


def _weight(deployment: dict) -> float:
    weight = deployment["litellm_params"].get("weight")
    return 1.0 if weight is None else float(weight)


def without_paused(candidates: list[dict], pauses: dict[str, dict[str, dict]], now: float) -> list[dict]:
    """Return the candidates that no owner pauses; `pauses` is owner to id to pause, `now` seconds since the epoch."""
    advised: set[str] = set()
    stopped: set[str] = set()
    for owner, paused in pauses.items():
        until = {deployment: pause.get("until") for deployment, pause in paused.items()}
        current = {deployment for deployment, end in until.items() if end is None or end > now}
        (advised if owner == ADVISORY_OWNER else stopped).update(current)
    left = [candidate for candidate in candidates if _id(candidate) not in stopped]
    return [candidate for candidate in left if _id(candidate) not in advised] or left


def without_tried(candidates: list[dict], request_kwargs: dict | None) -> list[dict]:
    """Return the candidates this request has not failed on; else all but the last one it failed on; else all."""
    tried = _tried(request_kwargs)
    if not tried:
        return candidates
    fresh = [candidate for candidate in candidates if _id(candidate) not in tried]
    return fresh or [candidate for candidate in candidates if _id(candidate) != tried[-1]] or candidates


def _tried(request_kwargs: dict | None) -> list[str]:
    # LiteLLM leaves one record for each failed attempt in the request's metadata.
    for name in ("litellm_metadata", "metadata"):
        metadata = (request_kwargs or {}).get(name)
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

    Raises ValueError for anything that is not a whole and sound file.
    """
    document = _document(content, "deployments", list)
    if document.get("routing") not in ROUTINGS:
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, not {document.get('routing')!r}")
    by_id: dict[str, dict] = {}
    for deployment in document["deployments"]:
        try:
            names = (deployment["model_info"]["id"], deployment["model_name"], deployment["litellm_params"]["model"])
        except (KeyError, TypeError):
            names = ()
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("a deployment without model_info.id, model_name or litellm_params.model")
        deployment_id = names[0]
        if deployment_id in by_id:
            raise ValueError(f"the deployment id {deployment_id} is used twice")
        by_id[deployment_id] = deployment
    return {**document, "deployments": by_id}


def parse_pauses(content: bytes) -> dict:
    """Return the parsed paused/<owner>.json. Raises ValueError for anything that is not a whole and sound file."""
    document = _document(content, "paused", dict)
    if not all(isinstance(pause, dict) for pause in document["paused"].values()):
        raise ValueError("a pause is not a mapping")
    return document


def _document(content: bytes, key: str, kind: type) -> dict:
    document = json.loads(content)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"not a file of format {FORMAT}")
    if not isinstance(document.get("generation"), int) or not isinstance(document.get(key), kind):
        raise ValueError(f"generation or {key} is missing or of the wrong type")
    return document


class WatchedFile:
    """A file that is read again when it has changed. Keeps the last content that could be parsed."""

    def __init__(self, path: Path, parse) -> None:
        self.path = path
        self.content: dict | None = None
        self.error: str | None = None
        self._parse = parse
        self._seen: tuple | None = None

    def refresh(self) -> bool:
        """Read the file if it has changed; return whether there is new content."""
        try:
            status = self.path.stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return False
            content = self._parse(self.path.read_bytes())
        except (OSError, ValueError) as error:
            # Not marked as seen: what could not be read is tried again at the next look.
            self._seen = None
            reason = error.strerror if isinstance(error, OSError) else error
            kept = f"keeping generation {self.content['generation']}" if self.content else "nothing to keep"
            self.error = f"{self.path.name}: {reason}; {kept}"
            return False
        self._seen, self.content, self.error = seen, content, None
        return True


class Registry(CustomLogger):
    """One per worker: follows the files, steers the requests and reports."""

    def __init__(self, folder: str | None) -> None:
        super().__init__()
        self.rotation = Rotation()
        self.routing = ROUTINGS[0]
        self.pauses: dict[str, dict[str, dict]] = {}
        self.rejected: dict[str, str] = {}
        self._applied: dict[str, dict] = {}
        self._generation: int | None = None
        self._started_at = time.time()
        self._failure: str | None = None
        self._pending: dict | None = None
        if folder:
            self._folder = Path(folder)
            self._report_path = self._folder / "applied" / f"{os.getpid()}.json"
            self._deployments = WatchedFile(self._folder / "deployments.json", parse_deployments)
            self._pause_files: dict[str, WatchedFile] = {}
            # Kept in an attribute: the event loop itself holds tasks only weakly.
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def async_filter_deployments(
        self, model, healthy_deployments, messages, request_kwargs=None, parent_otel_span=None
    ):
        """Narrow the candidates of one attempt of one request (LiteLLM's hook)."""
        candidates = without_paused(healthy_deployments, self.pauses, time.time())
        candidates = without_tried(candidates, request_kwargs)
        if self.routing != "round_robin" or len(candidates) < 2:
            return candidates
        # LiteLLM narrows by order only after this hook, and must find the one that was picked still in.
        preferred = get_order_filtered_deployments(candidates, target_order=(request_kwargs or {}).get("_target_order"))
        return [self.rotation.pick(model, preferred)] if preferred else candidates

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
            if changed or before != self._errors() or time.monotonic() - reported_at >= HEARTBEAT_SECONDS:
                # A report that cannot be written is late: whoever waits for it sees that it is old.
                with contextlib.suppress(OSError):
                    self._report()
                reported_at = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)

    @staticmethod
    def _router():
        return getattr(sys.modules.get("litellm.proxy.proxy_server"), "llm_router", None)

    async def _refresh(self, router) -> bool:
        # Pauses first: a deployment that is added paused must not get a request in between.
        changed = self._refresh_pauses()
        if self._deployments.refresh():
            self._pending = self._deployments.content
        if self._pending:
            await self._apply(router, self._pending)
            self._pending = None
            changed = True
        return changed

    def _refresh_pauses(self) -> bool:
        with contextlib.suppress(OSError):
            for path in (self._folder / "paused").glob("*.json"):
                if path.stem not in self._pause_files and not path.name.startswith("."):
                    self._pause_files[path.stem] = WatchedFile(path, parse_pauses)
        changed = [owner for owner, file in self._pause_files.items() if file.refresh()]
        for owner in changed:
            self.pauses[owner] = self._pause_files[owner].content["paused"]
        return bool(changed)

    async def _apply(self, router, document: dict) -> None:
        wanted: dict[str, dict] = document["deployments"]
        self.rejected = {}
        self.routing = document["routing"]
        # A worker that starts has nothing to serve yet: it takes all before it answers anyone.
        pause_after = UPSERTS_IN_A_ROW if self._applied else len(wanted) + 1
        different = [item for item in wanted.items() if self._applied.get(item[0]) != item[1]]
        for count, (deployment_id, deployment) in enumerate(different, start=1):
            reason = self._upsert(router, deployment_id, deployment)
            if reason:
                verbose_proxy_logger.error("lmfleet registry: deployment %s: %s", deployment_id, reason)
                self.rejected[deployment_id] = reason
            else:
                self._applied[deployment_id] = deployment
            if count % pause_after == 0:
                await asyncio.sleep(0)
        # Last: a group whose only deployment gets a new id is never empty.
        for deployment_id in [known for known in self._applied if known not in wanted]:
            router.delete_deployment(id=deployment_id)
            del self._applied[deployment_id]
        self.rotation.keep(set(self._applied))
        self._generation = document["generation"]

    def _upsert(self, router, deployment_id: str, raw: dict) -> str | None:
        if deployment_id not in self._applied and router.get_deployment(model_id=deployment_id) is not None:
            return "the id belongs to a model of config.yaml"
        try:
            wanted = Deployment(**raw)
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
        return [file.error for file in files if file.error] + [self._failure] * bool(self._failure)

    def _report(self) -> None:
        report = {
            "format": FORMAT,
            "pid": os.getpid(),
            "workers": int(os.environ.get("LMFLEET_WORKERS", "1")),
            "started_at": self._started_at,
            "at": time.time(),
            "generation": self._generation,
            "paused_generations": {
                owner: file.content["generation"] for owner, file in self._pause_files.items() if file.content
            },
            "routing": self.routing,
            "deployments": len(self._applied),
            "rejected": self.rejected,
            "error": "; ".join(self._errors()) or None,
        }
        self._report_path.parent.mkdir(parents=True, exist_ok=True)
        for other in self._report_path.parent.glob("*.json"):
            if other.stem.isdigit() and not _alive(int(other.stem)):
                other.unlink(missing_ok=True)
        temporary = self._report_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(report), encoding="utf-8")
        temporary.replace(self._report_path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


registry = Registry(os.environ.get("LMFLEET_REGISTRY"))
