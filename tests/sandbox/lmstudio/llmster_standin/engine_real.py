# SPDX-License-Identifier: GPL-3.0-or-later
"""The real llama.cpp engine: a child process that serves HTTP on a loopback port of its own choosing."""

from __future__ import annotations

import json
import os
import socket
import time

from llmster_standin import knobs, loadconfig

_LOAD_SECONDS = 120
_PASSED_ON = (
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repeat_penalty",
    "response_format", "logit_bias", "tools", "tool_choice",
)  # fmt: skip


class EngineError(Exception):
    """The engine refused a request."""


class EngineDiedError(EngineError):
    """The engine does not answer any more."""


class RealEngine:
    """One llama.cpp process for one loaded model. Raises EngineError and waiting.CancelledError."""

    def __init__(self, model, config, watch):
        import subprocess  # only daemons with a real model pay for it

        python = os.environ.get("LMFLEET_ENGINE_PYTHON", "/opt/sandbox/python")
        path = os.environ.get("LMFLEET_ENGINE_PATH", "/opt/sandbox/engine")
        if not os.path.exists(python) or not os.path.isdir(path):
            raise EngineError(f"no engine for GGUF models on this machine (looked for {python} and {path})")
        settings = {
            "model": model.full_path,
            "embedding": model.type == "embedding",
            "context": loadconfig.context_length(config, model),
            "parallel": loadconfig.parallel(config, model) or 1,
            "unified": loadconfig.setting(config, model, "useUnifiedKvCache") is not False,
            "batch": int(loadconfig.setting(config, model, "llama.evalBatchSize") or 2048),
        }
        environment = dict(os.environ, PYTHONPATH=path, OMP_WAIT_POLICY="passive", LMFLEET_SANDBOX_UNAME="real")
        child = os.path.join(os.path.dirname(os.path.abspath(__file__)), "engine_child.py")
        # The child ends when its standard input does: also when this process is killed with -9.
        self._child = subprocess.Popen(
            [python, "-s", child, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        try:
            if not watch.wait(_LOAD_SECONDS, self._child.stdout):
                raise EngineError(f"the engine did not load {model.path} within {_LOAD_SECONDS} s")
            self._port = int(self._child.stdout.readline())
        except ValueError:
            self.close()
            raise EngineError(f"the engine could not load {model.path}") from None
        except BaseException:
            self.close()
            raise

    def close(self):
        """End the engine process."""
        self._child.kill()
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()

    def generate(self, request, watch, running):
        """Yield text as it comes."""
        del running  # real slots slow each other down by themselves
        body = {key: request.options[key] for key in _PASSED_ON if key in request.options}
        body.update(stream=True, stream_options={"include_usage": True}, stop=request.stop)
        if request.max_tokens:
            body["max_tokens"] = request.max_tokens
        if request.prompt is None:
            path, body["messages"] = "/v1/chat/completions", request.messages
        else:
            path, body["prompt"] = "/v1/completions", request.prompt
        last = time.monotonic()
        for event in self._events(path, body, watch):
            usage = event.get("usage")
            if usage:
                request.prompt_tokens = usage.get("prompt_tokens", 0)
                request.predicted_tokens = usage.get("completion_tokens", 0)
            for choice in event.get("choices", ()):
                if choice.get("finish_reason"):
                    request.finish = choice["finish_reason"]
                text = choice.get("text") or (choice.get("delta") or {}).get("content")
                if text:
                    watch.wait(max(0.0, knobs.slow_factor() - 1.0) * (time.monotonic() - last))
                    last = time.monotonic()
                    yield text

    def embed(self, texts, watch):
        """Return one vector per text."""
        with self._post("/v1/embeddings", {"input": texts}) as answer:
            data = json.loads(b"".join(answer.body(watch)))
        return [item["embedding"] for item in data["data"]]

    def _post(self, path, body):
        try:
            return _Answer(self._port, path, json.dumps(body).encode())
        except OSError as error:
            raise EngineDiedError(f"the engine does not answer: {error}") from None

    def _events(self, path, body, watch):
        with self._post(path, body) as answer:
            pending = b""
            for data in answer.body(watch):
                pending += data
                while b"\n" in pending:
                    line, pending = pending.split(b"\n", 1)
                    line = line.strip()
                    if line.startswith(b"data:") and line != b"data: [DONE]":
                        yield json.loads(line[5:])
                    elif line.startswith(b"error:"):
                        raise EngineError(line[6:].decode("utf-8", "replace"))


class _Answer:
    """An HTTP answer read in pieces, so that the reader can be cancelled between them."""

    def __init__(self, port, path, body):
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        head = "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        self._socket.sendall((head % (path, len(body))).encode() + b"Connection: close\r\n\r\n" + body)
        self._data = b""
        self._watch = None

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._socket.close()  # llama.cpp stops generating when its client leaves

    def _more(self):
        self._watch.wait(None, self._socket)
        try:
            data = self._socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise EngineDiedError("the engine closed the connection")
        self._data += data

    def _line(self):
        while b"\r\n" not in self._data:
            self._more()
        line, self._data = self._data.split(b"\r\n", 1)
        return line

    def _exactly(self, count):
        while len(self._data) < count:
            self._more()
        part, self._data = self._data[:count], self._data[count:]
        return part

    def body(self, watch):
        """Yield the body in pieces. Raises EngineError on a status other than 200."""
        self._watch = watch
        status = int(self._line().split()[1])
        length, chunked = 0, False
        while True:
            name, _, value = self._line().decode("latin-1").partition(":")
            if not name:
                break
            if name.lower() == "content-length":
                length = int(value)
            chunked = chunked or (name.lower() == "transfer-encoding" and "chunked" in value.lower())
        parts = self._chunks() if chunked else iter([self._exactly(length)])
        if status != 200:
            raise EngineError(b"".join(parts).decode("utf-8", "replace"))
        yield from parts

    def _chunks(self):
        while True:
            size = int(self._line().split(b";")[0], 16)
            part = self._exactly(size)
            self._line()
            if size == 0:
                return
            yield part
