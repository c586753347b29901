# SPDX-License-Identifier: GPL-3.0-or-later
"""What is loaded against what is declared: pure. An entry is one of `lms ps --json`, with the settings that the server
shows of it under "config" (None when it did not tell).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from .declaration import Model

#: Settings that LM Studio shows of a loaded model; the others can only be trusted.
READ_BACK = (
    "context_length",
    "eval_batch_size",
    "flash_attention",
    "num_experts",
    "offload_kv_cache_to_gpu",
    "parallel",
)


class Known(NamedTuple):
    """A model this runner loaded: with which fingerprint, and what was shown right after."""

    fingerprint: str
    settings: tuple[Any, ...]
    config: dict[str, Any] | None

    def still(self, entry: dict[str, Any]) -> bool:
        """Tell whether nobody has loaded it again since; a config that is not shown is not judged."""
        config = entry.get("config")
        return self.settings == settings_of(entry) and (None in (config, self.config) or config == self.config)


class ModelPlan(NamedTuple):
    unload: list[str]
    load: list[Model]
    unmanaged: list[str]


def known_from(model: Model, entry: dict[str, Any]) -> Known:
    """Return what to remember of a model that was just loaded."""
    return Known(model.fingerprint, settings_of(entry), entry.get("config"))


def settings_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Return what of a `lms ps` entry must stay as it was after the load; a JIT load shows by its ttlMs."""
    return entry.get("path"), entry.get("contextLength"), entry.get("parallel"), entry.get("ttlMs")


def plan_models(
    declared: tuple[Model, ...], loaded: list[dict[str, Any]], known: dict[str, Known], purge: bool = False
) -> ModelPlan:
    """Return what to unload, what to load, and which loaded identifiers are not declared.

    A declared identifier that somebody else loaded, or loaded again with other settings, is replaced: clients that
    ask for it would be served something else than declared. What is not declared goes only with `purge`.
    """
    by_identifier = {str(entry.get("identifier")): entry for entry in loaded}
    wanted = {model.identifier: model for model in declared}
    unload = [name for name in known if name not in wanted and name in by_identifier]
    load = []
    for model in declared:
        entry = by_identifier.get(model.identifier)
        ours = known.get(model.identifier)
        if entry is None:
            load.append(model)
        elif ours is None or ours.fingerprint != model.fingerprint or not ours.still(entry):
            unload.append(model.identifier)
            load.append(model)
    unmanaged = [name for name in by_identifier if name not in wanted and name not in known]
    return ModelPlan(unload + (unmanaged if purge else []), load, unmanaged)


def differences(model: Model, entry: dict[str, Any]) -> str:
    """Return how a loaded model differs from its declaration, "" when it does not; names each setting."""
    wanted = {name: model.load.get(name) for name in READ_BACK}
    for name in ("context_length", "parallel"):
        if getattr(model, name) is not None:
            wanted[name] = getattr(model, name)
    listed = {"context_length": entry.get("contextLength"), "parallel": entry.get("parallel")}
    served = entry.get("config") or {}
    found = []
    for name, value in wanted.items():
        shown = [one for one in (listed.get(name), served.get(name)) if one is not None]
        wrong = [one for one in shown if one != value]
        if value is not None and wrong:
            found.append(f"{name} is {json.dumps(wrong[0])}, declared {json.dumps(value)}")
    if entry.get("ttlMs") is not None:
        found.append(f"ttl is {entry['ttlMs'] / 1000:g} s, declared none")
    return ", ".join(found)


def drift(entry: dict[str, Any]) -> str:
    """Return in words what is loaded that nobody declared."""
    ttl = entry.get("ttlMs")
    how = "" if ttl is None else f", for {ttl / 1000:g} s after its last use, as just-in-time loading does"
    return f"{entry.get('identifier')} ({entry.get('path')}) is loaded and not declared{how}"


def load_arguments(model: Model, key: str) -> list[str]:
    """Return the arguments of `lms` that load the model whose exact key is `key`."""
    arguments = ["load", key, "-y", "--identifier", model.identifier]
    if model.context_length is not None:
        arguments += ["--context-length", str(model.context_length)]
    if model.parallel is not None:
        arguments += ["--parallel", str(model.parallel)]
    if model.gpu is not None:
        arguments += ["--gpu", model.gpu]
    return arguments
