# SPDX-License-Identifier: GPL-3.0-or-later
"""A deterministic engine: the same prompt always gives the same text, at the speed the model file asks for."""

from __future__ import annotations

import math
import re
import time
import zlib

from llmster_standin import knobs

_FILLER = ("so", "it", "goes", "on", "and", "each", "word", "follows", "from", "the", "last")


class Request:
    """What an engine is asked for: chat ``messages`` or a plain ``prompt``, and sampling ``options``."""

    def __init__(self, messages=None, prompt=None, max_tokens=None, stop=(), options=None):
        self.messages = messages
        self.prompt = prompt
        self.max_tokens = max_tokens if max_tokens and max_tokens > 0 else None
        self.stop = [stop] if isinstance(stop, str) else list(stop or ())
        self.options = options or {}
        self.prompt_tokens = 0
        self.predicted_tokens = 0
        self.finish = "stop"

    def text(self):
        """Return everything the engine reads, as one text."""
        if self.prompt is not None:
            return self.prompt
        return "\n".join("{}: {}".format(m.get("role"), plain(m.get("content"))) for m in self.messages)

    def question(self):
        """Return the prompt, or the last thing the user said."""
        if self.prompt is not None:
            return self.prompt
        said = [plain(m.get("content")) for m in self.messages if m.get("role") == "user"]
        return said[-1] if said else ""


def plain(content):
    """Return the text of a message's content, given as a string or as a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""


def count_tokens(text):
    """Return a token count: about four characters each, at least one."""
    return max(1, (len(text) + 3) // 4)


def _words(request, least):
    number = zlib.crc32(request.text().encode()) % 10000
    words = re.findall(r"\s*\S+", f"reply {number} to: {request.question()}")
    while len(words) < least:
        words.append(" " + _FILLER[len(words) % len(_FILLER)])
    return words


class FakeEngine:
    """Streams words at ``tokens_per_second``; every duration is multiplied by the slow_factor knob."""

    def __init__(self, model, watch):
        self._model = model
        watch.wait(float(model.fake_figure("load_seconds", 0.0)) * knobs.slow_factor())

    def _prompt_seconds(self, tokens):
        return tokens / float(self._model.fake_figure("prompt_tokens_per_second", 2000.0)) * knobs.slow_factor()

    def generate(self, request, watch, running):
        """Yield text, one token at a time. ``running()`` is the number of requests generating at the same time.

        With ``slowdown_per_request`` s in the model file each of n simultaneous requests runs 1 + s(n-1)
        times slower. Raises waiting.CancelledError.
        """
        request.prompt_tokens = count_tokens(request.text())
        watch.wait(self._prompt_seconds(request.prompt_tokens))
        words = _words(request, int(self._model.fake_figure("reply_tokens", 24)))
        if request.max_tokens and request.max_tokens < len(words):
            words = words[: request.max_tokens]
            request.finish = "length"
        speed = float(self._model.fake_figure("tokens_per_second", 50.0))
        crowd = float(self._model.fake_figure("slowdown_per_request", 0.0))
        written = ""
        due = time.monotonic()
        for word in words:
            due += knobs.slow_factor() * (1 + crowd * (running() - 1)) / speed
            watch.wait(due - time.monotonic())
            cut = _stop_at(written + word, request.stop)
            if cut is not None:
                request.finish = "stop"
                if cut > len(written):
                    yield (written + word)[len(written) : cut]
                return
            written += word
            yield word

    def embed(self, texts, watch):
        """Return one unit vector per text."""
        watch.wait(self._prompt_seconds(sum(count_tokens(text) for text in texts)))
        size = int(self._model.figure("embedding_length", 64))
        return [_unit_vector(text, size) for text in texts]

    def close(self):
        """Nothing to release."""


def _stop_at(text, stops):
    places = [text.find(stop) for stop in stops if stop and stop in text]
    return min(places) if places else None


def _unit_vector(text, size):
    state = zlib.crc32(text.encode()) or 1
    vector = []
    for _ in range(size):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        vector.append(state / 0x3FFFFFFF - 1.0)
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]
