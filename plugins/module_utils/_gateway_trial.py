# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A release of the gateway on trial: run beside the one in use, on a port of its own, and asked a few things.

Its registry is a copy, so that it knows the same deployments; one more answers without any backend. None that the
gateway serves may be refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from ._files import atomic_write, canonical_json, make_directory, read_json
from ._http import request_json
from ._registry import DEPLOYMENTS, FORMAT, FRESH_SECONDS, ROUTINGS, Registry, RegistryError

DEPLOYMENT = "lmfleet-trial"
OWN = f"{DEPLOYMENT}-1"
POLL = 0.2
ANSWER_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0
WRONG_KEY = "sk-wrong"
#: The folder of a trial, and in it what the release says, and the number of its process group.
FOLDER = ".trial-"
OUTPUT = "output"
GROUP = "group"


class TrialError(Exception):
    """The release does not do what it must; the text says what."""


def trial(release: str, root: str, key: str, timeout: float, database: bool = False) -> None:
    """Run the release in the folder `release` of the gateway in `root`; raises TrialError when it is no good.

    `key` is its master key; `timeout` is the seconds it may take until it serves. With a `database` LiteLLM drops the
    deployment that needs no backend, so it is only asked for its models.
    """
    with tempfile.TemporaryDirectory(prefix=FOLDER, dir=root) as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        registry = Registry(os.path.join(root, "registry"))
        _copy_registry(registry, folder)
        with open(os.path.join(folder, OUTPUT), "w+b") as output:
            # Whatever the release starts holds it, too: `end_leftovers` tells by it what is a trial.
            fcntl.flock(output, fcntl.LOCK_EX)
            process = _start(release, folder, listener, output)
            try:
                _wait(process, folder, timeout, served(registry))
                _ask(f"http://127.0.0.1:{listener.getsockname()[1]}", key, database)
            except TrialError as error:
                raise TrialError(f"{error}. It said: {_last_words(output)}") from None
            finally:
                _end(process)


def end_leftovers(root: str) -> None:
    """End the trials of runs that were killed, and remove their folders. Whoever calls it holds the lock of `root`."""
    for folder in glob.glob(os.path.join(glob.escape(root), FOLDER + "*")):
        group = read_json(os.path.join(folder, GROUP))
        deadline = time.monotonic() + STOP_TIMEOUT
        with open(os.path.join(folder, OUTPUT), "ab") as output:
            # Once nobody holds it, the number of the group may belong to somebody else.
            while _is_held(output) and isinstance(group, int) and time.monotonic() < deadline:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
                time.sleep(POLL)
        shutil.rmtree(folder, ignore_errors=True)  # what cannot be removed must stop no run; the next one tries again


def _is_held(output) -> bool:
    try:
        fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def served(registry: Registry) -> frozenset:
    """Return the ids of the deployments that the gateway in use has."""
    now = time.time()
    fresh = [worker for worker in registry.workers(now) if worker.age <= FRESH_SECONDS]
    return frozenset(name for worker in fresh for name in worker.deployments)


def _copy_registry(registry: Registry, folder: str) -> None:
    try:
        document, sound = registry.deployments()
    except RegistryError as error:
        raise TrialError(str(error)) from None
    if document is None and not sound:
        raise TrialError(
            f"its registry {registry.folder}/{DEPLOYMENTS} is broken, and no worker has kept a copy. Run the role "
            "gateway_deployments, which writes it anew (its task litellm_deployments), then run again"
        )
    document = document or {"format": FORMAT, "generation": 1, "routing": ROUTINGS[0], "deployments": []}
    own = {
        "model_name": DEPLOYMENT,
        "litellm_params": {"model": f"openai/{DEPLOYMENT}", "api_key": "none", "mock_response": "ok"},
        "model_info": {"id": OWN},
    }
    make_directory(os.path.join(folder, "applied"), 0o700)
    document["deployments"] = [*document["deployments"], own]
    atomic_write(os.path.join(folder, DEPLOYMENTS), canonical_json(document), 0o600)


def _start(release: str, folder: str, listener: socket.socket, output) -> subprocess.Popen:
    # Little environment, as launchd gives it.
    environment = {name: os.environ[name] for name in ("HOME", "PATH", "USER") if name in os.environ}
    environment.update(
        LMFLEET_SOCKET=str(listener.fileno()),
        LMFLEET_REGISTRY=folder,
        LMFLEET_WORKERS="1",
        LMFLEET_DRAIN_TIMEOUT="1",
    )
    # It tells its group itself, since the run may be killed as soon as it is there.
    program = ["/bin/sh", "-c", f'echo $$ >"$LMFLEET_REGISTRY/{GROUP}" && exec "$0"']
    return subprocess.Popen(
        [*program, os.path.join(release, "run-gateway")],
        cwd=release,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )


def _wait(process: subprocess.Popen, folder: str, timeout: float, needed: frozenset) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            raise TrialError(f"it ended with exit code {process.returncode}")
        reports = [
            read_json(os.path.join(folder, "applied", name))
            for name in os.listdir(folder + "/applied")
            if name.endswith(".json")
        ]
        for report in reports:
            if isinstance(report, dict) and (report.get("error") or report.get("generation") is not None):
                _judge(report, needed)
                return
        if time.monotonic() >= deadline:
            raise TrialError(f"it did not follow the registry within {timeout:g} s (plugin lmfleet_registry)")
        time.sleep(POLL)


def _judge(report: dict, needed: frozenset) -> None:
    if report.get("error"):
        raise TrialError(f"it cannot follow the registry: {report['error']}")
    rejected = report.get("rejected") or {}
    if OWN in rejected:
        raise TrialError(f"it takes no deployment: {rejected[OWN]}")
    lost = [f"{name} ({rejected[name]})" for name in sorted(needed & set(rejected))]
    if lost:
        raise TrialError(f"it refuses deployments that the gateway serves: {', '.join(lost)}")


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
