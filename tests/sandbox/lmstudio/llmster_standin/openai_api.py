# SPDX-License-Identifier: GPL-3.0-or-later
"""The OpenAI-compatible endpoints, and the Anthropic one, of the serving port."""

from __future__ import annotations

import time
from contextlib import closing

from llmster_standin import catalog
from llmster_standin.engine_fake import Request, count_tokens
from llmster_standin.inference import RefusedError, choose, new_id, pieces, vectors


def models(app, connection, body, watch):
    """GET /v1/models: with just-in-time loading on, what is on disk; otherwise what is loaded."""
    del body, watch
    names = [m.key for m in catalog.scan()] if app.jit else [i.identifier for i in app.manager.instances()]
    data = [{"id": name, "object": "model", "owned_by": "organization_owner"} for name in names]
    connection.answer({"object": "list", "data": data})


def _number(body, *names):
    for name in names:
        value = body.get(name)
        if value is not None:
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise RefusedError(400, f"'{name}' must be a number", None, name)
            return int(value)
    return None


def _messages(body, name="messages"):
    messages = body.get(name)
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise RefusedError(400, f"'{name}' field is required", None, name)
    return messages


class _Run:
    """One generation: its request and its instance."""

    def __init__(self, app, body, request, watch):
        self.app = app
        self.instance = choose(app, body, "llm", watch)
        self.request = request
        self.watch = watch

    def pieces(self):
        """Yield the text as it is generated."""
        with closing(pieces(self.app, self.instance, self.request, self.watch)) as stream:
            yield from stream

    def text(self):
        """Return the whole text."""
        return "".join(self.pieces())

    @property
    def tokens(self):
        """Return the number of tokens generated so far."""
        return self.request.predicted_tokens

    def usage(self):
        """Return the token counts as OpenAI clients expect them."""
        prompt = self.request.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": self.tokens, "total_tokens": prompt + self.tokens}


def _openai(app, connection, body, watch, kind, request):
    run = _Run(app, body, request, watch)
    chat = kind == "chat.completion"
    answer = {"id": new_id("chatcmpl-" if chat else "cmpl-"), "object": kind, "created": int(time.time())}
    answer["model"] = run.instance.identifier

    def choice(delta, text, finish):
        part = {"index": 0, "delta": delta} if chat else {"index": 0, "text": text}
        return dict(part, logprobs=None, finish_reason=finish)

    if not body.get("stream"):
        text = run.text()
        message = {"role": "assistant", "content": text, "tool_calls": []}
        part = {"index": 0, "message": message} if chat else {"index": 0, "text": text}
        answer["choices"] = [dict(part, logprobs=None, finish_reason=request.finish)]
        answer.update(usage=run.usage(), stats={}, system_fingerprint=run.instance.identifier)
        connection.answer(answer)
        return
    if chat:
        answer["object"] = "chat.completion.chunk"
    answer["system_fingerprint"] = run.instance.identifier
    connection.start_events()
    role = {"role": "assistant"}
    for text in run.pieces():
        connection.event(dict(answer, choices=[choice(dict(role, content=text), text, None)]))
        role = {}
    connection.event(dict(answer, choices=[choice({}, "", request.finish)]))
    if (body.get("stream_options") or {}).get("include_usage"):
        connection.event(dict(answer, choices=[], usage=run.usage()))
    connection.event("[DONE]")
    connection.end_events()


def chat_completions(app, connection, body, watch):
    """POST /v1/chat/completions"""
    limit = _number(body, "max_completion_tokens", "max_tokens")
    request = Request(_messages(body), max_tokens=limit, stop=body.get("stop"), options=body)
    _openai(app, connection, body, watch, "chat.completion", request)


def completions(app, connection, body, watch):
    """POST /v1/completions"""
    prompt = body.get("prompt")
    if isinstance(prompt, list):
        prompt = "".join(str(part) for part in prompt)
    if not isinstance(prompt, str):
        raise RefusedError(400, "'prompt' field is required", None, "prompt")
    request = Request(prompt=prompt, max_tokens=_number(body, "max_tokens"), stop=body.get("stop"), options=body)
    _openai(app, connection, body, watch, "text_completion", request)


def embeddings(app, connection, body, watch):
    """POST /v1/embeddings"""
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RefusedError(400, "'input' field must be a string or an array of strings", None, "input")
    instance = choose(app, body, "embedding", watch)
    found = vectors(app, instance, texts, watch)
    if body.get("encoding_format") == "base64":
        found = [_base64(vector) for vector in found]
    data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(found)]
    used = sum(count_tokens(text) for text in texts)
    usage = {"prompt_tokens": used, "total_tokens": used}
    connection.answer({"object": "list", "data": data, "model": instance.identifier, "usage": usage})


def _base64(vector):
    import base64
    import struct

    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def responses(app, connection, body, watch):
    """POST /v1/responses: text in, text out."""
    given = body.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else _messages(body, "input")
    if body.get("instructions"):
        messages = [{"role": "system", "content": body["instructions"]}, *messages]
    request = Request(messages, max_tokens=_number(body, "max_output_tokens"), options=body)
    run = _Run(app, body, request, watch)
    answer = {"id": new_id("resp_"), "object": "response", "created_at": int(time.time())}
    answer.update(status="in_progress", model=run.instance.identifier, output=[])
    stream = bool(body.get("stream"))
    item = new_id("msg_")
    if stream:
        connection.start_events()
        connection.event({"type": "response.created", "response": answer}, "response.created")
    text = ""
    for part in run.pieces():
        text += part
        if stream:
            delta = {"type": "response.output_text.delta", "item_id": item, "output_index": 0, "delta": part}
            connection.event(delta, "response.output_text.delta")
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = {"id": item, "type": "message", "role": "assistant", "status": "completed", "content": content}
    used = {"input_tokens": request.prompt_tokens, "output_tokens": run.tokens}
    used["total_tokens"] = request.prompt_tokens + run.tokens
    answer.update(status="completed", output=[output], usage=used)
    if stream:
        connection.event({"type": "response.completed", "response": answer}, "response.completed")
        connection.end_events()
    else:
        connection.answer(answer)


def messages(app, connection, body, watch):
    """POST /v1/messages: the Anthropic format, text only."""
    said = _messages(body)
    if body.get("system"):
        said = [{"role": "system", "content": body["system"]}, *said]
    request = Request(said, max_tokens=_number(body, "max_tokens"), stop=body.get("stop_sequences"), options=body)
    run = _Run(app, body, request, watch)
    answer = {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": run.instance.identifier}
    reasons = {"length": "max_tokens", "stop": "end_turn"}
    if not body.get("stream"):
        answer["content"] = [{"type": "text", "text": run.text()}]
        answer.update(stop_reason=reasons.get(request.finish, "end_turn"), stop_sequence=None)
        answer["usage"] = {"input_tokens": request.prompt_tokens, "output_tokens": run.tokens}
        connection.answer(answer)
        return
    answer.update(content=[], stop_reason=None, stop_sequence=None, usage={"input_tokens": 0, "output_tokens": 0})
    connection.start_events()

    def event(kind, **fields):
        connection.event(dict(fields, type=kind), kind)

    event("message_start", message=answer)
    event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for text in run.pieces():
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    event("content_block_stop", index=0)
    delta = {"stop_reason": reasons.get(request.finish, "end_turn"), "stop_sequence": None}
    usage = {"input_tokens": request.prompt_tokens, "output_tokens": run.tokens}
    event("message_delta", delta=delta, usage=usage)
    event("message_stop")
    connection.end_events()
