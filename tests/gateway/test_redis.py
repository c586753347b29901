# SPDX-License-Identifier: GPL-3.0-or-later
"""The real LiteLLM with a real Redis: what one worker learns, all know; and a Redis that is down costs no request."""

from __future__ import annotations

import subprocess
import time

import pytest

from gateway_under_test import free_port
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
def gateway(start, redis):
    return start(litellm_workers=2, litellm_redis_url=redis.url, litellm_router_settings={"cooldown_time": 60})


def test_what_one_worker_has_taken_out_is_known_to_all(gateway, backends, redis):
    gateway.declare([backend.deployment() for backend in backends[:2]])
    backends[0].failing = True
    gateway.ask_many(12)
    gateway.wait_until(lambda: "mac-a" in redis.ask("keys", "*cooldown*"))
    asked = backends[0].asked
    gateway.ask_many(40)
    # The worker that had not seen it fail looks at Redis every few seconds only, and may have tried it once.
    assert backends[0].asked <= asked + 1


def test_a_redis_that_is_down_costs_no_request(gateway, backends, redis):
    gateway.declare([backend.deployment(model_group="steady", id=f"s-{backend.name}") for backend in backends[2:]])
    with Traffic(gateway.url, gateway.key, "steady") as traffic:
        traffic.wait_for(16)
        redis.stop()
        traffic.wait_for(48)
        redis.start()
        traffic.wait_for(16)
    traffic.assert_none_failed()


def test_its_password_is_not_to_be_seen(gateway, installation):
    processes = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in processes
    for path in [*(installation.root / "logs").iterdir(), installation.root / "current" / "config.yaml"]:
        assert PASSWORD not in path.read_text(), path
