# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet plan as a pure function: what it makes of a sound inventory, and what it says of each mistake."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils.fleet_plan import Host, plan_fleet
from ansible_collections.lmfleet.mac.plugins.plugin_utils.fleet_schema import shared_options, validate

SHA = "a" * 64
MODELS = {
    "chat": {
        "source": {"url": "http://files/chat.gguf", "sha256": SHA},
        "load": {"context_length": 4096, "parallel": 4},
    },
    "embed": {
        "source": {"huggingface": "nomic-ai/embed-GGUF", "file": "q8/embed.gguf", "sha256": SHA.upper()},
        "type": "embedding",
    },
}


def host(name="mac-1", instances=None, models=None, ansible_host=None, **other):
    variables = {key: value for key, value in other.items() if key.startswith("lmfleet_")}
    known = {key: value for key, value in other.items() if not key.startswith("lmfleet_")}
    declared = {
        "lmfleet_models": MODELS if models is None else models,
        "lmfleet_instances": instances or [],
        **variables,
    }
    checked = {}
    for variable, option in shared_options().items():
        value = declared.get(variable, option.get("default"))
        checked[variable], problems = (None, []) if value is None else validate(value, option, variable)
        assert problems == []
    return Host(name, checked, ansible_host, **known)


def instance(name="chat-a", port=1234, models=({"name": "chat"},)):
    return {"name": name, "port": port, "models": list(models)}


def plan(*hosts, macs=None, gateways=("mac-1",)):
    return plan_fleet(
        {host.name: host for host in hosts}, macs if macs is not None else [host.name for host in hosts], list(gateways)
    )


def only_problem(outcome):
    assert len(outcome.problems) == 1, outcome.problems
    return outcome.problems[0]


def test_a_sound_fleet_has_instances_models_and_deployments():
    outcome = plan(
        host(
            instances=[
                instance(models=[{"name": "chat", "copies": 2, "load": {"parallel": 2}}]),
                instance("embed", 1235, [{"name": "embed"}]),
            ]
        )
    )
    assert outcome.problems == []
    planned = outcome.hosts["mac-1"]
    assert [model["name"] for model in planned["models"]] == ["chat", "embed"]
    assert planned["models"][1] == {
        "name": "embed",
        "path": "nomic-ai/embed/embed.gguf",
        "url": "https://huggingface.co/nomic-ai/embed-GGUF/resolve/main/q8/embed.gguf",
        "sha256": SHA,
    }
    assert planned["instances"][0]["models"][1] == {
        "name": "chat",
        "identifier": "chat-2",
        "deployment_id": "mac-1-chat-a-chat-2",
        "type": "llm",
        "load": {"context_length": 4096, "parallel": 2},
        "weight": None,
        "order": None,
        "path": "lmfleet/chat/chat.gguf",
        "sha256": SHA,
        "draft": None,
    }
    assert [deployment["id"] for deployment in outcome.deployments] == [
        "mac-1-chat-a-chat",
        "mac-1-chat-a-chat-2",
        "mac-1-embed-embed",
    ]
    assert outcome.deployments[2]["mode"] == "embedding"


def test_a_mac_that_is_the_only_gateway_is_served_over_loopback():
    planned = plan(host(instances=[instance()], ansible_host="mac-1.local")).hosts["mac-1"]["instances"][0]
    assert (planned["address"], planned["api_base"]) == ("127.0.0.1", "http://127.0.0.1:1234/v1")


def test_other_macs_listen_on_the_address_that_gateways_use():
    outcome = plan(
        host(instances=[instance()], ansible_host="10.0.0.1"), host("mac-2", [instance()], ansible_host="10.0.0.2")
    )
    assert outcome.problems == []
    assert outcome.hosts["mac-2"]["instances"][0]["api_base"] == "http://10.0.0.2:1234/v1"


def test_a_server_that_listens_everywhere_is_reached_by_address_and_asked_at_loopback():
    first = host(instances=[instance()], ansible_host="10.0.0.1")
    second = host("mac-2", [instance()], ansible_host="mac-2.local", lmfleet_bind_address="0.0.0.0")
    planned = plan(first, second).hosts["mac-2"]["instances"][0]
    assert planned["api_base"] == "http://mac-2.local:1234/v1"
    assert planned["url"] == "http://127.0.0.1:1234"


