# SPDX-License-Identifier: GPL-3.0-or-later
"""The load settings: one list of them everywhere, what is refused, what is doubted, what they come to on a Mac."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_schema, load_settings
from ansible_collections.lmfleet.mac.plugins.plugin_utils.load_settings import GGUF, MLX, SETTINGS, merged, problems

REPOSITORY = Path(__file__).resolve().parents[3]
DOCUMENTED = fleet_schema.shared_options()["lmfleet_models"]["suboptions"]["NAME"]["suboptions"]["load"]["suboptions"]
KEYS = yaml.safe_load((REPOSITORY / "roles/lmstudio_instances/vars/main.yml").read_text())[
    "__lmstudio_instances_tuning_keys"
]


def guide() -> dict[str, list[str]]:
    """Return the rows of the table in docs/tuning.md by setting, without the marks of code."""
    lines = (REPOSITORY / "docs/tuning.md").read_text().splitlines()
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `"))
    return {cells[0].strip("`"): [cell.replace("`", "") for cell in cells[1:]] for cells in rows}


def test_the_same_settings_everywhere():
    assert set(SETTINGS) == set(DOCUMENTED) == set(KEYS["llm"]) == set(guide())
    assert {name for name, setting in SETTINGS.items() if setting.embedding} == set(KEYS["embedding"])


@pytest.mark.parametrize("name", SETTINGS)
def test_the_format_of_a_setting_is_that_of_its_key(name):
    engine = re.match(r"llm\.load\.(llama|mlx)\.", KEYS["llm"][name])
    assert SETTINGS[name].format == ({"llama": GGUF, "mlx": MLX}[engine[1]] if engine else None)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_guide_says_what_is_checked(name):
    setting, option = SETTINGS[name], DOCUMENTED[name]
    values, unit, default, works_with, _advice = guide()[name]
    assert unit == setting.unit
    assert default == (
        "" if setting.default is None else str(setting.default).replace("True", "true").replace("F", "f")
    )
    formats = [setting.format.upper()] if setting.format else ["GGUF", "MLX"]
    assert works_with.split(", ") == [*formats, *(["embedding"] if setting.embedding else [])]
    if "choices" in option:
        assert values.split(", ") == [str(choice) for choice in option["choices"]]
    if option["type"] == "bool":
        assert values == "true, false"
    if setting.most is not None:
        assert values == f"{setting.least} to {setting.most}"
    elif setting.least is not None:
        assert values == f"at least {setting.least}"


def test_later_layers_win_and_what_is_not_set_is_left_out():
    assert merged({"parallel": 4, "gpu": None}, {"parallel": 2}, None) == {"parallel": 2}


def test_an_off_without_quotes_is_an_off():
    option = {"type": "dict", "suboptions": DOCUMENTED}
    load, found = fleet_schema.validate(yaml.safe_load("{gpu: off, k_cache_quantization: off}"), option, "load")
    assert found == []
    assert merged(load) == {"gpu": "off", "k_cache_quantization": "off"}


def test_a_drafting_model_is_used_where_nothing_else_is_said():
    assert merged({"draft_model": "small"})["draft_simple"] is True
    assert merged({"draft_model": "small"}, {"draft_simple": False})["draft_simple"] is False
    assert "draft_simple" not in merged({"draft_model": "small"}, {"draft_mtp": True})


REFUSED = {
    "no slots": (GGUF, {"parallel": 0}, ["parallel", "from 1 to 1023", "0"]),
    "too many slots": (GGUF, {"parallel": 1024}, ["parallel", "from 1 to 1023", "1024"]),
    "no context": (GGUF, {"context_length": 0}, ["context_length", "at least 1"]),
    "a share beyond the whole": (GGUF, {"gpu": "1.5"}, ["gpu", "max, off or a number from 0 to 1", "1.5"]),
    "a share that is no number": (GGUF, {"gpu": "full"}, ["gpu", "'full'"]),
    "no threads": (GGUF, {"cpu_threads": "0"}, ["cpu_threads", "performance_cores, efficiency_cores, all_cores"]),
    "unknown cores": (GGUF, {"cpu_threads": "fast_cores"}, ["cpu_threads", "'fast_cores'"]),
    "a quantised V cache alone": (GGUF, {"v_cache_quantization": "q8_0"}, ["flash_attention: true"]),
    "small batches": (GGUF, {"eval_batch_size": 128, "physical_batch_size": 256}, ["physical_batch_size"]),
    "an MLX setting for llama.cpp": (GGUF, {"mlx_kv_cache_bits": 8}, ["mlx_kv_cache_bits", "MLX", "llama.cpp"]),
    "a llama.cpp setting for MLX": (MLX, {"flash_attention": True}, ["flash_attention", "llama.cpp", "MLX"]),
    "groups of nothing": (MLX, {"mlx_kv_cache_group_size": 64}, ["mlx_kv_cache_group_size", "mlx_kv_cache_bits"]),
    "drafts by two": (
        GGUF,
        {"draft_mtp": True, "draft_simple": True, "draft_model": "small"},
        ["draft_mtp", "draft_simple", "both"],
    ),
    "drafts by nobody": (GGUF, {"draft_simple": True}, ["draft_simple", "draft_model"]),
    "tokens of no draft": (GGUF, {"draft_max_tokens": 4}, ["draft_max_tokens", "no effect"]),
    "more at least than at most": (
        GGUF,
        {"draft_mtp": True, "draft_min_tokens": 17},
        ["draft_min_tokens 17", "draft_max_tokens"],
    ),
    "more than certain": (
        GGUF,
        {"draft_mtp": True, "draft_min_continue_probability": 1.5},
        ["draft_min_continue_probability", "from 0 to 1", "1.5"],
    ),
}


@pytest.mark.parametrize(("model_format", "load", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_by_name(model_format, load, words):
    found = list(problems("llm", model_format, load))
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found


ACCEPTED = {
    "everything for llama.cpp": (
        "llm",
        GGUF,
        {
            "context_length": 1,
            "parallel": 1023,
            "unified_kv_cache": False,
            "gpu": "0.5",
            "offload_kv_cache_to_gpu": False,
            "flash_attention": True,
            "k_cache_quantization": "q4_0",
            "v_cache_quantization": "q8_0",
            "cpu_threads": "all_cores",
            "eval_batch_size": 512,
            "physical_batch_size": 512,
            "auto_fit": False,
            "keep_model_in_memory": False,
            "mmap": False,
            "num_experts": 2,
            "draft_simple": True,
            "draft_model": "small",
            "draft_max_tokens": 8,
            "draft_min_tokens": 8,
            "draft_min_continue_probability": 0.0,
        },
    ),
    "everything for MLX": (
        "llm",
        MLX,
        {
            "parallel": 2,
            "mlx_kv_cache_bits": 4,
            "mlx_kv_cache_group_size": 32,
            "mlx_kv_cache_quantized_start": 0,
            "num_experts": 1,
        },
    ),
    "a V cache that is off": ("llm", GGUF, {"v_cache_quantization": "off"}),
    "an embedding": ("embedding", GGUF, {"context_length": 512, "eval_batch_size": 512, "gpu": "max"}),
    "a file that does not tell its format": ("llm", None, {"flash_attention": True, "mlx_kv_cache_bits": 8}),
}


@pytest.mark.parametrize(("kind", "model_format", "load"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_works_is_accepted(kind, model_format, load):
    assert list(problems(kind, model_format, load)) == []


def test_an_embedding_has_few_settings():
    (found,) = problems("embedding", GGUF, {"parallel": 2})
    assert "load.parallel cannot be set for a model of type embedding" in found
    assert "context_length, gpu, eval_batch_size" in found


@pytest.mark.parametrize(
    ("load", "doubted"),
    [
        ({"draft_mtp": True}, True),
        ({"draft_mtp": True, "parallel": 2}, True),
        ({"draft_mtp": True, "parallel": 1}, False),
        ({"draft_simple": False, "draft_model": "small", "parallel": 2}, False),
    ],
    ids=["default slots", "two slots", "one slot", "drafts turned off"],
)
def test_drafting_for_many_is_doubted(load, doubted):
    assert bool(list(load_settings.doubts(GGUF, load, {}))) is doubted


MLX_RUNTIME = "mlx-llm-mac-arm64-apple-metal-advsimd"


@pytest.mark.parametrize(
    ("model_format", "load", "runtimes", "doubted"),
    [
        (MLX, {"parallel": 2}, {MLX_RUNTIME: "1.6.0"}, True),
        (MLX, {"parallel": 2}, {MLX_RUNTIME: "1.8.5"}, False),
        (MLX, {"parallel": 2}, {MLX_RUNTIME: "1.11.0"}, False),
        (MLX, {"parallel": 1}, {MLX_RUNTIME: "1.6.0"}, False),
        (MLX, {"parallel": 2}, {"llama.cpp-mac-arm64-apple-metal-advsimd": "1.6.0"}, False),
        (MLX, {"parallel": 2}, {}, False),
        (GGUF, {"parallel": 2}, {MLX_RUNTIME: "1.6.0"}, False),
    ],
    ids=["old", "the first", "new", "one request", "another runtime", "not declared", "GGUF"],
)
def test_parallel_requests_on_an_old_mlx_runtime_are_doubted(model_format, load, runtimes, doubted):
    found = list(load_settings.doubts(model_format, load, runtimes))
    assert bool(found) is doubted
    assert all(f"{MLX_RUNTIME} 1.6.0" in line and "1.8.5" in line for line in found)


@pytest.mark.parametrize(
    ("wanted", "threads"), [("performance_cores", 8), ("efficiency_cores", 4), ("all_cores", 12), ("6", 6), (3, 3)]
)
def test_threads_come_from_the_cores_of_the_mac(wanted, threads):
    assert load_settings.resolved({"cpu_threads": wanted}, 8, 4) == {"cpu_threads": threads}


def test_cores_that_the_mac_does_not_tell_of_are_an_error():
    with pytest.raises(ValueError, match="performance_cores"):
        load_settings.resolved({"cpu_threads": "performance_cores"}, 0, 0)


@pytest.mark.parametrize(("given", "taken"), [("0.5", 0.5), ("max", "max"), ("off", "off"), ("1", 1.0)])
def test_a_share_becomes_a_number(given, taken):
    assert load_settings.resolved({"gpu": given}, 8, 4) == {"gpu": taken}
