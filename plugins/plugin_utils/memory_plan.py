# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory plan: what the models of a Mac take, against what there is. Pure: no Ansible, no I/O. Sizes in MiB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.lmfleet.mac.plugins.plugin_utils.load_settings import SETTINGS, resolved
from ansible_collections.lmfleet.mac.plugins.plugin_utils.words import some_of

MIB = 1024 * 1024
RUNTIME_MB = 1024  # of each loaded copy, beside weights and KV cache
# macOS lets the GPU have this share of the memory; Macs with more than this much get the larger one.
LARGE_MAC_MB = 36 * 1024
SHARE, SHARE_OF_LARGE = (2, 3), (3, 4)
# Bytes of one value in the KV cache of llama.cpp: blocks of 32 values with their scales.
CACHE_BYTES = {
    "off": 2.0,
    "f32": 4.0,
    "f16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
#: The settings that memory depends on: a measured value holds for exactly these.
SETTINGS_THAT_COUNT = (
    "context_length",
    "parallel",
    "unified_kv_cache",
    "gpu",
    "offload_kv_cache_to_gpu",
    "flash_attention",
    "k_cache_quantization",
    "v_cache_quantization",
    "mlx_kv_cache_bits",
    "mlx_kv_cache_group_size",
    "draft_mtp",
    "draft_simple",
    "draft_model",
)
FIGURES = ("layers", "kv_heads", "head_dim")


class Room(NamedTuple):
    """What models may take on a Mac: of the GPU's memory, and of all; and where the first comes from."""

    gpu_mb: int
    total_mb: int
    source: str


class Claim(NamedTuple):
    """What one loaded copy takes. None: not known. `sources` says where the numbers come from."""

    instance: str
    model: str
    identifier: str
    weights_mb: int | None
    kv_cache_mb: int | None
    runtime_mb: int | None
    gpu_mb: int
    total_mb: int
    sources: tuple[str, ...]
    unknown: tuple[str, ...]


class Verdict(NamedTuple):
    """One Mac: its room, the claims on it, and what of it they take in all."""

    room: Room
    claims: tuple[Claim, ...]

    @property
    def gpu_mb(self) -> int:
        return sum(claim.gpu_mb for claim in self.claims)

    @property
    def total_mb(self) -> int:
        return sum(claim.total_mb for claim in self.claims)

    @property
    def fits(self) -> bool:
        return self.gpu_mb <= self.room.gpu_mb and self.total_mb <= self.room.total_mb


def room(memory_mb: int, declared_limit_mb: int | None, wired_limit_mb: int, reserve_mb: int) -> Room:
    """Return the room for models on a Mac.

    The GPU has what is declared, else what the Mac is set to (0: nothing is), else macOS's own share. What
    C(reserve_mb) leaves bounds everything together, on the GPU or not.
    """
    total = max(0, memory_mb - reserve_mb)
    if declared_limit_mb:
        return Room(declared_limit_mb, total, "mac_host_gpu_memory_limit_mb")
    if wired_limit_mb:
        return Room(wired_limit_mb, total, "iogpu.wired_limit_mb of this Mac")
    part, whole = SHARE_OF_LARGE if memory_mb > LARGE_MAC_MB else SHARE
    return Room(memory_mb * part // whole, total, f"{part}/{whole} of {memory_mb} MB, macOS's own limit")


def asked(load: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that memory depends on, as LM Studio takes them."""
    return resolved({key: load[key] for key in SETTINGS_THAT_COUNT if key in load}, 0, 0)


def settings_that_count(load: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that memory depends on, those at LM Studio's default left out."""
    return {key: load[key] for key in SETTINGS_THAT_COUNT if key in load and load[key] != SETTINGS[key].default}


def kv_cache_mb(figures: Mapping[str, float], load: Mapping[str, Any]) -> int:
    """Return the size of the KV cache of a model with these C(layers), C(kv_heads), C(key_length), C(value_length)."""
    k_bytes, v_bytes = _bytes_per_value(load, "k_cache_quantization"), _bytes_per_value(load, "v_cache_quantization")
    per_token = (
        figures["layers"] * figures["kv_heads"] * (figures["key_length"] * k_bytes + figures["value_length"] * v_bytes)
    )
    tokens = _setting(load, "context_length")
    if not _setting(load, "unified_kv_cache"):
        tokens *= _setting(load, "parallel")
    return _mb(per_token * tokens)


def claims_of(
    instance: str, model: Mapping[str, Any], catalogue: Mapping[str, Any], found: Mapping[str, Any]
) -> list[Claim]:
    """Return what one copy of a model claims, and what the model that drafts for it does.

    C(catalogue): what is declared of memory, by model. C(found): what the Mac told: C(files) by path, C(measured),
    and C(estimates) by instance and identifier.
    """
    measured = _measured(model, found.get("measured") or [])
    told = measured or (found.get("estimates") or {}).get(f"{instance}/{model['identifier']}")
    if told:
        source = "measured" if measured else "estimated by LM Studio"
        gpu = told.get("gpu_mb", told["total_mb"])
        return [
            Claim(
                instance,
                model["name"],
                model["identifier"],
                None,
                None,
                None,
                gpu,
                told["total_mb"],
                (f"all {source}",),
                (),
            ),
        ]
    claims = [_claim(instance, model["identifier"], model, model["load"], catalogue, found, RUNTIME_MB)]
    if model.get("draft"):
        drafting = f"{model['draft']['name']} (drafts for {model['identifier']})"
        claims.append(_claim(instance, drafting, model["draft"], model["load"], catalogue, found, 0))
    return claims


def _claim(instance, title, model, load, catalogue, found, runtime_mb) -> Claim:
    declared = {key: value for key, value in (catalogue.get(model["name"]) or {}).items() if value is not None}
    file = (found.get("files") or {}).get(model["path"]) or {}
    sources, unknown = [], []
    weights = declared.get("weights_mb")
    if weights is not None:
        sources.append("weights declared")
    elif "size_bytes" in file:
        weights = _mb(file["size_bytes"])
        sources.append("weights by file size")
    else:
        unknown.append("weights")
    why = file.get("problem") or ("" if file else "its file is not there yet")
    figures, source = _figures(declared, file)
    cache = kv_cache_mb(figures, load) if figures else None
    if figures:
        sources.append(f"KV cache by {source}")
    else:
        unknown.append(f"KV cache ({why})" if why else "KV cache")
    runtime = declared.get("runtime_mb", runtime_mb) if runtime_mb else 0
    gpu_share = {"max": 1.0, "off": 0.0}.get(_setting(load, "gpu"))
    gpu_share = float(_setting(load, "gpu")) if gpu_share is None else gpu_share
    on_gpu = (weights or 0) * gpu_share
    if gpu_share:
        on_gpu += runtime + ((cache or 0) if _setting(load, "offload_kv_cache_to_gpu") else 0)
    total = (weights or 0) + (cache or 0) + runtime
    return Claim(
        instance, model["name"], title, weights, cache, runtime, round(on_gpu), total, tuple(sources), tuple(unknown)
    )


def _figures(declared: Mapping[str, Any], file: Mapping[str, Any]) -> tuple[dict[str, float] | None, str]:
    """Return what the KV cache is reckoned from, and whether it is declared or read from the file."""
    if all(key in declared for key in FIGURES):
        length = declared["head_dim"]
        figures = {"layers": declared["layers"], "kv_heads": declared["kv_heads"]}
        return {**figures, "key_length": length, "value_length": length}, "what is declared"
    keys = ("layers", "kv_heads", "key_length", "value_length")
    if all(key in file for key in keys):
        return {key: file[key] for key in keys}, "the head of the file"
    return None, ""


def _measured(model: Mapping[str, Any], records: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the measured value for exactly this file with these settings."""
    wanted = settings_that_count(model["load"])
    for record in records:
        if record["sha256"] == model["sha256"] and settings_that_count(record["load"]) == wanted:
            return record
    return None


def _setting(load: Mapping[str, Any], key: str) -> Any:
    return load.get(key, SETTINGS[key].default)


def _bytes_per_value(load: Mapping[str, Any], key: str) -> float:
    bits = load.get("mlx_kv_cache_bits")
    if bits:
        # Each group has a scale and a bias of 16 bits.
        return (bits + 32 / _setting(load, "mlx_kv_cache_group_size")) / 8
    return CACHE_BYTES[_setting(load, key)]


def _mb(size: float) -> int:
    """Return bytes as whole MiB, rounded up: a little too much is the safe side."""
    return -int(-size // MIB)


# In words


def rows(verdict: Verdict) -> list[list[str]]:
    """Return the table of who wants what, headings first."""
    table = [["Instance", "Model", "Weights", "KV cache", "Runtime", "Together", "Where the numbers come from"]]
    for claim in verdict.claims:
        parts = [_shown(size, claim) for size in (claim.weights_mb, claim.kv_cache_mb, claim.runtime_mb)]
        together = f"{claim.total_mb}{'+' if claim.unknown else ''}"
        words = [*claim.sources, *(f"{what} not known" for what in claim.unknown)]
        table.append([claim.instance, claim.identifier, *parts, together, ", ".join(words)])
    return table


def _shown(size: int | None, claim: Claim) -> str:
    if size is None:
        return "?" if claim.unknown else "-"
    return str(size)


def summary(host: str, verdict: Verdict) -> str:
    """Return in one line what a Mac is to hold and what it can."""
    more = " at least" if any(claim.unknown for claim in verdict.claims) else ""
    lines = [f"{host}:{more} {verdict.gpu_mb} MB of GPU memory for models, and it has {verdict.room.gpu_mb} MB "]
    lines.append(f"({verdict.room.source})")
    if verdict.total_mb > verdict.room.total_mb:
        lines.append(f"; {verdict.total_mb} MB of memory in all, and {verdict.room.total_mb} MB are for models")
    return "".join(lines)


CURES = (
    "Serve less on that Mac, shorten contexts, quantise the KV cache, take smaller models; "
    "or correct a number with lmfleet_models.NAME.memory; or raise mac_host_gpu_memory_limit_mb. "
    "lmfleet_memory_policy: warn goes on in spite of it."
)


def unknowns(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Return what is not known, in as few lines as say which models and Macs it concerns."""
    hosts_of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for host, verdict in verdicts.items():
        for claim in verdict.claims:
            if claim.unknown and host not in hosts_of.setdefault((claim.model, claim.unknown), []):
                hosts_of[claim.model, claim.unknown].append(host)
    models_of: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for (model, unknown), hosts in hosts_of.items():
        models_of.setdefault((unknown, tuple(hosts)), []).append(model)
    return [
        f"memory: {' and '.join(unknown)} of {', '.join(models)} not known and not counted on {some_of(hosts)}. "
        "Declare memory of a model in lmfleet_models to have it checked beforehand."
        for (unknown, hosts), models in models_of.items()
    ]
