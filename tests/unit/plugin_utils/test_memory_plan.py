# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory plan as a pure function: sizes by the published figures, whose word counts, what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.filter.table import table
from ansible_collections.lmfleet.mac.plugins.plugin_utils import memory_plan

GIB = 1024
LLAMA_8B = {"layers": 32, "kv_heads": 8, "key_length": 128, "value_length": 128}
FILE = {"size_bytes": 4000 * 1024 * 1024, **LLAMA_8B}
MODEL = {"name": "llama", "identifier": "llama", "path": "p/llama/f.gguf", "sha256": "a", "load": {}, "draft": None}


def claim(load=None, declared=None, file=FILE, **found):
    model = {**MODEL, "load": load or {}}
    files = {MODEL["path"]: file} if file else {}
    (only,) = memory_plan.claims_of("chat", model, {"llama": declared or {}}, {"files": files, **found})
    return only


CACHES = {
    "32k at f16": ({"context_length": 32768}, 4.0),
    "32k at q8_0": ({"context_length": 32768, "k_cache_quantization": "q8_0", "v_cache_quantization": "q8_0"}, 2.125),
    "only K at q8_0": ({"context_length": 32768, "k_cache_quantization": "q8_0"}, 3.0625),
    "a shared context": ({"context_length": 32768, "parallel": 8}, 4.0),
    "a context for each": ({"context_length": 8192, "parallel": 4, "unified_kv_cache": False}, 4.0),
    "a context for each of as many as are default": ({"context_length": 8192, "unified_kv_cache": False}, 4.0),
    "MLX at 8 bits": ({"context_length": 32768, "mlx_kv_cache_bits": 8}, 2.125),
    "the default context": ({}, 0.25),
}


@pytest.mark.parametrize(("load", "gib"), CACHES.values(), ids=CACHES)
def test_the_kv_cache_of_llama_8b(load, gib):
    assert memory_plan.kv_cache_mb(LLAMA_8B, load) == gib * GIB


def test_a_copy_takes_weights_kv_cache_and_runtime():
    only = claim({"context_length": 32768})
    assert (only.weights_mb, only.kv_cache_mb, only.runtime_mb) == (4000, 4096, 1024)
    assert only.gpu_mb == only.total_mb == 9120
    assert only.sources == ("weights by file size", "KV cache by the head of the file")


@pytest.mark.parametrize(
    ("load", "gpu_mb"),
    [
        ({"context_length": 32768, "gpu": "off"}, 0),
        ({"context_length": 32768, "gpu": "0.5"}, 2000 + 4096 + 1024),
        ({"context_length": 32768, "offload_kv_cache_to_gpu": False}, 4000 + 1024),
    ],
    ids=["nothing", "half the layers", "no KV cache"],
)
def test_what_is_not_on_the_gpu_counts_in_all_only(load, gpu_mb):
    only = claim(load)
    assert (only.gpu_mb, only.total_mb) == (gpu_mb, 9120)


def test_declared_goes_before_the_file():
    declared = {"weights_mb": 100, "layers": 1, "kv_heads": 1, "head_dim": 256, "runtime_mb": 0}
    only = claim({"context_length": 1024}, declared)
    assert (only.weights_mb, only.kv_cache_mb, only.runtime_mb, only.total_mb) == (100, 1, 0, 101)
    assert only.sources == ("weights declared", "KV cache by what is declared")


def test_what_is_not_declared_is_filled_from_the_file():
    only = claim({"context_length": 32768}, {"weights_mb": 100})
    assert (only.weights_mb, only.kv_cache_mb) == (100, 4096)


def test_an_estimate_goes_before_what_is_declared_and_a_measured_value_before_all():
    estimates = {"chat/llama": {"gpu_mb": 500, "total_mb": 600}}
    only = claim(declared={"weights_mb": 1}, estimates=estimates)
    assert (only.gpu_mb, only.total_mb, only.sources) == (500, 600, ("all estimated by LM Studio",))
    measured = [{"sha256": "a", "load": {"parallel": 4}, "total_mb": 700}]
    only = claim(estimates=estimates, measured=measured)
    assert (only.gpu_mb, only.total_mb, only.sources) == (700, 700, ("all measured",))


@pytest.mark.parametrize(
    "record",
    [{"sha256": "b", "load": {}, "total_mb": 1}, {"sha256": "a", "load": {"context_length": 4096}, "total_mb": 1}],
    ids=["another file", "another context"],
)
def test_a_value_measured_for_something_else_does_not_count(record):
    assert claim(measured=[record]).total_mb > 1


def test_what_is_not_known_is_said_and_not_guessed():
    only = claim(file=None)
    assert (only.weights_mb, only.kv_cache_mb, only.total_mb) == (None, None, 1024)
    assert only.unknown == ("weights", "KV cache (its file is not there yet)")
    verdict = memory_plan.Verdict(memory_plan.room(65536, None, 0, 4096), (only,))
    (line,) = memory_plan.unknowns({"mac-1": verdict, "mac-2": verdict})
    assert line.startswith("memory: weights and KV cache (its file is not there yet) of llama not known")
    assert "mac-1, mac-2" in line
    assert memory_plan.rows(verdict)[1][2:6] == ["?", "?", "1024", "1024+"]