def test_a_gateway_that_is_no_mac_of_the_group_needs_no_instances():
    outcome = plan(
        host(instances=[instance()], ansible_host="10.0.0.1"), host("front"), macs=["mac-1"], gateways=["front"]
    )
    assert outcome.problems == []
    assert outcome.hosts["front"]["instances"] == []


MISTAKES = {
    "two instances on one port": (
        [instance(), instance("chat-b")],
        ["port 1234 is used by instance chat-a and instance chat-b"],
    ),
    "six instances": ([instance(f"i{n}", 1234 + n) for n in range(6)], ["6 instances", "at most 5"]),
    "unknown model": ([instance(models=[{"name": "chta"}])], ["unknown model 'chta'", "chat, embed"]),
    "one name twice": ([instance(), instance(port=1235)], ["2 instances are named chat-a"]),
    "a bad name": ([instance("Chat A")], ["lower-case letters"]),
    "a control port": ([instance(port=41343)], ["41343", "control ports"]),
    "a low port": ([instance(port=80)], ["from 1024 to 65535"]),
    "no model": ([instance(models=[])], ["serves no model"]),
    "a model twice": ([instance(models=[{"name": "chat"}, {"name": "chat"}])], ["copies: 2"]),
    "no copies": ([instance(models=[{"name": "chat", "copies": 0}])], ["copies must be from 1 to 16"]),
    "a load that cannot be": (
        [instance(models=[{"name": "chat", "load": {"parallel": 2000}}])],
        ["parallel must be from 1 to 1023"],
    ),
    "an embedding with slots": (
        [instance(models=[{"name": "embed", "load": {"parallel": 2}}])],
        ["parallel cannot be set", "embedding"],
    ),
    "no instance": ([], ["at least one instance"]),
}


