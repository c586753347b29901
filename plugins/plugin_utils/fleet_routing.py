# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How requests find their deployment: what each gateway registers, and what is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: What LM Studio serves at a time where nothing is declared.
DEFAULT_PARALLEL = 4
FALLBACKS = ("fallbacks", "context_window_fallbacks")
#: Settings of a model that each of its deployments gets, with the least that makes sense.
OF_EACH_DEPLOYMENT = {
    "num_retries": 0,
    "cooldown_time": 0,
    "timeout": 0.001,
    "stream_timeout": 0.001,
    "rpm": 1,
    "tpm": 1,
}


def deployment(
    host: str, instance: Mapping[str, Any], loaded: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a loaded copy of a model as litellm_deployments takes it; `model` is its entry of the catalogue."""
    settings = model["gateway"] or {}
    embedding = loaded["type"] == "embedding"
    parallel = loaded["load"].get("parallel")
    found = {
        "id": loaded["deployment_id"],
        "model_group": loaded["name"],
        "model": loaded["identifier"],
        "mode": "embedding" if embedding else "chat",
        "api_base": instance["api_base"],
        "host": host,
        "instance": instance["name"],
        "status_url": instance.get("status_url"),
        "parallel": parallel,
        "weight": loaded["weight"],
        "order": loaded["order"],
    }
    found.update({key: settings[key] for key in OF_EACH_DEPLOYMENT if settings.get(key) is not None})
    if not embedding:
        found["parallel_limit"] = (parallel or DEFAULT_PARALLEL) + settings.get("parallel_allowance", 0)
    if settings.get("context_window_fallbacks"):
        found["max_input_tokens"] = loaded["load"].get("context_length")
    return found


def with_orders(deployments: Iterable[Mapping[str, Any]], local: str | None = None) -> list[dict[str, Any]]:
    """Return the deployments with an order each where their model group has any.

    With `local`, a Mac, its own come before all others.
    """
    deployments = list(deployments)
    # LiteLLM knows one window for all that have the same identifier.
    windows: dict[str, int] = {}
    for entry in deployments:
        if entry.get("max_input_tokens"):
            group = entry["model_group"]
            windows[group] = min(entry["max_input_tokens"], windows.get(group, entry["max_input_tokens"]))
    last = max([entry["order"] for entry in deployments if entry["order"] is not None], default=1)
    ordered = {entry["model_group"] for entry in deployments if entry["order"] is not None}
    if local:
        ordered |= {entry["model_group"] for entry in deployments if entry["host"] == local}
    found = []
    for entry in deployments:
        order = entry["order"]
        if entry["model_group"] in ordered:
            order = 1 if order is None else order
            order += last if local and entry["host"] != local else 0
        window = {"max_input_tokens": windows[entry["model_group"]]} if entry["model_group"] in windows else {}
        found.append({**entry, "order": order, **window})
    return found


def model_groups(
    deployments: Iterable[Mapping[str, Any]], catalogue: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the model groups that have a deployment, with their fallbacks."""
    names = sorted({entry["model_group"] for entry in deployments})
    return [
        {"name": name, **{key: (catalogue[name]["gateway"] or {}).get(key, []) for key in FALLBACKS}} for name in names
    ]


def group_problems(
    served: Iterable[str], catalogue: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]
) -> Iterable[str]:
    """Yield what is wrong with the gateway settings of the sound models; `known` is all that are declared."""
    served = set(served)
    for name, model in catalogue.items():
        settings = model["gateway"] or {}
        where = f"lmfleet_models.{name}: gateway"
        for key, least in {**OF_EACH_DEPLOYMENT, "parallel_allowance": 0}.items():
            if settings.get(key) is not None and settings[key] < least:
                yield f"{where}.{key} must be {'more than 0' if least else 'at least 0'}, not {settings[key]}."
        for key in FALLBACKS:
            for other in settings.get(key) or ():
                problem = _fallback_problem(name, other, served, catalogue, known)
                if problem:
                    yield f"{where}.{key} names {other}, {problem}"
        if settings.get("context_window_fallbacks") and not (model["load"] or {}).get("context_length"):
            yield f"{where}.context_window_fallbacks needs load.context_length, or nobody knows what is too long."


def _fallback_problem(name, other, served, catalogue, known) -> str:
    if other == name:
        return "the model itself. Leave it out."
    if other not in known:
        return f"which lmfleet_models does not have. It has: {', '.join(sorted(known))}."
    if name in served and other not in served:
        return "which no instance serves. Let one serve it, or leave it out."
    if other in catalogue and catalogue[other]["type"] != catalogue[name]["type"]:
        return "which does something else (type)."
    return ""


def database_problems(
    by_api: list[str], local_first: Iterable[str], groups: Iterable[Mapping[str, Any]]
) -> Iterable[str]:
    """Yield what cannot be where the gateways `by_api` keep their deployments in a database.

    `local_first` are those of them that prefer their own Mac; `groups` as model_groups() returns them.
    """
    for name in local_first if len(by_api) > 1 else ():
        yield (
            f"{name}: lmfleet_local_first: {', '.join(by_api)} keep their deployments in a database "
            "(gateway_deployments_registry: api), where an order holds for every gateway, so each would undo that of "
            "the others. Leave it out, or keep the deployments in files."
        )
    for group in groups if by_api else ():
        for key in FALLBACKS:
            if group[key]:
                yield (
                    f"lmfleet_models.{group['name']}: gateway.{key}: {', '.join(by_api)} keep their deployments in a "
                    "database (gateway_deployments_registry: api), and LiteLLM takes fallbacks from its own settings "
                    f"then. Leave it out here, and add to the variables of the gateways: litellm_router_settings: "
                    f"{{{key}: [{{{group['name']}: [{', '.join(group[key])}]}}]}}."
                )


def isolation_problems(host: str, declared: Iterable[Mapping], catalogue: Mapping, isolated: bool) -> Iterable[str]:
    """Yield which models of a Mac are on the wrong kind of instance.

    `isolated` tells whether any instance of the fleet serves embeddings only.
    """
    for instance in declared:
        for entry in instance["models"]:
            kind = catalogue[entry["name"]]["type"] if entry["name"] in catalogue else None
            where = f"{host}: lmfleet_instances ({instance['name']}): {entry['name']}"
            if instance["embeddings_only"] and kind == "llm":
                yield f"{where} is no embedding model, but the instance has embeddings_only. Put it on another one."
            elif isolated and not instance["embeddings_only"] and kind == "embedding":
                yield (
                    f"{where} is an embedding model. The fleet has instances with embeddings_only, so embeddings are "
                    "served by such instances only: put it on one."
                )


def entry_problems(entry: Mapping[str, Any]) -> Iterable[str]:
    """Yield what is wrong with the routing of one model of an instance."""
    if entry["weight"] is not None and entry["weight"] < 0:
        yield f"{entry['name']}: weight must be at least 0, not {entry['weight']:g}."
    if entry["order"] is not None and entry["order"] < 1:
        yield f"{entry['name']}: order must be at least 1, not {entry['order']}."
