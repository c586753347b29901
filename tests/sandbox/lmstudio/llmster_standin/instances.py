# SPDX-License-Identifier: GPL-3.0-or-later
"""A loaded model: its slots, its queue, and its lifetime."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque

from llmster_standin import knobs, loadconfig
from llmster_standin.waiting import CancelledError


class Instance:
    """One loaded model under one identifier; requests beyond its slots wait in order of arrival."""

    def __init__(self, model, identifier, config, ttl_ms, jit, engine, on_idle):
        self.model = model
        self.identifier = identifier
        self.config = config
        self.ttl_ms = ttl_ms
        self.jit = jit
        self.reference = uuid.uuid4().hex
        self.context_length = loadconfig.context_length(config, model)
        self.parallel = loadconfig.parallel(config, model)
        self.memory = loadconfig.estimate(model, config)[1]
        self.engine = engine
        self.last_used = None
        self.idle_since = time.monotonic()
        self._on_idle = on_idle
        self._lock = threading.Lock()
        self._running = set()
        self._waiting = deque()
        self._closed = False

    def slot(self, watch):
        """Return a context manager that holds one slot; entering it waits in the queue."""
        return _Slot(self, watch)

    def running(self):
        """Return the number of requests that hold a slot."""
        return len(self._running)

    def busy(self):
        """Return whether any request runs or waits."""
        return bool(self._running or self._waiting)

    def _enter(self, slot):
        with self._lock:
            if self._closed:
                raise CancelledError("Model unloaded.")
            if len(self._running) < (self.parallel or 1) and not self._waiting:
                self._running.add(slot)
            else:
                self._waiting.append(slot)
        try:
            while slot not in self._running:
                slot.watch.wait()
        except BaseException:
            self._leave(slot)
            raise
        self.last_used = int(time.time() * 1000)

    def _leave(self, slot):
        with self._lock:
            self._running.discard(slot)
            if slot in self._waiting:
                self._waiting.remove(slot)
            while self._waiting and len(self._running) < (self.parallel or 1):
                following = self._waiting.popleft()
                self._running.add(following)
                following.watch.wake()
            idle = not self._running
        if idle:
            self.idle_since = time.monotonic()
            self._on_idle()

    def close(self):
        """Cancel every request and release the engine."""
        with self._lock:
            self._closed = True
            requests = list(self._running) + list(self._waiting)
        for slot in requests:
            slot.watch.cancel("Model unloaded.")
        self.engine.close()

    def status(self):
        """Return (status, queued): queued counts waiting and running requests."""
        with self._lock:
            phases = {slot.phase for slot in self._running}
            queued = len(self._running) + len(self._waiting)
        extra = knobs.get("queue")
        if isinstance(extra, dict):
            more = int(extra.get(self.identifier) or 0)
            queued += more
            if more and not phases:
                phases = {"generating"}
        if self.model.type == "embedding" and phases:
            return "computingEmbedding", queued
        for phase in ("generating", "processingPrompt"):
            if phase in phases:
                return phase, queued
        return "idle", queued

    def info(self):
        """Return the entry of ``lms ps --json``."""
        status, queued = self.status()
        entry = self.model.info()
        entry.update(
            identifier=self.identifier,
            ttlMs=self.ttl_ms,
            lastUsedTime=self.last_used,
            contextLength=self.context_length,
            status=status,
            queued=queued,
            parallel=self.parallel,
        )
        return entry

    def sdk_info(self):
        """Return what the control API reports: info() and a reference that outlives renames."""
        return dict(self.info(), instanceReference=self.reference)


class _Slot:
    """A request's place at an instance; ``phase`` is what it is doing."""

    def __init__(self, instance, watch):
        self.instance = instance
        self.watch = watch
        self.phase = "processingPrompt"

    def __enter__(self):
        self.instance._enter(self)
        return self

    def __exit__(self, *_exception):
        self.instance._leave(self)
