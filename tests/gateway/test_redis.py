# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real LiteLLMs with a real Redis: what one learns, both know; and a Redis that is down costs no request."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.error

import pytest

from gateway_under_test import Gateway, Installation, free_port
from traffic import Traffic

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(600)]

PASSWORD = "geheim-0123456789"
# The server is the same program; which one it is it takes from its name.
SERVER = "/usr/bin/redis-check-rdb"


class Redis:
    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        settings = f'bind 127.0.0.1\nport {self.port}\nrequirepass {PASSWORD}\nsave ""\ndir {folder}\n'
        (folder / "redis.conf").write_text(settings)

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", str(self.folder / "redis.conf")], executable=SERVER, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while "PONG" not in self.ask("ping"):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def ask(self, *words):
        command = ["redis-cli", "-p", str(self.port), *words]
        environment = {"REDISCLI_AUTH": PASSWORD}
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True).stdout

    def stop(self):
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    redis = Redis(tmp_path_factory.mktemp("redis"))
    redis.start()
    yield redis
    redis.stop()


@pytest.fixture(scope="module")
def variables(redis):
    return {
        "litellm_workers": 1,
        "litellm_redis_url": redis.url,
        "litellm_router_settings": {"cooldown_time": 60},
    }


@pytest.fixture(scope="module")
def gateway(start, variables):
    return start(**variables)


@pytest.fixture(scope="module")
def other(installed, tmp_path_factory, variables):
    """A second gateway, which has nothing in common with the first one but Redis."""
    root = tmp_path_factory.mktemp("other") / "gateway"
    root.mkdir()
    for venv in [path for path in installed.iterdir() if re.fullmatch(r"(venv|tools)-\w+", path.name)]:
        (root / venv.name).symlink_to(venv)
    installation, port = Installation(root, tmp_path_factory.mktemp("other-play")), free_port()
    installation.configure(litellm_port=port, **variables)
    other = Gateway(installation, port)
    try:
        other.wait()
        yield other
    finally:
        other.stop()


def test_what_one_gateway_has_taken_out_the_other_does_not_ask(gateway, other, backends, redis):
    for one in (gateway, other):
        one.declare([backend.deployment() for backend in backends[:2]])
    backends[0].failing = True
    gateway.ask_many(12)
    gateway.wait_until(lambda: "mac-a" in redis.ask("keys", "*cooldown*"))
    # It would answer again, and the other gateway has never seen it fail.
    backends[0].calm()
    # One by one: while the first request looks at Redis, LiteLLM does not look for others.
    assert other.ask_many(20, at_a_time=1) == {"mac-b": 20}
    assert backends[0].asked == 0


def in_one_minute(do, number=0):
    """Return what `do` returns, called with 0, 1, … until the minute of the clock is the same before and after it."""
    minute = time.time() // 60
    result = do(number)
    return result if time.time() // 60 == minute else in_one_minute(do, number + 1)


def test_gateways_share_the_requests_of_a_minute(gateway, other, backends):
    def ask(number):
        near = backends[1].deployment(model_group="near", id=f"near-{number}", rpm=5)
        first = backends[2].deployment(model_group="relieved", id=f"first-{number}", rpm=2, order=1)
        spare = backends[3].deployment(model_group="relieved", id="spare", order=2)
        for one in (gateway, other):
            one.declare([near, first, spare])
        answers = [one.ask("near")[0] for one in (gateway, other) for _request in range(3)]
        with pytest.raises(urllib.error.HTTPError) as refused:
            gateway.open("/v1/chat/completions", {"model": "near", "messages": [{"role": "user", "content": "x"}]})
        refused.value.close()
        relieved = [one.ask("relieved")[1] for one in (gateway, other, gateway, other)]
        return answers, refused.value, [name.partition("-")[0] for name in relieved], gateway.ask(near["id"])[0]

    answers, refused, relieved, by_id = in_one_minute(ask)
    assert answers == [200] * 5 + [429]
    assert (refused.code, 0 < int(refused.headers["Retry-After"]) <= 60) == (429, True)
    assert relieved == ["first", "first", "spare", "spare"]
    assert by_id == 200


def test_gateways_share_the_tokens_of_a_minute(gateway, other, backends, redis):
    def ask(number):
        name = f"tokens-{number}"
        for one in (gateway, other):
            one.declare([backends[1].deployment(model_group="tokens", id=name, tpm=2)])
        assert gateway.ask("tokens")[0] == 200
        # What a request has used is known a moment after its answer.
        gateway.wait_until(
            lambda: any("2" in redis.ask("get", key) for key in redis.ask("keys", f"lmfleet:{name}:tpm:*").split())
        )
        return other.ask("tokens")[0]

    assert in_one_minute(ask) == 429


def test_a_redis_that_is_down_costs_no_request(gateway, backends, redis):
    gateway.declare([backend.deployment(model_group="steady", id=f"s-{backend.name}") for backend in backends[2:]])
    with Traffic(gateway.url, gateway.key, "steady") as traffic:
        traffic.wait_for(16)
        redis.stop()
        traffic.wait_for(48)
        redis.start()
        traffic.wait_for(16)
    traffic.assert_none_failed()


def test_a_redis_that_is_down_holds_up_no_end_of_a_pause(gateway, backends, redis):
    failing, steady = backends[:2], backends[2]
    names = [f"again-{backend.name}" for backend in failing]
    declared = [backend.deployment(model_group="again", id=name) for backend, name in zip(failing, names, strict=True)]
    gateway.declare([*declared, steady.deployment(model_group="again", id="again-steady")])
    for backend in failing:
        backend.failing = True
    gateway.ask_many(24, model="again")
    for backend in failing:
        backend.calm()
    assert gateway.ask_many(12, model="again") == {"again-steady": 12}
    redis.stop()
    gateway.pause("rollout", *names)
    gateway.pause("rollout")
    # LiteLLM gives a Redis that is down some seconds with each request.
    counts = gateway.ask_many(12, model="again")
    redis.start()
    assert set(counts) == {*names, "again-steady"}


def test_its_password_is_not_to_be_seen(gateway, installation):
    processes = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in processes
    for path in [*(installation.root / "logs").iterdir(), installation.root / "current" / "config.yaml"]:
        assert PASSWORD not in path.read_text(), path
