# SPDX-License-Identifier: GPL-3.0-or-later
"""The models of the instance: what is loaded, and making it what is declared."""

from __future__ import annotations

import time
from typing import Any, Callable, NamedTuple

from .declaration import Declaration, Model
from .lms import Answer
from .logs import log
from .plan import Known, ModelPlan, differences, drift, known_from, load_arguments, plan_models

IDLE_PS_INTERVAL = 30.0  # seconds between two `lms ps` while no request runs
BUSY_FOR = 60.0  # seconds after the last request seen in which every poll asks `lms ps`
RETRY_FIRST = 5.0  # seconds until a failed load is tried again, doubled each time up to RETRY_MOST
RETRY_MOST = 300.0


class Failure(NamedTuple):
    """A load that failed `attempts` times in a row; tried again when the monotonic clock reaches `retry_at`.

    `late` is the model when the load may still come to an end.
    """

    attempts: int
    error: str
    retry_at: float
    late: Model | None


class Models:
    """What is loaded, as last seen, and what was done about it.

    `ask` calls lms, `served` asks the server, `changed` is called whenever there is something new to tell.
    """

    def __init__(
        self,
        ask: Callable[..., Answer],
        served: Callable[[], dict[str, dict[str, Any]] | None],
        changed: Callable[[], None],
    ) -> None:
        self._ask = ask
        self._served = served
        self._changed = changed
        self._next_look = 0.0
        self._busy_until = 0.0
        self.looked_at = time.monotonic()
        self.loaded: list[dict[str, Any]] = []
        self.known: dict[str, Known] = {}
        self.failures: dict[str, Failure] = {}
        self.loading: str | None = None
        self.blind: str | None = None

    # Looking

    def entry(self, identifier: str) -> dict[str, Any] | None:
        """Return what was last seen under an identifier."""
        return next((entry for entry in self.loaded if entry.get("identifier") == identifier), None)

    def plan(self, declaration: Declaration) -> ModelPlan:
        """Return what there is to do."""
        return plan_models(declaration.models, self.loaded, self.known, declaration.purge)

    def queued(self) -> int:
        """Return how many requests run or wait."""
        return sum(max(entry.get("queued") or 0, entry.get("status") not in (None, "idle")) for entry in self.loaded)

    def look_is_due(self) -> bool:
        """Tell whether it is time to ask lms again: always while requests run and for a while after it, or when it
        did not tell.
        """
        now = time.monotonic()
        return bool(self.blind or self.queued() or now < self._busy_until or now >= self._next_look)

    def look(self) -> bool:
        """Refresh what is loaded; return False, keeping the last known, when lms does not tell."""
        answer = self._ask(["ps", "--json"])
        entries = answer.parsed()
        self._next_look = time.monotonic() + IDLE_PS_INTERVAL
        if entries is None:
            self.blind = answer.said()
            log(f"lms ps: {self.blind}")
            return False
        self.blind = None
        self.looked_at = time.monotonic()
        served = self._served() or {}
        self.loaded = [{**entry, "config": served.get(str(entry.get("identifier")))} for entry in entries]
        identifiers = {entry.get("identifier") for entry in entries}
        self.known = {name: known for name, known in self.known.items() if name in identifiers}
        if self.queued():
            self._busy_until = self.looked_at + BUSY_FOR
        self._adopt_late()
        return True

    def _adopt_late(self) -> None:
        """Take a load that came to its end after it was given up: loading it again would take as long again."""
        for name, failure in list(self.failures.items()):
            entry = self.entry(name)
            if (
                failure.late
                and entry
                and entry.get("path") == failure.late.path
                and not differences(failure.late, entry)
            ):
                log(f"loaded {name} after all")
                self.known[name] = known_from(failure.late, entry)
                del self.failures[name]

    # Telling

    def problems(self, declaration: Declaration) -> list[str]:
        """Return in words what is not as declared, and not about to be."""
        found = [f"model {name}: {failure.error}" for name, failure in self.failures.items()]
        for model in declaration.models:
            entry, ours = self.entry(model.identifier), self.known.get(model.identifier)
            text = differences(model, entry) if entry and ours and ours.fingerprint == model.fingerprint else ""
            found += [f"model {model.identifier}: {text}"] if text else []
        if self.blind:
            found.append(f"lms ps does not tell what is loaded: {self.blind}")
        return found

    def drift(self, declaration: Declaration) -> list[str]:
        """Return in words what is loaded and not declared."""
        unmanaged = self.plan(declaration).unmanaged
        return [drift(entry) for entry in self.loaded if entry.get("identifier") in unmanaged]

    def status_of(self, model: Model) -> dict[str, Any]:
        """Return what status.json tells of a declared model."""
        entry = self.entry(model.identifier) or {}
        failure = self.failures.get(model.identifier)
        ours = self.known.get(model.identifier)
        status = entry.get("status")
        if self.loading == model.identifier:
            status = "loading"
        elif failure:
            status = "failed"
        return {
            "identifier": model.identifier,
            "key": entry.get("modelKey"),
            "path": model.path,
            "status": status or "missing",
            "queued": entry.get("queued") or 0,
            "parallel": entry.get("parallel"),
            "context_length": entry.get("contextLength"),
            "ttl_ms": entry.get("ttlMs"),
            "config": entry.get("config"),
            "fingerprint": ours.fingerprint if ours else None,
            "error": failure.error if failure else None,
            "attempts": failure.attempts if failure else 0,
        }

    # Changing

    def reconcile(self, declaration: Declaration, replaced: Callable[[], bool]) -> bool:
        """Load and unload until the declared models are there; return whether there was anything to do.

        A failed model is tried again later, others go on. `replaced` tells whether there is a newer declaration.
        """
        if self.blind:
            return False  # nothing is known: a load could put a second copy beside the first
        now = time.monotonic()
        plan = self.plan(declaration)
        waiting = {name for name, failure in self.failures.items() if now < failure.retry_at}
        unload = [name for name in plan.unload if name not in waiting]
        load = [model for model in plan.load if model.identifier not in waiting]
        if not unload and not load:
            return False
        self._changed()
        for identifier in unload:
            self._unload(identifier, declaration.load_timeout)
        listed: Answer | None = None
        for model in load:
            if self.entry(model.identifier) is None and not self.blind:
                listed = listed or self._ask(["ls", "--json"])  # once for all of them
                self._load(model, listed, declaration.load_timeout)
            if replaced():
                break  # what comes next may no longer be wanted
        self._changed()
        return True

    def _unload(self, identifier: str, timeout: float) -> None:
        if identifier.startswith("-"):  # `lms unload -a` would unload everything
            self._failed(identifier, "lms would take its name for an option; restart the instance to be rid of it")
            return
        log(f"unloading {identifier}")
        answer = self._ask(["unload", identifier], timeout, refresh=True)
        if not self.look() or self.entry(identifier):
            self._failed(identifier, f"cannot be unloaded: {answer.said()}")
            return
        self.known.pop(identifier, None)
        self.failures.pop(identifier, None)

    def _load(self, model: Model, listed: Answer, timeout: float) -> None:
        key, trouble = key_of(model, listed)
        if key is None:
            self._failed(model.identifier, trouble)
            return
        log(f"loading {model.identifier} from {model.path}")
        self.loading = model.identifier
        self._changed()
        began = time.monotonic()
        try:
            answer = self._ask(load_arguments(model, key), timeout, refresh=True)
            told = self.look()
        finally:
            self.loading = None
        entry = self.entry(model.identifier) if told else None
        if not told:
            self._failed(model.identifier, f"loaded, but lms ps does not tell: {self.blind}", model)
        elif entry is None:
            waited = f" (after {timeout:g} s)" if answer.timed_out else ""
            self._failed(model.identifier, f"load failed{waited}: {answer.said()}", model if answer.timed_out else None)
        elif entry.get("path") != model.path:
            # lms matches names loosely; the next round unloads what is not declared.
            self._failed(model.identifier, f"lms loaded {entry.get('path')} instead of {model.path}")
        elif answer.complained and differences(model, entry):
            # Somebody was quicker to load it; the next try unloads that.
            self._failed(model.identifier, f"loaded by somebody else, and {differences(model, entry)}")
        else:
            self.known[model.identifier] = known_from(model, entry)
            self.failures.pop(model.identifier, None)
            text = differences(model, entry)
            log(f"loaded {model.identifier} in {time.monotonic() - began:.1f} s{', but ' + text if text else ''}")
        self._changed()

    def _failed(self, identifier: str, error: str, late: Model | None = None) -> None:
        before = self.failures.get(identifier)
        attempts = before.attempts + 1 if before else 1
        delay = min(RETRY_MOST, RETRY_FIRST * 2 ** min(attempts - 1, 10))
        late = late or (before.late if before else None)
        self.failures[identifier] = Failure(attempts, error, time.monotonic() + delay, late)
        log(f"model {identifier}: {error}; next try in {delay:g} s")
        self._changed()


def key_of(model: Model, listed: Answer) -> tuple[str | None, str]:
    """Return (exact key, "") of the model file from the answer to `lms ls`, or (None, why not)."""
    entries = listed.parsed()
    if entries is None:
        return None, f"lms ls: {listed.said()}"
    for entry in entries:
        if entry.get("path") == model.path and entry.get("deviceIdentifier") is None and entry.get("modelKey"):
            key = str(entry["modelKey"])
            if key.startswith("-"):
                return None, f"LM Studio lists {model.path} as {key!r}, which is no name that lms can be given"
            return key, ""
    return None, f"LM Studio does not list {model.path}; is the file in the models folder?"
