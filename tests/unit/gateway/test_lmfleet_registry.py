# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's plugin, with a router that only keeps a list. Against the real LiteLLM: tests/gateway."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import sys
import time
import types
from collections import Counter
from pathlib import Path

import pytest

import registry_documents

PLUGIN = Path(__file__).resolve().parents[3] / "roles" / "litellm" / "files" / "lmfleet_registry.py"


class FakeDeployment(types.SimpleNamespace):
    def __init__(self, model_name, litellm_params, model_info):
        super().__init__(model_name=model_name, litellm_params=litellm_params, model_info=model_info)


class FakeCooldowns:
    """The deployments that LiteLLM avoids, by the key it has for each."""

    def __init__(self):
        self.cooldown_store, self.in_memory_cache, self.redis_cache, self.keys = self, self, None, set()

    @staticmethod
    def get_cooldown_cache_key(model_id):
        return f"key of {model_id}"

    def delete_cache(self, key):
        self.keys.discard(key)


class FakeRouter:
    """Refuses a model named "refused" as LiteLLM does: without a word."""

    def __init__(self):
        self.deployments = {}
        self.database = []
        self.calls = []
        self.fallbacks = [{"own": ["x"]}]
        self.context_window_fallbacks = None
        self.num_retries, self.retry_policy = 2, None
        self.enable_pre_call_checks = False
        self.cooldown_cache = FakeCooldowns()

    @property
    def model_list(self):
        return [vars(deployment) for deployment in self.deployments.values()] + self.database

    def get_deployment(self, model_id):
        return self.deployments.get(model_id)

    def upsert_deployment(self, deployment):
        self.calls.append(deployment.model_info["id"])
        if deployment.litellm_params["model"] != "refused":
            self.deployments[deployment.model_info["id"]] = deployment

    async def _acount_pre_call_check_tokens(self, model, healthy_deployments, messages, input, request_kwargs):
        self.calls.append("count")
        return len((messages or input).split()) if messages or input else None

    def update_settings(self, **settings):
        policy = settings.pop("retry_policy", None)
        if policy:
            self.retry_policy = types.SimpleNamespace(model_dump=lambda exclude_none: policy)
        vars(self).update(settings)

    def delete_deployment(self, id):
        self.calls.append(f"-{id}")
        self.deployments.pop(id)


def by_order(deployments, target_order=None):
    orders = [d["litellm_params"]["order"] for d in deployments if "order" in d["litellm_params"]]
    order = target_order if target_order is not None else min(orders, default=None)
    return [d for d in deployments if order is None or d["litellm_params"].get("order") == order]


class FakeHTTPError(Exception):
    def __init__(self, status_code, detail, headers=None):
        super().__init__(detail)
        self.status_code = status_code


class FakeRouterRateLimitError(ValueError):
    cooldown_time = 30.0


class FakeRateLimitError(Exception):
    status_code = 429

    def __init__(self, message, llm_provider, model, num_retries=None):
        super().__init__(message)