def test_models_of_which_the_same_is_unknown_share_a_line():
    def one(name):
        return memory_plan.Claim("a", name, f"{name}-2", None, None, 0, 0, 0, (), ("weights",))

    room = memory_plan.room(65536, None, 0, 4096)
    everywhere = {host: memory_plan.Verdict(room, (one("b"), one("c"))) for host in ("mac-1", "mac-2")}
    everywhere["mac-3"] = memory_plan.Verdict(room, (one("d"),))
    lines = memory_plan.unknowns(everywhere)
    assert [line.partition(". ")[0] for line in lines] == [
        "memory: weights of b, c not known and not counted on mac-1, mac-2",
        "memory: weights of d not known and not counted on mac-3",
    ]


def test_a_file_whose_head_does_not_tell_is_named_with_the_reason():
    only = claim(file={"size_bytes": 1024 * 1024, "problem": "it is not a GGUF file"})
    assert (only.weights_mb, only.unknown) == (1, ("KV cache (it is not a GGUF file)",))


def test_the_model_that_drafts_claims_its_own():
    small = {"name": "small", "path": "p/small/f.gguf", "sha256": "b"}
    model = {**MODEL, "load": {"context_length": 32768}, "draft": small}
    files = {MODEL["path"]: FILE, small["path"]: {"size_bytes": 1024 * 1024 * 300, **LLAMA_8B, "layers": 8}}
    claims = memory_plan.claims_of("chat", model, {}, {"files": files})
    assert [one.identifier for one in claims] == ["llama", "small (drafts for llama)"]
    assert claims[1].total_mb == 300 + 1024


ROOMS = {
    "declared": ((65536, 57344, 40000, 4096), (57344, 61440)),
    "set on the Mac": ((65536, None, 40000, 4096), (40000, 61440)),
    "a large Mac": ((65536, None, 0, 4096), (49152, 61440)),
    "a small Mac": ((16384, None, 0, 4096), (10922, 12288)),
}


@pytest.mark.parametrize(("given", "expected"), ROOMS.values(), ids=ROOMS)
def test_the_room_of_a_mac(given, expected):
    assert memory_plan.room(*given)[:2] == expected


@pytest.mark.parametrize(
    ("gpu_mb", "total_mb", "fits"), [(100, 200, True), (101, 101, False), (0, 201, False)], ids=["just", "GPU", "all"]
)
def test_both_bounds_hold(gpu_mb, total_mb, fits):
    one = memory_plan.Claim("a", "m", "m", 0, 0, 0, gpu_mb, total_mb, (), ())
    verdict = memory_plan.Verdict(memory_plan.Room(100, 200, "x"), (one,))
    assert verdict.fits is fits


def test_copies_add_up():
    one = claim({"context_length": 32768})
    verdict = memory_plan.Verdict(memory_plan.room(16384, None, 0, 4096), (one, one))
    assert not verdict.fits
    text = memory_plan.summary("mac-1", verdict)
    assert text.startswith("mac-1: 18240 MB of GPU memory for models, and it has 10922 MB (2/3 of 16384 MB")
    assert text.endswith("18240 MB of memory in all, and 12288 MB are for models")


def test_the_example_of_the_guide_is_what_comes_out():
    guide = (Path(__file__).resolve().parents[3] / "docs" / "memory.md").read_text()
    load = {"context_length": 32768, "parallel": 4, "flash_attention": True}
    declared = {"llama-3.1-8b-instruct": {"weights_mb": 4693, "layers": 32, "kv_heads": 8, "head_dim": 128}}
    copies = [
        {**MODEL, "name": "llama-3.1-8b-instruct", "identifier": f"llama-3.1-8b-instruct{suffix}", "load": load}
        for suffix in ("", "-2")
    ]
    claims = [one for copy in copies for one in memory_plan.claims_of("chat-a", copy, declared, {})]
    verdict = memory_plan.Verdict(memory_plan.room(16384, None, 0, 4096), tuple(claims))
    assert f"```\n{memory_plan.summary('mac-1', verdict)}\n{table(memory_plan.rows(verdict))}\n```" in guide
    quantised = {"k_cache_quantization": "q8_0", "v_cache_quantization": "q8_0"}
    small = [
        one
        for copy in copies
        for one in memory_plan.claims_of(
            "chat-a", {**copy, "load": {**load, **quantised, "context_length": 16384}}, declared, {}
        )
    ]
    assert f"(4693 + {small[0].kv_cache_mb} + 1024) = {sum(one.total_mb for one in small)} MB" in guide
    assert f"`q8_0` ({memory_plan.kv_cache_mb(LLAMA_8B, {**load, **quantised})} MB)" in guide
