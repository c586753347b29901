# SPDX-License-Identifier: GPL-3.0-or-later
"""The module litellm_deployments, beside workers that only report."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.lmfleet.mac.plugins.modules import litellm_deployments

A = {"id": "a", "model_group": "chat", "model": "m", "api_base": "http://mac:1234/v1"}
B = {**A, "id": "b"}


class Worker:
    """Applies what it finds, as the plugin does, until it is stopped."""

    def __init__(self, folder, rejected=None):
        self.folder, self.rejected, self.stopped = folder, rejected or {}, threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopped.wait(0.02):
            report = {"format": 1, "pid": os.getpid(), "at": time.time(), "workers": 1, "error": None}
            report.update(generation=None, paused_generations={}, rejected=self.rejected)
            for path in [*self.folder.glob("deployments.json"), *self.folder.glob("paused/*.json")]:
                try:
                    generation = json.loads(path.read_text())["generation"]
                except ValueError:
                    continue
                if path.name == "deployments.json":
                    report["generation"] = generation
                else:
                    report["paused_generations"][path.stem] = generation
            if (self.folder / "applied").is_dir():
                (self.folder / "applied" / "t").write_text(json.dumps(report))
                (self.folder / "applied" / "t").replace(self.folder / "applied" / f"{os.getpid()}.json")

    def stop(self):
        self.stopped.set()
        self.thread.join()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "registry"


@pytest.fixture
def worker(folder):
    worker = Worker(folder)
    yield worker
    worker.stop()


@pytest.fixture
def run(folder, capsys):
    def run(**arguments):
        arguments = {"registry": str(folder), "timeout": 5, **arguments}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            litellm_deployments.main()
        return json.loads(capsys.readouterr().out)

    return run


def test_check_mode_first_tells_and_changes_nothing(run, folder):
    result = run(deployments=[A], _ansible_check_mode=True, _ansible_diff=True)
    assert result["changed"]
    assert result["added"] == ["a"]
    assert '"a"' in result["diff"]["after"]
    assert not folder.exists()


def test_check_mode_tells_what_the_workers_have_not_applied(run, folder, worker):
    run(deployments=[A])
    assert "problem" not in run(deployments=[A], _ansible_check_mode=True)
    worker.stop()
    run(deployments=[A, B], timeout=0)
    result = run(deployments=[A, B], _ansible_check_mode=True)
    assert not result["changed"]
    assert result["problem"] == "The registry waits for 1 of the gateway's 1 workers to apply it."


@pytest.mark.usefixtures("worker")
def test_create_repeat_update_remove(run):
    created = run(deployments=[A, B])
    assert (created["changed"], created["added"], created["workers"]) == (True, ["a", "b"], [os.getpid()])
    again = run(deployments=[A, B])
    assert (again["changed"], again["generation"], again["workers"]) == (False, 1, [os.getpid()])
    assert run(deployments=[A, B], _ansible_check_mode=True)["changed"] is False
    updated = run(deployments=[{**A, "weight": 2}])
    assert (updated["updated"], updated["removed"], updated["deployments"]) == (["a"], [], ["a", "b"])
    removed = run(deployments=[{**A, "weight": 2}], purge=True)
    assert (removed["removed"], removed["deployments"], removed["generation"]) == (["b"], ["a"], 3)


def test_what_is_not_known_of_some_macs_stays_and_is_not_missed(run, folder):
    """mac-2 takes no part: what it served has another name by now, and what only it is to serve is not there yet."""
    mine, old = {**A, "host": "mac-1"}, {**B, "model_group": "old", "host": "mac-2"}
    before = [{"name": "chat"}, {"name": "old", "fallbacks": ["chat"]}]
    run(deployments=[mine, old], model_groups=before, timeout=0)
    now = [{"name": "chat", "fallbacks": ["new"]}, {"name": "new"}]
    part = {"purge": True, "keep_hosts": ["mac-2"], "model_groups": now, "timeout": 0}
    assert run(deployments=[mine], **part)["deployments"] == ["a", "b"]
    assert json.loads((folder / "deployments.json").read_text())["groups"] == {"old": {"fallbacks": ["chat"]}}
    whole = run(deployments=[mine], **{**part, "keep_hosts": []})
    assert "the model group new has no deployment" in whole["msg"]


def test_an_order_that_does_not_fit_those_who_are_not_told_waits(run, folder):
    run(deployments=[A, B], timeout=0)
    assert "deployment b has no order" in run(deployments=[{**A, "order": 1}], timeout=0)["msg"]
    told = run(deployments=[{**A, "order": 1, "weight": 2}], keep_orders=True, timeout=0)
    assert told["updated"] == ["a"]
    [first, _other] = json.loads((folder / "deployments.json").read_text())["deployments"]
    assert "order" not in first["litellm_params"] and first["litellm_params"]["weight"] == 2


def paused(*ids):
    return [{"id": name, "state": "paused"} for name in ids]


def owners(result):
    return {name: list(pauses) for name, pauses in result["paused"].items()}


@pytest.mark.usefixtures("worker")
def test_pauses_have_owners(run):
    run(deployments=[A, B])
    result = run(deployments=paused("a"), owner="operator", reason="disk", expire_after=60)
    pause = result["paused"]["a"]["operator"]
    assert pause["reason"] == "disk"
    assert pause["until"] - pause["since"] == 60
    both = {"deployments": paused("a", "b"), "owner": "rollout", "purge_pauses": True}
    assert owners(run(**both)) == {"a": ["operator", "rollout"], "b": ["rollout"]}
    assert run(**both)["changed"] is False
    assert owners(run(owner="rollout", purge_pauses=True)) == {"a": ["operator"]}
    assert owners(run(deployments=[{"id": "a"}], owner="operator")) == {}


@pytest.mark.usefixtures("worker")
def test_a_group_that_is_wholly_paused_is_told(run):
    run(deployments=[A, B])
    run(deployments=paused("a"), owner="operator")
    assert "All deployments of the model group chat are paused" in str(
        run(deployments=paused("b"), owner="rollout")["warnings"]
    )


@pytest.mark.usefixtures("worker")
def test_broken_pauses_are_not_lifted_by_accident(run, folder):
    run(deployments=[A, B])
    run(deployments=paused("a"), owner="operator")
    (folder / "paused" / "operator.json").write_text("{")
    assert "paused/operator.json is broken" in str(run(deployments=paused("b"), owner="rollout")["warnings"])
    refused = run(deployments=paused("b"), owner="operator")
    assert refused["failed"]
    assert "so what operator pauses is not known" in refused["msg"]
    mended = run(deployments=paused("b"), owner="operator", purge_pauses=True)
    assert owners(mended) == {"b": ["operator", "rollout"]}
    assert not mended.get("failed")


@pytest.mark.usefixtures("worker")
def test_a_pause_of_what_is_gone_goes(run):
    run(deployments=[A, B])
    run(deployments=paused("b"), owner="rollout")
    run(deployments=paused("b"), owner="operator")
    result = run(deployments=[A], purge=True, owner="rollout")
    assert (owners(result), list(result["resumed"])) == ({"b": ["operator"]}, ["b"])


def test_a_second_run_that_writes_meanwhile_does_not_hold_up_the_first(run, folder, monkeypatch):
    class Both(litellm_deployments.Registry):
        def write(self, planned):
            super().write(planned)
            later = self.read()
            wanted = litellm_deployments.wanted_entries([B], False, later)
            super().write(litellm_deployments.plan(wanted, None, None, None, later, time.time()))

    monkeypatch.setattr(litellm_deployments, "Registry", Both)
    worker = Worker(folder)
    try:
        result = run(deployments=[A], timeout=5)
    finally:
        worker.stop()
    assert not result.get("failed")
    assert sorted(Both(str(folder)).read().deployments) == ["a", "b"]


@pytest.mark.parametrize("name", ["deployments.json", "paused/operator.json"])
def test_what_cannot_be_read_is_named_with_a_cure(run, folder, name):
    (folder / name).mkdir(parents=True)
    message = run(deployments=[A])["msg"]
    assert message.startswith(f"{folder}/{name} cannot be read (Is a directory).")
    assert "move it away, and run again" in message


@pytest.mark.usefixtures("worker")
def test_states_pause_for_the_owner(run):
    assert owners(run(deployments=[{**A, "state": "paused"}, B], owner="operator")) == {"a": ["operator"]}
    assert owners(run(deployments=[A, B])) == {"a": ["operator"]}
    assert owners(run(deployments=[A, B], owner="rollout")) == {"a": ["operator"]}
    assert owners(run(deployments=[A, B], owner="operator")) == {}
    assert run(deployments=[{"id": "b", "state": "absent"}])["deployments"] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deployments": [A, A]}, "the deployment id a is used 2 times"),
        ({"deployments": [{"id": "a", "model": "m"}]}, "has no model_group"),
        ({"deployments": [{"id": "a"}]}, "there is no deployment a: give it a model_group"),
        ({"deployments": [{**A, "api_base": "mac:1234"}]}, "which is no http or https address"),
        ({"deployments": [{**A, "weight": -1}]}, "weight -1, which must be at least 0"),
        ({"deployments": [A], "model_groups": [{"name": "embed"}]}, "model group embed has no deployment"),
        ({"deployments": [A], "model_groups": [{"name": "chat", "fallbacks": ["x"]}]}, "has x among its fallbacks"),
        ({"deployments": [A, {**B, "mode": "embedding"}]}, "has chat and embedding deployments"),
        ({"deployments": [A, {**B, "order": 2}]}, "deployment a has no order, but another one"),
        ({"deployments": [{**A, "id": "chat"}]}, "also the name of a model group"),
        ({"deployments": [A, {"id": "z", "state": "paused"}], "owner": "guard"}, "there is no deployment z"),
        ({"deployments": [{**A, "state": "paused"}]}, "a is to be paused: set owner"),
        ({"deployments": [A], "purge_pauses": True}, "purge_pauses is about pauses: set owner"),
        ({"deployments": [A], "owner": "operator", "expire_after": -1}, "expire_after must be"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(run, folder, arguments, message):
    result = run(**arguments)
    assert result["failed"]
    assert message in result["msg"]
    assert not (folder / "deployments.json").exists()


def test_no_worker(run, folder):
    result = run(deployments=[A], timeout=0.3)
    assert result["failed"]
    assert "Waited 0.3 s for 1 of the gateway's workers to report, and 0 did" in result["msg"]
    assert "no worker has reported" in result["msg"]
    assert "lmfleet.gateway" in result["msg"]
    assert (folder / "deployments.json").exists()


def test_without_a_timeout_nobody_is_waited_for(run):
    assert run(deployments=[A], timeout=0)["workers"] == []


@pytest.mark.usefixtures("worker")
def test_too_few_workers(run):
    assert "2 of the gateway's workers to report, and 1 did" in run(deployments=[A], workers=2, timeout=0.5)["msg"]


def test_a_refused_deployment_fails_the_declaration_but_not_a_pause(run, folder):
    worker = Worker(folder, rejected={"a": "no such provider"})
    try:
        declared = run(deployments=[A])
        pause = run(deployments=None, owner="operator", purge_pauses=True)
    finally:
        worker.stop()
    assert declared["failed"]
    assert declared["msg"] == "the gateway refused the deployment a: no such provider"
    assert not pause.get("failed")
    assert declared["msg"] in str(pause["warnings"])


def test_a_gateway_that_is_not_there(run, tmp_path):
    result = run(registry=str(tmp_path / "gateway" / "registry"), deployments=[A])
    assert "Set up the gateway first" in result["msg"]
    assert not (tmp_path / "gateway").exists()


@pytest.mark.usefixtures("worker")
def test_tokens_are_in_no_output(run, folder):
    result = run(deployments=[{**A, "api_key": "geheim-1"}], _ansible_diff=True)
    again = run(deployments=[{**A, "api_key": "geheim-2"}], _ansible_diff=True)
    assert again["updated"] == ["a"]
    assert "(hidden, another one)" in again["diff"]["after"]
    assert "geheim" not in json.dumps([result["diff"], again["diff"], result["deployments"]])
    assert "geheim-2" in (folder / "deployments.json").read_text()


@pytest.mark.usefixtures("worker")
def test_while_another_controller_rolls_out_nothing_is_changed(run, tmp_path):
    path = tmp_path / "rollout.json"
    run(deployments=[A])
    claim = {"controller": "there", "holder": "ben on there", "since": time.time(), "until": time.time() + 60}
    path.write_text(json.dumps(claim))
    refused = run(deployments=[B], purge=True, claim=str(path), controller="here")
    assert "ben on there has been changing this fleet" in refused["msg"]
    assert run(deployments=[A], claim=str(path), controller="here")["changed"] is False, "there is nothing to refuse"
    assert run(deployments=[B], claim=str(path), controller="there")["added"] == ["b"]
    path.write_text(json.dumps({**claim, "until": time.time() - 1}))
    assert run(deployments=[B], purge=True, claim=str(path), controller="here")["removed"] == ["a"]