@pytest.mark.parametrize(("instances", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_instances_is_named_with_its_host(instances, words):
    problems = plan(host(instances=instances)).problems
    assert any(all(word in problem for word in ["mac-1", *words]) for problem in problems), problems


SOURCE = MODELS["chat"]["source"]
MODEL_MISTAKES = {
    "no source": ({"source": {"sha256": SHA}}, ["exactly one", "has none"]),
    "two sources": ({"source": {**SOURCE, "huggingface": "a/b", "file": "c"}}, ["exactly one", "huggingface and url"]),
    "a repository without file": ({"source": {"huggingface": "a/b", "sha256": SHA}}, ["source.file is missing"]),
    "a bad repository": ({"source": {"huggingface": "a", "file": "c", "sha256": SHA}}, ["publisher/repository"]),
    "a bad address": ({"source": {"url": "ftp://files/x", "sha256": SHA}}, ["http or https"]),
    "a bad checksum": ({"source": {**SOURCE, "sha256": "abc"}}, ["64 hexadecimal digits", "abc"]),
    "quantised V without flash attention": (
        {"source": SOURCE, "load": {"v_cache_quantization": "q8_0"}},
        ["flash_attention"],
    ),
    "a share beyond the whole": ({"source": SOURCE, "load": {"gpu": "2"}}, ["load.gpu"]),
    "no threads": ({"source": SOURCE, "load": {"cpu_threads": "0"}}, ["cpu_threads"]),
    "no context": ({"source": SOURCE, "load": {"context_length": 0}}, ["context_length must be at least 1"]),
    "MLX settings for a GGUF file": ({"source": SOURCE, "load": {"mlx_kv_cache_bits": 8}}, ["mlx_kv_cache_bits"]),
    "GGUF settings for MLX weights": (
        {"source": {"url": "http://files/model.safetensors", "sha256": SHA}, "load": {"flash_attention": True}},
        ["load.flash_attention", "runs on MLX"],
    ),
    "no weights": ({"source": SOURCE, "memory": {"weights_mb": 0}}, ["memory.weights_mb must be at least 1, not 0"]),
    "half of what tells the KV cache": (
        {"source": SOURCE, "memory": {"layers": 32, "head_dim": 128}},
        ["layers, kv_heads, head_dim belong together", "kv_heads is missing"],
    ),
    "an unknown drafting model": (
        {"source": SOURCE, "load": {"draft_model": "small"}},
        ["load.draft_model 'small' is not a model of lmfleet_models", "chat, embed"],
    ),
    "a model that drafts for itself": ({"source": SOURCE, "load": {"draft_model": "bad"}}, ["another, smaller model"]),
    "an embedding that drafts": ({"source": SOURCE, "load": {"draft_model": "embed"}}, ["of type embedding"]),
}


@pytest.mark.parametrize(("model", "words"), MODEL_MISTAKES.values(), ids=MODEL_MISTAKES)
def test_a_mistake_in_the_catalogue_is_named_with_its_model(model, words):
    problem = only_problem(plan(host(instances=[instance()], models={**MODELS, "bad": model})))
    assert all(word in problem for word in ["lmfleet_models.bad", *words]), problem


@pytest.mark.parametrize("twin", ["Chat", "chat-GGUF"])
def test_names_that_lm_studio_cannot_tell_apart_are_refused(twin):
    outcome = plan(host(instances=[instance()], models={**MODELS, twin: MODELS["chat"]}))
    assert f"lmfleet_models.{twin}: has a twin" in outcome.problems[1]


def test_a_catalogue_that_differs_between_hosts_is_refused():
    outcome = plan(
        host(instances=[instance()], ansible_host="10.0.0.1"),
        host("mac-2", [instance()], models={"chat": MODELS["chat"]}, ansible_host="10.0.0.2"),
    )
    assert "mac-2: lmfleet_models differs from that of mac-1" in only_problem(outcome)


def test_several_gateways_need_one_key_that_somebody_has_chosen():
    serving = host(instances=[instance()], lmfleet_bind_address="10.0.0.1", ansible_host="10.0.0.1")
    front, back = host("front", has_master_key=True), host("back")
    problem = only_problem(plan(serving, front, back, macs=["mac-1"], gateways=["front", "back"]))
    assert problem.startswith("back: litellm_master_key: is not set")
    back.has_master_key = True
    assert plan(serving, front, back, macs=["mac-1"], gateways=["front", "back"]).problems == []
    assert plan(serving, host("alone"), macs=["mac-1"], gateways=["alone"]).problems == []


def test_the_gateway_port_counts_as_taken():
    assert "the gateway (litellm_port)" in only_problem(
        plan(host(instances=[instance(port=4000)], gateway={"port": 4000, "address": "127.0.0.1", "domain": "system"}))
    )


def test_a_wrong_port_of_a_gateway_is_named_with_its_variable_also_without_instances():
    serving = host(instances=[instance()], ansible_host="10.0.0.1")

    def problems(port):
        gateway = {"port": port, "address": "0.0.0.0", "domain": "system"}
        front = host(
            "front", [instance(port=port)], gateway=gateway, tls=TLS
        )  # of no Mac, so there is no such instance
        return plan(serving, front, macs=["mac-1"], gateways=["front"]).problems

    assert problems(80) == ["front: litellm_port: port 80 of the gateway (litellm_port) must be from 1024 to 65535."]
    assert problems(443)[0].startswith(
        "front: litellm_port: port 443 is used by the gateway (litellm_port) and the gate"
    )
    assert problems(41343) == [], "without LM Studio its control ports are free"


def test_empty_groups_are_refused():
    assert "gateways is empty" in only_problem(plan(host(instances=[instance()], ansible_host="10.0.0.1"), gateways=[]))
    assert "macs is empty" in only_problem(plan(host(), macs=[]))


def test_a_name_to_bind_to_is_refused_with_the_cure():
    outcome = plan(
        host(instances=[instance()], ansible_host="10.0.0.1"), host("mac-2", [instance()], ansible_host="mac-2.local")
    )
    assert "mac-2: lmfleet_bind_address" in only_problem(outcome)


def test_loopback_is_refused_when_another_host_is_the_gateway():
    outcome = plan(
        host(instances=[instance()], ansible_host="10.0.0.1"),
        host("mac-2", [instance()], lmfleet_bind_address="127.0.0.1", ansible_host="10.0.0.2"),
    )
    assert "cannot be reached by the gateways mac-1" in only_problem(outcome)


def test_the_runtimes_of_an_instance_are_handed_on_and_a_version_is_text():
    runtimes = {"llama.cpp-mac-arm64-apple-metal-advsimd": "2.27.1"}
    sound = plan(host(instances=[{**instance(), "runtimes": runtimes}, instance("chat-b", 1235)]))
    assert [one["runtimes"] for one in sound.hosts["mac-1"]["instances"]] == [runtimes, {}]
    for version in (2.3, "", "mlx@1"):
        problem = only_problem(plan(host(instances=[{**instance(), "runtimes": {"engine": version}}])))
        assert "mac-1: lmfleet_instances (chat-a): runtimes: the version of engine must be text in quotes" in problem


def test_tokens_are_of_instances_and_not_in_the_plan():
    outcome = plan(host(instances=[instance()], lmfleet_api_tokens={"chat-a": "sk-lm-0123"}))
    assert (outcome.problems, outcome.token_hosts) == ([], ["mac-1"])
    assert "sk-lm-0123" not in str(outcome)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"chat-b": "sk-lm-0123"}, ["lmfleet_api_tokens (chat-b)", "no such instance", "chat-a"]),
        ({"chat-a": "with a blank"}, ["lmfleet_api_tokens (chat-a)", "at least 8"]),
        ({"chat-a": "short"}, ["at least 8"]),
        ({"chat-a": ["sk-lm-0123"]}, ["at least 8"]),
        ({"chat-a": None}, ["at least 8"]),
    ],
)
def test_a_wrong_token_is_named_and_not_shown(tokens, words):
    problem = only_problem(plan(host(instances=[instance()], lmfleet_api_tokens=tokens)))
    assert all(word in problem for word in ["mac-1", *words])
    assert not any(str(token) in problem for token in tokens.values() if token)


