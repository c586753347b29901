# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a model on disk is: files, parts, folders, and what only looks like one."""

from __future__ import annotations

import json

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _gguf, _model_size

FIGURES = {"layers": 32, "kv_heads": 8, "key_length": 128, "value_length": 128}
CONFIG = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


@pytest.fixture
def heads(monkeypatch):
    """GGUF files whose head is sound, whatever they contain."""
    monkeypatch.setattr(_gguf, "figures", lambda _path: dict(FIGURES))


def files(folder, **sizes):
    for name, size in sizes.items():
        (folder / name.replace("__", "-").replace("_gguf", ".gguf")).write_bytes(b"x" * size)


def mlx(folder, config):
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 100)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"x" * 50)
    return _model_size.describe(str(folder))


def test_parts_of_a_split_model_count_together(tmp_path, heads):
    files(tmp_path, m__00001__of__00002_gguf=10, m__00002__of__00002_gguf=100)
    assert _model_size.describe(str(tmp_path / "m-00001-of-00002.gguf")) == {"size_bytes": 110, **FIGURES}


def test_a_part_that_is_not_there_makes_the_model_absent(tmp_path, heads):
    files(tmp_path, m__00001__of__00002_gguf=10)
    assert _model_size.describe(str(tmp_path / "m-00001-of-00002.gguf")) is None


def test_a_projector_counts_with_the_model_beside_it(tmp_path, heads):
    files(tmp_path, m_gguf=10, mmproj__m_gguf=5, other_gguf=1000)
    assert _model_size.describe(str(tmp_path / "m.gguf"))["size_bytes"] == 15


@pytest.mark.parametrize("name", ["none.gguf", "none/none.gguf", "none"])
def test_what_is_not_there(tmp_path, name):
    assert _model_size.describe(str(tmp_path / name)) is None


@pytest.mark.parametrize(
    "config",
    [CONFIG, {"text_config": CONFIG, "vision_config": {}}, {**CONFIG, "hidden_size": 1, "head_dim": 128}],
    ids=["text", "text and pictures", "a length of its own"],
)
def test_an_mlx_model_tells_in_its_config(tmp_path, config):
    assert mlx(tmp_path, config) == {"size_bytes": 150, **FIGURES}


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{", {}, {**CONFIG, "num_hidden_layers": "many"}, {**CONFIG, "num_attention_heads": 0}],
    ids=["empty", "a list", "cut short", "no figures", "words", "nothing"],
)
def test_a_config_that_does_not_tell_is_said(tmp_path, config):
    found = mlx(tmp_path, config)
    assert found["size_bytes"] == 150
    assert "config.json does not tell" in found["problem"]


def test_a_folder_without_weights_is_no_model_yet(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert _model_size.describe(str(tmp_path)) is None
