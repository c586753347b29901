# SPDX-License-Identifier: GPL-3.0-or-later
"""lms get, and what the APIs say of models with eyes, in MLX's format, and from the catalogue."""

from __future__ import annotations

import functools
import http.server
import json
import os
import socket
import subprocess
import threading
import time

import pytest

CONFIG = {"model_type": "qwen2", "max_position_embeddings": 4096, "num_hidden_layers": 2, "quantization": {"bits": 4}}
FOLDER = "lmstudio-community/Tiny-GGUF"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def internet(private_network, tmp_path):
    """A server of files, and the catalogue that names them."""
    files = tmp_path / "internet"
    files.mkdir()
    handler = functools.partial(Quiet, directory=str(files))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    server.files, server.url = files, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def getting(instance, internet):
    """An instance that can get tiny/tiny-chat, as Q4_K_M, Q8_0 or MLX."""
    for name in ("Q4_K_M", "Q8_0"):
        source = instance.add_model(f"x/{name}/tiny-{name}.gguf", name=name)
        os.replace(source, internet.files / source.name)
        source.parent.rmdir()
    (internet.files / "config.json").write_text(json.dumps({**CONFIG, "lmfleet.fake.size_mb": 10}))
    (internet.files / "model.safetensors").write_bytes(b"weights")

    def option(kind, quantization, folder, *names):
        files = {name: f"{internet.url}/{name}" for name in names}
        return {"format": kind, "quantization": quantization, "folder": folder, "files": files}

    catalogue = {
        "tiny/tiny-chat": [
            option("gguf", "Q4_K_M", FOLDER, "tiny-Q4_K_M.gguf"),
            option("gguf", "Q8_0", FOLDER, "tiny-Q8_0.gguf"),
            option("safetensors", "4bit", "lmstudio-community/Tiny-MLX", "model.safetensors", "config.json"),
        ],
        "tiny/tiny-chat-2": [option("gguf", "Q8_0", "lmstudio-community/Other-GGUF", "gone.gguf")],
    }
    instance.knobs(catalog=catalogue)
    return instance.start()


def listed(instance) -> dict[str, dict]:
    return {model["modelKey"]: model for model in instance.json("ls")}


def test_get_fetches_what_it_recommends_and_lists_it_by_its_name_in_the_catalogue(getting):
    got = getting.lms("get", "Tiny/Tiny-Chat", "-y", "--gguf")
    assert got.returncode == 0 and "Download completed" in got.stderr and "\x1b[" in got.stdout
    assert os.listdir(getting.models / FOLDER) == ["tiny-Q4_K_M.gguf"]
    model = listed(getting)["tiny/tiny-chat"]
    assert (model["path"], model["publisher"], model["format"]) == ("tiny/tiny-chat", "tiny", "gguf")
    assert model["selectedVariant"] == "tiny/tiny-chat@q4_k_m" and "tiny" not in listed(getting)
    again = getting.lms("get", "tiny/tiny-chat", "-y", "--gguf")
    assert again.returncode == 0 and "Download completed" not in again.stderr
    assert getting.lms("load", "tiny/tiny-chat", "-y").returncode == 0
    assert getting.loaded()["tiny/tiny-chat"]["path"] == "tiny/tiny-chat"


def test_a_quantisation_is_got_as_named_or_not_at_all(getting):
    assert getting.lms("get", "tiny/tiny-chat@q8_0", "-y").returncode == 0
    assert os.listdir(getting.models / FOLDER) == ["tiny-Q8_0.gguf"]
    missing = getting.lms("get", "tiny/tiny-chat@q2_k", "-y")
    assert missing.returncode == 1 and "Available quantizations: Q4_K_M, Q8_0" in missing.stderr


