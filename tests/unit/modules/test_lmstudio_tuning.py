# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lmstudio_tuning on real files."""

from __future__ import annotations

import json

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _tuning_files
from ansible_collections.lmfleet.mac.plugins.modules import lmstudio_tuning

PLACE = ".lmstudio/.internal/user-concrete-model-default-config/pub/m/f.gguf.json"


@pytest.fixture
def run(run_module):
    return lambda *files, check=False: run_module(lmstudio_tuning, {"files": list(files)}, check)


@pytest.fixture
def tuning(tmp_path):
    def tuning(model="m", home="a", **values):
        fields = [{"key": key, "value": value} for key, value in values.items()]
        content = json.dumps({"preset": "", "load": {"fields": fields}})
        place = {"instance": home, "home": str(tmp_path / home), "model": model, "path": f"pub/{model}/f.gguf"}
        return {**place, "content": content, "template": "tuning.json.j2"}

    return tuning


def test_check_then_write_then_nothing(run, tuning, tmp_path):
    before = run(tuning(context=1), check=True)
    assert before["changed"] and not (tmp_path / "a").exists()
    made = run(tuning(context=1))
    assert made["changed"] and made["diff"] == before["diff"] and made["files"] == before["files"]
    assert json.loads((tmp_path / "a" / PLACE).read_text())["load"]["fields"] == [{"key": "context", "value": 1}]
    for check in (False, True):
        again = run(tuning(context=1), check=check)
        assert not again["changed"] and again["diff"] == []


def test_fields_of_others_stay_and_ours_go_when_no_longer_declared(run, tuning, tmp_path):
    file = tmp_path / "a" / PLACE
    run(tuning(context=1, parallel=2))
    content = json.loads(file.read_text())
    content["load"]["fields"].append({"key": "byhand", "value": True})
    file.write_text(json.dumps(content))
    assert not run(tuning(context=1, parallel=2))["changed"]
    assert run(tuning(context=1))["changed"]
    kept = {field["key"]: field["value"] for field in json.loads(file.read_text())["load"]["fields"]}
    assert kept == {"context": 1, "byhand": True}


def test_a_field_that_was_right_before_we_came_is_ours_from_then_on(run, tuning, tmp_path):
    file = tmp_path / "a" / PLACE
    file.parent.mkdir(parents=True)
    file.write_text(tuning(context=1)["content"])
    assert not run(tuning(context=1))["changed"]
    run(tuning())
    assert json.loads(file.read_text())["load"]["fields"] == []


def test_a_model_no_longer_served_there_loses_its_file(run, tuning, tmp_path):
    run(tuning(context=1), tuning("n", context=2), tuning(home="b", context=3))
    result = run(tuning("n", context=2), tuning(home="b", context=3))
    gone = [entry for entry in result["files"] if entry["changed"]]
    assert [entry["instance"] for entry in gone] == ["a"] and not (tmp_path / "a" / PLACE).exists()
    assert (tmp_path / "b" / PLACE).exists()
    assert not run(tuning("n", context=2), tuning(home="b", context=3))["changed"]


@pytest.mark.parametrize("broken", ["{", "[]", ""])
def test_a_broken_file_is_replaced(run, tuning, tmp_path, broken):
    run(tuning(context=1))
    (tmp_path / "a" / PLACE).write_text(broken)
    assert run(tuning(context=1))["changed"]
    assert json.loads((tmp_path / "a" / PLACE).read_text())["load"]["fields"]


def test_true_and_1_differ_4_and_4_0_do_not(run, tuning):
    run(tuning(flag=True, size=4.0))
    assert not run(tuning(flag=True, size=4))["changed"]
    assert run(tuning(flag=1, size=4))["changed"]


def test_a_killed_run_forgets_no_field_of_ours(run, tuning, tmp_path, monkeypatch):
    run(tuning(context=1))
    real = _tuning_files.atomic_write

    def dies(path, content):
        real(path, content)
        if path.endswith(".gguf.json"):
            raise OSError("killed")

    monkeypatch.setattr(_tuning_files, "atomic_write", dies)
    assert run(tuning(parallel=2))["failed"]
    monkeypatch.undo()
    run(tuning())
    assert json.loads((tmp_path / "a" / PLACE).read_text())["load"]["fields"] == []


def test_invalid_json_names_template_line_instance_and_model(run, tuning, tmp_path):
    bad = {**tuning(), "content": '{\n  "load": nope\n}'}
    failed = run(tuning(home="b", context=1), bad)
    assert "template tuning.json.j2, instance a, model m: line 2, column 11" in failed["msg"]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("path", ["../x", "a//b", "/x"])
def test_bad_paths_are_refused(run, tuning, path):
    assert "must be publisher/name/file" in run({**tuning(), "path": path})["msg"]


def test_one_file_for_two_contents_is_refused(run, tuning):
    assert "listed twice" in run(tuning(context=1), tuning(context=2))["msg"]