def test_a_second_copy_that_takes_another_models_name_is_refused():
    outcome = plan(
        host(
            instances=[instance(models=[{"name": "chat", "copies": 2}, {"name": "chat-2"}])],
            models={**MODELS, "chat-2": MODELS["chat"]},
        ),
    )
    assert any("two models as chat-2" in problem for problem in outcome.problems)


def test_one_deployment_id_for_two_deployments_is_refused():
    first = host("a", [instance("b-c")], ansible_host="10.0.0.1")
    second = host("a-b", [instance("c")], ansible_host="10.0.0.2")
    assert "deployment id a-b-c-chat would be used 2 times" in only_problem(plan(first, second, gateways=["a"]))


def test_every_problem_is_told_at_once():
    outcome = plan(host(instances=[instance(models=[{"name": "nope"}]), instance("chat-b")]), gateways=[])
    assert len(outcome.problems) >= 3


def test_the_ports_of_a_host_are_listed_with_their_jobs():
    gateway = {"port": 4000, "address": "127.0.0.1", "domain": "system"}
    planned = plan(host(instances=[instance()], gateway=gateway)).hosts["mac-1"]
    assert planned["domains"] == ["gui", "system"]
    assert planned["ports"] == [
        {
            "port": 1234,
            "address": "127.0.0.1",
            "label": "lmfleet.instance.chat-a",
            "domain": "gui",
            "use": "instance chat-a",
            "status": "~/.lmfleet/instances/chat-a/status.json",
        },
        {
            "port": 4000,
            "address": "127.0.0.1",
            "label": "lmfleet.gateway",
            "domain": "system",
            "use": "the gateway",
        },
    ]


GUARD = {"port": 9405, "address": "127.0.0.1", "domain": "system"}


def test_with_a_guard_every_instance_publishes_its_status_where_gateways_reach_it():
    gateway = host(instances=[instance()], ansible_host="10.0.0.1", guard=GUARD)
    other = {**instance(port=1240), "status_port": 3000}
    outcome = plan(gateway, host("mac-2", [other], ansible_host="10.0.0.2"), host("gw-2"), gateways=("mac-1", "gw-2"))
    assert [planned["guard"] for planned in outcome.hosts.values()] == [True, False, False]
    found = {entry["host"]: entry["status_url"] for entry in outcome.deployments}
    assert found == {"mac-1": "http://10.0.0.1:2234/status", "mac-2": "http://10.0.0.2:3000/status"}
    assert outcome.hosts["mac-2"]["instances"][0]["status_port"] == 3000
    ports = outcome.hosts["mac-1"]["ports"]
    assert [(port["port"], port["label"]) for port in ports] == [
        (1234, "lmfleet.instance.chat-a"),
        (2234, "lmfleet.instance.chat-a"),
        (9405, "lmfleet.queue_guard"),
    ]
    assert ports[1]["use"] == "the status of instance chat-a" and ports[1]["status"] == ports[0]["status"]


