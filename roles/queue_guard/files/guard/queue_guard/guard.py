# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks, decides, writes and tells, once per interval."""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import os
import time
from collections import Counter
from typing import Any

from .decision import Decision, Memory, Seen, decide
from .files import OWNERS, Registry, RegistryError, Target, read_json, write_json
from .metrics import exposition
from .settings import Plan
from .watching import Watcher


class Guard:
    """Looks, decides, writes, tells; once per interval."""

    def __init__(self, folder: str, plan: Plan, log: logging.Logger) -> None:
        self.folder, self.plan, self.log = folder, plan, log
        self.registry = Registry(plan.registry)
        self.watcher = Watcher(plan.limits, plan.settings.max_first_token)
        self.memories: dict[str, Memory] = {}
        self.since: dict[str, float] = {}
        self.targets: list[Target] = []
        self.seen: dict[str, Seen] = {}
        self.decisions: Counter[tuple[str, str]] = collections.Counter()
        self.in_flight: dict[str, int] = {}
        self.polled_at = 0.0
        self._troubles: dict[str, str] = {}
        self._written: dict[str, str] | None = {}
        self._until = 0.0
        self._recall()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            started = time.monotonic()
            await self.poll()
            await asyncio.sleep(max(0.0, self.plan.interval - (time.monotonic() - started)))

    async def poll(self) -> None:
        """One round. What goes wrong is said once, and the next round tries again."""
        try:
            self.targets = self.registry.targets(time.time())
            self.in_flight = self.registry.in_flight(time.time())
            self._trouble("registry", "")
        except RegistryError as error:
            self._trouble("registry", str(error))
        now = time.monotonic()
        self.seen = await self.watcher.look(self.targets, self.memories, now)
        watched = [target.deployment for target in self.targets if target.status_url]
        before = {name for name, memory in self.memories.items() if memory.since is not None}
        self.memories, decisions = decide(watched, self.seen, self.memories, self.plan.settings, now)
        paused = {name for name, memory in self.memories.items() if memory.since is not None}
        for name in paused - before:
            self.since[name] = time.time()
        self.since = {name: at for name, at in self.since.items() if name in paused}
        self.polled_at = now
        for decision in decisions:
            self._tell(decision)
        self._write()

    def _write(self) -> None:
        """Write the pauses when they differ from those written last, before those end, and when the clock was set."""
        paused = {name: self.memories[name].reason for name in self.since}
        now, ttl = time.time(), self.plan.ttl
        if paused == self._written and (not paused or ttl * 2 / 3 <= self._until - now <= ttl + 1):
            return
        try:
            self.registry.pause(self.memories, self.since, now + ttl)
            usual = {name: list(known) for name, known in self.watcher.trials.usual.items()}
            write_json(os.path.join(self.folder, "guard.json"), {"since": self.since, "paused": paused, "usual": usual})
            self._written, self._until = paused, now + ttl
            self._trouble("write", "")
        except OSError as error:
            # The pauses that stand go on until their end; after that nothing is paused, which is the safe side.
            self._trouble("write", str(error))

    def _recall(self) -> None:
        """Take up what a guard before this one has paused; its age is taken from the wall clock, just this once."""
        try:
            stored = read_json(os.path.join(self.folder, "guard.json")) or {}
            now = time.monotonic()
            for name, reason in stored.get("paused", {}).items():
                at = float(stored["since"][name])
                self.since[name] = at
                self._written = None
                self.memories[name] = Memory(since=now - max(0.0, time.time() - at), reason=str(reason))
            for name, known in stored.get("usual", {}).items():
                for seconds in known:
                    self.watcher.trials.note(name, Memory(), float(seconds), now)
        except (RegistryError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.memories, self.since = {}, {}
            self._trouble("memory", f"starting without memory: {error}")

    def _tell(self, decision: Decision) -> None:
        self.decisions[decision.action, decision.group] += 1
        seen = self.seen.get(decision.id)
        figures = (
            {} if seen is None else {key: value for key, value in seen._asdict().items() if value not in (None, "")}
        )
        self._line(
            decision=decision.action, deployment=decision.id, group=decision.group, reason=decision.reason, **figures
        )

    def _trouble(self, kind: str, text: str) -> None:
        if self._troubles.get(kind, "") != text:
            self._troubles[kind] = text
            self._line(trouble=kind, text=text or "it is over")

    def _line(self, **content: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.log.info(json.dumps({"at": at, **content}))

    def metrics(self) -> str:
        """Return the Prometheus text of the last round."""
        queued, parallel, flying, paused, known, first = [], [], [], [], [], []
        for target in self.targets:
            name = target.deployment.id
            labels = {
                "deployment": name,
                "group": target.deployment.group,
                "host": target.host,
                "instance": target.instance,
            }
            seen, memory = self.seen.get(name), self.memories.get(name, Memory())
            known.append((labels, 0.0 if seen is None or seen.trouble else 1.0))
            if seen is not None and seen.queued is not None:
                queued.append((labels, float(seen.queued)))
            parallel.append((labels, float(target.deployment.parallel)))
            flying.append((labels, float(self.in_flight.get(name, 0))))
            if seen is not None and seen.first_token is not None:
                first.append((labels, seen.first_token))
            owners = [*target.owners, *(["guard"] if memory.since is not None else [])]
            paused += [({**labels, "owner": owner}, float(owner in owners)) for owner in OWNERS]
        decisions = [({"action": a, "group": g}, float(n)) for (a, g), n in sorted(self.decisions.items())]
        age = time.monotonic() - self.polled_at if self.polled_at else float("inf")
        return exposition(
            [
                ("lmfleet_deployment_queue", "gauge", "Requests waiting or running at a deployment.", queued),
                ("lmfleet_deployment_parallel", "gauge", "Requests a deployment runs at once.", parallel),
                ("lmfleet_deployment_in_flight", "gauge", "Requests that this gateway has at a deployment.", flying),
                ("lmfleet_deployment_first_token_seconds", "gauge", "What the guard's last trial took.", first),
                ("lmfleet_deployment_known", "gauge", "1 when the last poll learned the queue, else 0.", known),
                ("lmfleet_deployment_paused", "gauge", "1 when paused by that owner, else 0.", paused),
                ("lmfleet_guard_decisions_total", "counter", "Decisions since the guard started.", decisions),
                ("lmfleet_guard_poll_age_seconds", "gauge", "Seconds since the last poll.", [({}, age)]),
            ]
        )
