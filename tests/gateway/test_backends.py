# SPDX-License-Identifier: GPL-3.0-or-later
"""The real LiteLLM before backends that break, and the ways to share requests among those that do not."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
from collections import Counter

import pytest

from gateway_under_test import BackendServer
from traffic import Client, Traffic

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def gateway(start):
    # With the default cooldown a backend that failed in one test would be out of the next ones.
    limits = {"litellm_connect_timeout": 1, "litellm_stream_timeout": 2}
    settings = {"cooldown_time": 1, "model_group_alias": {"talk": "chat"}}
    return start(litellm_workers=2, litellm_router_settings=settings, **limits)


@pytest.fixture
def two(gateway, backends):
    """The gateway with two equal backends, which are given up after two seconds."""
    for backend in backends:
        backend.chunk_seconds = 0.05
    gateway.declare([backend.deployment(timeout=2) for backend in backends[:2]], model_groups=[])
    return gateway


def until(condition, what, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.1)


def refusal(gateway, stream=False, model="chat"):
    """Ask what cannot be answered; return (status, retry-after, message)."""
    payload = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]}
    try:
        with gateway.open("/v1/chat/completions", payload) as reply:
            return reply.status, None, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["retry-after"], json.loads(error.read())["error"]["message"]


def complete(gateway, stream):
    """Ask /v1/completions; return (status, retry-after, text)."""
    try:
        with gateway.open("/v1/completions", {"model": "chat", "stream": stream, "prompt": "x"}) as reply:
            lines = reply.read().decode().splitlines()
            events = [line.removeprefix("data: ") for line in lines if "{" in line]
            choices = [choice for event in events for choice in json.loads(event)["choices"]]
            return reply.status, None, "".join(choice.get("text") or "" for choice in choices)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["retry-after"], ""


def in_flight(gateway):
    counts = Counter()
    for report in gateway.reports():
        counts.update(report["in_flight"])
    return dict(counts)


@pytest.mark.parametrize("fault", [True, 404, "html", "hang", "reset"])
def test_a_backend_that_breaks_costs_nobody_a_request(two, backends, fault):
    with Traffic(two.url, two.key, "chat") as traffic:
        traffic.wait_for(8)
        backends[0].failing = fault
        traffic.wait_for(40)
        backends[0].calm()
        until(lambda: backends[0].asked > 3, "the backend is back in rotation")
    traffic.assert_none_failed(least=5)


@pytest.mark.parametrize("fault", [True, 404, "html", "reset"])
def test_text_completions_go_elsewhere_as_chats_do(two, backends, fault):
    backends[0].failing = fault
    answers = [complete(two, stream) for stream in (True, False) for _request in range(10)]
    assert {answer[0] for answer in answers} == {200}, answers
    assert all(text for __, __, text in answers), answers
    assert backends[0].asked > 0
    backends[1].failing = fault
    answers = [complete(two, stream) for stream in (True, False)]
    assert {answer[0] for answer in answers} <= {429, 503}, answers
    assert all(int(retry_after) >= 1 for __, retry_after, __ in answers), answers


def test_a_text_that_is_empty_is_an_answer(two, backends):
    for backend in backends:
        backend.word = ""
    assert [complete(two, True) for _request in range(6)] == [(200, None, "")] * 6
    assert backends[0].asked + backends[1].asked == 6


def test_a_mac_that_takes_no_connection_is_given_up_early(two, backends):
    """As one that is off: nothing comes back. An answer has 600 seconds."""
    with socket.socket() as silent, socket.socket() as first:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        first.connect(silent.getsockname())  # who comes after it waits for ever
        api_base = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        two.declare([backends[0].deployment(), backends[1].deployment(api_base=api_base)])
        began = time.monotonic()
        assert {two.ask()[1] for _number in range(6)} == {"mac-a"}
        assert {complete(two, True)[0] for _number in range(6)} == {200}
        assert time.monotonic() - began < 40


@pytest.fixture
def mortal():
    """Return a function that starts a backend which may be killed; all end with the test."""
    made = []

    def mortal(name, port=0):
        made.append(BackendServer(name, port))
        made[-1].run()
        return made[-1]

    yield mortal
    for backend in made:
        backend.kill()


def test_one_of_two_killed_in_the_middle_of_300_requests(two, backends, mortal):
    victim = mortal("victim")
    two.declare([victim.deployment(), backends[0].deployment()])
    killer = threading.Thread(target=lambda: (until(lambda: victim.asked > 50, "50 requests"), victim.kill()))
    killer.start()
    counts = two.ask_many(300)
    killer.join()
    assert sum(counts.values()) == 300
    assert 40 < counts["mac-victim"] < 100
    mortal("victim", victim.server_port)
    until(lambda: two.ask()[1] == "mac-victim", "the backend is back in rotation")


def test_a_mac_that_takes_many_deployments_with_it_costs_nobody_a_request(two, backends, mortal):
    victim = mortal("victim")
    gone = [victim.deployment(id=f"mac-victim-{number}", host="mac-victim") for number in range(4)]
    two.declare([*gone, backends[0].deployment(host="mac-a")])
    killer = threading.Thread(target=lambda: (until(lambda: victim.asked > 50, "50 requests"), victim.kill()))
    killer.start()
    counts = two.ask_many(300)
    killer.join()
    assert sum(counts.values()) == 300
    assert counts["mac-a"] > 150


def test_what_was_seen_to_answer_is_asked_at_once(two, backends, mortal):
    """A pause of the others, the end of its own, and another address end LiteLLM's own distrust."""
    victim = mortal("victim")
    declared = [victim.deployment(cooldown_time=300), backends[0].deployment()]
    two.declare(declared)

    def fails(backend):
        backend.kill()
        two.ask_many(20)

    def is_asked(why):
        until(lambda: "mac-victim" in two.ask_many(8), why, timeout=20)

    fails(victim)
    again = mortal("victim", victim.server_port)
    assert set(two.ask_many(20)) == {declared[1]["id"]}
    two.pause("operator", declared[1]["id"])
    until(lambda: two.ask()[1] == "mac-victim", "what is left is asked", timeout=20)
    two.pause("operator")
    fails(again)
    again = mortal("victim", victim.server_port)
    two.pause("rollout", "mac-victim")
    two.pause("rollout")
    is_asked("what was resumed is asked")
    fails(again)
    elsewhere = mortal("victim")
    two.declare([elsewhere.deployment(cooldown_time=300), declared[1]])
    is_asked("what has moved is asked")


