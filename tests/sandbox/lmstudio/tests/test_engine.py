# SPDX-License-Identifier: GPL-3.0-or-later
"""The real llama.cpp engine with the real small model behind the stand-in."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


@pytest.fixture(scope="session")
def cache() -> Path:
    """Return the filled cache (fills it when the setup has not)."""
    folder = Path(os.environ.get("LMFLEET_SANDBOX_CACHE") or FOLDER.parents[2] / ".cache")
    subprocess.run([sys.executable, FOLDER / "fill_mirror.py", "--cache", folder], check=True)
    return folder


@pytest.fixture
def real(make_instance, cache, private_network):
    """An instance that serves the real model with two slots as ``smollm2``."""
    del private_network
    environment = {"LMFLEET_ENGINE_PYTHON": sys.executable, "LMFLEET_ENGINE_PATH": str(cache / "engine")}
    instance = make_instance(**environment)
    folder = instance.models / "lmfleet" / "smollm2"
    folder.mkdir(parents=True)
    (folder / MODEL).symlink_to(cache / "mirror" / "models" / MODEL)
    instance.serve()
    assert instance.lms("load", "smollm2", "-y", "-c", "2048", "--parallel", "2", timeout=60).returncode == 0
    return instance


def _engine_pid(instance):
    """Return the process id of the engine, the daemon's only child."""
    children = Path(f"/proc/{instance.process.pid}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    assert len(pids) == 1
    return pids[0]


def _gone(pid):
    """Wait until a process has ended (a zombie has)."""
    for _ in range(300):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def _cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_answers_a_chat_in_words(real):
    roles = {"system": "You are a helpful AI assistant.", "user": "What is the capital of France?"}
    messages = [{"role": role, "content": text} for role, text in roles.items()]
    status, body = real.chat("smollm2", messages=messages, max_tokens=24, temperature=0)
    assert status == 200
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert 0 < body["usage"]["completion_tokens"] <= 24
    assert body["usage"]["prompt_tokens"] > 5


def test_streams(real):
    # The likeliest token each time: by chance a small model may end after two.
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell me a story."}], "temperature": 0}
    with real.request("POST", "/v1/chat/completions", {**body, "max_tokens": 16, "stream": True}) as response:
        lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    pieces = [json.loads(line)["choices"][0]["delta"].get("content") for line in lines[:-1]]
    assert len([piece for piece in pieces if piece]) > 3


def test_requests_beyond_the_slots_queue(real):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(real.chat, "smollm2", f"Tell me about {n}.", max_tokens=24) for n in range(6)]
        peak = 0
        while not all(future.done() for future in futures):
            peak = max(peak, real.loaded()["smollm2"]["queued"])
            time.sleep(0.05)
        assert [future.result()[0] for future in futures] == [200] * 6
    assert 3 <= peak <= 6


def test_client_that_leaves_stops_the_generation(real):
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Write a long story."}]}
    with real.request("POST", "/v1/chat/completions", {**body, "max_tokens": 1500, "stream": True}) as response:
        response.readline()
    engine = _engine_pid(real)
    deadline = time.monotonic() + 5
    before = -1
    while before != _cpu_ticks(engine) and time.monotonic() < deadline:
        before = _cpu_ticks(engine)
        time.sleep(0.3)
    assert before == _cpu_ticks(engine), "the engine still generates"
    assert real.loaded()["smollm2"]["queued"] == 0
    assert real.chat("smollm2", "Hello", max_tokens=4)[0] == 200


@pytest.mark.parametrize("kill", [False, True])
def test_engine_ends_with_the_daemon(real, kill):
    engine = _engine_pid(real)
    (real.process.kill if kill else real.process.terminate)()
    real.process.wait(10)
    assert _gone(engine)


def test_engine_ends_with_the_model(real):
    engine = _engine_pid(real)
    real.lms("unload", "smollm2")
    assert _gone(engine)


def test_dead_engine_unloads_its_model(real):
    os.kill(_engine_pid(real), 9)
    assert real.chat("smollm2", "Hello")[0] == 500
    assert real.loaded() == {}


def test_broken_model_file_fails_to_load(real):
    folder = real.models / "lmfleet" / "broken"
    folder.mkdir()
    data = (real.models / "lmfleet" / "smollm2" / MODEL).read_bytes()
    (folder / "broken.gguf").write_bytes(data[: 4 << 20])
    run = real.lms("load", "broken", "-y", timeout=60)
    assert run.returncode == 1
    assert "could not load" in run.stderr
    assert list(real.loaded()) == ["smollm2"]
