# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job: site.yml makes two Macs one service, keeps it so, and the service heals by itself."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import re
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest

from as_declared import assert_as_declared
from certificates import NGINX, certificate
from fleet_under_test import NETWORK, REALM, REPOSITORY, Run, chat
from lmfleet_sandbox.fleet import pids_of
from lmfleet_sandbox.realm import Realm

pytestmark = [pytest.mark.e2e, pytest.mark.sandbox, pytest.mark.timeout(600)]

GUARD_LOG = "/Users/admin/.lmfleet/queue_guard/guard.log"
DEPLOYMENTS = {f"mac-{mac}-chat-{instance}-pretender" for mac in (1, 2) for instance in "ab"}


def test_check_mode_before_the_first_run_tells_all_and_changes_nothing(fleet):
    before = {host: fleet.files(host) for host in ("mac-1", "mac-2")}
    run = fleet.play("--check", "--diff").succeeded()
    assert all(run.changed.values()), run.output
    run.said("numParallelSessions", "lmfleet.instance.chat-a", "lmfleet.gateway", "mac-2-chat-b-pretender-embed")
    assert {host: fleet.files(host) for host in ("mac-1", "mac-2")} == before


def test_a_second_run_changes_nothing_and_restarts_nothing(served):
    before = served.daemons()
    run = served.play().succeeded()
    assert run.changed == {"mac-1": 0, "mac-2": 0}
    assert served.daemons() == before
    run.said("mac-2 chat-b 1235 pretender-embed default ready", f"Clients: http://{NETWORK}.11:4000/v1")


def test_a_real_model_answers_in_a_stream(served):
    with served.ask("/v1/chat/completions", chat("smollm2-135m-instruct", max_tokens=24, stream=True)) as response:
        assert response.headers["x-litellm-model-id"] == "mac-1-chat-a-smollm2-135m-instruct"
        chunks = [json.loads(line[6:]) for line in response if line.startswith(b"data: {")]
    words = [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]
    assert len([word for word in words if word]) > 3


def test_embeddings_come_from_the_embedding_model(served):
    with served.ask("/v1/embeddings", {"model": "pretender-embed", "input": ["one", "two"]}) as response:
        vectors = [entry["embedding"] for entry in json.load(response)["data"]]
    assert len(vectors) == 2
    assert vectors[0] != vectors[1]


def test_every_deployment_of_a_group_gets_its_share(served):
    def one(_number):
        with served.ask("/v1/chat/completions", chat("pretender", max_tokens=1)) as response:
            response.read()
            return response.headers["x-litellm-model-id"]

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        shares = collections.Counter(clients.map(one, range(200)))
    assert set(shares) == DEPLOYMENTS
    assert max(shares.values()) / min(shares.values()) <= 1.5, shares


def test_a_deployment_whose_queue_grows_too_long_is_paused_and_comes_back(served):
    slow = "mac-2-chat-b-pretender"
    job = "system/lmfleet.queue_guard"

    def until(condition, what):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, (what, served.paused_by_guard(), served.read("mac-1", GUARD_LOG))
            time.sleep(0.5)

    def reached():
        """Return the deployments that get requests now."""
        found = set()
        for _number in range(16):
            with served.ask("/v1/chat/completions", chat("pretender", max_tokens=1)) as response:
                found.add(response.headers["x-litellm-model-id"])
        return found

    def pid():
        return re.search(r"\bpid = (\d+)", served.on("mac-1", f"launchctl print {job}"))

    served.sandbox("knob", "mac-2", 'llmster.queue@chat-b={"pretender": 40}')
    answers(served, slow)  # an idle instance would look at its queues every 30 seconds only
    until(lambda: slow in served.paused_by_guard(), "it is paused")
    pause = served.paused_by_guard()[slow]
    assert re.fullmatch(r"queue 4\d is above 16 \(parallel 4\)", pause["reason"])
    until(lambda: reached() == DEPLOYMENTS - {slow}, "all workers know")

    before = pid()[1]
    served.on("mac-1", f"kill -9 {before}", root=True)
    until(lambda: pid() and pid()[1] != before, "launchd starts the guard again")
    until(lambda: served.paused_by_guard().get(slow, pause)["until"] > pause["until"] + 10, "it renews the pause")
    assert served.paused_by_guard()[slow]["since"] == pause["since"]

    served.on("mac-1", f"launchctl bootout {job}", root=True)
    until(lambda: reached() == DEPLOYMENTS, "its pauses end without it")
    served.on("mac-1", "launchctl bootstrap system /Library/LaunchDaemons/lmfleet.queue_guard.plist", root=True)
    until(lambda: slow in served.paused_by_guard(), "it is paused again")
    served.sandbox("knob", "mac-2", "--clear")
    until(lambda: not served.paused_by_guard(), "it comes back by itself")
    assert reached() == DEPLOYMENTS


