# SPDX-License-Identifier: GPL-3.0-or-later
"""What every API does to run a model: find or load it, take a slot, stream."""

from __future__ import annotations

import uuid

from llmster_standin import home, knobs
from llmster_standin.engine_real import EngineDiedError, EngineError
from llmster_standin.manager import LoadError, ModelNotFoundError


class RefusedError(Exception):
    """A request that is answered with an error: HTTP status, message, and the OpenAI error code."""

    def __init__(self, status, message, code=None, param=None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    def body(self):
        """Return the error as OpenAI clients expect it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def new_id(prefix):
    """Return a random id such as chatcmpl-…"""
    return prefix + uuid.uuid4().hex[:24]


def choose(app, body, kind, watch):
    """Return the instance a request names, loading it just in time when that is on. Raises RefusedError."""
    name = body.get("model")
    if not name:
        candidates = [i for i in app.manager.instances() if i.model.type == kind]
        if len(candidates) != 1:
            raise RefusedError(400, f"Specify a model: {len(candidates)} are loaded.", None, "model")
        return candidates[0]
    instance = app.manager.get(name)
    if instance is None:
        instance = _load_just_in_time(app, name, body.get("ttl"), watch)
    if instance.model.type != kind:
        raise RefusedError(400, f'Model "{name}" is of type {instance.model.type}, not {kind}.', None, "model")
    return instance


def _load_just_in_time(app, name, ttl_seconds, watch):
    if not app.jit:
        message = f'Model "{name}" is not loaded, and just-in-time loading is off.'
        raise RefusedError(404, message, "model_not_found", "model")
    try:
        ttl = int(float(ttl_seconds) * 1000) if ttl_seconds else home.JIT_TTL_MS
        return app.manager.get_or_load(name, ttl, watch=watch)
    except ModelNotFoundError as error:
        raise RefusedError(404, str(error), "model_not_found", "model") from None
    except LoadError as error:
        raise RefusedError(400, str(error), None, "model") from None


def pieces(app, instance, request, watch):
    """Yield the generated pieces; the request queues for a slot first. Raises RefusedError, waiting.CancelledError."""
    _check_that_it_computes(instance)
    app.publish("llm.prediction.input", instance, request.text())
    text = ""
    try:
        with instance.slot(watch) as slot:
            stream = instance.engine.generate(request, watch, instance.running)
            for tokens, piece in enumerate(stream, 1):
                slot.phase = "generating"
                request.predicted_tokens = max(request.predicted_tokens, tokens)
                text += piece
                yield piece
    except EngineError as error:
        raise _engine_failed(app, instance, error) from None
    app.publish("llm.prediction.output", instance, text)


def vectors(app, instance, texts, watch):
    """Return one embedding per text. Raises RefusedError, waiting.CancelledError."""
    _check_that_it_computes(instance)
    try:
        with instance.slot(watch):
            return instance.engine.embed(texts, watch)
    except EngineError as error:
        raise _engine_failed(app, instance, error) from None


def _check_that_it_computes(instance):
    """Raise RefusedError for a model that loads with its settings, but fails at each request."""
    limit = knobs.get("computes_up_to_context")
    if limit is not None and instance.context_length > int(limit):
        raise RefusedError(500, "Compute error.")


def _engine_failed(app, instance, error):
    """Return the error to answer with; a model whose engine died is unloaded."""
    if isinstance(error, EngineDiedError):
        app.manager.unload(instance.identifier)
    return RefusedError(500, str(error))