def test_all_gone_is_said_plainly_and_ends_by_itself(two, mortal):
    first, second = mortal("first"), mortal("second")
    two.declare([first.deployment(), second.deployment()])
    assert len(two.ask_many(8)) == 2
    first.kill()
    second.kill()
    answers = [refusal(two, stream) for stream in (False, True) for _attempt in range(4)]
    assert {status for status, __, __ in answers} <= {429, 503}
    assert all(int(retry_after) >= 1 for __, retry_after, __ in answers), answers
    mortal("first", first.server_port)
    until(lambda: two.ask()[1] == "mac-first", "the service is back")


def test_another_program_at_the_address_is_no_word_about_the_request(two, backends):
    for status in (401, 404, 405):
        for backend in backends:
            backend.failing = status
        answers = [refusal(two, stream) for stream in (False, True) for _attempt in range(4)]
        assert {answer[0] for answer in answers} <= {429, 503}, (status, answers)
        assert all(int(retry_after) >= 1 for __, retry_after, __ in answers), (status, answers)
        backends[1].calm()
        until(lambda: all(two.ask()[1] == "mac-b" for _attempt in range(6)), "the other one is back")
        answers = Counter(two.ask()[0] for _attempt in range(40))
        # After 405 LiteLLM asks nobody else: one request finds out, once in a cooldown of each worker.
        assert answers[200] >= 40 - 12 * (status == 405), (status, answers)
        assert set(answers) <= {200, 503}
    backends[0].calm()
    until(lambda: two.ask()[1] == "mac-a", "the first one is back")


def test_a_stream_that_dies_is_no_whole_answer(two, backends):
    for backend in backends:
        backend.failing = "dies"
    client = Client(two.url, "stream", keeps_connection=False)
    answers = [client.ask(two.key, "chat") for _attempt in range(4)]
    # Either none of it was seen, or the stream says that it broke off.
    assert all(answer.problem for answer in answers), answers
    for backend in backends:
        backend.calm()
    until(lambda: not client.ask(two.key, "chat").problem, "streams are whole again")


def test_nothing_stays_in_flight(two, backends):
    for backend in backends:
        backend.chunk_seconds = 0.3
    client = Client(two.url, "stream", keeps_connection=False)
    asking = threading.Thread(target=client.ask, args=(two.key, "chat"))
    asking.start()
    until(lambda: sum(in_flight(two).values()) == 1, "a stream is in flight")
    asking.join()
    until(lambda: in_flight(two) == {}, "none is")
    # A client that goes away in the middle.
    for backend in backends:
        backend.chunk_seconds = 1
    payload = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with two.open("/v1/chat/completions", payload):
        until(lambda: sum(in_flight(two).values()) == 1, "a stream is in flight")
    until(lambda: in_flight(two) == {}, "none is")


def test_a_full_deployment_is_passed_over_while_another_has_room(two, backends):
    backends[0].answer_seconds = 4
    two.declare([backends[0].deployment(parallel_limit=2), backends[1].deployment(parallel_limit=50)])
    counts = two.ask_many(40)
    # One for each worker, and what is chosen in the moment before it counts.
    assert counts["mac-a"] <= 6
    backends[1].answer_seconds = 0.2
    two.declare([backend.deployment(parallel_limit=2) for backend in backends[1:3]])
    # Full or not, nothing is refused.
    assert sum(two.ask_many(24, at_a_time=12).values()) == 24


