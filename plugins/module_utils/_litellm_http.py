# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A running LiteLLM gateway, asked over HTTP. Which deployment answered stands only in a header."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import NamedTuple

from ._http import request_json

BODY_LIMIT = 1 << 20
QUESTION = {"messages": [{"role": "user", "content": "Say ok."}], "max_tokens": 1}
TEXT = {"input": "ok"}


class KeyRefusedError(Exception):
    """The gateway does not accept the key."""


class Probe(NamedTuple):
    """The outcome for one deployment: `problem` is "" when it answered; `latency` is in seconds."""

    deployment: str
    problem: str
    latency: float


class Gateway:
    """The gateway at `url`. `key` is the master key, which only Gateway.modes() and Gateway.probe() need."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        # Neither a proxy of the environment nor a redirect lies between a gateway and its own Mac.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    def readiness(self, timeout: float) -> str:
        """Return why the gateway is not ready, or ""; `timeout` is seconds."""
        reply = request_json(f"{self.url}/health/readiness", timeout=timeout)
        ready = isinstance(reply.body, dict) and reply.body.get("status") == "healthy"
        return "" if ready and reply.status == 200 else reply.said()

    def modes(self, timeout: float) -> dict:
        """Return id to mode (chat, embedding) of the deployments that one worker knows.

        Raises ValueError with what came instead, and KeyRefusedError when that is for the key.
        """
        reply = request_json(f"{self.url}/model/info", headers=self._headers, timeout=timeout)
        # Without a database LiteLLM cannot look a key up, and says that instead of 401.
        if reply.status in (401, 403) or (reply.status == 400 and "No connected db" in json.dumps(reply.body)):
            raise KeyRefusedError(f"The gateway at {self.url} does not accept the key ({reply.said()})")
        try:
            infos = [entry["model_info"] for entry in reply.body["data"]]
            return {info["id"]: info.get("mode") or "chat" for info in infos}
        except (KeyError, TypeError):
            raise ValueError(f"{self.url}/model/info: {reply.said()}") from None

    def probe(self, deployment: str, mode: str, timeout: float) -> Probe:
        """Ask one deployment for one token, or one embedding, through the gateway."""
        path, payload = ("/v1/embeddings", TEXT) if mode == "embedding" else ("/v1/chat/completions", QUESTION)
        data = json.dumps({"model": deployment, **payload}).encode("utf-8")
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json", **self._headers}, method="POST"
        )
        began = time.monotonic()
        try:
            with self._opener.open(request, timeout=timeout) as reply:
                body, answered = reply.read(BODY_LIMIT), reply.headers.get("x-litellm-model-id")
            problem = _problem(body, answered, deployment, mode)
        except urllib.error.HTTPError as error:
            with error:
                problem = f"HTTP {error.code}: {error.read(BODY_LIMIT).decode('utf-8', 'replace')[:300]}"
        except (OSError, http.client.HTTPException) as error:
            problem = f"no answer: {error}"
        return Probe(deployment, problem, round(time.monotonic() - began, 3))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None


def _problem(body: bytes, answered: str | None, deployment: str, mode: str) -> str:
    if answered != deployment:
        return f"the answer came from {answered or 'an unknown deployment'}"
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
        usable = document["data"][0]["embedding"] if mode == "embedding" else document["choices"][0]["message"]
    except (ValueError, KeyError, IndexError, TypeError):
        usable = None
    return "" if usable else f"not an answer: {text[:300]}"
