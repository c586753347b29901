# SPDX-License-Identifier: GPL-3.0-or-later
"""How requests find their deployment: what the plan of a fleet makes of an inventory, and of each mistake in it."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_routing
from ansible_collections.lmfleet.mac.plugins.plugin_utils.fleet_plan import Host, plan_fleet
from ansible_collections.lmfleet.mac.plugins.plugin_utils.fleet_schema import shared_options, validate


def model(kind="llm", load=None, **gateway):
    source = {"url": "http://files/m.gguf", "sha256": "a" * 64}
    return {"source": source, "type": kind, "load": load or {}, "gateway": gateway}


def instance(name, port, *models, **extra):
    return {"name": name, "port": port, "models": [{"name": m} if isinstance(m, str) else m for m in models], **extra}


def host(name, address, models, *instances, **variables):
    declared = {"lmfleet_models": models, "lmfleet_instances": list(instances), **variables}
    checked = {}
    for variable, option in shared_options().items():
        value = declared.get(variable, option.get("default"))
        checked[variable], problems = (None, []) if value is None else validate(value, option, variable)
        assert problems == []
    return Host(name, checked, address, None)


def plan(models, *instances, **variables):
    """Plan two Macs with the same instances; the first is the gateway."""
    hosts = [host(name, f"10.0.0.{name[-1]}", models, *instances, **variables) for name in ("mac-1", "mac-2")]
    return plan_fleet({h.name: h for h in hosts}, ["mac-1", "mac-2"], ["mac-1"])


def sound(*arguments, **variables):
    outcome = plan(*arguments, **variables)
    assert outcome.problems == []
    return outcome


def test_settings_of_a_model_reach_each_of_its_deployments():
    settings = {"num_retries": 1, "cooldown_time": 5, "timeout": 60, "stream_timeout": 9, "parallel_allowance": 3}
    settings.update(rpm=30, tpm=9000)
    models = {"chat": model(load={"parallel": 8}, **settings), "plain": model()}
    chat, plain = sound(models, instance("a", 1234, "chat", "plain")).deployments[:2]
    assert chat["parallel_limit"] == 11
    assert {key: chat[key] for key in fleet_routing.OF_EACH_DEPLOYMENT} == {
        "num_retries": 1,
        "cooldown_time": 5.0,
        "timeout": 60.0,
        "stream_timeout": 9.0,
        "rpm": 30,
        "tpm": 9000,
    }
    assert plain["parallel_limit"] == fleet_routing.DEFAULT_PARALLEL + 2
    assert "timeout" not in plain


def test_an_embedding_model_has_no_limit():
    assert "parallel_limit" not in sound({"e": model("embedding")}, instance("a", 1234, "e")).deployments[0]


def test_fallbacks_belong_to_the_group():
    models = {
        "small": model(load={"context_length": 4096}, context_window_fallbacks=["large"]),
        "large": model(load={"context_length": 32768}, fallbacks=["small"]),
    }
    outcome = sound(models, instance("a", 1234, "small", "large"))
    assert outcome.model_groups == [
        {"name": "large", "fallbacks": ["small"], "context_window_fallbacks": []},
        {"name": "small", "fallbacks": [], "context_window_fallbacks": ["large"]},
    ]
    windows = {entry["model_group"]: entry.get("max_input_tokens") for entry in outcome.deployments}
    assert windows == {"small": 4096, "large": None}


def test_weights_and_orders_are_those_of_the_instance():
    outcome = sound({"m": model()}, instance("a", 1234, {"name": "m", "weight": 3}), instance("b", 1235, "m"))
    assert [entry["weight"] for entry in outcome.deployments] == [3.0, None, 3.0, None]
    assert {entry["order"] for entry in outcome.deployments} == {None}
    outcome = sound({"m": model()}, instance("a", 1234, {"name": "m", "order": 2}), instance("b", 1235, "m"))
    assert [entry["order"] for entry in outcome.deployments] == [2, 1, 2, 1]


def test_a_gateway_may_prefer_its_own_mac():
    outcome = sound({"m": model()}, instance("a", 1234, {"name": "m", "order": 2}), instance("b", 1235, "m"))
    assert outcome.hosts["mac-1"]["deployments"] == outcome.deployments
    assert "deployments" not in outcome.hosts["mac-2"]
    outcome = sound({"m": model()}, instance("a", 1234, "m"), instance("b", 1235, "m"), lmfleet_local_first=True)
    orders = [(entry["host"], entry["order"]) for entry in outcome.hosts["mac-1"]["deployments"]]
    assert orders == [("mac-1", 1), ("mac-1", 1), ("mac-2", 2), ("mac-2", 2)]
    assert {entry["order"] for entry in outcome.deployments} == {None}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"m": model(fallbacks=["m"])}, "lmfleet_models.m: gateway.fallbacks names m, the model itself"),
        ({"m": model(fallbacks=["x"])}, "gateway.fallbacks names x, which lmfleet_models does not have. It has: m."),
        ({"m": model(fallbacks=["n"]), "n": model()}, "names n, which no instance serves"),
        ({"m": model(context_window_fallbacks=["e"]), "e": model("embedding")}, "which no instance serves"),
        ({"m": model(parallel_allowance=-1)}, "gateway.parallel_allowance must be at least 0, not -1"),
        ({"m": model(timeout=0)}, "gateway.timeout must be more than 0, not 0"),
        ({"m": model(rpm=0)}, "gateway.rpm must be more than 0, not 0"),
    ],
)
def test_mistakes_in_the_settings_of_a_model(models, message):
    assert message in "\n".join(plan(models, instance("a", 1234, "m")).problems)


def test_a_fallback_does_the_same():
    models = {"m": model(fallbacks=["e"]), "e": model("embedding")}
    assert "names e, which does something else" in plan(models, instance("a", 1234, "m", "e")).problems[0]


def test_too_long_needs_a_length():
    models = {"m": model(context_window_fallbacks=["n"]), "n": model()}
    assert "needs load.context_length" in plan(models, instance("a", 1234, "m", "n")).problems[0]


def test_mistakes_in_the_share_of_an_instance():
    problems = plan({"m": model()}, instance("a", 1234, {"name": "m", "weight": -1, "order": 0})).problems
    assert "mac-1: lmfleet_instances (a): m: weight must be at least 0, not -1." in problems
    assert "mac-1: lmfleet_instances (a): m: order must be at least 1, not 0." in problems


def test_embeddings_are_kept_apart_where_an_instance_says_so():
    models = {"m": model(), "e": model("embedding")}
    sound(models, instance("a", 1234, "m", "e"))
    sound(models, instance("a", 1234, "m"), instance("b", 1235, "e", embeddings_only=True))
    chat = plan(models, instance("a", 1234, "m", "e", embeddings_only=True)).problems
    assert chat[0].startswith("mac-1: lmfleet_instances (a): m is no embedding model, but the instance has")
    assert len(chat) == 2
    mixed = plan(models, instance("a", 1234, "m", "e"), instance("b", 1235, "e", embeddings_only=True)).problems
    assert mixed[0].startswith("mac-1: lmfleet_instances (a): e is an embedding model. The fleet has instances with")
    assert len(mixed) == 2


def gateways(models, *by_api, **variables):
    """Plan three Macs that are all gateways, those of `by_api` with a database; return the problems."""
    hosts = {
        name: host(name, f"10.0.0.{name[-1]}", models, instance("a", 1234, *models), **variables)
        for name in ("mac-1", "mac-2", "mac-3")
    }
    for name, one in hosts.items():
        one.has_master_key, one.by_api = True, name in by_api
    return plan_fleet(hosts, list(hosts), list(hosts)).problems


def test_gateways_that_share_a_database_cannot_each_prefer_their_own_mac():
    problems = gateways({"m": model()}, "mac-2", "mac-3", lmfleet_local_first=True)
    assert [problem.split(" in a database")[0] for problem in problems] == [
        f"{name}: lmfleet_local_first: mac-2, mac-3 keep their deployments" for name in ("mac-2", "mac-3")
    ]
    assert gateways({"m": model()}, "mac-2", lmfleet_local_first=True) == []
    assert gateways({"m": model()}, lmfleet_local_first=True) == []
    assert gateways({"m": model()}, "mac-2", "mac-3") == []


def test_fallbacks_of_models_are_not_for_a_database():
    models = {"m": model(fallbacks=["n", "o"]), "n": model(), "o": model(load={"context_length": 4096})}
    models["o"]["gateway"]["context_window_fallbacks"] = ["n"]
    assert gateways(models) == []
    of_m, of_o = gateways(models, "mac-1")
    assert of_m.startswith("lmfleet_models.m: gateway.fallbacks: mac-1 keep")
    assert "litellm_router_settings: {fallbacks: [{m: [n, o]}]}." in of_m
    assert "litellm_router_settings: {context_window_fallbacks: [{o: [n]}]}." in of_o
