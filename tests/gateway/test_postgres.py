# SPDX-License-Identifier: GPL-3.0-or-later
"""The real LiteLLM with a real Postgres: the same declarations in its database as in the registry of files."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway_under_test import CACHE, REPOSITORY, Gateway, Installation, free_port, module
from postgres_under_test import ENVIRONMENT, FETCHED, PASSWORD, Cluster

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(900)]

INTERVAL = 1
START_SECONDS = 300
VARIABLES = {
    "litellm_workers": 1,
    "litellm_server": "uvicorn",
    "litellm_start_timeout": START_SECONDS,
    "litellm_general_settings": {"proxy_config_reload_interval_seconds": INTERVAL},
    "litellm_router_settings": {"cooldown_time": 1},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    fill = [sys.executable, str(REPOSITORY / "tests" / "sandbox" / "fill_postgres.py"), "--cache", str(CACHE)]
    subprocess.run(fill, check=True, timeout=600)
    cluster = Cluster(tmp_path_factory.mktemp("postgres"))
    cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def installation(installed, tmp_path_factory, cluster):
    root = tmp_path_factory.mktemp("database") / "gateway"
    root.mkdir()
    for venv in [path for path in installed.iterdir() if re.fullmatch(r"(venv|tools)-\w+", path.name)]:
        (root / venv.name).symlink_to(venv)
    installation = Installation(root, tmp_path_factory.mktemp("database-play"))
    installation.variables["litellm_environment"].update(ENVIRONMENT)
    installation.variables.update(litellm_database_url=cluster.url, gateway_deployments_registry="api")
    return installation


@pytest.fixture(scope="module")
def gateway(installation, cluster):
    port = free_port()
    output = installation.configure(litellm_port=port, **VARIABLES)
    assert PASSWORD not in output
    assert cluster.url not in output
    venv = next(path for path in installation.root.glob("venv-*") if (path / ".lmfleet-complete").exists())
    cluster.migrate(next(venv.glob("lib/python3.*/site-packages")))
    gateway = Gateway(installation, port)
    try:
        # Beside LiteLLM itself, Prisma's command runs at each start.
        ready = module("litellm_health", url=gateway.url, timeout=START_SECONDS)
        assert not ready.get("failed"), ready["msg"] + gateway.log.read_text()[-3000:]
        yield gateway
    finally:
        gateway.stop()


START = """
import sys, time
from pathlib import Path
from postgres_under_test import Cluster
cluster = Cluster(Path(sys.argv[1]))
cluster.start()
print(cluster.port, flush=True)
time.sleep(600)
"""


@pytest.mark.usefixtures("cluster")
def test_a_killed_test_run_leaves_no_postgres_behind(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", START, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as run:
        port = int(run.stdout.readline())
        socket.create_connection(("127.0.0.1", port), 5).close()
        run.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with contextlib.suppress(ConnectionResetError):  # it is just ending
                socket.create_connection(("127.0.0.1", port), 5).close()
        except ConnectionRefusedError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("Postgres goes on")
    assert list((FETCHED / "data").iterdir()) == []


@pytest.fixture(params=["files", "api"])
def declare(request, gateway):
    """Return litellm_deployments for one of the registries, which is empty before and after."""
    run = declare_with(gateway, request.param)
    yield run
    run(deployments=[], purge=True)


def declare_with(gateway, registry):
    if registry == "files":
        where = {"registry": str(gateway.root / "registry")}
    else:
        key = str(gateway.root / "master_key")
        where = {"registry": "api", "url": gateway.url, "master_key_file": key, "reload_interval": INTERVAL}

    def run(check=False, expect_failure=False, **arguments):
        result = module("litellm_deployments", **where, **arguments, _ansible_check_mode=check, _ansible_diff=True)
        assert bool(result.get("failed")) == expect_failure, result["msg"]
        return result

    return run


@pytest.fixture
def api(gateway):
    run = declare_with(gateway, "api")
    yield run
    run(deployments=[], purge=True)


def test_a_declaration_means_the_same_in_both_registries(declare, backends):
    a, b, c, d = (backend.deployment() for backend in backends)
    everything = {"weight": 2.5, "timeout": 30.0, "stream_timeout": 10.0, "max_parallel_requests": 3, "num_retries": 1}
    everything.update(cooldown_time=2.0, parallel_limit=4, max_input_tokens=1000, rpm=60, tpm=6000)
    full = {**b, **everything, "api_key": "token-1", "host": "mac-b", "instance": "i", "parallel": 4}
    # What is declared, and what comes of it: added, updated, removed, paused.
    table = [
        ({"deployments": [a, full], "purge": True}, (["mac-a", "mac-b"], [], [], [])),
        ({"deployments": [c]}, (["mac-c"], [], [], [])),
        ({"deployments": [{**full, "api_key": "token-2"}]}, ([], ["mac-b"], [], [])),
        ({"deployments": [b]}, ([], ["mac-b"], [], [])),
        ({"deployments": [{**d, "state": "paused"}], "owner": "operator"}, (["mac-d"], [], [], ["mac-d"])),
        ({"deployments": [{"id": "mac-a", "state": "paused"}], "owner": "rollout"}, ([], [], [], ["mac-a", "mac-d"])),
        ({"deployments": [{"id": "mac-d"}], "owner": "rollout"}, ([], [], [], ["mac-a", "mac-d"])),
        ({"deployments": [], "owner": "rollout", "purge_pauses": True}, ([], [], [], ["mac-d"])),
        (
            {"deployments": [a, {"id": "mac-b", "state": "absent"}], "purge": True},
            ([], [], ["mac-b", "mac-c", "mac-d"], []),
        ),
    ]
    for arguments, (added, updated, removed, paused) in table:
        foreseen = declare(check=True, **arguments)
        done = declare(**arguments)
        for result in (foreseen, done):
            assert (result["added"], result["updated"], result["removed"]) == (added, updated, removed), arguments
        assert [name for name in done["paused"] if name in done["deployments"]] == paused
        assert done["diff"] == foreseen["diff"]
        assert "token-" not in str(done["diff"])
        # Naming what is lifted already is no change either.
        assert done["changed"] is foreseen["changed"]
        assert declare(**arguments)["changed"] is False


def test_requests_follow_the_declaration(api, gateway, backends):
    api(deployments=[backend.deployment() for backend in backends[:3]])
    assert set(gateway.ask_many(30)) == {"mac-a", "mac-b", "mac-c"}
    api(deployments=[{"id": "mac-b", "state": "paused"}], owner="operator")
    assert set(gateway.ask_many(20)) == {"mac-a", "mac-c"}
    api(deployments=[{"id": "mac-a", "state": "absent"}])
    assert gateway.ask_many(6) == {"mac-c": 6}


def test_who_may_have_a_request_is_as_with_files(api, gateway, backends):
    a, b, c, d = (backend.deployment(parallel_limit=1) for backend in backends)
    embed = {**d, "model_group": "embed", "mode": "embedding"}
    api(deployments=[a, b, {**c, "weight": 0}, embed])
    gateway.wait_until(lambda: [r["deployments"] for r in gateway.reports()] == [["mac-a", "mac-b", "mac-c", "mac-d"]])
    assert set(gateway.ask_many(20, at_a_time=1)) == {"mac-a", "mac-b"}
    assert gateway.ask("embed")[0] == 400
    # Who has one in flight is full.
    for backend in backends:
        backend.answer_seconds = 0.5
    for before in range(20, 32, 2):
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(gateway.ask)
            gateway.wait_until(lambda before=before: sum(backend.asked for backend in backends) > before)
            second = pool.submit(gateway.ask)
        assert {first.result()[1], second.result()[1]} == {"mac-a", "mac-b"}
    for backend in backends:
        backend.failing = True
    assert gateway.ask()[0] == 503
    ended = sum(counts.get("ended", 0) for counts in gateway.reports()[0]["outcomes"]["deployments"].values())
    assert ended >= 20


def test_limits_for_a_minute_hold_for_what_litellm_chooses(api, gateway, backends):
    limited, free = backends[0].deployment(rpm=3), backends[1].deployment()
    api(deployments=[limited, free])
    answers = gateway.ask_many(20, at_a_time=4)
    # At most once in a test a new minute begins.
    assert 3 <= answers["mac-a"] <= 6
    assert backends[0].asked == answers["mac-a"]


def test_a_deployment_that_loses_its_weight_and_its_limit_answers_all_the_time(api, gateway, backends):
    alone = backends[0].deployment()
    api(deployments=[{**alone, "weight": 3, "parallel_limit": 1, "parallel": 1, "host": "mac", "instance": "a"}])
    with gateway.traffic() as answers:
        assert api(deployments=[alone])["updated"] == ["mac-a"]
    assert len(answers) > 5
    assert [answer for answer in answers if answer[:2] != (200, "mac-a")] == []
    assert api(deployments=[alone])["changed"] is False


def test_bad_declarations_are_refused_alike(declare, backends):
    a = backends[0].deployment()
    for arguments, message in (
        ({"deployments": [a, a]}, "the deployment id mac-a is used 2 times"),
        ({"deployments": [a], "model_groups": [{"name": "embed"}]}, "the model group embed has no deployment"),
        ({"deployments": [{"id": "x", "state": "paused"}], "owner": "operator"}, "there is no deployment x"),
    ):
        assert message in declare(expect_failure=True, **arguments)["msg"]


def test_what_others_made_is_left_alone(api, gateway, backends):
    made = {"model": "openai/m", "api_base": backends[0].api_base, "api_key": "x"}
    by_hand = {"model_name": "by-hand", "litellm_params": made, "model_info": {"id": "hand"}}
    gateway.open("/model/new", by_hand).close()
    try:
        api(deployments=[backends[1].deployment()], purge=True)
        assert gateway.ask("by-hand")[:2] == (200, "hand")
        refused = api(deployments=[backends[1].deployment(id="hand")], expect_failure=True)
        assert "another deployment with the id hand" in refused["msg"]
    finally:
        gateway.open("/model/delete", {"id": "hand"}).close()


def test_a_change_by_hand_is_put_right(api, gateway, backends, cluster):
    deployments = [backend.deployment() for backend in backends[:3]]
    api(deployments=deployments)
    gateway.open("/model/delete", {"id": "mac-b"}).close()
    gateway.open("/model/block", {"model_id": "mac-c"}).close()
    time.sleep(2 * INTERVAL)
    result = api(deployments=deployments)
    assert (result["changed"], result["added"]) == (True, ["mac-b"])
    assert set(gateway.ask_many(30)) == {"mac-a", "mac-b", "mac-c"}
    stored = cluster.sql('SELECT litellm_params FROM "LiteLLM_ProxyModelTable"')
    assert "127.0.0.1" not in stored


def test_the_guard_never_empties_a_group(api, gateway, backends):
    everything = [backend.deployment(state="paused") for backend in backends[:2]]
    api(deployments=everything, owner="guard")
    assert set(gateway.ask_many(10)) == {"mac-a", "mac-b"}
    api(deployments=[{"id": "mac-a"}], owner="guard")
    assert gateway.ask_many(6) == {"mac-a": 6}


def test_completions_go_on_while_the_database_is_down_and_the_next_run_finds_it_again(api, gateway, backends, cluster):
    api(deployments=[backend.deployment() for backend in backends[:2]])
    gateway.ask_many(4)
    with gateway.traffic() as answers:
        cluster.stop()
        try:
            refused = api(deployments=[backends[2].deployment()], expect_failure=True)
            asked = len(answers)
            deadline = time.monotonic() + 60
            while len(answers) < asked + 20 and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            cluster.start()
        deadline = time.monotonic() + 60
        while module("litellm_health", url=gateway.url, timeout=5).get("failed") and time.monotonic() < deadline:
            time.sleep(0.5)
        result = api(deployments=[backends[2].deployment()])
    assert "does not reach its database (Postgres)" in refused["msg"]
    assert result["added"] == ["mac-c"]
    assert len(answers) > 20
    assert [answer for answer in answers if answer[0] != 200] == []


def test_with_another_master_key_the_deployments_go_on_serving(api, gateway, installation, backends, cluster):
    deployments = [backend.deployment(api_key="token-of-it") for backend in backends[:2]]
    api(deployments=deployments)
    first, new = gateway.key, "sk-another-0123456789"
    before = {report["pid"] for report in gateway.reports()}
    with gateway.traffic() as answers:
        output = installation.configure(litellm_port=gateway.port, litellm_master_key=new, **VARIABLES)
        gateway.wait_until(lambda: not before & {report["pid"] for report in gateway.reports()}, START_SECONDS)
        # What a worker cannot decrypt is gone after its next look into the database.
        time.sleep(3 * INTERVAL)
    assert [answer for answer in answers if answer[0] != 200] == []
    assert gateway.key == new
    assert set(gateway.ask_many(20)) == {"mac-a", "mac-b"}
    assert api(deployments=deployments)["changed"] is False
    assert api(deployments=[backends[2].deployment()])["added"] == ["mac-c"]
    assert set(gateway.ask_many(30)) == {"mac-a", "mac-b", "mac-c"}
    processes = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert (installation.root / "salt_key").read_text() == first + "\n"
    for text in (output, gateway.log.read_text(), processes):
        assert first not in text
        assert new not in text


def test_a_second_run_of_the_role_changes_nothing_and_no_secret_is_told(gateway, installation, cluster):
    output = installation.configure(litellm_port=gateway.port, **VARIABLES)
    assert "changed=0" in output
    assert cluster.url not in output + gateway.log.read_text()
    processes = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert PASSWORD not in processes
    assert gateway.key not in processes