@pytest.fixture
def plugin(monkeypatch):
    """The plugin's module, with the names it takes from LiteLLM and FastAPI replaced."""
    windows = {}
    for name, attributes in {
        "fastapi": {"HTTPException": FakeHTTPError},
        "litellm": {"register_model": windows.update},
        "litellm.exceptions": {"RateLimitError": FakeRateLimitError},
        "litellm._logging": {"verbose_proxy_logger": logging.getLogger("plugin")},
        "litellm.integrations": {},
        "litellm.litellm_core_utils.streaming_handler": {"CustomStreamWrapper": types.SimpleNamespace},
        "litellm.llms.openai.common_utils": {"OpenAIError": FakeHTTPError},
        "litellm.llms.openai.completion.handler": {"OpenAITextCompletion": type("OpenAITextCompletion", (), {})},
        "litellm.main": {"openai_chat_completions": types.SimpleNamespace()},
        "litellm.integrations.custom_logger": {"CustomLogger": type("CustomLogger", (), {})},
        "litellm.types": {},
        "litellm.types.router": {"Deployment": FakeDeployment, "RouterRateLimitError": FakeRouterRateLimitError},
        "litellm.utils": {"get_order_filtered_deployments": by_order},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("LMFLEET_REGISTRY", raising=False)
    spec = importlib.util.spec_from_file_location("lmfleet_registry_under_test", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.POLL_SECONDS = 0.01
    #: What LiteLLM was told of models, by the plugin itself.
    module.windows = windows
    return module


@pytest.fixture
def router(monkeypatch):
    server = types.ModuleType("litellm.proxy.proxy_server")
    server.llm_router = FakeRouter()
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", server)
    return server.llm_router


def candidate(name, **params):
    return {"model_name": "g", "litellm_params": {"model": "openai/m", **params}, "model_info": {"id": name}}


def stored(name, group="g", weight=None, **info):
    """Return a deployment as LiteLLM has it in its router when litellm_deployments has put it into the database."""
    params = {"model": "openai/m", **({} if weight is None else {"weight": weight})}
    noted = {"id": name, "mode": "chat", "db_model": True, "blocked": False, "lmfleet": "{}", **info}
    return {"model_name": group, "litellm_params": params, "model_info": noted}


def windowed(name, window):
    return {**candidate(name), "model_info": {"id": name, **({"max_input_tokens": window} if window else {})}}


def limited(name, limit):
    return {**candidate(name), "model_info": {"id": name, "parallel_limit": limit}}


def on(host, name, **params):
    return {**candidate(name, **params), "model_info": {"id": name, "host": host}}


def used_by(name, tokens):
    """Return what LiteLLM logs of a request."""
    return {"standard_logging_object": {"model_id": name, "total_tokens": tokens}}


def document(generation, *deployments, routing="round_robin", **more):
    return {"format": 1, "generation": generation, "routing": routing, "deployments": list(deployments), **more}


def ask(plugin, registry, candidates, attempt=None):
    """Choose for a request that stays in flight."""
    plugin._attempt.set(attempt or plugin.Attempt())
    return choose(registry, candidates)


def declare(plugin, registry, *deployments, workers=1):
    """Let the registry know deployments without a router."""
    known = {d["model_info"]["id"]: d for d in deployments}
    registry.facts, registry._applied = plugin.Facts(known, workers), known


def ids(candidates):
    return [c["model_info"]["id"] for c in candidates]


def choose(registry, candidates, group="g", **request):
    return ids(asyncio.run(registry.async_filter_deployments(group, candidates, None, request_kwargs=request)))


class TestRotation:
    def test_counts_differ_by_at_most_one(self, plugin):
        registry, four = plugin.Registry(None), [candidate(name) for name in "abcd"]
        counts = Counter(dict.fromkeys("abcd", 0))
        for _turn in range(30):
            counts.update(choose(registry, four))
            assert max(counts.values()) - min(counts.values()) <= 1

    def test_weights_are_shares(self, plugin):
        registry, two = plugin.Registry(None), [candidate("a", weight=3), candidate("b")]
        counts = Counter()
        for turn in range(1, 41):
            counts.update(choose(registry, two))
            assert abs(counts["a"] - turn * 3 / 4) <= 1

    def test_weight_zero_is_never_picked_unless_all_have_it(self, plugin):
        registry = plugin.Registry(None)
        two = [candidate("a", weight=0), candidate("b")]
        declare(plugin, registry, *two, candidate("c", weight=0))
        assert {choose(registry, two)[0] for _turn in range(10)} == {"b"}
        none = [candidate("a", weight=0), candidate("c", weight=0)]
        assert {choose(registry, none)[0] for _turn in range(10)} == {"a", "c"}

    def test_groups_take_turns_apart(self, plugin):
        registry, two = plugin.Registry(None), [candidate("a"), candidate("b")]
        assert [choose(registry, two, group) for group in ("g", "h", "g", "h")] == [["a"], ["a"], ["b"], ["b"]]

    def test_the_lower_order_goes_first(self, plugin):
        registry = plugin.Registry(None)
        three = [candidate("far", order=2), candidate("near", order=1), candidate("next", order=1)]
        assert [choose(registry, three)[0] for _turn in range(4)] == ["near", "next", "near", "next"]
        assert choose(registry, three, _target_order=2) == ["far"]

    @pytest.mark.parametrize("away", "abcd")
    @pytest.mark.parametrize("before", range(4))
    @pytest.mark.parametrize("meanwhile", [1, 2, 3, 40])
    @pytest.mark.parametrize("new", [False, True])
    def test_from_the_end_of_a_pause_on_counts_differ_by_at_most_one(self, plugin, away, before, meanwhile, new):
        registry, four = plugin.Registry(None), [candidate(name, weight=3) for name in "abcd"]
        three = [one for one in four if ids([one]) != [away]]
        for _turn in range(before):
            choose(registry, three if new else four)
        for _turn in range(meanwhile):
            choose(registry, three)
        if not new:
            registry.rotation.forget({away})
        picks = [choose(registry, four)[0] for _turn in range(12)]
        for end in range(1, 13):
            counts = Counter({name: picks[:end].count(name) for name in "abcd"})
            assert max(counts.values()) - min(counts.values()) <= 1, picks

    def test_who_was_passed_over_once_catches_up(self, plugin):
        registry, a, b = plugin.Registry(None), candidate("a"), candidate("b")
        there = [[a, b], [a, b], [a, b], [a], [a, b], [a, b], [a, b]]
        assert [choose(registry, candidates)[0] for candidates in there] == ["a", "b", "a", "a", "b", "b", "a"]

    @pytest.mark.parametrize("turns", [3, 20])
    def test_who_was_away_for_longer_is_owed_nothing(self, plugin, turns):
        registry, a, b = plugin.Registry(None), candidate("a"), candidate("b")
        choose(registry, [a, b])
        for _turn in range(turns):
            choose(registry, [a])
        assert [choose(registry, [a, b])[0] for _turn in range(5)] == ["b", "a", "b", "a", "b"]

    def test_shuffle_leaves_the_choice_to_litellm(self, plugin):
        registry = plugin.Registry(None)
        registry.routing = "shuffle"
        assert choose(registry, [candidate("a"), candidate("b")]) == ["a", "b"]


class TestRetries:
    def request(self, *failed, name="metadata"):
        return {name: {"previous_models": tuple({"deployment_id": f} for f in failed)}}

    @pytest.mark.parametrize("name", ["metadata", "litellm_metadata"])
    def test_a_retry_goes_elsewhere(self, plugin, name):
        registry, three = plugin.Registry(None), [candidate(c) for c in "abc"]
        picks = {choose(registry, three, **self.request("a", "b", name=name))[0] for _turn in range(6)}
        assert picks == {"c"}

    def test_when_all_have_failed_not_to_the_last_one(self, plugin):
        registry = plugin.Registry(None)
        two = [candidate("a"), candidate("b")]
        assert {choose(registry, two, **self.request("a", "b"))[0] for _turn in range(4)} == {"a"}

    def test_the_only_one_is_asked_again(self, plugin):
        assert choose(plugin.Registry(None), [candidate("a")], **self.request("a")) == ["a"]

    @pytest.fixture
    def two_macs(self, plugin):
        """A registry, and three deployments of one Mac beside one of another."""
        four = [on("mac-1", "a1"), on("mac-1", "a2"), on("mac-1", "a3"), on("mac-2", "b1")]
        registry = plugin.Registry(None)
        declare(plugin, registry, *four)
        return registry, four

    @pytest.mark.parametrize("routing", ["round_robin", "least_busy", "usage", "shuffle"])
    def test_another_mac_is_the_better_next_try(self, two_macs, routing):
        registry, four = two_macs
        registry.routing = routing
        assert {tuple(choose(registry, four, **self.request("a1"))) for _turn in range(4)} == {("b1",)}

    def test_where_all_macs_have_failed_others_on_them_are_asked(self, two_macs):
        registry, four = two_macs
        picks = {choose(registry, four, **self.request("a1", "b1"))[0] for _turn in range(4)}
        assert picks == {"a2", "a3"}

    def test_without_the_name_of_a_mac_its_address_counts(self, plugin):
        addresses = {"a1": "http://one:1/v1", "a2": "http://one:2/v1", "b1": "http://two:1/v1", "c1": "http://["}
        five = [*(candidate(name, api_base=address) for name, address in addresses.items()), candidate("d")]
        registry = plugin.Registry(None)
        declare(plugin, registry, *five)
        picks = {choose(registry, five, **self.request("a1"))[0] for _turn in range(6)}
        assert picks == {"b1", "c1", "d"}

    def test_turns_stay_exact_when_a_request_goes_to_another_mac(self, two_macs):
        registry, four = two_macs
        picks = [choose(registry, four)[0], choose(registry, four, **self.request("a1"))[0]]
        assert picks == ["a1", "b1"]
        for _turn in range(30):
            picks += choose(registry, four)
            counts = Counter({name: picks.count(name) for name in ids(four)})
            assert max(counts.values()) - min(counts.values()) <= 1, picks

    @pytest.mark.parametrize("routing", ["round_robin", "shuffle"])
    def test_no_preference_leaves_only_those_of_another_order(self, plugin, routing):
        three = [on("mac-1", "a1", order=1), on("mac-2", "b1", order=1), on("mac-1", "a3", order=2)]
        registry = plugin.Registry(None)
        registry.routing = routing
        declare(plugin, registry, *three)
        assert choose(registry, three, _target_order=2, **self.request("a1")) == ["a3"]


class TestPauses:
    @pytest.fixture
    def pause(self, plugin):
        def pause(**pauses):
            registry = plugin.Registry(None)
            registry.routing = "shuffle"
            registry.stopped, registry.advised = plugin.paused_now(pauses, time.time())
            return registry

        return pause

    @pytest.mark.parametrize("owner", ["operator", "rollout", "someone"])
    def test_a_pause_holds(self, pause, owner):
        registry = pause(**{owner: {"a": {}}})
        assert choose(registry, [candidate("a"), candidate("b")]) == ["b"]
        assert choose(registry, [candidate("a")]) == []

    def test_the_guard_never_empties_a_group(self, pause):
        registry = pause(guard={"a": {}, "b": {}})
        assert choose(registry, [candidate("a"), candidate("b")]) == ["a", "b"]
        assert choose(registry, [candidate("a"), candidate("c")]) == ["c"]

    def test_nor_does_it_bring_back_what_another_owner_pauses(self, pause):
        registry = pause(guard={"a": {}}, operator={"b": {}})
        assert choose(registry, [candidate("a"), candidate("b")]) == ["a"]

    def test_a_pause_ends_by_itself(self, pause):
        registry = pause(operator={"a": {"until": time.time() - 1}, "b": {"until": time.time() + 60}})
        assert choose(registry, [candidate("a"), candidate("b")]) == ["a"]


class TestWindows:
    """LiteLLM refuses a prompt that is too long for what was chosen, and asks no other one."""

    @pytest.fixture
    def small_and_large(self):
        small, large = candidate("small"), candidate("large")
        small["model_info"]["max_input_tokens"], large["model_info"]["max_input_tokens"] = 3, 6
        return [small, large]

    @pytest.fixture
    def registry(self, plugin, router, small_and_large):
        registry = plugin.Registry(None)
        declare(plugin, registry, *small_and_large)
        return registry

    @staticmethod
    def picks(registry, candidates, tokens, attempts=4, **request):
        messages = "word " * tokens
        return [
            ids(asyncio.run(registry.async_filter_deployments("g", candidates, messages, request_kwargs=request)))
            for _request in range(attempts)
        ]

    @pytest.mark.parametrize("routing", ["round_robin", "least_busy", "usage"])
    def test_only_who_can_take_a_long_prompt_is_asked(self, registry, small_and_large, routing):
        registry.routing = routing
        assert self.picks(registry, small_and_large, 4) == [["large"]] * 4
        assert {name for (name,) in self.picks(registry, small_and_large, 3)} == {"small", "large"}

    def test_with_shuffle_the_draw_is_among_those_that_can(self, registry, small_and_large):
        registry.routing = "shuffle"
        assert self.picks(registry, small_and_large, 4, 1) == [["large"]]
        assert self.picks(registry, small_and_large, 3, 1) == [["small", "large"]]

    def test_an_input_counts_as_messages_do(self, registry, small_and_large):
        assert self.picks(registry, small_and_large, 0, input="a b c d") == [["large"]] * 4

    def test_neither_advice_nor_room_nor_order_nor_weight_nor_a_failure_makes_a_small_one_fit(
        self, plugin, registry, small_and_large
    ):
        large = small_and_large[1]
        large["litellm_params"].update(weight=0, order=2)
        small_and_large[0]["litellm_params"].update(order=1)
        large["model_info"]["parallel_limit"] = 1
        declare(plugin, registry, *small_and_large)
        registry.advised, registry.unfit = {"large"}, {"large": time.monotonic() + 60}
        registry.load.in_flight["large"] = 1
        failed = {"metadata": {"previous_models": [{"deployment_id": "large"}]}}
        assert self.picks(registry, small_and_large, 4, **failed) == [["large"]] * 4

    def test_who_is_paused_gets_none_and_litellm_refuses(self, registry, small_and_large):
        registry.stopped = {"large"}
        assert self.picks(registry, small_and_large, 4, 1) == [["small"]]

    def test_what_is_too_long_for_all_is_left_to_litellm(self, registry, small_and_large):
        assert {name for (name,) in self.picks(registry, small_and_large, 7)} == {"small", "large"}

    def test_who_says_nothing_takes_all(self, plugin, registry, small_and_large):
        del small_and_large[1]["model_info"]["max_input_tokens"]
        declare(plugin, registry, *small_and_large)
        assert self.picks(registry, small_and_large, 9) == [["large"]] * 4

    @pytest.mark.parametrize("window", [3, None])
    def test_where_all_take_the_same_nothing_is_counted(self, plugin, registry, router, small_and_large, window):
        for one in small_and_large:
            one["model_info"]["max_input_tokens"] = window
        declare(plugin, registry, *small_and_large)
        assert len(self.picks(registry, small_and_large, 4)) == 4
        assert router.calls == []

    @pytest.mark.parametrize("own", [False, True])
    def test_litellm_checks_as_long_as_there_is_a_window(self, files, router, own):
        router.enable_pre_call_checks = own

        async def scenario(_registry, until):
            checks = []
            for generation, windows in enumerate([{}, {"a": 9}, {"a": 9, "b": 9}, {"b": 9}, {}], start=1):
                files.write("deployments.json", document(generation, *map(windowed, windows, windows.values())))
                await until(lambda r, generation=generation: r["generation"] == generation)
                checks.append(router.enable_pre_call_checks)
            assert checks == [own, True, True, True, own]

        files.follow(scenario)

    def test_a_window_that_was_taken_away_is_none_for_litellm(self, plugin, files, router):
        endless = {"openai/m": {"max_input_tokens": 10**15}}

        async def scenario(_registry, until):
            for generation, (first, second, told) in enumerate(
                [
                    (None, None, {}),
                    (9, 9, {}),
                    # What LiteLLM knows of a model it takes for what it knows of all its deployments.
                    (9, None, endless),
                    (None, None, endless),
                    (9, 9, {}),
                ],
                start=1,
            ):
                plugin.windows.clear()
                files.write("deployments.json", document(generation, windowed("a", first), windowed("b", second)))
                await until(lambda r, generation=generation: r["generation"] == generation)
                assert plugin.windows == told

        files.follow(scenario)

    def test_whoever_adds_a_window_for_litellm_adds_none_for_others_meanwhile(self, plugin, files, router):
        """While many deployments are changed, requests are served."""
        plugin.UPSERTS_IN_A_ROW = 2
        files.write("deployments.json", document(1, windowed("z", None)))

        async def scenario(_registry, until):
            await until(lambda r: r["generation"] == 1)
            upsert, told = router.upsert_deployment, []
            router.upsert_deployment = lambda deployment: (plugin.windows.clear(), upsert(deployment))
            files.write("deployments.json", document(2, windowed("z", None), *[windowed(name, 9) for name in "abcd"]))
            while files.report()["generation"] != 2:
                await asyncio.sleep(0)
                told += [list(plugin.windows)] if "a" in router.calls else []
            assert len(told) > 1
            assert all(told)

        files.follow(scenario)

    def test_a_litellm_that_counts_otherwise_costs_no_request(self, registry, small_and_large, monkeypatch):
        monkeypatch.delattr(FakeRouter, "_acount_pre_call_check_tokens")
        assert {name for (name,) in self.picks(registry, small_and_large, 4)} == {"small", "large"}


class TestLoad:
    @pytest.fixture
    def registry(self, plugin):
        registry = plugin.Registry(None)
        declare(plugin, registry, limited("a", 1), limited("b", 2), candidate("c"))
        return registry

    def test_full_ones_are_passed_over_while_another_has_room(self, plugin, registry):
        two = [limited("a", 1), limited("b", 2)]
        picks = [ask(plugin, registry, two)[0] for _request in range(4)]
        assert picks[:3] == ["a", "b", "b"]
        assert registry.load.in_flight == Counter(picks)
        assert picks[3] in "ab"

    def test_weight_zero_gets_nothing_also_when_the_others_are_full(self, plugin, registry):
        spare = limited("spare", 9)
        spare["litellm_params"]["weight"] = 0
        declare(plugin, registry, limited("a", 1), limited("b", 1), spare)
        three = [spare, limited("a", 1), limited("b", 1)]
        assert Counter(ask(plugin, registry, three)[0] for _request in range(6)) == {"a": 3, "b": 3}
        assert ask(plugin, registry, [spare]) == ["spare"]

    def test_room_in_the_next_order_is_better_than_none(self, plugin, registry):
        near, far = limited("near", 1), candidate("far", order=2)
        near["litellm_params"]["order"] = 1
        declare(plugin, registry, near, far)
        assert [ask(plugin, registry, [near, far])[0] for _request in range(3)] == ["near", "far", "far"]

    def test_a_limit_is_shared_by_the_workers(self, plugin):
        assert plugin.Facts({"a": limited("a", 6)}, 4).limits == {"a": 2}

    def test_a_request_is_in_flight_until_its_task_ends(self, plugin, registry):
        async def request(model_info, outcome):
            await registry.async_pre_call_hook(None, None, {"model": "g"}, "acompletion")
            await registry.async_pre_call_deployment_hook({"model_info": model_info}, None)
            await registry.async_pre_call_deployment_hook({"model_info": model_info}, None)
            if outcome == "failed":
                await registry.async_post_call_failure_deployment_hook({}, None, None)
            await answered.wait()

        async def run():
            nonlocal answered
            answered = asyncio.Event()
            ends = [("c", "streams"), ("c", "streams"), ("c", "failed"), ("of config.yaml", "streams")]
            tasks = [asyncio.create_task(request({"id": name}, outcome)) for name, outcome in ends]
            await asyncio.sleep(0.01)
            assert registry.load.in_flight == {"c": 2}
            tasks[0].cancel()
            await asyncio.sleep(0.01)
            assert registry.load.in_flight == {"c": 1}
            answered.set()
            await asyncio.sleep(0.01)
            assert registry.load.in_flight == {}
            assert registry.outcomes.report()["deployments"] == {"c": {"ended": 2, "failed": 1}}

        answered = None
        asyncio.run(run())

    def test_a_retry_goes_from_one_to_the_other(self, plugin, registry):
        attempt = plugin.Attempt()
        registry.load.begin(attempt, "a")
        registry.load.begin(attempt, "b")
        assert registry.load.in_flight == {"b": 1}
        registry._over(attempt)
        registry.load.begin(attempt, "a")
        assert registry.load.in_flight == {}

    def test_least_busy(self, plugin, registry):
        registry.routing = "least_busy"
        three = [candidate(name) for name in "def"]
        attempts = [plugin.Attempt() for _request in range(6)]
        picks = [ask(plugin, registry, three, attempt)[0] for attempt in attempts]
        assert Counter(picks) == {"d": 2, "e": 2, "f": 2}
        registry.load.end(attempts[1])
        assert ask(plugin, registry, three) == [picks[1]]

    def test_usage(self, plugin, registry):
        registry.routing = "usage"
        two = [candidate("a"), candidate("b")]
        asyncio.run(registry.async_log_success_event(used_by("a", 100), None, None, None))
        assert [choose(registry, two)[0] for _turn in range(3)] == ["b", "b", "b"]
        now = time.monotonic()
        assert registry.load.tokens("a", now) > 99
        assert registry.load.tokens("a", now + plugin.USAGE_SECONDS) < 26
        registry.load.keep({"b"})
        assert registry.load.tokens("a", now) == 0


def rated(name, **limits):
    return {**candidate(name), "model_info": {"id": name, **limits}}


class FakeRedis:
    def __init__(self):
        self.counts, self.down = Counter(), False

    async def async_increment(self, key, value, ttl):
        # Others have their turn meanwhile.
        await asyncio.sleep(0)
        if self.down:
            raise ConnectionError
        self.counts[key] += value
        return self.counts[key]


class TestRates:
    @pytest.fixture
    def redis(self, router):
        router.cache = types.SimpleNamespace(redis_cache=FakeRedis())
        return router.cache.redis_cache

    @pytest.fixture
    def minute(self, plugin, monkeypatch):
        """The minute that it is, in a list."""
        now = [100]
        monkeypatch.setattr(plugin, "_minute", lambda: now[0])
        return now

    def registry(self, plugin, *deployments, workers=1, routing="round_robin"):
        registry = plugin.Registry(None)
        registry.workers, registry.rates, registry.routing = workers, plugin.Rates(workers), routing
        declare(plugin, registry, *deployments, workers=workers)
        return registry

    def asked(self, plugin, registry, candidates, count):
        """Return how many of `count` requests at once each deployment gets; None for a refused one."""

        async def request():
            attempt = plugin.Attempt()
            attempt.model = "g"
            plugin._attempt.set(attempt)
            try:
                left = await registry.async_filter_deployments("g", candidates, None, request_kwargs={})
                # As LiteLLM would with shuffle.
                await registry.async_pre_call_deployment_hook({"model_info": left[-1]["model_info"]}, None)
                return left[-1]["model_info"]["id"]
            except FakeRateLimitError:
                return None

        async def run():
            return Counter(await asyncio.gather(*(asyncio.create_task(request()) for _number in range(count))))

        return asyncio.run(run())

    @pytest.mark.parametrize("routing", ["round_robin", "least_busy", "usage"])
    def test_others_get_what_is_beyond_a_limit(self, plugin, router, minute, redis, routing):
        two = [rated("a", rpm=5), candidate("b")]
        registry = self.registry(plugin, *two, routing=routing)
        assert self.asked(plugin, registry, two, 30) == {"a": 5, "b": 25}
        assert registry.load.in_flight == {"a": 5, "b": 25}
        minute[0] += 1
        registry.load.in_flight.clear()
        assert self.asked(plugin, registry, two, 4)["a"] >= 2

    def test_what_none_may_answer_is_refused_until_the_minute_is_over(self, plugin, router, minute, redis):
        two = [rated("a", rpm=5), rated("b", rpm=2)]
        registry = self.registry(plugin, *two)
        assert self.asked(plugin, registry, two, 10) == {"a": 5, "b": 2, None: 3}
        assert registry.load.in_flight == {"a": 5, "b": 2}
        with pytest.raises(FakeRateLimitError, match="g has had its requests") as refused:
            choose(registry, two)
        assert 0 < refused.value.cooldown_time <= 60
        minute[0] += 1
        assert choose(registry, two)

    def test_gateways_share_a_limit_through_redis(self, plugin, router, minute, redis):
        one = [rated("a", rpm=5)]
        gateways = [self.registry(plugin, *one, workers=2) for _gateway in "12"]
        assert [self.asked(plugin, gateway, one, 3) for gateway in gateways] == [{"a": 3}, {"a": 2, None: 1}]

    def test_without_redis_workers_share_it_evenly(self, plugin, router, minute, redis):
        one = [rated("a", rpm=5)]
        redis.down = True
        assert self.asked(plugin, self.registry(plugin, *one, workers=2), one, 9) == {"a": 3, None: 6}
        router.cache.redis_cache = None
        assert self.asked(plugin, self.registry(plugin, *one, workers=2), one, 9) == {"a": 3, None: 6}

    def test_tokens(self, plugin, router, minute, redis):
        two = [rated("a", tpm=150), candidate("b")]
        registry = self.registry(plugin, *two)
        for _round in range(2):
            assert self.asked(plugin, registry, two, 2) == {"a": 1, "b": 1}
            asyncio.run(registry.async_log_success_event(used_by("a", 100), None, None, None))
        assert self.asked(plugin, registry, two, 2) == {"b": 2}

    def test_what_litellm_chooses_is_counted_then(self, plugin, router, minute, redis):
        two = [candidate("a"), rated("b", rpm=3)]
        registry = self.registry(plugin, *two, routing="shuffle")
        # Those that LiteLLM sent too many of try again, and the others go elsewhere.
        assert self.asked(plugin, registry, two, 5) == {"b": 3, None: 2}
        assert self.asked(plugin, registry, two, 2) == {"a": 2}

    def test_who_asks_for_a_deployment_gets_it(self, plugin, router, minute, redis):
        async def run():
            await registry.async_pre_call_hook(None, None, {"model": "a"}, "acompletion")
            await registry.async_pre_call_deployment_hook({"model_info": {"id": "a"}}, None)

        registry = self.registry(plugin, rated("a", rpm=1))
        assert self.asked(plugin, registry, [rated("a", rpm=1)], 2) == {"a": 1, None: 1}
        asyncio.run(run())
        assert sum(redis.counts.values()) == 2


class TestModes:
    @pytest.mark.parametrize(
        ("model", "call", "refused"),
        [
            ("g", "acompletion", ""),
            ("g", "aembedding", "g is no embedding model"),
            ("a", "aembedding", "a is no embedding model"),
            ("e", "aembedding", ""),
            ("e", "acompletion", "e is an embedding model"),
            ("unknown", "aembedding", ""),
            ("alias of g", "acompletion", ""),
            ("alias of g", "aembedding", "alias of g is no embedding model"),
            ("alias of e", "acompletion", "alias of e is an embedding model"),
            ("openai/m", "aembedding", "openai/m is no embedding model"),
            ("openai/e", "aembedding", ""),
            ("openai/e", "acompletion", "openai/e is an embedding model"),
            (["g", "e"], "aembedding", ""),
            (None, "aembedding", ""),
        ],
    )
    def test_chat_and_embeddings_do_not_mix(self, plugin, router, model, call, refused):
        router.model_group_alias = {"alias of g": "g", "alias of e": {"model": "e", "hidden": True}, "g-too": "e-1"}
        registry = plugin.Registry(None)
        embed = candidate("e-1", model="openai/e")
        embed.update(model_name="e", model_info={"id": "e-1", "mode": "embedding"})
        # LiteLLM prefers a group to the name that a backend is asked for.
        declare(plugin, registry, candidate("a"), {**candidate("f", model="e"), "model_name": "f"}, embed)
        try:
            asyncio.run(registry.async_pre_call_hook(None, None, {"model": model}, call))
        except FakeHTTPError as error:
            assert error.status_code == 400
            assert refused
            assert refused in str(error)
        else:
            assert not refused


class Files:
    """A registry's folder, and the plugin that follows it for the time of one test."""

    def __init__(self, plugin, folder):
        self.plugin, self.folder = plugin, folder
        (folder / "paused").mkdir()

    def write(self, name, content):
        text = content if isinstance(content, str) else json.dumps(content)
        temporary = self.folder / "temporary"
        temporary.write_text(text)
        temporary.replace(self.folder / name)

    def report(self):
        return json.loads((self.folder / "applied" / f"{os.getpid()}.json").read_text())

    def follow(self, scenario):
        """Run `scenario(registry, until)` beside the plugin; `until` waits for a condition on the report."""

        async def run():
            registry = self.plugin.Registry(str(self.folder))

            async def until(condition):
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline:
                    try:
                        if condition(self.report()):
                            return
                    except (OSError, ValueError):
                        pass
                    await asyncio.sleep(0.01)
                raise AssertionError(f"last report: {self.report()}")

            try:
                await scenario(registry, until)
            finally:
                registry._task.cancel()

        asyncio.run(run())


@pytest.fixture
def files(plugin, tmp_path):
    return Files(plugin, tmp_path)


class TestFollowing:
    def test_it_adds_changes_and_removes(self, files, router):
        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a"), candidate("b"), candidate("same")))
            await until(lambda r: r["generation"] == 1)
            files.write("deployments.json", document(2, candidate("b", weight=2), candidate("c"), candidate("same")))
            await until(lambda r: r["generation"] == 2 and r["deployments"] == ["b", "c", "same"])

        files.follow(scenario)
        assert router.calls == ["a", "b", "same", "b", "c", "-a"]
        assert router.deployments["b"].litellm_params["weight"] == 2

    def test_litellm_has_a_weight_of_each(self, files, router):
        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a"), candidate("b", weight=0)))
            await until(lambda r: r["generation"] == 1)

        files.follow(scenario)
        assert [router.deployments[name].litellm_params["weight"] for name in "ab"] == [1, 0]

    def test_fallbacks_come_and_go_beside_those_of_the_config(self, files, router):
        async def scenario(_registry, until):
            groups = {"g": {"fallbacks": ["h"]}, "h": {"context_window_fallbacks": ["g", "i"]}}
            files.write("deployments.json", document(1, candidate("a"), groups=groups))
            await until(lambda r: r["generation"] == 1)
            assert router.fallbacks == [{"own": ["x"]}, {"g": ["h"]}]
            assert router.context_window_fallbacks == [{"h": ["g", "i"]}]
            files.write("deployments.json", document(2, candidate("a")))
            await until(lambda r: r["generation"] == 2)
            assert (router.fallbacks, router.context_window_fallbacks) == ([{"own": ["x"]}], [])

        files.follow(scenario)

    def test_it_leaves_models_of_the_config_alone(self, files, router):
        router.deployments["mine"] = FakeDeployment("m", {"model": "openai/x"}, {"id": "mine"})

        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("mine"), candidate("a")))
            await until(lambda r: r["generation"] == 1)
            assert files.report()["rejected"] == {"mine": "the id belongs to a model of config.yaml"}
            files.write("deployments.json", document(2))
            await until(lambda r: r["generation"] == 2)

        files.follow(scenario)
        assert list(router.deployments) == ["mine"]

    def test_it_says_what_litellm_refused(self, files, router):
        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a"), candidate("b", model="refused")))
            await until(lambda r: r["generation"] == 1)

        files.follow(scenario)
        assert list(files.report()["rejected"]) == ["b"]
        assert files.report()["deployments"] == ["a"]

    @pytest.mark.parametrize("broken", ["", '{"format": 1, "gener', "{}"])
    def test_it_keeps_the_last_good_state_over_a_broken_file(self, files, router, broken, caplog):
        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            await until(lambda r: r["generation"] == 1 and not r["error"])
            files.write("deployments.json", broken)
            await until(lambda r: r["error"])
            assert "deployments.json" in files.report()["error"]
            assert "keeping generation 1" in files.report()["error"]
            assert list(router.deployments) == ["a"]
            files.write("deployments.json", document(3, candidate("b")))
            await until(lambda r: r["generation"] == 3 and not r["error"])

        files.follow(scenario)
        assert list(router.deployments) == ["b"]
        told = [record.message for record in caplog.records if "keeping generation 1" in record.message]
        assert len(told) == 1

    def test_it_keeps_the_last_good_state_over_missing_files(self, files, router):
        async def scenario(registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            files.write("paused/operator.json", {"format": 1, "generation": 2, "paused": {"a": {}}})
            await until(lambda r: r["generation"] == 1 and r["paused_generations"] == {"operator": 2})
            (files.folder / "deployments.json").unlink()
            (files.folder / "paused" / "operator.json").unlink()
            await until(lambda r: r["error"] and "operator.json" in r["error"] and "deployments.json" in r["error"])
            assert registry.pauses == {"operator": {"a": {}}}

        files.follow(scenario)
        assert list(router.deployments) == ["a"]

    @pytest.mark.parametrize("broken", ["{", "{}", None])
    def test_a_worker_that_starts_begins_with_what_others_kept(self, files, router, broken):
        operator = {"format": 1, "generation": 2, "paused": {"a": {}}}

        async def apply(_registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            files.write("paused/operator.json", operator)
            files.write("paused/guard.json", {**operator, "generation": 7})
            await until(lambda r: r["generation"] == 1 and len(r["paused_generations"]) == 2)

        async def begin(registry, until):
            await until(lambda r: r["generation"] == 1 and r["paused_generations"] == {"operator": 2})
            assert registry.stopped == {"a"}
            error = files.report()["error"]
            for name, generation in (("deployments", 1), ("operator", 2)):
                assert f"{name}.json: " in error
                assert f"keeping generation {generation}" in error
            files.write("deployments.json", document(3))
            files.write("paused/operator.json", {**operator, "generation": 4, "paused": {}})
            await until(lambda r: r["generation"] == 3 and r["paused_generations"] == {"operator": 4})
            assert registry.stopped == set()

        async def begin_empty(_registry, until):
            await until(lambda r: r["generation"] == 3 and not r["error"])

        files.follow(apply)
        kept = sorted(path for path in (files.folder / "applied" / "kept").rglob("*") if path.is_file())
        assert [path.name for path in kept] == ["deployments.json", "operator.json"]
        assert [path.stat().st_mode & 0o077 for path in kept] == [0, 0]
        for name in ("deployments.json", "paused/operator.json", "paused/guard.json"):
            if broken is None or "guard" in name:
                (files.folder / name).unlink()
            else:
                files.write(name, broken)
        router.deployments.clear()
        files.follow(begin)
        assert "a" in router.calls
        # What is empty on purpose is empty.
        files.follow(begin_empty)
        assert router.deployments == {}

    def test_what_could_not_be_applied_is_not_kept(self, files, router):
        async def scenario(_registry, until):
            router.update_settings = lambda **_settings: 1 / 0
            files.write("deployments.json", document(1, candidate("a")))
            await until(lambda r: r["error"] and "ZeroDivisionError" in r["error"])

        files.follow(scenario)
        assert not (files.folder / "applied" / "kept").exists()

    def test_advice_may_go(self, files, router):
        async def scenario(registry, until):
            files.write("paused/guard.json", {"format": 1, "generation": 2, "paused": {"a": {}}})
            await until(lambda r: r["paused_generations"] == {"guard": 2})
            (files.folder / "paused" / "guard.json").unlink()
            await until(lambda r: r["paused_generations"] == {})
            assert "guard" not in files.report()["error"]
            assert registry.advised == set()

        files.follow(scenario)

    def test_a_file_that_comes_back_is_no_error_any_more(self, files, router):
        path, aside = files.folder / "deployments.json", files.folder / "aside"

        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            await until(lambda r: r["generation"] == 1)
            path.rename(aside)
            await until(lambda r: r["error"])
            aside.rename(path)
            await until(lambda r: not r["error"])

        files.follow(scenario)
        assert list(router.deployments) == ["a"]

    def test_without_news_it_writes_nothing_between_heartbeats(self, files, router, plugin):
        plugin.HEARTBEAT_SECONDS = 60

        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            await until(lambda r: r["generation"] == 1)
            at = files.report()["at"]
            await asyncio.sleep(0.1)
            assert files.report()["at"] == at

        files.follow(scenario)
        assert router.calls == ["a"]

    def test_a_broken_pause_keeps_the_pause(self, files, router):
        async def scenario(registry, until):
            files.write("paused/operator.json", {"format": 1, "generation": 2, "paused": {"a": {}}})
            await until(lambda r: r["paused_generations"] == {"operator": 2})
            files.write("paused/operator.json", {"format": 1, "generation": 3, "paused": {"a": None}})
            await until(lambda r: r["error"] and "operator.json" in r["error"])
            assert registry.pauses == {"operator": {"a": {}}}
            assert registry.stopped == {"a"}

        files.follow(scenario)

    def test_a_pause_that_ends_is_noticed(self, files, router):
        async def scenario(registry, until):
            until_when = time.time() + 0.3
            files.write("paused/operator.json", {"format": 1, "generation": 2, "paused": {"a": {"until": until_when}}})
            await until(lambda r: registry.stopped == {"a"})
            router.cooldown_cache.keys = {"key of a", "key of b"}
            await until(lambda r: registry.stopped == set())
            assert time.time() >= until_when
            assert router.cooldown_cache.keys == {"key of b"}

        files.follow(scenario)

    def test_what_is_left_when_others_are_paused_is_asked_again_at_once(self, files, router):
        """It may have failed a moment ago, and be all there is now."""

        other = {**candidate("d"), "model_name": "other"}
        files.write("deployments.json", document(1, *map(candidate, "abc"), other))

        async def scenario(registry, until):
            await until(lambda r: r["deployments"] == ["a", "b", "c", "d"])
            router.cooldown_cache.keys = {"key of a", "key of b", "key of c", "key of d"}
            registry.unfit = dict.fromkeys("abcd", time.monotonic() + 60)
            files.write("paused/operator.json", {"format": 1, "generation": 2, "paused": {"a": {}}})
            await until(lambda r: registry.stopped == {"a"})
            assert router.cooldown_cache.keys == {"key of a", "key of d"}
            assert sorted(registry.unfit) == ["a", "d"]

        files.follow(scenario)

    @pytest.mark.parametrize("fault", ["down", "hangs"])
    def test_a_redis_that_fails_holds_up_no_end_of_a_pause(self, files, router, plugin, fault):
        plugin.HEARTBEAT_SECONDS = 0.05
        asked = []

        async def async_delete_cache(key):
            asked.append(key)
            if fault == "down":
                raise ConnectionError
            await asyncio.sleep(60)

        router.cooldown_cache.redis_cache = types.SimpleNamespace(async_delete_cache=async_delete_cache)

        async def scenario(registry, until):
            paused = {"a": {}, "b": {}}
            files.write("paused/operator.json", {"format": 1, "generation": 2, "paused": paused})
            await until(lambda r: registry.stopped == {"a", "b"})
            asked.clear()
            router.cooldown_cache.keys = {"key of a", "key of b", "key of c"}
            registry.unfit = dict.fromkeys("abc", time.monotonic() + 60)
            files.write("paused/operator.json", {"format": 1, "generation": 3, "paused": {}})
            ended = time.time()
            await until(lambda r: r["at"] > ended + 0.2 and r["paused_generations"] == {"operator": 3})
            assert router.cooldown_cache.keys == {"key of c"}
            assert list(registry.unfit) == ["c"]
            assert sorted(asked) == ["key of a", "key of b"]
            assert registry._failure is None

        files.follow(scenario)

    def test_it_goes_on_after_an_error_of_litellm(self, files, router):
        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            await until(lambda r: r["generation"] == 1)
            router.delete_deployment = lambda id: 1 / 0
            files.write("deployments.json", document(2))
            await until(lambda r: r["error"] and "ZeroDivisionError" in r["error"])
            del router.delete_deployment
            await until(lambda r: r["generation"] == 2 and not r["error"])

        files.follow(scenario)

    def test_it_reports_although_nothing_changes_and_removes_reports_of_the_dead(self, files, router, plugin):
        plugin.HEARTBEAT_SECONDS = 0.05

        async def scenario(_registry, until):
            await until(lambda r: True)
            dead = files.folder / "applied" / "4194999.json"
            # As after a boot: the process id belongs to somebody else now.
            old = files.folder / "applied" / f"{os.getppid()}.json"
            live = files.folder / "applied" / "1.json"
            for path in (dead, old, live):
                path.write_text("{}")
            os.utime(old, (time.time() - 61,) * 2)
            at = files.report()["at"]
            await until(lambda r: r["at"] > at and not dead.exists() and not old.exists())
            assert live.exists()

        files.follow(scenario)

    def test_without_a_folder_it_does_nothing(self, plugin, tmp_path):
        assert plugin.registry.pauses == {}
        assert not hasattr(plugin.registry, "_task")


class TestDatabase:
    """There is no deployments.json: LiteLLM itself takes the deployments from its database into the router."""

    def follow(self, files, router, deployments, scenario):
        router.database = deployments

        async def run(registry, until):
            await until(lambda r: r["deployments"] == sorted(d["model_info"]["id"] for d in deployments))
            await scenario(registry, until)

        files.follow(run)

    async def choose(self, registry, candidates):
        return ids(await registry.async_filter_deployments("g", candidates, None, request_kwargs={}))

    def test_litellm_chooses_among_those_that_may_be_asked(self, files, router, plugin):
        deployments = [stored("a"), stored("b", parallel_limit=1), stored("none", weight=0), stored("c")]

        async def scenario(registry, _until):
            assert await self.choose(registry, deployments) == ["a", "b", "c"]
            plugin._attempt.set(plugin.Attempt())
            await registry.async_pre_call_deployment_hook({"model_info": {"id": "b"}}, None)
            assert registry.load.in_flight == {"b": 1}
            assert await self.choose(registry, deployments) == ["a", "c"]
            assert await self.choose(registry, deployments[2:3]) == ["none"]

        self.follow(files, router, deployments, scenario)

    def test_chat_and_embeddings_do_not_mix_and_failures_are_told_alike(self, files, router):
        async def scenario(registry, _until):
            with pytest.raises(FakeHTTPError, match="e is an embedding model"):
                await registry.async_pre_call_hook(None, None, {"model": "e"}, "acompletion")
            told = await registry.async_post_call_failure_hook({"model": "g"}, StatusError(500), None)
            assert told.status_code == 503
            assert files.report()["error"] is None
            assert router.retry_policy.model_dump(exclude_none=True) == {"NotFoundErrorRetries": 2}
            assert router.enable_pre_call_checks is True

        self.follow(files, router, [stored("a", max_input_tokens=9), stored("e-1", "e", mode="embedding")], scenario)
        assert router.calls == []

    def test_a_change_counts_at_once_and_trusts_what_was_changed(self, files, router):
        async def scenario(registry, until):
            router.cooldown_cache.keys = {"key of a", "key of b"}
            registry.outcomes.note("b", ended=1)
            kept = router.database[1]
            router.database = [stored("a", parallel_limit=3), kept, stored("c")]
            await until(lambda r: r["deployments"] == ["a", "b", "c"])
            assert registry.facts.limits == {"a": 3}
            assert router.cooldown_cache.keys == {"key of b"}
            router.database = [kept]
            await until(lambda r: r["deployments"] == ["b"])
            assert files.report()["outcomes"]["deployments"] == {"b": {"ended": 1}}

        self.follow(files, router, [stored("a"), stored("b")], scenario)

    def test_nothing_is_looked_up_anew_without_a_change(self, files, router, plugin, monkeypatch):
        async def scenario(_registry, _until):
            monkeypatch.setattr(plugin, "stored", lambda models: 1 / 0)
            await asyncio.sleep(0.1)
            assert files.report()["error"] is None

        plugin.HEARTBEAT_SECONDS = 0.05
        self.follow(files, router, [stored("a")], scenario)

    def test_what_others_made_is_left_alone(self, files, router):
        config, by_hand = stored("config", "config", db_model=False), stored("hand", "hand")
        del by_hand["model_info"]["lmfleet"]

        async def scenario(registry, until):
            router.database = [*router.database, config, by_hand, stored("b")]
            await until(lambda r: r["deployments"] == ["a", "b"])
            assert registry.facts.groups == {"g"}

        self.follow(files, router, [stored("a")], scenario)

    def test_files_that_were_left_behind_do_not_choose(self, files, router):
        files.write("deployments.json", document(1, candidate("a"), candidate("b")))

        async def scenario(registry, _until):
            router.deployments.clear()
            assert await self.choose(registry, router.database) == ["a", "b"]

        self.follow(files, router, [stored("a"), stored("b")], scenario)


class TestRules:
    @pytest.mark.parametrize("name", registry_documents.DEPLOYMENTS)
    def test_whole_deployments(self, plugin, name):
        assert plugin.parse_deployments(registry_documents.DEPLOYMENTS[name].encode())["generation"] == 2

    @pytest.mark.parametrize("name", registry_documents.BROKEN_DEPLOYMENTS)
    def test_broken_deployments(self, plugin, name):
        with pytest.raises(ValueError, match=r"\w"):
            plugin.parse_deployments(registry_documents.BROKEN_DEPLOYMENTS[name].encode())

    @pytest.mark.parametrize("name", registry_documents.PAUSES)
    def test_whole_pauses(self, plugin, name):
        assert plugin.parse_pauses(registry_documents.PAUSES[name].encode())["generation"] == 2

    @pytest.mark.parametrize("name", registry_documents.BROKEN_PAUSES)
    def test_broken_pauses(self, plugin, name):
        with pytest.raises(ValueError, match=r"\w"):
            plugin.parse_pauses(registry_documents.BROKEN_PAUSES[name].encode())


class Stream:
    def __init__(self, name, content_type):
        self._hidden_params = {
            "model_id": name,
            "additional_headers": {"llm_provider-content-type": content_type},
        }
        self._name = name

    async def __aiter__(self):
        yield self._name


def streamed(plugin, router, *responses, **request):
    """Return the registry, and the chunks of the first response by way of the hook; the router gives the next ones."""
    left = list(responses[1:])

    async def acompletion(**_request):
        return left.pop(0)

    async def run():
        registry = plugin.Registry(None)
        chunks = registry.async_post_call_streaming_iterator_hook(None, responses[0], request)
        return registry, [chunk async for chunk in chunks]

    router.acompletion = acompletion
    return asyncio.run(run())


def test_the_first_token_of_a_stream_is_timed(plugin, router):
    attempt = plugin.Attempt()
    attempt.deployment, attempt.since = "b", time.monotonic() - 3
    plugin._attempt.set(attempt)

    class Two(Stream):
        async def __aiter__(self):
            yield "one"
            yield "two"

    registry, chunks = streamed(plugin, router, Two("b", "text/event-stream"))
    assert chunks == ["one", "two"]
    counts = registry.outcomes.report()["deployments"]["b"]
    assert counts["streams"] == 1
    assert 3 <= counts["first_token_seconds"] < 30


def test_what_a_client_gets_wrong_is_no_fault_of_a_backend(plugin):
    class RefusedError(Exception):
        status_code = 400

    class BrokenError(Exception):
        status_code = 500

    async def fail(error):
        attempt = plugin.Attempt()
        attempt.deployment = "a"
        plugin._attempt.set(attempt)
        await registry.async_post_call_failure_deployment_hook({}, error, None)

    registry = plugin.Registry(None)
    asyncio.run(fail(RefusedError()))
    assert registry.outcomes.report()["deployments"] == {}
    asyncio.run(fail(BrokenError()))
    assert registry.outcomes.report()["deployments"] == {"a": {"failed": 1}}


class StatusError(Exception):
    def __init__(self, status_code):
        super().__init__(f"answered {status_code}")
        self.status_code = status_code


class TestStrangers:
    @pytest.fixture
    def fail(self, plugin, router):
        """Return a function: the registry and what the client gets, when its last try ended with these."""

        def fail(at_deployment, at_last=None):
            async def run():
                await registry.async_pre_call_hook(None, None, {"model": "g"}, "acompletion")
                registry.load.begin(plugin._attempt.get(), "a")
                await registry.async_post_call_failure_deployment_hook({}, StatusError(at_deployment), None)
                return await registry.async_post_call_failure_hook(
                    {"model": "g"}, StatusError(at_last or at_deployment), None
                )

            registry = plugin.Registry(None)
            declare(plugin, registry, candidate("a"))
            return registry, asyncio.run(run())

        return fail

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 410])
    def test_another_program_is_the_fault_of_the_backend(self, fail, status):
        registry, told = fail(status)
        assert told.status_code == 503
        assert registry._open(["a", "b"]) == ["b"], "it is avoided for a while"
        assert registry.outcomes.report() == {"failed_requests": 1, "deployments": {"a": {"failed": 1}}}

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_what_a_client_gets_wrong_is_not(self, fail, status):
        registry, told = fail(status)
        assert told is None
        assert registry._open(["a", "b"]) == ["a", "b"]

    def test_that_nobody_can_be_asked_is_a_failure_of_the_backends(self, plugin):
        registry = plugin.Registry(None)
        declare(plugin, registry, candidate("a"))
        error = FakeRouterRateLimitError("No deployments available")
        told = asyncio.run(registry.async_post_call_failure_hook({"model": "g"}, error, None))
        assert told.status_code == 429
        assert registry.outcomes.report()["failed_requests"] == 1

    @pytest.mark.parametrize("model", ["g", "a", "alias", "openai/m"])
    def test_a_failure_is_told_by_whatever_name_the_model_was_asked_for(self, plugin, router, model):
        router.model_group_alias = {"alias": "g"}
        registry, error = plugin.Registry(None), StatusError(500)
        declare(plugin, registry, candidate("a"))
        told = asyncio.run(registry.async_post_call_failure_hook({"model": model}, error, None))
        assert told.status_code == 503
        # Where LiteLLM does not look at what it was told.
        assert error.status_code == 503
        assert registry.outcomes.report()["failed_requests"] == 1

    def test_a_wrong_key_stays_one(self, plugin):
        registry = plugin.Registry(None)
        declare(plugin, registry, candidate("a"))
        hook = registry.async_post_call_failure_hook
        assert asyncio.run(hook({"model": "g"}, StatusError(401), None)) is None

    def test_litellm_is_to_ask_another_one(self, files, router):
        async def scenario(_registry, until):
            files.write("deployments.json", document(1, candidate("a")))
            await until(lambda r: r["generation"] == 1)
            assert router.retry_policy.model_dump(exclude_none=True) == {"NotFoundErrorRetries": 2}
            # Unless the gateway's own settings say how often.
            router.update_settings(retry_policy={"NotFoundErrorRetries": 1, "TimeoutErrorRetries": 4})
            files.write("deployments.json", document(2))
            await until(lambda r: r["generation"] == 2)
            policy = router.retry_policy.model_dump(exclude_none=True)
            assert policy == {"NotFoundErrorRetries": 1, "TimeoutErrorRetries": 4}

        files.follow(scenario)


