# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a model is loaded: the settings of C(load), which values and combinations work, and what they come to on a Mac.

Pure. Types and choices are in the documentation of fleet_plan, which the schema checks; here is what lies beyond.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

GGUF, MLX = "gguf", "mlx"


class Setting(NamedTuple):
    """What is known of one setting: its range, its unit, LM Studio's own value, and who understands it."""

    unit: str = ""
    default: Any = None
    least: float | None = None
    most: float | None = None
    format: str | None = None  # the only format it works with; None: both
    embedding: bool = False


SETTINGS = {
    "context_length": Setting("tokens", 2048, least=1, embedding=True),
    "parallel": Setting("requests", 4, least=1, most=1023),
    "unified_kv_cache": Setting(default=True),
    "gpu": Setting("share of the layers", "max", format=GGUF, embedding=True),
    "offload_kv_cache_to_gpu": Setting(default=True),
    "flash_attention": Setting(default=False, format=GGUF),
    "k_cache_quantization": Setting(default="off", format=GGUF),
    "v_cache_quantization": Setting(default="off", format=GGUF),
    "mlx_kv_cache_bits": Setting("bits", 0, format=MLX),
    "mlx_kv_cache_group_size": Setting("values", 64, format=MLX),
    "mlx_kv_cache_quantized_start": Setting("tokens", 5000, least=0, format=MLX),
    "cpu_threads": Setting("threads", 4, format=GGUF),
    "eval_batch_size": Setting("tokens", 2048, least=1, format=GGUF, embedding=True),
    "physical_batch_size": Setting("tokens", 512, least=1, format=GGUF),
    "auto_fit": Setting(default=True, format=GGUF),
    "keep_model_in_memory": Setting(default=True, format=GGUF),
    "mmap": Setting(default=True, format=GGUF),
    "num_experts": Setting("experts per token", least=1),
    "draft_mtp": Setting(default=False, format=GGUF),
    "draft_simple": Setting(default=False, format=GGUF),
    "draft_model": Setting(format=GGUF),
    "draft_max_tokens": Setting("tokens", 16, least=1, format=GGUF),
    "draft_min_tokens": Setting("tokens", 0, least=0, format=GGUF),
    "draft_min_continue_probability": Setting("probability", 0.75, least=0, most=1, format=GGUF),
}

#: Words for cpu_threads, and which cores of a Mac each means.
CORES = {
    "performance_cores": ("performance",),
    "efficiency_cores": ("efficiency",),
    "all_cores": ("performance", "efficiency"),
}
# What LM Studio calls its MLX runtimes, and the first that batches the requests of models with eyes as well.
MLX_RUNTIME = "mlx-llm"
MLX_RUNTIME_THAT_BATCHES_ALL = "1.8.5"
_ENGINES = {GGUF: "llama.cpp (GGUF files)", MLX: "MLX"}
_MLX_PARTS = ("mlx_kv_cache_group_size", "mlx_kv_cache_quantized_start")
_DRAFT_PARTS = ("draft_max_tokens", "draft_min_tokens", "draft_min_continue_probability")


