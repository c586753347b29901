# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release of the gateway on trial: run beside the one in use, on a port of its own, and asked a few things.

Its registry is a copy, so that it knows the same deployments; one more answers without any backend.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time

from ._files import atomic_write, canonical_json, make_directory, read_json
from ._http import request_json

DEPLOYMENT = "lmfleet-trial"
POLL = 0.2
ANSWER_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
WRONG_KEY = "sk-wrong"


class TrialError(Exception):
    """The release does not do what it must; the text says what."""


def trial(release: str, root: str, key: str, timeout: float, database: bool = False) -> None:
    """Run the release in the folder `release` of the gateway in `root`; raises TrialError when it is no good.

    `key` is its master key; `timeout` is the seconds it may take until it serves. With a `database` LiteLLM drops the
    deployment that needs no backend, so it is only asked for its models.
    """
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=root) as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        _copy_registry(os.path.join(root, "registry"), folder)
        with open(os.path.join(folder, "output"), "w+b") as output:
            process = _start(release, folder, listener, output)
            try:
                _wait(process, folder, timeout)
                _ask(f"http://127.0.0.1:{listener.getsockname()[1]}", key, database)
            except TrialError as error:
                raise TrialError(f"{error}. It said: {_last_words(output)}") from None
            finally:
                _end(process)


def _copy_registry(registry: str, folder: str) -> None:
    document = read_json(os.path.join(registry, "deployments.json"))
    if not isinstance(document, dict):
        document = {"format": 1, "generation": 1, "routing": "round_robin", "deployments": []}
    own = {
        "model_name": DEPLOYMENT,
        "litellm_params": {"model": f"openai/{DEPLOYMENT}", "api_key": "none", "mock_response": "ok"},
        "model_info": {"id": f"{DEPLOYMENT}-1"},
    }
    make_directory(os.path.join(folder, "applied"), 0o700)
    document["deployments"] = [*document["deployments"], own]
    atomic_write(os.path.join(folder, "deployments.json"), canonical_json(document), 0o600)


def _start(release: str, folder: str, listener: socket.socket, output) -> subprocess.Popen:
    # Little environment, as launchd gives it.
    environment = {name: os.environ[name] for name in ("HOME", "PATH", "USER") if name in os.environ}
    environment.update(
        LMFLEET_SOCKET=str(listener.fileno()),
        LMFLEET_REGISTRY=folder,
        LMFLEET_WORKERS="1",
        LMFLEET_DRAIN_TIMEOUT="1",
    )
    return subprocess.Popen(
        [os.path.join(release, "run-gateway")],
        cwd=release,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )


def _wait(process: subprocess.Popen, folder: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise TrialError(f"it ended with exit code {process.returncode}")
        reports = [read_json(os.path.join(folder, "applied", name)) for name in os.listdir(folder + "/applied")]
        applied = [report for report in reports if isinstance(report, dict) and report.get("generation") is not None]
        if applied:
            if applied[0].get("error"):
                raise TrialError(f"it cannot follow the registry: {applied[0]['error']}")
            if DEPLOYMENT + "-1" in (applied[0].get("rejected") or {}):
                raise TrialError(f"it takes no deployment: {applied[0]['rejected'][DEPLOYMENT + '-1']}")
            return
        if time.monotonic() >= deadline:
            raise TrialError(f"it did not follow the registry within {timeout:g} s (plugin lmfleet_registry)")
        time.sleep(POLL)


def _ask(url: str, key: str, database: bool) -> None:
    ready = request_json(f"{url}/health/readiness", timeout=ANSWER_TIMEOUT)
    if ready.status != 200:
        raise TrialError(f"it is not ready: {ready.said()}")
    question = {"model": DEPLOYMENT, "messages": [{"role": "user", "content": "Say ok."}]}
    for sent, accepted in ((key, True), (WRONG_KEY, False)):
        headers = {"Authorization": f"Bearer {sent}"}
        asked = (f"{url}/v1/models",) if database else (f"{url}/v1/chat/completions", "POST", question)
        reply = request_json(*asked, headers=headers, timeout=ANSWER_TIMEOUT)
        if accepted and reply.status != 200:
            raise TrialError(f"it does not answer a request: {reply.said()}")
        if not accepted and reply.status == 200:
            raise TrialError("it answers requests with any key")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(output) -> str:
    output.seek(0)
    lines = output.read().decode("utf-8", "replace").splitlines()
    return " | ".join(line.strip() for line in lines[-8:] if line.strip()) or "nothing"
