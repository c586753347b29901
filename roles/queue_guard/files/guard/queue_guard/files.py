# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guard reads and writes: the gateway's registry, its own pauses, its own memory.

deployments.json      read: what the gateway routes to
paused/<owner>.json   read: what others pause; paused/guard.json is written, by nobody else
guard.json            written, in the guard's own folder: what it must know after a restart
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from typing import Any, NamedTuple

from .asking import address_of
from .decision import Deployment, Memory

OWNER = "guard"
OWNERS = (OWNER, "operator", "rollout")
FORMAT = 1
#: What LM Studio serves at a time where nothing is declared.
DEFAULT_PARALLEL = 4
#: Seconds after which a worker of the gateway that has not reported counts as gone.
FRESH_SECONDS = 6.0


class Target(NamedTuple):
    """A deployment and where to ask about it. `status_url` is None when its instance publishes no status.

    `owners` are the others who pause it.
    """

    deployment: Deployment
    status_url: str | None
    instance: str
    host: str
    identifier: str
    mode: str
    api_base: str
    api_key: str
    owners: tuple[str, ...] = ()


class RegistryError(Exception):
    """The registry cannot be read; the text says what and where."""


def read_json(path: str) -> Any:
    """Return the parsed file, None when it is absent. Raises RegistryError."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path}: {error}") from None


def write_json(path: str, content: Any, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old one or the new one. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(prefix=".guard-", dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            json.dump(content, stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class Registry:
    """The folder that the gateway's plugin follows."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._generation = 0

    def targets(self, now: float) -> list[Target]:
        """Return every deployment; `now` in seconds since the epoch decides which pauses of others still hold."""
        document = read_json(os.path.join(self.folder, "deployments.json"))
        if not isinstance(document, dict) or not isinstance(document.get("deployments"), list):
            raise RegistryError(f"{self.folder}/deployments.json: absent, or not a registry")
        elsewhere = self._paused_by_others(now)
        targets = []
        for entry in document["deployments"]:
            try:
                targets.append(_target(entry, elsewhere))
            except (KeyError, TypeError, ValueError):
                raise RegistryError(f"{self.folder}/deployments.json: a deployment is not whole") from None
        return targets

    def in_flight(self, now: float) -> dict[str, int]:
        """Return how many requests the workers of the gateway have at each deployment, as they reported last."""
        counts: dict[str, int] = {}
        folder = os.path.join(self.folder, "applied")
        for name in _listing(folder):
            with contextlib.suppress(RegistryError, AttributeError, TypeError, ValueError):
                report = read_json(os.path.join(folder, name)) if name.endswith(".json") else None
                if report and abs(now - float(report["at"])) <= FRESH_SECONDS:
                    for deployment, count in report.get("in_flight", {}).items():
                        counts[deployment] = counts.get(deployment, 0) + int(count)
        return counts

    def _paused_by_others(self, now: float) -> dict[str, tuple[str, ...]]:
        paused: dict[str, tuple[str, ...]] = {}
        folder = os.path.join(self.folder, "paused")
        for name in _listing(folder):
            owner, extension = os.path.splitext(name)
            if extension != ".json" or name.startswith(".") or owner == OWNER:
                continue
            document = read_json(os.path.join(folder, name))
            entries = document.get("paused") if isinstance(document, dict) else None
            for deployment, pause in entries.items() if isinstance(entries, dict) else ():
                until = pause.get("until") if isinstance(pause, dict) else None
                if until is None or until > now:
                    paused[deployment] = (*paused.get(deployment, ()), owner)
        return paused

    def pause(self, memories: dict[str, Memory], since: dict[str, float], until: float) -> None:
        """Write the guard's pauses. `since` and `until` are seconds since the epoch. Raises OSError."""
        path = os.path.join(self.folder, "paused", f"{OWNER}.json")
        with contextlib.suppress(RegistryError):
            document = read_json(path)
            if isinstance(document, dict) and isinstance(document.get("generation"), int):
                self._generation = max(self._generation, document["generation"])
        self._generation += 1
        paused = {
            name: {"reason": memory.reason, "since": since[name], "until": until}
            for name, memory in memories.items()
            if memory.since is not None
        }
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_json(path, {"format": FORMAT, "generation": self._generation, "paused": paused})


def _target(entry: dict[str, Any], elsewhere: dict[str, tuple[str, ...]]) -> Target:
    info, params = entry["model_info"], entry["litellm_params"]
    for url in (info.get("status_url"), params["api_base"]):
        address_of(url or "")
    parallel = info.get("parallel")
    deployment = Deployment(
        id=str(info["id"]),
        group=str(entry["model_name"]),
        parallel=parallel if isinstance(parallel, int) and parallel > 0 else DEFAULT_PARALLEL,
        elsewhere=info["id"] in elsewhere,
    )
    return Target(
        deployment,
        info.get("status_url"),
        str(info.get("instance", "")),
        str(info.get("host", "")),
        str(params["model"]).partition("/")[2] or str(params["model"]),
        str(info.get("mode", "chat")),
        str(params["api_base"]),
        str(params.get("api_key", "")),
        elsewhere.get(str(info["id"]), ()),
    )


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


class AnotherGuardError(Exception):
    """A guard is running already; the text says which."""


def only_one(folder: str) -> int:
    """Return a lock that lasts as long as this process. Raises AnotherGuardError."""
    path = os.path.join(folder, "lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise AnotherGuardError(f"process {holder} guards already ({path})") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