def merged(*layers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of several layers, later ones winning. What is not set is left out."""
    load = {key: value for layer in layers for key, value in (layer or {}).items() if value is not None}
    if load.get("gpu") == "False":  # how YAML reads an off without quotes
        load["gpu"] = "off"
    if load.get("draft_model") and "draft_simple" not in load and not load.get("draft_mtp"):
        load["draft_simple"] = True
    return load


def problems(model_type: str, model_format: str | None, load: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each value or combination in the merged settings that cannot work."""
    for key, value in load.items():
        setting = SETTINGS[key]
        if model_type == "embedding" and not setting.embedding:
            known = ", ".join(name for name, other in SETTINGS.items() if other.embedding)
            yield f"load.{key} cannot be set for a model of type embedding. It has: {known}."
        elif model_format and setting.format not in (None, model_format):
            yield (
                f"load.{key} is a setting of {_ENGINES[setting.format]}, and this model runs on "
                f"{_ENGINES[model_format]}. Remove it."
            )
        elif not _in_range(value, setting):
            yield f"load.{key} must be {_range(setting)}, not {value}."
    if "gpu" in load and load["gpu"] not in ("max", "off") and not _is_share(load["gpu"]):
        yield f"load.gpu must be max, off or a number from 0 to 1, not {load['gpu']!r}."
    threads = str(load.get("cpu_threads", "1"))
    if threads not in CORES and not (threads.isascii() and threads.isdigit() and int(threads) >= 1):
        yield f"load.cpu_threads must be a number of at least 1, or {', '.join(CORES)}, not {threads!r}."
    yield from _combination_problems(load)


def _combination_problems(load: Mapping[str, Any]) -> Iterator[str]:
    if load.get("v_cache_quantization", "off") != "off" and load.get("flash_attention") is not True:
        yield "load.v_cache_quantization needs load.flash_attention: true (or set it to off)."
    if load.get("physical_batch_size", 0) > load.get("eval_batch_size", float("inf")):
        yield "load.physical_batch_size must not be more than load.eval_batch_size."
    for key in _MLX_PARTS:
        if key in load and not load.get("mlx_kv_cache_bits"):
            yield f"load.{key} has no effect without load.mlx_kv_cache_bits (2, 3, 4, 6 or 8)."
    if load.get("draft_mtp") and load.get("draft_simple"):
        yield "load.draft_mtp and load.draft_simple cannot both be true: a model is drafted for in one way."
    if load.get("draft_simple") and not load.get("draft_model"):
        yield "load.draft_simple needs load.draft_model: name a small model of lmfleet_models."
    for key in _DRAFT_PARTS:
        if key in load and "draft_mtp" not in load and "draft_simple" not in load:
            yield f"load.{key} has no effect without load.draft_mtp: true or a load.draft_model."
    least = load.get("draft_min_tokens", 0)
    if least > load.get("draft_max_tokens", SETTINGS["draft_max_tokens"].default):
        yield f"load.draft_min_tokens {least} must not be more than load.draft_max_tokens (16 when not set)."


def doubts(model_format: str | None, load: Mapping[str, Any], runtimes: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each combination that works, but probably not as meant.

    C(runtimes): the declared versions of inference runtimes, by name.
    """
    for name, version in runtimes.items() if model_format == MLX and load.get("parallel", 1) > 1 else ():
        if name.startswith(MLX_RUNTIME) and _is_older(version, MLX_RUNTIME_THAT_BATCHES_ALL):
            yield (
                f"with the runtime {name} {version} it may serve one request at a time, whatever load.parallel "
                f"{load['parallel']} says: from {MLX_RUNTIME_THAT_BATCHES_ALL} on every MLX model is batched. "
                "Declare a newer runtime, or load.parallel: 1."
            )
    parallel = load.get("parallel", SETTINGS["parallel"].default)
    if parallel > 1 and drafts(load):
        yield (
            f"speculative decoding with load.parallel {parallel} is seldom faster than without. "
            "Set load.parallel: 1, or measure."
        )


def drafts(load: Mapping[str, Any]) -> bool:
    """Return whether tokens are drafted ahead, by whatever means."""
    return bool(load.get("draft_mtp") or load.get("draft_simple"))


def resolved(load: Mapping[str, Any], performance_cores: int, efficiency_cores: int) -> dict[str, Any]:
    """Return the settings as numbers and words that LM Studio takes: what depends on the Mac is worked out.

    Raises ValueError when a number of cores is needed and the Mac has told none.
    """
    result = dict(load)
    if "cpu_threads" in load:
        result["cpu_threads"] = _threads(
            load["cpu_threads"], {"performance": performance_cores, "efficiency": efficiency_cores}
        )
    if "gpu" in load and load["gpu"] not in ("max", "off"):
        result["gpu"] = float(load["gpu"])
    return result


def _threads(wanted: Any, cores: Mapping[str, int]) -> int:
    if wanted not in CORES:
        return int(wanted)
    number = sum(cores[kind] for kind in CORES[wanted])
    if number < 1:
        raise ValueError(f"load.cpu_threads is {wanted}, and this Mac tells of none. Set a number instead.")
    return number


def _is_older(version: str, than: str) -> bool:
    return [int(number) for number in re.findall(r"\d+", version)] < [int(number) for number in than.split(".")]


def _in_range(value: Any, setting: Setting) -> bool:
    if setting.least is not None and value < setting.least:
        return False
    return setting.most is None or value <= setting.most


def _range(setting: Setting) -> str:
    if setting.most is None:
        return f"at least {setting.least}"
    return f"from {setting.least} to {setting.most}"


def _is_share(text: Any) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