def test_a_word_finds_whatever_is_like_it(getting):
    got = getting.lms("get", "tychat", "-y", "--gguf")
    assert "selecting the first one" in got.stderr and "tiny/tiny-chat" in listed(getting)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no/such-model", "-y"), "Artifact no/such-model not found"),
        (("xyz", "-y"), "No staff picks found"),
        (("Tiny_Labs/chat", "-y"), "Invalid artifact owner"),
        (("tiny/tiny-chat",), "needs a terminal"),
        (("tiny/tiny-chat", "--select", "-y"), "needs a terminal"),
        (("tiny/tiny-chat", "--limit", "1"), "unknown option"),
        (("tiny/tiny-chat-2", "-y"), "404"),
    ],
)
def test_what_get_refuses(getting, words, said):
    got = getting.lms("get", *words)
    assert got.returncode == 1 and said in got.stderr
    assert sorted(listed(getting)) == ["smollm2", "text-embedding-nomic-embed"]


def test_a_download_goes_on_without_its_client(getting, internet):
    ready, end = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def serve():
            connection, _address = slow.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nGG")
            ready.set()
            end.wait(30)
            connection.sendall(b"UF")
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        place = {"quantization": "Q8_0", "format": "gguf", "folder": FOLDER}
        files = {"slow.gguf": f"http://127.0.0.1:{slow.getsockname()[1]}/slow.gguf"}
        getting.knobs(catalog={"tiny/slow": [{**place, "files": files}]})
        with pytest.raises(subprocess.TimeoutExpired):
            getting.lms("get", "tiny/slow", "-y", timeout=2)
        assert ready.wait(10) and not (getting.models / FOLDER / "slow.gguf").exists()
        time.sleep(1)  # for the daemon to see that the client has gone
        end.set()
        thread.join()
        deadline = time.monotonic() + 10
        while not (getting.models / FOLDER / "slow.gguf").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_an_mlx_model_is_its_folder(getting):
    assert getting.lms("get", "tiny/tiny-chat", "-y", "--mlx").returncode == 0
    own = getting.models / "lmfleet/Own-MLX"
    own.mkdir(parents=True)
    (own / "config.json").write_text(json.dumps({**CONFIG, "vision_config": {}, "lmfleet.fake.reply_tokens": 3}))
    (own / "model.safetensors").write_bytes(b"weights")
    model = listed(getting)["own-mlx"]
    assert (model["path"], model["format"], model["vision"]) == ("lmfleet/Own-MLX", "safetensors", True)
    assert model["quantization"] == {"name": "4bit", "bits": 4} and model["maxContextLength"] == 4096
    assert listed(getting)["tiny/tiny-chat"]["format"] == "safetensors"
    tuning = getting.internal / "user-concrete-model-default-config/lmfleet/Own-MLX.json"
    tuning.parent.mkdir(parents=True)
    tuning.write_text(json.dumps({"load": {"fields": [{"key": "llm.load.contextLength", "value": 1024}]}}))
    assert getting.lms("load", "own-mlx", "-y").returncode == 0
    assert getting.loaded()["own-mlx"]["contextLength"] == 1024
    getting.lms("server", "start", "--port", "1234", "--bind", "127.0.0.1")
    shown = {model["key"]: model for model in getting.http("GET", "/api/v1/models")[1]["models"]}["own-mlx"]
    assert shown["format"] == "mlx" and shown["capabilities"]["vision"] is True
    assert "flash_attention" not in shown["loaded_instances"][0]["config"]
    assert getting.chat("own-mlx")[0] == 200


def test_an_mlx_model_of_the_real_kind_does_not_load(getting):
    own = getting.models / "lmfleet/real"
    own.mkdir(parents=True)
    (own / "config.json").write_text(json.dumps(CONFIG))
    (own / "model.safetensors").write_bytes(b"weights")
    assert "no MLX engine" in getting.lms("load", "real", "-y").stderr


def test_a_projector_beside_the_weights_gives_a_model_eyes(getting):
    assert listed(getting)["smollm2"]["vision"] is False
    (getting.models / "lmfleet/SmolLM2/mmproj-F16.gguf").write_bytes(b"projector")
    assert listed(getting)["smollm2"]["vision"] is True
