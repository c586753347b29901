# SPDX-License-Identifier: GPL-3.0-or-later
"""What the templates of the role lmstudio_instances make of the load settings."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "lmstudio_instances"


def test_every_setting_arrives_in_the_tuning_file_with_its_type(controller, inventory, tmp_path):
    variables = inventory["all"]["vars"]
    small = {"source": {"url": "http://files/small.gguf", "sha256": "b" * 64}}
    load = {
        "context_length": 4096,
        "parallel": 1,
        "unified_kv_cache": False,
        "gpu": 0.5,
        "offload_kv_cache_to_gpu": True,
        "flash_attention": True,
        "k_cache_quantization": False,
        "v_cache_quantization": "q8_0",
        "cpu_threads": "all_cores",
        "num_experts": 2,
        "draft_model": "small",
        "draft_min_continue_probability": 0.5,
    }
    mlx = {"mlx_kv_cache_bits": 4, "mlx_kv_cache_group_size": 32, "context_length": 8192}
    variables["lmfleet_models"].update(
        small=small,
        tuned={"source": {"url": "http://files/tuned.gguf", "sha256": "c" * 64}, "load": load},
        mlx={"source": {"url": "http://files/model.safetensors", "sha256": "d" * 64}, "load": mlx},
    )
    variables["lmfleet_instances"][0]["models"] = [{"name": "tuned"}, {"name": "mlx"}]
    tuning, declaration = rendered(controller, inventory, tmp_path)
    assert tuning[0] == {
        "llm.load.contextLength": 4096,
        "llm.load.llama.acceleration.offloadRatio": 0.5,
        "llm.load.llama.cpuThreadPoolSize": 12,
        "llm.load.llama.flashAttention": True,
        "llm.load.llama.kCacheQuantizationType": {"checked": False, "value": "f16"},
        "llm.load.llama.vCacheQuantizationType": {"checked": True, "value": "q8_0"},
        "llm.load.llama.speculativeDecoding.draftMinContinueProbability": 0.5,
        "llm.load.llama.speculativeDecoding.draftModel": "lmfleet/small/small.gguf",
        "llm.load.llama.speculativeDecoding.draftSimple": True,
        "llm.load.numExperts": 2,
        "llm.load.numParallelSessions": 1,
        "llm.load.offloadKVCacheToGpu": True,
        "llm.load.useUnifiedKvCache": False,
    }
    assert tuning[1] == {
        "llm.load.contextLength": 8192,
        "llm.load.mlx.kvCacheQuantization": {"enabled": True, "bits": 4, "groupSize": 32, "quantizedStart": 5000},
    }
    assert declaration["models"][0]["load"] == {
        **load,
        "k_cache_quantization": "off",
        "cpu_threads": 12,
        "draft_simple": True,
    }
    assert isinstance(declaration["models"][0]["load"]["cpu_threads"], int)


def test_a_model_that_is_loaded_and_does_not_answer_is_not_waited_for_as_one_that_loads():
    tasks = yaml.safe_load((ROLE / "tasks/main.yml").read_text())
    probe = next(task["lmfleet.mac.lmstudio_health"] for task in tasks if "lmfleet.mac.lmstudio_health" in task)
    assert probe["timeout"] == "{{ lmstudio_instances_probe_timeout }}"
    assert yaml.safe_load((ROLE / "defaults/main.yml").read_text())["lmstudio_instances_probe_timeout"] == 60


def rendered(controller, inventory, folder):
    """Return the fields of the tuning files and the declaration of the first instance, as the role renders them."""
    values = {
        "lmstudio_instances_declared": "{{ fleet.hosts['mac-1'].instances }}",
        "lmstudio_instances_performance_cores": 8,
        "lmstudio_instances_efficiency_cores": 4,
        "lmstudio_instances_root": "/r",
        "lmstudio_instances_llmster": "/l",
        "lmstudio_instances_lms": "/s",
        "lmstudio_instances_tuning_template": str(ROLE / "templates/tuning.json.j2"),
        "lmstudio_instances_declaration_template": str(ROLE / "templates/instance.json.j2"),
    }
    files = [ROLE / "defaults/main.yml", ROLE / "vars/main.yml"]
    variables = [{"ansible.builtin.include_vars": str(file)} for file in files]
    write = {
        "ansible.builtin.copy": {
            "content": "{{ {'tuning': query('lmfleet.mac.rendered', __lmstudio_instances_tunings, item_name='model', "
            "templates={'content': lmstudio_instances_tuning_template}), 'declaration': "
            "query('lmfleet.mac.rendered', __lmstudio_instances_resolved, item_name='instance', "
            "templates={'content': lmstudio_instances_declaration_template})} | to_json }}",
            "dest": str(folder / "rendered.json"),
        },
        "delegate_to": "localhost",
        "run_once": True,
    }
    plan = {"lmfleet.mac.fleet_plan": None, "run_once": True, "register": "fleet"}
    settings = {"ansible.builtin.set_fact": values, "run_once": True}
    run = controller(inventory, [plan, *variables, settings, write])
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0, output
    texts = json.loads((folder / "rendered.json").read_text())
    tuning = [
        {field["key"]: field["value"] for field in json.loads(text["content"])["load"]["fields"]}
        for text in texts["tuning"]
    ]
    return tuning, json.loads(texts["declaration"][0]["content"])
