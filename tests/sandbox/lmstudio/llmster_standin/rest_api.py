# SPDX-License-Identifier: GPL-3.0-or-later
"""The /api/v1/models endpoints of the serving port."""

from __future__ import annotations

import time

from llmster_standin import catalog, loadconfig
from llmster_standin.inference import RefusedError, new_id
from llmster_standin.manager import LoadError

# What POST /api/v1/models/load accepts, and the setting each one overrides. No parallel, ttl or identifier.
_LOAD_OPTIONS = {
    "context_length": "contextLength",
    "eval_batch_size": "llama.evalBatchSize",
    "flash_attention": "llama.flashAttention",
    "num_experts": "numExperts",
    "offload_kv_cache_to_gpu": "offloadKVCacheToGpu",
}


def _instance_config(instance):
    config = {"context_length": instance.context_length}
    if instance.model.type == "llm":
        for name, key in _LOAD_OPTIONS.items():
            value = loadconfig.setting(instance.config, instance.model, key)
            if value is not None and (instance.model.format == "gguf" or not key.startswith("llama.")):
                config[name] = value
        config["parallel"] = instance.parallel
    return config


def _entry(model, instances):
    entry = {"type": model.type, "publisher": model.publisher, "key": model.key, "display_name": model.display_name}
    if model.architecture:
        entry["architecture"] = model.architecture
    name, bits = model.quantization or (None, None)
    entry.update(
        quantization={"name": name, "bits_per_weight": bits},
        size_bytes=model.size,
        params_string=model.params,
        loaded_instances=[
            {"id": i.identifier, "config": _instance_config(i)} for i in instances if i.model.path == model.path
        ],
        max_context_length=model.max_context,
        format="gguf" if model.format == "gguf" else "mlx",
    )
    if model.type == "llm":
        entry["capabilities"] = {"vision": model.vision, "trained_for_tool_use": False}
    if model.variant:
        entry.update(variants=[model.variant], selected_variant=model.variant)
    return entry


def models(app, connection, body, watch):
    """GET /api/v1/models: everything on disk, with the loaded instances of each."""
    del body, watch
    instances = app.manager.instances()
    connection.answer({"models": [_entry(model, instances) for model in catalog.scan()]})


def _required(body, name):
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise RefusedError(400, f"'{name}' is required", "missing_required_parameter", name)
    return value


def load(app, connection, body, watch):
    """POST /api/v1/models/load"""
    key = _required(body, "model")
    unknown = sorted(set(body) - set(_LOAD_OPTIONS) - {"model", "echo_load_config"})
    if unknown:
        message = "Unrecognized key(s) in object: " + ", ".join(f"'{name}'" for name in unknown)
        raise RefusedError(400, message, "unrecognized_keys", unknown[0])
    model = catalog.find(key)
    if model is None:
        raise RefusedError(404, f'Model "{key}" not found', "model_not_found", "model")
    given = {f"{model.type}.load.{k}": body[name] for name, k in _LOAD_OPTIONS.items() if name in body}
    started = time.monotonic()
    try:
        instance = app.manager.load(model, overrides=given, watch=watch)
    except LoadError as error:
        raise RefusedError(500, str(error), "model_load_failed", "model") from None
    answer = {"type": model.type, "instance_id": instance.identifier, "status": "loaded"}
    answer["load_time_seconds"] = round(time.monotonic() - started, 3)
    if body.get("echo_load_config"):
        answer["load_config"] = _instance_config(instance)
    connection.answer(answer)


def unload(app, connection, body, watch):
    """POST /api/v1/models/unload"""
    del watch
    identifier = _required(body, "instance_id")
    if not app.manager.unload(identifier):
        raise RefusedError(404, f'No loaded instance "{identifier}"', "model_not_found", "instance_id")
    connection.answer({"instance_id": identifier})


def download(app, connection, body, watch):
    """POST /api/v1/models/download: there is no network, so a download fails."""
    del watch
    if catalog.find(_required(body, "model")):
        connection.answer({"status": "already_downloaded"})
        return
    job = {"job_id": new_id("job_"), "status": "failed", "started_at": _now()}
    app.downloads[job["job_id"]] = job
    connection.answer(job)


def download_status(app, connection, job_id):
    """GET /api/v1/models/download/status/:job_id"""
    job = app.downloads.get(job_id)
    if job is None:
        raise RefusedError(404, f'No download job "{job_id}"', "job_not_found", "job_id")
    connection.answer(dict(job, downloaded_bytes=0, bytes_per_second=0))


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
