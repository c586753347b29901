# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns the answers of an instance into what the decision needs. Nothing an instance says is taken for granted."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from .asking import Asker, AskError, address_of
from .decision import Memory, Seen
from .files import Target

USUAL_TRIALS = 5  # the usual time is the median of so many


class Limits(NamedTuple):
    """Times in seconds. `max_age`: how old a status may be by the count of the instance itself.

    `trial_timeout`: how long a trial may take; a look waits for it no longer than `timeout`, a later one takes it up.
    `trial_interval`: how often a deployment that is well is tried.
    """

    timeout: float = 3.0
    max_age: float = 60.0
    trial_timeout: float = 20.0
    trial_interval: float = 600.0
    jitter: float = 0.5


class Trials:
    """How long a smallest request takes at each deployment, while all is well and while it is paused.

    With a `limit` of the time to the first token the trials are also what it is measured by.
    """

    def __init__(self, interval: float, limit: float | None) -> None:
        self.interval, self.limit = interval, limit
        self.usual: dict[str, deque[float]] = {}
        self.first: dict[str, float] = {}
        self._tried_at: dict[str, float] = {}
        self._failed: set[str] = set()

    def usual_of(self, name: str, peers: Iterable[str]) -> float | None:
        """Return the usual seconds; those of its `peers` when it was not tried yet; None when none was."""
        known = self.usual.get(name) or [seconds for peer in peers for seconds in self.usual.get(peer, ())]
        return statistics.median(known) if known else None

    def wanted(self, name: str, memory: Memory, queued: int, parallel: int, now: float) -> bool:
        """Tell whether to try: a paused one whose queue is short, one that failed, and each now and then."""
        if memory.since is not None:
            return queued <= parallel
        due = name in self._failed or now - self._tried_at.get(name, -self.interval) >= self.interval
        if self.limit is not None:
            return due or self.first.get(name, 0.0) > self.limit
        # What waits for a free slot would not tell how fast it usually is.
        return due and queued < parallel

    def note(self, name: str, memory: Memory, seconds: float | None, now: float) -> None:
        """Keep what a trial took, None for one that failed; what a paused one takes is not usual."""
        if seconds is None:
            self._failed.add(name)
            return
        self._failed.discard(name)
        self.first[name] = seconds
        if memory.since is None:
            self.usual.setdefault(name, deque(maxlen=USUAL_TRIALS)).append(seconds)
            self._tried_at[name] = now

    def keep(self, names: set) -> None:
        for kept in (self.usual, self.first, self._tried_at):
            for known in [name for name in kept if name not in names]:
                del kept[known]
        self._failed &= names


class Watcher:
    """Asks all instances at once."""

    def __init__(self, limits: Limits, first_token_limit: float | None = None) -> None:
        self.limits = limits
        self.trials = Trials(limits.trial_interval, first_token_limit)
        self._asker = Asker()
        self._running: dict[str, asyncio.Task] = {}
        self._peers: dict[str, list[str]] = {}

    async def look(self, targets: list[Target], memories: dict[str, Memory], now: float) -> dict[str, Seen]:
        """Return what was seen of each deployment that publishes a status."""
        by_url: dict[str, list[Target]] = {}
        for target in targets:
            if target.status_url:
                by_url.setdefault(target.status_url, []).append(target)
        names = {target.deployment.id for target in targets}
        self.trials.keep(names)
        for name in [name for name in self._running if name not in names]:
            self._running.pop(name).cancel()
        self._peers = {}
        for target in targets:
            self._peers.setdefault(target.deployment.group, []).append(target.deployment.id)
        asked = [self._instance(url, group, memories, now) for url, group in by_url.items()]
        seen: dict[str, Seen] = {}
        for part in await asyncio.gather(*asked):
            seen.update(part)
        urls = [*by_url, *(target.api_base for target in targets)]
        self._asker.forget({address_of(url) for url in urls})
        return seen

    async def _instance(
        self, url: str, targets: list[Target], memories: dict[str, Memory], now: float
    ) -> dict[str, Seen]:
        # Not all in the same moment: the Macs answer when they please, and this process has one core at most.
        await asyncio.sleep(random.uniform(0, self.limits.jitter))
        try:
            answer = await self._asker.ask(url, self.limits.timeout)
            queues = queues_of(answer.content, self.limits.max_age)
        except AskError as error:
            return {target.deployment.id: Seen(trouble=f"{url}: {error}") for target in targets}
        return dict(
            zip(
                (target.deployment.id for target in targets),
                await asyncio.gather(*(self._deployment(target, queues, memories, now) for target in targets)),
            )
        )

    async def _deployment(
        self, target: Target, queues: dict[str, Any], memories: dict[str, Memory], now: float
    ) -> Seen:
        name, trials = target.deployment.id, self.trials
        queued = queues.get(target.identifier)
        if queued is None:
            return Seen(trouble=f"{target.status_url}: {target.identifier} is not loaded there")
        if target.owners:
            return Seen(queued=queued)  # whoever pauses it wants it idle
        memory = memories.get(name, Memory())
        trial = None
        if name in self._running or trials.wanted(name, memory, queued, target.deployment.parallel, now):
            if name not in self._running:
                self._running[name] = asyncio.ensure_future(self._try(target))
            task = self._running[name]
            # One that hangs must not hold up the look at all others.
            await asyncio.wait([task], timeout=self.limits.timeout)
            if task.done():
                del self._running[name]
                try:
                    trial = task.result()
                except AskError as error:
                    trials.note(name, memory, None, now)
                    return Seen(trouble=f"{target.api_base}: {error}")
                trials.note(name, memory, trial, now)
        return Seen(
            queued=queued,
            first_token=None if trials.limit is None else trials.first.get(name),
            trial=trial,
            usual_trial=trials.usual_of(name, self._peers[target.deployment.group]),
            trying=name in self._running,
        )

    async def _try(self, target: Target) -> float:
        """Send the smallest request there is; return the seconds until it was answered."""
        if target.mode == "embedding":
            path, body = "/embeddings", {"model": target.identifier, "input": "ping"}
        else:
            messages = [{"role": "user", "content": "ping"}]
            path = "/chat/completions"
            body = {"model": target.identifier, "messages": messages, "max_tokens": 1, "temperature": 0}
        answer = await self._asker.ask(
            target.api_base.rstrip("/") + path, self.limits.trial_timeout, body, target.api_key
        )
        if not (answer.content.get("choices") or answer.content.get("data")):
            raise AskError(f"answered without a result: {str(answer.content)[:80]}")
        return answer.first_byte


def queues_of(status: dict[str, Any], max_age: float) -> dict[str, int]:
    """Return identifier to queue of the models that are loaded. Raises AskError for a status that cannot be used."""
    age = status.get("age")
    if isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 <= age < float("inf"):
        raise AskError(f"it does not tell the age of its status, but {age!r}")
    if age > max_age:
        raise AskError(f"its status is {age:.0f} s old, older than {max_age:g} s")
    models = status.get("models")
    if not isinstance(models, list):
        raise AskError("its status has no list of models")
    queues = {}
    for model in models:
        if not isinstance(model, dict) or not isinstance(model.get("identifier"), str):
            raise AskError("its status has a model without an identifier")
        queued = model.get("queued")
        if model.get("loaded") is not True:
            continue
        if isinstance(queued, bool) or not isinstance(queued, int) or queued < 0:
            raise AskError(f"its queue of {model['identifier']} is {queued!r}")
        queues[model["identifier"]] = queued
    return queues