TLS = {"port": 443, "address": "0.0.0.0", "domain": "system", "warning": "it ends soon"}


def test_the_server_with_tls_has_a_port_too():
    outcome = plan(host(instances=[instance()], tls=TLS))
    listening = {"port": 443, "address": "0.0.0.0", "domain": "system"}
    found = [port for port in outcome.hosts["mac-1"]["ports"] if port["label"] == "lmfleet.gateway_tls"]
    assert found == [{**listening, "label": "lmfleet.gateway_tls", "use": "the gateway with TLS"}]
    assert "mac-1: it ends soon." in outcome.warnings
    assert "port 1234 is used by" in only_problem(plan(host(instances=[instance()], tls={**TLS, "port": 1234})))


def test_a_port_that_only_root_may_have_on_an_address_of_its_own_is_refused():
    on_one = {**TLS, "address": "10.0.0.5"}
    problem = only_problem(plan(host(instances=[instance()], tls=on_one)))
    assert "must be from 1024 to 65535. A lower one needs gateway_tls_address: 0.0.0.0." in problem
    assert plan(host(instances=[instance()], tls={**on_one, "port": 8443})).problems == []


def test_without_a_guard_nothing_is_published():
    outcome = plan(host(instances=[{**instance(), "status_port": 3000}]))
    assert outcome.deployments[0]["status_url"] is None
    assert outcome.hosts["mac-1"]["instances"][0]["status_port"] is None


@pytest.mark.parametrize(
    ("instances", "guard", "words"),
    [
        ([instance(), instance("b", 2234)], GUARD, ["port 2234", "instance b", "the status of instance chat-a"]),
        ([instance(port=65000)], GUARD, ["port 66000 of the status of instance chat-a (status_port)"]),
        ([{**instance(), "status_port": 41343}], GUARD, ["port 41343", "control ports"]),
        ([instance()], {**GUARD, "port": 1234}, ["the queue guard (queue_guard_metrics_port)"]),
    ],
)
def test_a_port_of_the_status_or_the_guard_that_is_used_twice_is_named(instances, guard, words):
    problem = only_problem(plan(host(instances=instances, guard=guard)))
    assert problem.startswith("mac-1: ") and all(word in problem for word in words), problem


DRAFTED = {**MODELS, "large": {"source": SOURCE, "load": {"draft_model": "chat", "parallel": 1}}}


def test_a_drafting_model_is_fetched_along():
    planned = plan(host(instances=[instance(models=[{"name": "large"}])], models=DRAFTED)).hosts["mac-1"]
    assert [model["name"] for model in planned["models"]] == ["chat", "large"]
    assert planned["instances"][0]["models"][0]["draft"] == {
        "name": "chat",
        "path": "lmfleet/chat/chat.gguf",
        "sha256": SHA,
    }


def test_a_drafting_model_that_is_turned_off_is_not_fetched():
    models = [{"name": "large", "load": {"draft_simple": False}}]
    planned = plan(host(instances=[instance(models=models)], models=DRAFTED)).hosts["mac-1"]
    assert [model["name"] for model in planned["models"]] == ["large"]


def test_an_override_that_cannot_work_names_host_instance_and_model():
    models = [{"name": "chat", "load": {"draft_model": "nope"}}]
    problem = only_problem(plan(host(instances=[instance(models=models)])))
    assert problem.startswith("mac-1: lmfleet_instances (chat-a): chat: load.draft_model 'nope'")


