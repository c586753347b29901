# SPDX-License-Identifier: GPL-3.0-or-later
"""A model is fetched once for the fleet, or sent once, and what is no longer declared goes when that is asked for."""

from __future__ import annotations

import collections
import hashlib
import http.server
import json
import threading
import urllib.request

import pytest

from as_declared import look
from fleet_under_test import NETWORK, REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(900)]

MODELS = "/Users/admin/.lmfleet/models"
WEIGHTS = REPOSITORY / ".cache" / "mirror" / "models" / "fake-llm.gguf"
PARTS = ("fake-00001-of-00002.gguf", "fake-00002-of-00002.gguf")
TINY = "tiny-Q4_K_M.gguf"
MLX = {"model_type": "qwen2", "max_position_embeddings": 4096, "vision_config": {}, "lmfleet.fake.size_mb": 10}
#: The files of each model but `old`, by where they are below the models folder.
FILES = {
    "split": {PARTS[0]: WEIGHTS.read_bytes(), PARTS[1]: b"second part"},
    "mlx": {"model.safetensors": b"weights", "config.json": json.dumps(MLX).encode()},
    "eyes": {"mmproj-F16.gguf": b"projector", "eyes.gguf": WEIGHTS.read_bytes()},
    "tiny": {TINY: WEIGHTS.read_bytes() + b"of the catalogue"},
}