def test_a_page_instead_of_a_stream_is_asked_for_anew_elsewhere(plugin, router):
    good = Stream("b", "text/event-stream; charset=utf-8")
    registry, chunks = streamed(plugin, router, Stream("a", "text/html"), good, messages=["x"])
    assert chunks == ["b"]
    assert registry._open(["a", "b"]) == ["b"]
    assert registry._open(["a"]) == ["a"], "better than none"
    registry.unfit["a"] = 0.0
    assert registry._open(["a", "b"]) == ["a", "b"]
    assert streamed(plugin, router, good, messages=["x"])[1] == ["b"]


@pytest.mark.parametrize(("content_type", "page"), [("text/event-stream", False), ("Text/HTML; charset=utf-8", True)])
def test_a_stream_of_text_is_asked_for_at_once(plugin, content_type, page):
    calls = []

    async def create(**asked):
        calls.append(asked)
        return answer

    async def aclose():
        calls.append("closed")

    async def ask():
        given = {"api_key": "k", "api_base": "b", "timeout": 9, "max_retries": 2, "headers": {}, "model_response": None}
        return await plugin.ask_for_text(None, data={"prompt": "x"}, model="m", logging_obj="log", **given)

    response = types.SimpleNamespace(aclose=aclose)
    answer = types.SimpleNamespace(
        headers={"content-type": content_type}, parse=lambda: "chunks", http_response=response
    )
    completions = types.SimpleNamespace(with_raw_response=types.SimpleNamespace(create=create))
    plugin.openai_chat_completions._get_openai_client = lambda **_given: types.SimpleNamespace(completions=completions)
    if page:
        with pytest.raises(FakeHTTPError) as refused:
            asyncio.run(ask())
        assert refused.value.status_code == 503
    else:
        assert asyncio.run(ask()).completion_stream == "chunks"
    assert calls == [{"prompt": "x", "timeout": 9}, *["closed"] * page]


def test_who_follows_no_registry_leaves_litellm_as_it_is(plugin, files, router):
    assert not hasattr(plugin.OpenAITextCompletion, "async_streaming")

    async def scenario(_registry, until):
        await until(lambda r: True)

    files.follow(scenario)
    assert plugin.OpenAITextCompletion.async_streaming is plugin.ask_for_text


@pytest.mark.parametrize("request_data", [{"messages": ["x"]}, {"prompt": "x"}])
def test_only_pages_are_an_error(plugin, router, request_data):
    with pytest.raises(FakeHTTPError, match="page instead of a stream") as caught:
        streamed(plugin, router, *[Stream(name, "text/html; charset=utf-8") for name in "abc"], **request_data)
    assert caught.value.status_code == 503