def test_a_mac_is_asked_for_what_its_memory_depends_on():
    models = [{"name": "large", "load": {"gpu": "0.5", "cpu_threads": "all_cores", "mmap": False}}]
    declared = {**DRAFTED, "chat": {**MODELS["chat"], "memory": {"weights_mb": 100}}}
    first = host(
        instances=[instance(models=models)], models=declared, lmfleet_root="/opt/l", lmfleet_memory_policy="warn"
    )
    memory = plan(first).hosts["mac-1"]["memory"]
    assert (memory["policy"], memory["reserve_mb"], memory["gpu_limit_mb"]) == ("warn", 4096, None)
    assert memory["declared"]["chat"]["weights_mb"] == 100
    assert memory["wanted"]["root"] == "/opt/l"
    assert memory["wanted"]["files"] == ["lmfleet/chat/chat.gguf", "lmfleet/large/chat.gguf"]
    (asked,) = memory["wanted"]["instances"]
    assert asked["models"][0]["load"] == {"parallel": 1, "gpu": 0.5, "draft_model": "chat", "draft_simple": True}
    assert set(asked["models"][0]["load"]) <= set(memory["wanted"]["settings"])


def test_a_gateway_without_instances_is_asked_for_nothing():
    outcome = plan(host(instances=[instance()], ansible_host="10.0.0.1"), host("front"), macs=["mac-1"])
    assert outcome.hosts["front"]["memory"]["wanted"] is None


def test_a_reserve_below_nothing_is_refused():
    assert "mac-1: lmfleet_memory_reserve_mb" in only_problem(
        plan(host(instances=[instance()], lmfleet_memory_reserve_mb=-1))
    )


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("lmfleet_batch", "0", "'0' is neither a number from 1 nor a share from 1% to 100%"),
        ("lmfleet_batch", "half", "'half' is neither"),
        ("lmfleet_min_capacity", "120%", "'120%' is neither"),
        ("lmfleet_canary_bake_seconds", -1, "must be at least 0"),
        ("lmfleet_drain_timeout", 0, "must be at least 1"),
    ],
)
def test_a_roll_out_that_makes_no_sense_is_refused(variable, value, told):
    problem = only_problem(plan(host(instances=[instance()], **{variable: value})))
    assert f"mac-1: {variable}" in problem and told in problem


def test_a_doubt_is_told_once_with_its_places():
    models = [{"name": "large", "copies": 2, "load": {"parallel": 4}}]
    hosts = [host(f"mac-{n}", [instance(models=models)], DRAFTED, ansible_host=f"10.0.0.{n}") for n in range(1, 8)]
    outcome = plan(*hosts)
    assert outcome.problems == []
    (warning,) = outcome.warnings
    assert warning.startswith(
        "model large on mac-1/chat-a, mac-2/chat-a, mac-3/chat-a, mac-4/chat-a, mac-5/chat-a and 2"
    )
    assert "load.parallel 4" in warning


def cached(*names, **variables):
    return [
        host(name, [instance()], ansible_host=f"10.0.0.{number}", **{"lmfleet_model_cache": "mac-1", **variables})
        for number, name in enumerate(names or ("mac-1", "mac-2"), start=1)
    ]


def test_with_a_model_cache_the_others_fetch_from_it():
    first, second = cached()
    second = host(
        "mac-2", [instance("embed", 1240, [{"name": "embed"}])], ansible_host="10.0.0.2", lmfleet_model_cache="mac-1"
    )
    outcome = plan(first, second)
    assert outcome.problems == []
    cache = outcome.model_cache
    assert (cache["host"], cache["address"], cache["port"], cache["root"]) == ("mac-1", "10.0.0.1", 8765, "~/.lmfleet")
    assert [file["url"].split("/")[2] for file in cache["models"]] == ["files", "huggingface.co"]
    assert [file["url"] for file in outcome.hosts["mac-2"]["models"]] == [
        "http://10.0.0.1:8765/nomic-ai/embed/embed.gguf"
    ]
    assert outcome.hosts["mac-1"]["models"][0]["url"] == "http://files/chat.gguf"
    assert "lmfleet.model-cache" in [port["label"] for port in outcome.hosts["mac-1"]["ports"]]
    assert plan(*cached(lmfleet_model_cache="")).model_cache == {}