@pytest.fixture(scope="module")
def internet(fleet):
    """A server that counts how often each file was fetched."""
    content = {f"/{model}/{name}": data for model, files in FILES.items() for name, data in files.items()}
    fetched = collections.Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.command == "GET":
                fetched[self.path] += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content[self.path])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[self.path])

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer((f"{NETWORK}.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    server.fetched = fetched
    server.url = f"http://{NETWORK}.1:{server.server_port}"
    server.sha256 = {path: hashlib.sha256(data).hexdigest() for path, data in content.items()}
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def cached(fleet, internet):
    """The Macs after a first run, with mac-1 as the model cache; all but `split` are on mac-2 only.

    `tiny` comes from LM Studio's catalogue, which is asked on mac-1. No gateway is set up.
    """
    files = {
        model: [{"file": name, "sha256": internet.sha256[f"/{model}/{name}"]} for name in names]
        for model, names in FILES.items()
    }
    known = {"format": "gguf", "quantization": "Q4_K_M", "folder": "lmstudio-community/Tiny-GGUF"}
    option = {**known, "files": {TINY: f"{internet.url}/tiny/{TINY}"}}
    fleet.sandbox("knob", "mac-1", "llmster.catalog=" + json.dumps({"tiny/tiny-chat": [option]}))
    fleet.variables["all"]["lmfleet_models"] = {
        **{
            model: {"source": {"url": f"{internet.url}/{model}", "files": files[model]}}
            for model in ("split", "mlx", "eyes")
        },
        "tiny": {"source": {"catalog": "tiny/tiny-chat@q4_k_m", **files["tiny"][0]}},
        "old": {"source": {"path": str(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}},
    }
    fleet.variables["all"]["lmfleet_model_cache"] = "mac-1"
    fleet.variables["macs"]["lmfleet_instances"] = [{"name": "chat-a", "port": 1234, "models": [{"name": "split"}]}]
    children = fleet.hosts["all"]["children"]
    children["gateways"]["hosts"] = {"gateway": {"ansible_host": f"{NETWORK}.98"}}
    del children["macs"]["hosts"]["mac-1"]["lmfleet_instances"]
    children["macs"]["hosts"]["mac-2"]["lmfleet_instances"] = [
        {"name": "chat-a", "port": 1234, "models": [{"name": name} for name in (*FILES, "old")]}
    ]
    fleet.play("--limit", "macs").succeeded()
    return fleet


def models(fleet, host: str) -> set[str]:
    return set(fleet.on(host, f"find {MODELS} -type f").split())


def test_each_file_comes_from_the_internet_once(cached, internet):
    assert dict(internet.fetched) == dict.fromkeys(internet.sha256, 1)
    paths = {f"{'tiny' if model == 'tiny' else 'lmfleet'}/{model}/{name}" for model in FILES for name in FILES[model]}
    paths = {f"{MODELS}/{path}" for path in paths | {f"lmfleet/old/{WEIGHTS.name}"}}
    assert models(cached, "mac-1") == models(cached, "mac-2") == paths
    assert "catalog" not in cached.on("mac-1", "ls /Users/admin/.lmfleet/partial")
    assert [model["path"] for model in cached.status("mac-2", "chat-a")["models"]] == [
        f"lmfleet/split/{PARTS[0]}",
        "lmfleet/mlx",
        "lmfleet/eyes/eyes.gguf",
        f"tiny/tiny/{TINY}",
        f"lmfleet/old/{WEIGHTS.name}",
    ]
    assert cached.play("--limit", "macs").succeeded().changed == {"mac-1": 0, "mac-2": 0}


def test_models_of_every_kind_are_loaded_for_what_they_are(cached):
    loaded = {model["identifier"]: model for model in look(cached, "mac-2")["chat-a"]["ps"]}
    assert {name: (model["modelKey"], model["format"], model["vision"]) for name, model in loaded.items()} == {
        "split": ("split", "gguf", False),
        "mlx": ("mlx", "safetensors", True),
        "eyes": ("eyes", "gguf", True),
        "tiny": ("tiny", "gguf", False),
        "old": ("old", "gguf", False),
    }


def test_a_run_limited_to_another_mac_repairs_it_and_the_cache(cached, internet):
    before = cached.status("mac-2", "chat-a")["daemon_pid"]
    cached.on("mac-2", f"rm {MODELS}/lmfleet/split/{PARTS[1]}")
    cached.on("mac-1", f"rm {MODELS}/tiny/tiny/{TINY}")
    cached.on("mac-1", "launchctl bootout gui/501/lmfleet.model-cache")
    run = cached.play("--limit", "mac-2").succeeded()
    assert run.changed == {"mac-2": 3}
    assert internet.fetched == {**dict.fromkeys(internet.sha256, 1), f"/tiny/{TINY}": 2}
    assert f"{MODELS}/lmfleet/split/{PARTS[1]}" in models(cached, "mac-2")
    assert cached.status("mac-2", "chat-a")["daemon_pid"] == before


def test_a_cache_that_is_down_is_named(cached, tmp_path):
    elsewhere = cached.copy(tmp_path)
    elsewhere.hosts["all"]["children"]["macs"]["hosts"]["mac-1"]["ansible_host"] = f"{NETWORK}.99"
    run = elsewhere.play("--limit", "mac-2", ANSIBLE_TIMEOUT="5")
    assert run.code != 0
    run.said("Fetch the model files to the Mac that serves them", "mac-2 -> mac-1", "UNREACHABLE")


def test_prune_removes_what_is_no_longer_declared_everywhere(cached, internet):
    old = f"{MODELS}/lmfleet/old/{WEIGHTS.name}"
    del cached.hosts["all"]["children"]["macs"]["hosts"]["mac-2"]["lmfleet_instances"]
    del cached.variables["all"]["lmfleet_models"]["old"]
    cached.play("--limit", "macs").succeeded()
    assert old in models(cached, "mac-1") & models(cached, "mac-2")

    cached.variables["all"]["lmfleet_prune_models"] = True
    run = cached.play("--limit", "macs", "--diff").succeeded()
    run.said(old, "(absent)")
    assert run.changed == {"mac-1": 1, "mac-2": 1}
    assert models(cached, "mac-1") == models(cached, "mac-2") == {f"{MODELS}/lmfleet/split/{name}" for name in PARTS}


def test_without_the_variable_nothing_is_served_any_more(cached, internet):
    address = f"http://{NETWORK}.11:8765/lmfleet/split/{PARTS[1]}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.read() == b"second part"
    del cached.variables["all"]["lmfleet_model_cache"]
    cached.play("--limit", "macs").succeeded()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=30)
    left = cached.on("mac-1", "ls /Users/admin/.lmfleet /Users/admin/Library/LaunchAgents")
    assert "model_server" not in left and "model-cache" not in left
    assert cached.play("--limit", "macs").succeeded().changed == {"mac-1": 0, "mac-2": 0}
    assert sum(internet.fetched.values()) == len(internet.sha256) + 1