@pytest.mark.parametrize("routing", ["least_busy", "usage"])
def test_other_ways_to_choose(two, backends, routing):
    backends[0].answer_seconds = 1
    two.declare([backend.deployment() for backend in backends[:2]], routing=routing)
    counts = two.ask_many(60)
    two.declare(routing="round_robin")
    if routing == "least_busy":
        assert 0 < counts["mac-a"] < 25
    else:
        # What counts are tokens, and all answers have as many.
        assert set(counts) == {"mac-a", "mac-b"}


def test_another_group_answers_for_one_that_cannot(two, backends):
    a, b = backends[0].deployment(), backends[1].deployment(model_group="other")
    groups = [{"name": "chat", "fallbacks": ["other"]}, {"name": "other"}]
    backends[0].failing = True
    two.declare([a, b], model_groups=groups)
    assert {two.ask()[1] for _attempt in range(6)} == {"mac-b"}
    assert two.declare([a, b], model_groups=groups)["changed"] is False
    two.declare([a, b], model_groups=[])
    assert refusal(two)[0] in (429, 503)


def test_a_prompt_that_is_too_long_goes_to_the_group_for_that(two, backends):
    small = backends[0].deployment(max_input_tokens=20)
    large = backends[1].deployment(model_group="large", model="large")
    two.declare([small, large], model_groups=[{"name": "chat", "context_window_fallbacks": ["large"]}])
    payload = {"model": "chat", "messages": [{"role": "user", "content": "word " * 200}]}
    with two.open("/v1/chat/completions", payload) as reply:
        assert reply.headers["x-litellm-model-id"] == "mac-b"
    assert two.ask()[1] == "mac-a"
    two.declare([small, large], model_groups=[])
    with pytest.raises(urllib.error.HTTPError) as refused, two.open("/v1/chat/completions", payload):
        pass
    with refused.value as error:
        assert error.code == 400
        assert "context" in error.read().decode().lower()
    # A window that was taken away is none any more, whether another group has one or not.
    for window in (20, None):
        two.declare([backends[0].deployment(), {**large, "max_input_tokens": window}])
        for _request in range(4):
            with two.open("/v1/chat/completions", payload) as reply:
                assert reply.headers["x-litellm-model-id"] == "mac-a"


@pytest.mark.parametrize("routing", ["round_robin", "shuffle"])
def test_a_long_prompt_goes_to_one_of_its_group_that_takes_it(two, backends, routing):
    small, large = backends[0].deployment(max_input_tokens=20), backends[1].deployment(max_input_tokens=1000)
    two.declare([small, large], model_groups=[], routing=routing)
    payload = {"model": "chat", "messages": [{"role": "user", "content": "word " * 200}]}
    for _request in range(6):
        with two.open("/v1/chat/completions", payload) as reply:
            assert reply.headers["x-litellm-model-id"] == "mac-b"
    assert {two.ask()[1] for _request in range(20)} == {"mac-a", "mac-b"}
    # LiteLLM takes the last window it was told for that of all who have the same model.
    two.declare([backends[1].deployment(), {**small, "max_input_tokens": 30}])
    for _request in range(6):
        with two.open("/v1/chat/completions", payload) as reply:
            assert reply.headers["x-litellm-model-id"] == "mac-b"
    two.declare([small, large])
    payload["messages"][0]["content"] = "word " * 2000
    with pytest.raises(urllib.error.HTTPError) as refused, two.open("/v1/chat/completions", payload):
        pass
    with refused.value as error:
        assert error.code == 400
        assert "context" in error.read().decode().lower()


def test_embeddings_and_chats_do_not_mix(two, backends):
    chat = backends[0].deployment(model="llama")
    two.declare([chat, backends[1].deployment(model_group="embed", model="nomic", mode="embedding")])
    for model in ("embed", "openai/nomic"):
        status, __, message = refusal(two, model=model)
        assert (status, "ask /v1/embeddings" in message) == (400, True)
    # Also by an alias, and by what LiteLLM asks the backend for.
    for model in ("chat", "mac-a", "talk", "openai/llama"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            two.open("/v1/embeddings", {"model": model, "input": "x"})
        with refused.value as error:
            assert error.code == 400
    assert (backends[0].asked, backends[1].asked) == (0, 0)
    for model in ("embed", "openai/nomic"):
        with two.open("/v1/embeddings", {"model": model, "input": "x"}) as reply:
            assert json.load(reply)["data"][0]["embedding"] == [0.5, 0.25]
    for model in ("talk", "openai/llama"):
        assert two.ask(model)[0] == 200
    backends[0].failing = True
    for model in ("talk", "openai/llama"):
        status, retry_after, __ = refusal(two, model=model)
        assert status in (429, 503)
        assert int(retry_after) >= 1
