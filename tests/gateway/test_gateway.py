# SPDX-License-Identifier: GPL-3.0-or-later
"""The real LiteLLM with several gunicorn workers: what the registry promises to those who use the gateway.

With more of them: GATEWAY_WORKERS=8.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gateway_under_test import module
from traffic import SECONDS, Traffic

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(600)]

WORKERS = int(os.environ.get("GATEWAY_WORKERS", "2"))


@pytest.fixture(scope="module")
def gateway(start):
    # With the default cooldown a backend that failed in one test would be out of the next ones.
    return start(litellm_workers=WORKERS, litellm_router_settings={"cooldown_time": 1})


@pytest.fixture
def four(gateway, backends):
    """The gateway with four deployments of one group, none of them paused."""
    for owner in ("operator", "rollout", "guard"):
        gateway.pause(owner)
    gateway.declare([backend.deployment() for backend in backends], routing="round_robin")
    return gateway


def test_every_worker_has_applied_what_the_module_returns(four):
    result = four.declare(workers=WORKERS)
    assert len(result["workers"]) == WORKERS
    assert {report["generation"] for report in four.reports()} == {result["generation"]}


def test_a_worker_is_known_by_its_script_too(four, installation):
    """Some Pythons of macOS show themselves where the program of the virtual environment was started."""
    for report in four.reports():
        words = Path(f"/proc/{report['pid']}/cmdline").read_text().split("\0")
        assert words[1].startswith(f"{installation.root}/")


def test_200_requests_are_shared_evenly(four, backends):
    counts = four.ask_many(200)
    assert sum(counts.values()) == 200
    # Each worker takes turns exactly, from the first on.
    assert max(counts.values()) - min(counts.values()) <= WORKERS
    assert len(counts) == 4
    assert sum(backend.asked for backend in backends) == 200


def test_a_stream_comes_as_it_is_made(four, backends):
    payload = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}

    def stream():
        with four.open("/v1/chat/completions", payload) as reply:
            return [time.monotonic() for line in reply if b'"content"' in line]

    # The first stream of a worker begins late: LiteLLM still loads what it needs for it.
    for _warming in range(2 * WORKERS):
        stream()
    for backend in backends:
        backend.calm()
        backend.chunk_seconds = 1
    arrived = stream()
    sent = next(backend.sent for backend in backends if backend.sent)
    assert len(arrived) == len(sent) == 5
    # Room for a slow machine, but not for holding chunks back.
    assert [there < later for there, later in zip(arrived, sent[2:], strict=False)] == [True] * 3


def test_no_request_is_lost_while_deployments_come_go_and_change(four, backends):
    for backend in backends:
        backend.chunk_seconds = 0.1
    a, b, c, d = (backend.deployment() for backend in backends)
    began = time.monotonic()
    with Traffic(four.url, four.key, "chat") as traffic:
        while len(traffic.answers) < 96 or time.monotonic() < began + SECONDS:
            for deployments in (
                [a, b],
                [a, b, c, d],
                [{**a, "weight": 3}, b],
                [c, d],
                [{**c, "id": "mac-c-2"}],
                [a, b, c, d],
            ):
                four.declare(deployments)
                traffic.wait_for(12)
            four.pause("rollout", "mac-a", "mac-b", "mac-c")
            traffic.wait_for(12)
            four.pause("rollout")
            traffic.wait_for(12)
    traffic.assert_none_failed(least=5)


def test_a_paused_deployment_gets_no_new_request_but_can_be_probed(four, backends):
    four.pause("operator", "mac-a")
    asked = backends[0].asked
    assert set(four.ask_many(40)) == {"mac-b", "mac-c", "mac-d"}
    assert backends[0].asked == asked
    assert four.ask("mac-a")[:2] == (200, "mac-a")
    four.pause("rollout")
    assert "mac-a" not in four.ask_many(12)
    four.pause("operator")
    assert "mac-a" in four.ask_many(12)


def test_all_paused_is_refused_by_an_operator_and_ignored_from_the_guard(four):
    everything = [f"mac-{name}" for name in "abcd"]
    four.pause("guard", *everything)
    assert len(four.ask_many(16)) == 4
    four.pause("operator", *everything)
    before = failed_requests(four)
    status, __, __, body = four.ask()
    assert status == 429
    assert "No deployments available" in body
    four.wait_until(lambda: failed_requests(four) == before + 1)


def failed_requests(gateway):
    return sum(report["outcomes"]["failed_requests"] for report in gateway.reports())


def test_a_retry_goes_to_another_deployment(four, backends):
    backends[1].failing = True
    with four.traffic(at_a_time=4) as answers:
        time.sleep(4)
    assert [answer for answer in answers if answer[0] != 200] == []
    retried = [answer for answer in answers if answer[2]]
    assert retried
    # One failure never costs a second try: the retry was right the first time.
    assert {answer[2] for answer in retried} == {1}


def test_a_broken_registry_changes_nothing_until_it_is_declared_again(four, backends):
    path = four.root / "registry" / "deployments.json"
    whole = path.read_text()
    pids = {report["pid"] for report in four.reports()}
    for broken in (whole[: len(whole) // 2], "", None):
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        deadline = time.monotonic() + 5
        while not all(report["error"] for report in four.reports()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert all("deployments.json" in report["error"] for report in four.reports())
        assert len(four.ask_many(16)) == 4
    # A worker that starts now begins with what the others kept.
    os.kill(min(pids), signal.SIGKILL)
    ask = {"url": four.url, "registry": str(four.root / "registry"), "timeout": 10}
    four.wait_until(lambda: {worker["pid"] for worker in module("litellm_health", **ask)["workers"]} - pids)
    assert all("deployments.json" in report["error"] for report in four.reports())
    assert len(four.ask_many(16)) == 4
    result = four.declare([backend.deployment() for backend in backends[:3]], purge=False)
    assert (result["changed"], len(result["deployments"])) == (True, 4)
    assert [report["error"] for report in four.reports()] == [None] * WORKERS


def test_a_killed_worker_comes_back_with_everything(four):
    before = four.declare()["workers"]
    with four.traffic() as answers:
        os.kill(before[0], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while before[0] in four.declare(workers=WORKERS)["workers"] and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
    after = four.declare(workers=WORKERS)["workers"]
    assert (len(after), before[1] in after, before[0] in after) == (WORKERS, True, False)
    # The requests that the killed worker had in hand are lost, but the new one never says that it knows no model.
    assert {answer[0] for answer in answers} <= {200, 0}
    assert sum(answer[0] == 0 for answer in answers) <= 3


def test_what_litellm_refuses_is_named(four, backends):
    path = four.root / "registry" / "deployments.json"
    document = json.loads(path.read_text())
    document["deployments"][0]["litellm_params"]["model"] = "no-such-provider/m"
    document["generation"] += 1
    path.write_text(json.dumps(document))
    assert "refused the deployment mac-a" in str(four.declare()["warnings"])
    # The former version goes on serving.
    assert len(four.ask_many(8 * WORKERS)) == 4
    assert four.declare([backend.deployment() for backend in backends])["changed"]
    assert [report["rejected"] for report in four.reports()] == [{}] * WORKERS


def test_health_asks_each_deployment_by_its_id(four, backends):
    embed = {**backends[3].deployment(), "model_group": "embed", "mode": "embedding"}
    four.declare([*(backend.deployment() for backend in backends[:3]), embed])
    backends[2].failing = True
    arguments = {"url": four.url, "master_key_file": str(four.root / "master_key"), "timeout": 15}
    result = module("litellm_health", deployments=["mac-a", "mac-b", "mac-c", "mac-d"], **arguments)
    assert {entry["id"]: entry["healthy"] for entry in result["deployments"]} == {
        "mac-a": True,
        "mac-b": True,
        "mac-c": False,
        "mac-d": True,
    }
    assert "1 of 4 deployments did not answer" in result["msg"]
    assert "mac-c: HTTP 503" in result["msg"]


def test_health_tells_what_each_worker_knows_and_a_wrong_key(four):
    known = module("litellm_health", url=four.url, registry=str(four.root / "registry"), timeout=10)
    assert [worker["deployments"] for worker in known["workers"]] == [[f"mac-{name}" for name in "abcd"]] * WORKERS
    wrong = module("litellm_health", url=four.url, master_key="sk-wrong", deployments=["mac-a"], timeout=30)
    assert "does not accept the key" in wrong["msg"]


def test_many_deployments_in_one_call(four, backends):
    many = [backends[0].deployment(id=f"d{number}", model_group=f"g{number % 10}") for number in range(500)]
    began = time.monotonic()
    assert len(four.declare([*many, backends[0].deployment()])["added"]) == 500
    first = time.monotonic() - began
    began = time.monotonic()
    assert four.declare([*many, backends[0].deployment()])["changed"] is False
    print(f"500 deployments: {first:.2f} s, again: {time.monotonic() - began:.2f} s")
    assert first < 15


def test_only_the_key_opens_and_only_where_it_should(four):
    for headers in ({"Authorization": "Bearer sk-wrong"}, {"x-api-key": "sk-wrong"}, {}):
        for path in ("/v1/models", "/model/info"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(four.url + path, headers=headers), timeout=10)
            with refused.value as reply:
                said = reply.read().decode()
            assert (refused.value.code, "auth_error" in said) == (401, True), (headers, path, said)
        for path in ("/health/liveliness", "/health/readiness"):
            with urllib.request.urlopen(urllib.request.Request(four.url + path, headers=headers), timeout=10) as reply:
                assert reply.status == 200
    # What is wrong with a request of somebody who may ask is told as it is.
    with pytest.raises(urllib.error.HTTPError) as refused:
        four.open("/v1/chat/completions", {"model": "chat"})
    with refused.value as reply:
        assert reply.code != 401
    processes = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert four.key not in processes
    assert four.key not in four.log.read_text()
    for path in ("/docs", "/redoc", "/openapi.json"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(four.url + path, timeout=10)
