# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads, finds and unloads models; unloads those whose time to live has passed."""

from __future__ import annotations

import threading
import time

from llmster_standin import catalog, home, knobs, loadconfig
from llmster_standin.engine_fake import FakeEngine
from llmster_standin.engine_real import EngineError, RealEngine
from llmster_standin.instances import Instance
from llmster_standin.waiting import Watch


class LoadError(Exception):
    """A model could not be loaded."""


class ModelNotFoundError(LoadError):
    """No model on disk has this key."""


class Manager:
    """All loaded models of this daemon."""

    def __init__(self, log):
        self._log = log
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jit = threading.Lock()
        self._loaded = {}
        self._loading = {}
        threading.Thread(target=self._unload_expired, daemon=True).start()

    def instances(self):
        """Return the loaded instances in the order they were loaded."""
        with self._lock:
            return list(self._loaded.values())

    def get(self, identifier):
        """Return the instance with this identifier (or instance reference), or None."""
        for instance in self.instances():
            if identifier in (instance.identifier, instance.reference):
                return instance
        return None

    def load(self, model, identifier=None, overrides=None, ttl_ms=None, jit=False, watch=None, progress=None):
        """Load a model and return its instance. Raises LoadError and waiting.CancelledError.

        Without an identifier it is the model's key, or ``key:2``, ``key:3``… when that is taken.
        """
        config = loadconfig.effective(model, overrides)
        needed = loadconfig.estimate(model, config)[1]
        with self._lock:
            identifier = self._reserve(identifier, model, needed)
        try:
            self._log(f"loading {model.path} as {identifier}")
            if progress:
                progress(0.0)
            engine = self._start_engine(model, config, watch)
            instance = Instance(model, identifier, config, ttl_ms, jit, engine, self._wake_expiry)
            with self._lock:
                self._loaded[identifier] = instance
                self._changed.notify_all()
        except EngineError as error:
            raise LoadError(f"Failed to load model: {error}") from None
        finally:
            with self._lock:
                self._loading.pop(identifier, None)
        if progress:
            progress(1.0)
        return instance

    def _reserve(self, identifier, model, needed):
        taken = set(self._loaded) | set(self._loading)
        if identifier is not None and identifier in taken:
            raise LoadError(f'A model with the identifier "{identifier}" is already loaded.')
        self._check_memory(needed)
        if identifier is None:
            identifier, number = model.key, 2
            while identifier in taken:
                identifier, number = f"{model.key}:{number}", number + 1
        self._loading[identifier] = needed
        return identifier

    def _check_memory(self, needed):
        if not self._fits(needed):
            raise LoadError(
                "Model loading was stopped due to insufficient system resources. "
                "This model needs approximately %.2f GB of memory." % (needed / loadconfig.GIB)
            )

    def _fits(self, needed):
        limit_mb = knobs.get("load_memory_mb")
        in_use = sum(i.memory for i in self._loaded.values()) + sum(self._loading.values())
        too_large = limit_mb is not None and needed > float(limit_mb) * 1024**2
        return in_use + needed <= memory_limit() and not too_large

    def fits(self, needed):
        """Return whether a load of this many bytes would be allowed now."""
        with self._lock:
            return self._fits(needed)

    @staticmethod
    def _start_engine(model, config, watch):
        if watch is None:
            with Watch() as own:
                return Manager._start_engine(model, config, own)
        if model.fake:
            return FakeEngine(model, watch)
        if model.format != "gguf":
            raise EngineError("this stand-in has no MLX engine")
        return RealEngine(model, config, watch)

    def get_or_load(self, identifier, ttl_ms=home.JIT_TTL_MS, overrides=None, watch=None, on_start=None):
        """Return the instance with this identifier, loading the model with this key just in time.

        A just-in-time load takes the place of idle models that were loaded the same way.
        Raises ModelNotFoundError, LoadError.
        """
        instance = self.get(identifier)
        if instance:
            return instance
        with self._jit:
            instance = self.get(identifier)
            if instance:
                return instance
            model = catalog.find(identifier)
            if model is None:
                raise ModelNotFoundError(f'Model "{identifier}" not found.')
            for other in self.instances():
                if other.jit and not other.busy():
                    self.unload(other.identifier)
            if on_start:
                on_start(model)
            return self.load(model, None, overrides, ttl_ms, True, watch)

    def unload(self, identifier):
        """Unload and return True, or False when nothing has this identifier."""
        instance = self.get(identifier)
        with self._lock:
            if instance is None or self._loaded.pop(instance.identifier, None) is None:
                return False
            self._changed.notify_all()
        self._log(f"unloading {instance.identifier}")
        instance.close()
        return True

    def close(self):
        """Unload everything."""
        for instance in self.instances():
            self.unload(instance.identifier)

    def _wake_expiry(self):
        with self._lock:
            self._changed.notify_all()

    def _unload_expired(self):
        while True:
            with self._lock:
                now = time.monotonic()
                due = {
                    i.identifier: i.idle_since + i.ttl_ms / 1000 - now
                    for i in self._loaded.values()
                    if i.ttl_ms and not i.busy()
                }
                expired = [identifier for identifier, left in due.items() if left <= 0]
                if not expired:
                    self._changed.wait(min(due.values()) if due else None)
            for identifier in expired:
                self.unload(identifier)


def memory_limit():
    """Return the bytes loaded models may take: three quarters of the Mac's memory."""
    return float(knobs.machine("memory_gb", 64)) * loadconfig.GIB * 0.75