def test_the_settings_of_a_model_arrive(served):
    status = served.status("mac-2", "chat-a")
    assert [(model["identifier"], model["parallel"], model["context_length"]) for model in status["models"]] == [
        ("pretender", 4, 4096)
    ]


def test_no_secret_can_be_read_by_others(served):
    key = served.master_key()
    assert len(key) > 20
    readable = "find /Users/admin/.lmfleet/gateway /Library/LaunchDaemons -maxdepth 1 -type f -perm -004"
    for file in served.on("mac-1", readable, root=True).split():
        assert key not in served.on("mac-1", f"cat {file}", root=True), file
    assert key not in served.on("mac-1", "ps -axo args", root=True)


def test_a_killed_daemon_serves_again_by_itself(served):
    pid = served.status("mac-2", "chat-a")["daemon_pid"]
    served.on("mac-2", f"kill -9 {pid}", root=True)
    served.wait_until_ready("mac-2", "chat-a", not_pid=pid)
    answers(served, "mac-2-chat-a-pretender")


def test_a_rebooted_mac_serves_again_by_itself(served):
    before = served.daemons()
    served.sandbox("reboot", "mac-1")
    for instance in ("chat-a", "chat-b"):
        served.wait_until_ready("mac-1", instance, not_pid=before[f"mac-1/{instance}"])
    for deployment in ("mac-1-chat-b-pretender", "mac-2-chat-b-pretender"):
        answers(served, deployment)


def test_after_all_that_two_runs_at_once_change_nothing(served):
    processes = [served.start(), served.start()]
    runs = [Run(process, process.communicate()[0]) for process in processes]
    assert any(run.code == 0 for run in runs), runs[0].output
    for run in runs:
        if run.code:
            run.said("Another run works on this fleet")
        else:
            assert run.changed == {"mac-1": 0, "mac-2": 0}


EVERY_SETTING = {
    "context_length": 3000,
    "parallel": 3,
    "unified_kv_cache": False,
    "gpu": 0.5,
    "offload_kv_cache_to_gpu": True,
    "flash_attention": True,
    "k_cache_quantization": "q8_0",
    "v_cache_quantization": "q4_0",
    "cpu_threads": "all_cores",
    "eval_batch_size": 1024,
    "physical_batch_size": 256,
    "auto_fit": False,
    "keep_model_in_memory": False,
    "mmap": False,
    "num_experts": 2,
    "draft_model": "smollm2-135m-instruct",
    "draft_max_tokens": 8,
    "draft_min_tokens": 1,
    "draft_min_continue_probability": 0.5,
}


