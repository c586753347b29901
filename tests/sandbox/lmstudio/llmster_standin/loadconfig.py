# SPDX-License-Identifier: GPL-3.0-or-later
"""Load settings: defaults, the per-model tuning file, and what a caller overrides; and the memory they cost."""

from __future__ import annotations

from llmster_standin import home

GIB = 1024**3
RUNTIME_BYTES = GIB

_LLM_DEFAULTS = {
    "llm.load.contextLength": 2048,
    "llm.load.numParallelSessions": 4,
    "llm.load.useUnifiedKvCache": True,
    "llm.load.llama.autoFit": True,
    "llm.load.llama.acceleration.offloadRatio": "max",
    "llm.load.offloadKVCacheToGpu": True,
    "llm.load.llama.cpuThreadPoolSize": 4,
    "llm.load.llama.evalBatchSize": 2048,
    "llm.load.llama.physicalBatchSize": 512,
    "llm.load.llama.flashAttention": False,
    "llm.load.llama.keepModelInMemory": True,
    "llm.load.llama.tryMmap": True,
}
_EMBEDDING_DEFAULTS = {
    "embedding.load.contextLength": 2048,
    "embedding.load.llama.evalBatchSize": 2048,
    "embedding.load.llama.acceleration.offloadRatio": "max",
}


def tuning_file(model):
    """Return the path of the per-model defaults file."""
    return home.internal("user-concrete-model-default-config", *f"{model.path}.json".split("/"))


def fields_of(config):
    """Return {key: value} of a ``{"fields": [{"key", "value"}]}`` object; anything else counts as empty."""
    fields = config.get("fields") if isinstance(config, dict) else None
    if not isinstance(fields, list):
        return {}
    return {f["key"]: f.get("value") for f in fields if isinstance(f, dict) and isinstance(f.get("key"), str)}


def effective(model, overrides=None):
    """Return {key: value} for one load. Overrides win over the tuning file, which wins over the defaults.

    A tuning file that does not parse is ignored without a word, as are keys of the other model type.
    """
    values = dict(_LLM_DEFAULTS if model.type == "llm" else _EMBEDDING_DEFAULTS)
    prefix = model.type + ".load."
    stored = home.read_json(tuning_file(model))
    layers = [fields_of(stored.get("load")) if isinstance(stored, dict) else {}, overrides or {}]
    for layer in layers:
        values.update({key: value for key, value in layer.items() if key.startswith((prefix, "load."))})
    return values


def setting(config, model, name):
    """Return one effective setting by its name without the type's prefix."""
    return config.get(f"{model.type}.load.{name}")


def context_length(config, model):
    """Return the context length in tokens."""
    return int(setting(config, model, "contextLength") or 2048)


def parallel(config, model):
    """Return the number of slots; an embedding model has no such setting and answers one at a time."""
    if model.type != "llm":
        return None
    return min(1023, max(1, int(setting(config, model, "numParallelSessions") or 4)))


def gpu_ratio(config, model):
    """Return the offloaded share of the weights, 0.0 to 1.0."""
    ratio = setting(config, model, "llama.acceleration.offloadRatio")
    if ratio == "max" or ratio is None:
        return 1.0
    return 0.0 if ratio == "off" else float(ratio)


def estimate(model, config):
    """Return (GPU bytes, total bytes) a load will take: weights + KV cache + runtime."""
    heads = int(model.figure("attention.head_count", 1)) or 1
    kv_heads = int(model.figure("attention.head_count_kv", heads))
    head_size = int(model.figure("embedding_length", 0)) // heads
    layers = int(model.figure("block_count", 0))
    cache = 2 * layers * kv_heads * head_size * context_length(config, model) * 2
    if setting(config, model, "useUnifiedKvCache") is False:
        cache *= parallel(config, model) or 1
    on_gpu = gpu_ratio(config, model)
    cache_on_gpu = cache if setting(config, model, "offloadKVCacheToGpu") is not False and on_gpu else 0
    return int(model.size * on_gpu) + cache_on_gpu, model.size + cache + RUNTIME_BYTES
