# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that keep asking a gateway, plain and streamed, and count every request that failed or ended early.

    with Traffic(url, key, "chat") as traffic:
        traffic.wait_for(20)
        ...                                    # what must not cost anybody a request
    traffic.assert_none_failed()

Half of the clients keep their connection, as the SDKs of the vendors do, half open one for each request. None of them
ever repeats a request.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

CLIENTS = 8
# How long the clients ask at least while something is changed: TRAFFIC_SECONDS=60 for more than a look.
SECONDS = float(os.environ.get("TRAFFIC_SECONDS", "0"))
TIMEOUT = 60


@dataclass(frozen=True)
class Answer:
    """One finished request: `problem` is "" when it was answered whole; `began` and `ended` are of time.monotonic()."""

    kind: str
    status: int | None
    problem: str
    deployment: str | None
    began: float
    ended: float


class Client:
    """Asks one question after the other. `kind` is plain or stream."""

    def __init__(self, url: str, kind: str, keeps_connection: bool) -> None:
        parts = urllib.parse.urlsplit(url)
        self.kind = f"{kind}, {'kept' if keeps_connection else 'new'} connection"
        self._streams, self._keeps = kind == "stream", keeps_connection
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT)

    def ask(self, key: str, model: str, **extra: object) -> Answer:
        """Ask once; never raises."""
        began, status, deployment = time.monotonic(), None, None
        try:
            reply = self._send(key, {"model": model, "messages": [{"role": "user", "content": "x"}], **extra})
            status, deployment = reply.status, reply.headers.get("x-litellm-model-id")
            problem = self._problem(status, reply.read())
        except (OSError, http.client.HTTPException) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem or not self._keeps:
            self.close()
        return Answer(self.kind, status, problem, deployment, began, time.monotonic())

    def close(self) -> None:
        self._connection.close()

    def _send(self, key: str, payload: dict) -> http.client.HTTPResponse:
        # A connection that the server has closed while nothing was asked is no failure; any client opens a new one.
        if self._connection.sock and select.select([self._connection.sock], [], [], 0)[0]:
            self.close()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        if not self._keeps:
            headers["Connection"] = "close"
        body = json.dumps({**payload, "stream": self._streams})
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        return self._connection.getresponse()

    def _problem(self, status: int, body: bytes) -> str:
        text = body.decode("utf-8", "replace")
        if status != 200:
            return f"HTTP {status}: {text[:300]}"
        if self._streams:
            events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
            if any('"error"' in event for event in events):
                return f"an error in the stream: {text[-300:]}"
            if events[-1:] != ["[DONE]"] or len(events) < 2:
                return f"the stream ended early: {text[-300:]!r}"
            return (
                "" if any(_content(event) for event in events[:-1]) else f"the stream has no content: {text[-300:]!r}"
            )
        try:
            return "" if json.loads(text)["choices"][0]["message"]["content"] is not None else "no content"
        except (ValueError, KeyError, IndexError, TypeError):
            return f"not an answer: {text[:300]}"


class Traffic:
    """Several clients at once, each asking again `pause` seconds after its answer.

    `key` may be a function, which is asked before each request.
    """

    def __init__(
        self, url: str, key: str | Callable[[], str], model: str, clients: int = CLIENTS, pause: float = 0.0
    ) -> None:
        self.answers: list[Answer] = []
        self._key = key if callable(key) else lambda: key
        self._model, self._pause = model, pause
        self._stop = threading.Event()
        made = [Client(url, ("plain", "stream")[number % 2], number % 4 < 2) for number in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in made]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, timeout: float = 120) -> None:
        """Wait until that many more requests have ended, whatever became of them."""
        wanted, deadline = len(self.answers) + more, time.monotonic() + timeout
        while len(self.answers) < wanted:
            assert time.monotonic() < deadline, f"{len(self.answers)} answers, {wanted} expected; {self.said()}"
            time.sleep(0.05)

    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.problem]

    def said(self) -> str:
        """Return what came of it: how many requests of each kind, what failed, the longest wait."""
        kinds = Counter(answer.kind for answer in self.answers)
        problems = Counter(f"{answer.kind}: {answer.problem}" for answer in self.failed())
        longest = max((answer.ended - answer.began for answer in self.answers), default=0.0)
        return f"{dict(kinds)}, {len(self.failed())} failed {dict(problems)}, the longest took {longest:.1f} s"

    def assert_none_failed(self, least: int = 1) -> None:
        """Assert that no request failed, and that each kind of client got at least `least` answers."""
        assert not self.failed(), self.said()
        kinds = Counter(answer.kind for answer in self.answers)
        assert len(kinds) == min(4, len(self._threads)), self.said()
        assert min(kinds.values()) >= least, self.said()

    def _run(self, client: Client) -> None:
        while not self._stop.is_set():
            answer = client.ask(self._key(), self._model)
            self.answers.append(answer)
            # A gateway that is gone would be asked thousands of times.
            self._stop.wait(max(self._pause, 0.2) if answer.problem else self._pause)
        client.close()


def _content(event: str) -> str:
    """Return the text in an event of a stream; "" for any other."""
    try:
        return json.loads(event)["choices"][0]["delta"].get("content") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