def test_with_a_model_cache_a_file_of_the_controller_goes_to_that_one_only():
    models = {"own": {"source": {"path": "/srv/own.gguf", "sha256": SHA}}}
    serving = [instance(models=[{"name": "own"}])]
    first, second = (
        host(name, serving, models, ansible_host=f"10.0.0.{number}", lmfleet_model_cache="mac-1")
        for number, name in enumerate(("mac-1", "mac-2"), start=1)
    )
    outcome = plan(first, second)
    assert outcome.problems == []
    (sent,) = outcome.model_cache["models"]
    assert sent == {"name": "own", "path": "lmfleet/own/own.gguf", "local": "/srv/own.gguf", "sha256": SHA}
    (fetched,) = outcome.hosts["mac-2"]["models"]
    assert fetched.pop("url") == "http://10.0.0.1:8765/lmfleet/own/own.gguf" and "local" not in fetched


def test_mistakes_with_the_model_cache():
    assert "mac-9 is not in the group macs" in only_problem(plan(*cached(lmfleet_model_cache="mac-9")))
    different = [*cached()[:1], host("mac-2", [instance()], ansible_host="10.0.0.2")]
    assert "lmfleet_model_cache differs (none on mac-2, mac-1 on mac-1)" in only_problem(plan(*different))
    assert "is used by instance chat-a" in only_problem(plan(*cached(lmfleet_model_cache_port=1234)))
    assert "must be from 1024" in only_problem(plan(*cached(lmfleet_model_cache_port=80)))
    by_name = cached(lmfleet_bind_address="127.0.0.1")
    by_name[0].ansible_host = "mac-1.local"
    assert any("would serve its files at mac-1.local" in problem for problem in plan(*by_name).problems)


def of_the_catalogue(name, instances, **variables):
    source = {"catalog": "qwen/qwen3-4b@q4_k_m", "file": "q.gguf", "sha256": SHA}
    models = {"qwen": {"source": source, "memory": {"weights_mb": 3}}, **MODELS}
    return host(name, instances, models, ansible_host=f"10.0.0.{name[-1]}", **variables)


def test_a_mac_that_fetches_from_the_catalogue_keeps_a_control_port_for_that():
    five = [instance(f"i{number}", 1300 + number) for number in range(4)] + [instance(models=[{"name": "qwen"}])]
    one = [instance(models=[{"name": "qwen"}])]
    (problem,) = plan(of_the_catalogue("mac-1", five)).problems
    assert (
        problem.startswith("mac-1: lmfleet_instances: 5 instances leave no control port") and "fetches qwen" in problem
    )
    outcome = plan(of_the_catalogue("mac-1", five[1:]))
    assert outcome.problems == []
    (fetched,) = (file for file in outcome.hosts["mac-1"]["models"] if file["name"] == "qwen")
    assert (fetched["path"], fetched["catalog"], fetched["size"]) == (
        "qwen/qwen/q.gguf",
        "qwen/qwen3-4b@q4_k_m",
        3 << 20,
    )

    # With a model cache it is that one, whatever it serves itself.
    cache = {"lmfleet_model_cache": "mac-2"}
    outcome = plan(of_the_catalogue("mac-1", five, **cache), of_the_catalogue("mac-2", [instance()], **cache))
    assert outcome.problems == []
    assert [file["name"] for file in outcome.model_cache["models"] if "catalog" in file] == ["qwen"]
    assert not any("catalog" in file or "size" in file for file in outcome.hosts["mac-1"]["models"])
    others = [instance(f"i{number}", 1300 + number) for number in range(5)]
    outcome = plan(of_the_catalogue("mac-1", one, **cache), of_the_catalogue("mac-2", others, **cache))
    assert only_problem(outcome).startswith("mac-2: lmfleet_instances: 5 instances")


def test_a_declared_runtime_that_is_too_old_is_doubted():
    models = {"mlx": {"source": {"url": "http://files/model.safetensors", "sha256": SHA}, "load": {"parallel": 2}}}
    old = {**instance(models=[{"name": "mlx"}]), "runtimes": {"mlx-llm-mac-arm64-apple-metal-advsimd": "1.6.0"}}
    (warning,) = plan(host(instances=[old], models=models)).warnings
    assert warning.startswith("model mlx on mac-1/chat-a: with the runtime mlx-llm")