def test_every_setting_arrives_and_loads_that_model_anew_only(served, tmp_path):
    """All of them on one Mac, and one of them on the other."""
    before = served.daemons()
    tuned = served.copy(tmp_path)
    tuned.variables["macs"]["lmfleet_instances"][1]["models"][0] = {"name": "pretender", "load": EVERY_SETTING}
    mac_1 = tuned.hosts["all"]["children"]["macs"]["hosts"]["mac-1"]["lmfleet_instances"]
    mac_1[1]["models"][0] = {"name": "pretender", "load": {"parallel": 2}}
    run = tuned.play("--diff").succeeded()
    run.said("numParallelSessions")
    run.said("model pretender on mac-2/chat-b: speculative decoding with load.parallel 3")
    assert (run.changed["mac-2"] > 0, served.daemons()) == (True, before)
    home = "/Users/admin/.lmfleet/instances/chat-b"
    folder = f"{home}/.lmstudio/.internal/user-concrete-model-default-config/lmfleet/pretender"
    fields = json.loads(served.read("mac-2", f"{folder}/fake-llm.gguf.json"))["load"]["fields"]
    values = {field["key"].rpartition(".")[2]: field["value"] for field in fields}
    assert len(values) == len(EVERY_SETTING) + 1  # draftSimple follows from draftModel
    assert (values["cpuThreadPoolSize"], values["offloadRatio"], values["draftSimple"]) == (12, 0.5, True)
    assert values["vCacheQuantizationType"] == {"checked": True, "value": "q4_0"}
    assert values["draftModel"] == "lmfleet/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"
    loaded = {model["identifier"]: model for model in served.status("mac-2", "chat-b")["models"]}
    assert (loaded["pretender"]["context_length"], loaded["pretender"]["parallel"]) == (3000, 3)
    declared = json.loads(served.read("mac-2", f"{home}/instance.json"))["models"][0]["load"]
    assert declared == {**EVERY_SETTING, "draft_simple": True, "cpu_threads": 12}
    assert served.status("mac-1", "chat-a")["models"][0]["parallel"] == 4
    assert_as_declared(tuned)
    assert tuned.play().succeeded().changed == {"mac-1": 0, "mac-2": 0}


def test_without_the_queue_guard_nothing_of_it_is_left_and_no_daemon_starts_anew(served, tmp_path):
    guard = "system/lmfleet.queue_guard"
    traces = [
        str(Path(GUARD_LOG).parent),
        "/Users/admin/.lmfleet/gateway/registry/paused/guard.json",
        "/Library/LaunchDaemons/lmfleet.queue_guard.plist",
    ]

    def found():
        script = f"ls -d {' '.join(traces)} 2>/dev/null; launchctl print {guard} >/dev/null 2>&1 && echo {guard}; true"
        return set(served.on("mac-1", f"sh -c '{script}'").split())

    def daemons():
        return [served.status(mac, name)["daemon_pid"] for mac in ("mac-1", "mac-2") for name in ("chat-a", "chat-b")]

    before = daemons()
    assert found() >= {guard, traces[0], traces[2]}
    without = served.copy(tmp_path)
    without.variables["all"]["lmfleet_queue_guard"] = False
    without.play().succeeded()
    assert found() == set() and served.status("mac-2", "chat-a")["status_port"] is None
    served.play().succeeded()
    assert found() >= {guard, traces[0], traces[2]} and served.status("mac-2", "chat-a")["status_port"] == 2234
    assert daemons() == before


def test_a_change_that_does_not_fit_is_refused_by_what_lm_studio_estimates(served, tmp_path):
    files = "find /Users/admin/.lmfleet/instances -name instance.json -ls -o -name '*.gguf.json' -ls"
    before = {host: served.on(host, files) for host in ("mac-1", "mac-2")}, served.daemons()
    large = served.copy(tmp_path)
    large.variables["macs"]["lmfleet_memory_reserve_mb"] = 63000
    assert large.play().succeeded().changed == {"mac-1": 0, "mac-2": 0}
    large.variables["macs"]["lmfleet_instances"][1]["models"][0] = {"name": "pretender", "load": {"parallel": 2}}
    run = large.play()
    assert run.code != 0
    run.said(
        "Nothing has been changed", "2536 MB are for models", "chat-b pretender - - -", "all estimated by LM Studio"
    )
    assert ({host: served.on(host, files) for host in ("mac-1", "mac-2")}, served.daemons()) == before
    large.variables["macs"]["lmfleet_memory_policy"] = "warn"
    run = large.play().succeeded()
    run.said("[WARNING]", "all estimated by LM Studio")
    assert served.status("mac-2", "chat-b")["models"][0]["parallel"] == 2
    assert large.play().succeeded().changed == {"mac-1": 0, "mac-2": 0}


def test_a_removed_instance_is_stopped_and_its_deployments_forgotten(served, tmp_path):
    smaller = served.copy(tmp_path)
    smaller.variables["macs"]["lmfleet_instances"].pop()
    smaller.play().succeeded()
    assert_as_declared(smaller)
    assert "chat-b" not in served.on("mac-2", "ls /Users/admin/.lmfleet/instances /Users/admin/Library/LaunchAgents")
    with pytest.raises(urllib.error.HTTPError):
        served.ask("/v1/chat/completions", chat("mac-2-chat-b-pretender"))
    served.play().succeeded()
    answers(served, "mac-2-chat-b-pretender")


