# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources of models: files, their places, and what identifies a model of several files."""

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.model_sources import (
    model_files,
    model_on_disk,
    source_problems,
)

EMPTY = {
    "huggingface": None,
    "file": None,
    "revision": "main",
    "url": None,
    "path": None,
    "catalog": None,
    "sha256": None,
    "files": [],
}
PARTS = [f"q4/big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
MLX = ["config.json", "tokenizer.json", "model.safetensors"]


def source(*names, **changes):
    files = [{"file": name, "sha256": hashlib.sha256(name.encode()).hexdigest().upper()} for name in names]
    return {**EMPTY, "huggingface": "pub/repo", "files": files, **changes}


def names(declared):
    return [file["path"].rsplit("/", 1)[-1] for file in model_files("m", declared)]


def test_the_single_file_form_stays():
    declared = {**EMPTY, "url": "http://files/a.gguf?x=1", "sha256": "A" * 64}
    expected = {"name": "m", "path": "lmfleet/m/a.gguf", "url": declared["url"], "sha256": "a" * 64}
    assert model_files("m", declared) == [expected]
    assert model_on_disk("m", declared) == {"path": "lmfleet/m/a.gguf", "sha256": "a" * 64}


def test_parts_go_into_one_folder_and_the_first_comes_last():
    declared = source(*PARTS, "mmproj-F16.gguf")
    assert list(source_problems(declared)) == []
    files = model_files("m", declared)
    assert names(declared) == [PARTS[1][3:], PARTS[2][3:], "mmproj-F16.gguf", PARTS[0][3:]]
    assert files[-1]["url"] == f"https://huggingface.co/pub/repo/resolve/main/{PARTS[0]}"
    assert model_on_disk("m", declared)["path"] == "pub/m/big-00001-of-00003.gguf"


def test_an_mlx_model_is_known_by_its_folder():
    declared = source(*MLX, huggingface=None, url="http://files/mlx/")
    assert list(source_problems(declared)) == []
    assert names(declared)[-1] == "config.json"
    assert model_files("m", declared)[0]["url"] == "http://files/mlx/tokenizer.json"
    assert model_on_disk("m", declared)["path"] == "lmfleet/m"


def test_files_of_the_controller():
    declared = {**EMPTY, "path": "/srv/own.gguf", "sha256": "A" * 64}
    assert list(source_problems(declared)) == []
    assert model_files("m", declared) == [
        {"name": "m", "path": "lmfleet/m/own.gguf", "local": "/srv/own.gguf", "sha256": "a" * 64}
    ]
    declared = source(*MLX, huggingface=None, path="/srv/mlx/")
    assert list(source_problems(declared)) == []
    assert model_files("m", declared)[-1]["local"] == "/srv/mlx/config.json"


def test_models_of_the_catalogue():
    declared = {**EMPTY, "catalog": "qwen/qwen3-4b@q4_k_m", "file": "Qwen3-4B-Q4_K_M.gguf", "sha256": "A" * 64}
    assert list(source_problems(declared)) == []
    path = "qwen/m/Qwen3-4B-Q4_K_M.gguf"
    expected = {"name": "m", "path": path, "catalog": declared["catalog"], "sha256": "a" * 64}
    assert model_files("m", declared) == [expected]
    assert model_on_disk("m", declared) == {"path": path, "sha256": "a" * 64}
    declared = source(*MLX, huggingface=None, catalog="qwen3-4b@4bit")
    assert list(source_problems(declared)) == []
    assert [file["path"] for file in model_files("m", declared)][-1] == "lmfleet/m/config.json"
    assert {file["catalog"] for file in model_files("m", declared)} == {"qwen3-4b@4bit"}


def test_the_checksum_of_several_files_tells_each_change_and_no_order():
    one = model_on_disk("m", source(*PARTS))["sha256"]
    assert one == model_on_disk("m", source(*reversed(PARTS)))["sha256"]
    changed = source(*PARTS)
    changed["files"][1]["sha256"] = "0" * 64
    assert one != model_on_disk("m", changed)["sha256"]
    assert one != model_on_disk("m", source(*PARTS, "mmproj.gguf"))["sha256"]


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (source(PARTS[0], PARTS[2]), "lacks part 2 of 3 of big"),
        (source("a.gguf", "b.gguf"), "several models: a.gguf, b.gguf"),
        (source(*PARTS, "other-00001-of-00001.gguf"), "several models"),
        (source("config.json"), "no weights"),
        (source("model.safetensors"), "no config.json"),
        (source("x/a.gguf", "y/A.gguf"), "2 files are named a.gguf"),
        (source("../a.gguf"), "'../a.gguf' must be the name of a file"),
        (source("/a.gguf"), "'/a.gguf' must be the name of a file"),
        (source("a.gguf", file="b.gguf", sha256="a" * 64), "remove source.file and source.sha256"),
        (source("a.gguf", huggingface=None, url="http://files/x?y"), "address of the folder"),
        ({**source(), "files": [{"file": "a.gguf", "sha256": "abc"}]}, "a.gguf: sha256 must be 64"),
        ({**EMPTY, "path": "own.gguf", "sha256": "a" * 64}, "absolute path of a file on the controller"),
        ({**EMPTY, "path": "/own.gguf?x", "sha256": "a" * 64}, "absolute path of a file on the controller"),
        ({**EMPTY, "path": "/own.gguf", "url": "http://files/a.gguf", "sha256": "a" * 64}, "and has url and path"),
        ({**EMPTY, "path": "/own.gguf"}, "source.sha256 is missing"),
        ({**EMPTY, "url": "http://files/a.gguf"}, "source.sha256 is missing"),
        (source(), "source.file is missing"),
        (
            {**EMPTY, "catalog": "Qwen/Qwen3-4B-GGUF", "file": "a.gguf", "sha256": "a" * 64},
            "not 'Qwen/Qwen3-4B-GGUF'. A repository of Hugging Face is a source.huggingface.",
        ),
        ({**EMPTY, "catalog": "qwen/qwen3", "sha256": "a" * 64}, "source.file is missing: name the file that lms get"),
        ({**EMPTY, "catalog": "qwen/qwen3", "file": "a.gguf"}, "source.sha256 is missing"),
        ({**EMPTY, "catalog": "a/b", "url": "http://files/a.gguf", "sha256": "a" * 64}, "and has url and catalog"),
    ],
)
def test_what_is_wrong_is_said(declared, said):
    assert any(said in problem for problem in source_problems(declared)), list(source_problems(declared))