def test_a_gateway_that_is_gone_does_not_stop_the_others(served, tmp_path):
    two = served.copy(tmp_path)
    two.hosts["all"]["children"]["gateways"]["hosts"]["gone"] = {"ansible_host": f"{NETWORK}.99"}
    two.variables["gateways"]["litellm_master_key"] = served.master_key()
    run = two.play("-e", "ansible_ssh_timeout=5")
    assert run.code == 4, run.output
    assert run.changed == {"mac-1": 0, "mac-2": 0, "gone": 0}
    run.said("NOT REACHED: the gateway on gone", f"Clients: http://{NETWORK}.11:4000/v1 (gateway on mac-1)")


def test_the_built_collection_runs_from_an_empty_path(served, tmp_path):
    galaxy = [str(Path(sys.executable).parent / "ansible-galaxy"), "collection"]
    build = subprocess.run(
        [*galaxy, "build", "--output-path", str(tmp_path)], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    archive = next(tmp_path.glob("lmfleet-mac-*.tar.gz"))
    assert str(archive) in build.stdout
    subprocess.run(
        [*galaxy, "install", str(archive), "-p", str(tmp_path / "installed"), "--offline"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    installed = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "installed")}
    run = served.play("--check", "--diff", playbook="lmfleet.mac.site", **installed)
    assert run.succeeded().changed == {"mac-1": 0, "mac-2": 0}
    report = tmp_path / "report.json"
    served.play("-e", f"verify_json={report}", playbook="lmfleet.mac.verify", **installed)
    assert json.loads(report.read_text())["drift"] == []


def test_the_gateway_with_tls(served, tmp_path):
    """On, with another certificate, refused with a bad one, and off again."""
    programs = Path(f"/proc/{pids_of(Realm(REALM))['mac-1']}/root/opt/homebrew/bin")
    programs.mkdir(parents=True, exist_ok=True)
    shutil.copy(NGINX, programs)

    def play(**variables) -> Run:
        fleet = served.copy(tmp_path)
        fleet.variables["gateways"].update({f"gateway_tls_{name}": value for name, value in variables.items()})
        return fleet.play("--diff")

    def asked(trusted: str) -> dict:
        key = served.master_key()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        body = json.dumps(chat("pretender")).encode()
        request = urllib.request.Request(f"https://{NETWORK}.11:8443/v1/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60, context=ssl.create_default_context(cadata=trusted)) as reply:
            return json.load(reply)

    first, second = certificate(address=f"{NETWORK}.11"), certificate(address=f"{NETWORK}.11")
    on = {"state": "present", "certificate": first[0], "key": first[1]}
    run = play(**on).succeeded()
    run.said(f"Clients: https://{NETWORK}.11:8443/v1 (gateway on mac-1, with TLS)")
    assert "PRIVATE KEY" not in run.output
    assert asked(first[0])["choices"]
    on.update(certificate=second[0], key=second[1])
    assert play(**on).succeeded().changed == {"mac-1": 1, "mac-2": 0}
    assert asked(second[0])["choices"]
    assert play(**on).succeeded().changed == {"mac-1": 0, "mac-2": 0}
    expired = certificate(begins=-9, ends=-1)
    refused = play(**{**on, "certificate": expired[0], "key": expired[1]})
    assert refused.code != 0
    refused.said("gateway_tls_certificate: has expired on")
    assert asked(second[0])["choices"]
    assert play().succeeded().changed == {"mac-1": 1, "mac-2": 0}
    assert "gateway_tls" not in served.on("mac-1", "ls /Users/admin/.lmfleet /Library/LaunchDaemons")


def answers(fleet, deployment: str, timeout: float = 90) -> None:
    """Assert that a deployment answers through the gateway within C(timeout) seconds; a cooldown may have to pass."""
    deadline, last = time.monotonic() + timeout, None
    while time.monotonic() < deadline:
        try:
            with fleet.ask("/v1/chat/completions", chat(deployment)) as response:
                assert response.headers["x-litellm-model-id"] == deployment
                return
        except OSError as error:
            last = error
        time.sleep(1)
    raise AssertionError(f"{deployment} did not answer within {timeout} s; last: {last}")
