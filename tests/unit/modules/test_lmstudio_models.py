# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lmstudio_models, with files of this machine for a mirror."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _model_files
from ansible_collections.lmfleet.mac.plugins.modules import lmstudio_models


@pytest.fixture
def run(run_module, tmp_path):
    def run(*models, check=False, **options):
        arguments = {"directory": str(tmp_path / "models"), "models": list(models), **options}
        return run_module(lmstudio_models, arguments, check)

    return run


@pytest.fixture
def model(tmp_path):
    """Return a function that makes a source file and the entry for it."""

    def model(name="m", content=b"weights", **changes):
        source = tmp_path / f"{name}.source"
        source.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return {"name": name, "path": f"pub/{name}/f.gguf", "url": f"file://{source}", "sha256": sha256, **changes}

    return model


def states(result):
    return [entry["state"] for entry in result["models"]]


def test_check_then_fetch_then_nothing(run, model, tmp_path, monkeypatch):
    models = [model("one", b"1"), model("two", b"22", url=None, src=str(tmp_path / "two.source"))]
    before = run(*models, check=True)
    assert states(before) == ["would_fetch"] * 2 and not (tmp_path / "models").exists()

    made = run(*models)
    assert made["changed"] and states(made) == ["fetched"] * 2 and made["diff"] == before["diff"]
    assert [entry["bytes"] for entry in made["models"]] == [1, 2]
    assert (tmp_path / "models/pub/two/f.gguf").read_bytes() == b"22"
    assert os.listdir(tmp_path / "partial") == [".lmfleet.lock"]

    monkeypatch.setattr(_model_files, "sha256_file", lambda _path: pytest.fail("a verified file is read again"))
    for check in (False, True):
        again = run(*models, check=check)
        assert not again["changed"] and states(again) == ["present"] * 2 and again["diff"] == []


def test_a_file_that_was_there_before_is_verified_not_fetched(run, model, tmp_path):
    place = tmp_path / "models/pub/m/f.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    result = run(model(url="file:///nowhere"))
    assert not result["changed"] and "pub/m/f.gguf" in json.loads((tmp_path / "models.json").read_text())


@pytest.mark.parametrize("check", [True, False])
def test_a_file_changed_on_disk_is_fetched_again(run, model, tmp_path, check):
    run(model())
    (tmp_path / "models/pub/m/f.gguf").write_bytes(b"WEIGHTS")
    result = run(model(), check=check)
    assert states(result) == ["would_fetch" if check else "fetched"]
    assert hashlib.sha256(b"WEIGHTS").hexdigest() in result["diff"][0]["before"]


def test_a_touched_file_is_read_once(run, model, tmp_path):
    run(model())
    os.utime(tmp_path / "models/pub/m/f.gguf", (1, 1))
    assert not run(model())["changed"]
    entry = json.loads((tmp_path / "models.json").read_text())["pub/m/f.gguf"]
    assert entry["mtime_ns"] == 10**9


def test_a_file_that_rots_in_silence_is_found_by_reading_it(run_module, model, tmp_path):
    arguments = {"directory": str(tmp_path / "models"), "models": [model()]}
    run_module(lmstudio_models, arguments)
    place = tmp_path / "models/pub/m/f.gguf"
    times = place.stat()
    place.write_bytes(b"WEIGHTS")
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not run_module(lmstudio_models, arguments)["changed"]
    before = (tmp_path / "models.json").read_bytes()
    found = run_module(lmstudio_models, {**arguments, "read_all": True}, check=True)
    assert states(found) == ["would_fetch"] and (tmp_path / "models.json").read_bytes() == before
    run_module(lmstudio_models, {**arguments, "read_all": True})
    assert place.read_bytes() == b"weights"
    assert not run_module(lmstudio_models, {**arguments, "read_all": True})["changed"]


def test_a_broken_index_costs_time_and_nothing_else(run, model, tmp_path):
    run(model())
    for content in ("{", "[]", '{"pub/m/f.gguf": 1}'):
        (tmp_path / "models.json").write_text(content)
        assert not run(model())["changed"]


def test_a_wrong_checksum_names_the_model_and_leaves_nothing(run, model, tmp_path):
    entry = model(sha256="0" * 64)
    failed = run(entry)
    for part in ("model m:", entry["url"], "expected " + "0" * 64, "got " + hashlib.sha256(b"weights").hexdigest()):
        assert part in failed["msg"]
    assert os.listdir(tmp_path / "models") == [] and os.listdir(tmp_path / "partial") == [".lmfleet.lock"]


@pytest.mark.parametrize("check", [True, False])
def test_a_full_disk_is_said_before_anything_is_fetched(run, model, tmp_path, monkeypatch, check):
    monkeypatch.setattr(_model_files, "free_bytes", lambda _folder: _model_files.RESERVE + 100)
    failed = run(model("small", b"1"), model("big", b"2", size=10**12), check=check)
    assert "needed to fetch big, small" in failed["msg"] and not (tmp_path / "models/pub").exists()


def test_a_disk_that_is_full_anyway_does_not_stop_what_needs_nothing(run, model, monkeypatch):
    run(model())
    monkeypatch.setattr(_model_files, "free_bytes", lambda _folder: 0)
    assert not run(model())["changed"]


def test_two_models_may_share_a_file(run, model):
    result = run(model("m"), {**model("m"), "name": "n"})
    assert states(result) == ["fetched", "fetched"] and len(result["diff"]) == 1


def test_one_path_with_two_contents_is_refused(run, model):
    assert "also that of model a" in run(model("a", path="p/n/f"), model("b", b"x", path="p/n/F"))["msg"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "n/f.gguf"}, "must be publisher/name/file"),
        ({"path": "../../f"}, "must be publisher/name/file"),
        ({"path": "a//f"}, "must be publisher/name/file"),
        ({"sha256": "abc"}, "64 hex digits"),
        ({"url": None}, "exactly one of url, src, local and catalog"),
        ({"src": "/x"}, "exactly one of url, src, local and catalog"),
        ({"url": None, "catalog": "Qwen/qwen3"}, "catalog must be [publisher/]name[@quantization], not 'Qwen/qwen3'"),
        ({"url": None, "catalog": "-y"}, "catalog must be"),
        ({"url": None, "catalog": "qwen/qwen3"}, "lms get qwen/qwen3 needs an LM Studio, which lmstudio must tell of"),
        ({"url": "file:///nowhere"}, "model m: cannot fetch file:///nowhere: No such file"),
    ],
)
def test_bad_entries(run, model, changes, said):
    assert said in run(model(**changes))["msg"]


def test_a_check_asks_the_catalogue_nothing(run, model, tmp_path):
    entry = model(url=None, catalog="qwen/qwen3-4b@q4_k_m")
    told = run(entry, check=True, lmstudio=str(tmp_path / "nowhere"))
    assert states(told) == ["would_fetch"] and told["models"][0]["bytes"] is None
    assert "lms get qwen/qwen3-4b@q4_k_m" in told["diff"][0]["after"]
    place = tmp_path / "models/pub/m/f.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    for check in (True, False):
        assert not run(entry, check=check)["changed"]


@pytest.fixture
def prune(run, tmp_path):
    """Return a function that prunes while an instance has `loaded` (path: identifier) and declares `managed`."""
    lms = tmp_path / "lms"

    def prune(*models, loaded=(), managed=(), check=False, says=None):
        home = tmp_path / "instances" / "chat-a"
        home.mkdir(parents=True, exist_ok=True)
        (home / "instance.json").write_text(json.dumps({"models": [{"identifier": name} for name in managed]}))
        answer = json.dumps([{"path": path, "identifier": name} for path, name in dict(loaded).items()])
        # Whoever calls it without the environment of the instance gets nothing.
        lms.write_text(
            f'#!/bin/sh\n[ "$HOME" = {home} ] && [ "$LMS_API_SERVER_INFO_PATH" ] && echo \'{says or answer}\'\n'
        )
        lms.chmod(0o755)
        return run(*models, check=check, prune={"homes": str(tmp_path / "instances"), "lms": str(lms)})

    return prune


def test_prune_removes_what_was_fetched_and_is_not_declared(run, prune, model, tmp_path):
    old, new = model("old"), model("new", b"other")
    run(old, new)
    (tmp_path / "models/pub/mine").mkdir()
    (tmp_path / "models/pub/mine/mine.gguf").write_bytes(b"by hand")
    assert run(new)["undeclared"] == ["pub/old/f.gguf"]

    told = prune(new, check=True)
    assert told["changed"] and told["removed"] == ["pub/old/f.gguf"] and (tmp_path / "models/pub/old/f.gguf").exists()
    done = prune(new)
    assert done["removed"] == told["removed"] and done["diff"] == told["diff"]
    assert sorted(os.listdir(tmp_path / "models/pub")) == ["mine", "new"]
    again = prune(new)
    assert not again["changed"] and again["undeclared"] == [] and not run(new)["changed"]


def test_prune_leaves_what_others_made_or_changed(run, prune, model, tmp_path):
    place = tmp_path / "models/pub/there/f.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    run(model("there"), model("changed"))
    (tmp_path / "models/pub/changed/f.gguf").write_bytes(b"by hand")
    assert prune()["removed"] == [] and run()["undeclared"] == [] and place.exists()


def test_a_touched_file_is_still_ours(run, model, tmp_path):
    run(model())
    os.utime(tmp_path / "models/pub/m/f.gguf", (1, 1))
    run(model())
    assert run()["undeclared"] == ["pub/m/f.gguf"]


@pytest.mark.parametrize("loaded", ["pub/m/f.gguf", "pub/m", "pub/m/other-part.gguf"])
def test_prune_keeps_what_is_loaded(run, prune, model, tmp_path, loaded):
    run(model())
    for check in (True, False):
        kept = prune(loaded={loaded: "by-hand"}, check=check)
        assert not kept["changed"] and kept["undeclared"] == ["pub/m/f.gguf"]
    assert (tmp_path / "models/pub/m/f.gguf").exists()


def test_a_check_counts_on_the_instances_to_let_go(run, prune, model):
    run(model())
    assert prune(loaded={"pub/m/f.gguf": "m"}, managed=["m"], check=True)["removed"] == ["pub/m/f.gguf"]
    assert prune(loaded={"pub/m/f.gguf": "m"}, managed=["m"])["removed"] == []


def test_prune_leaves_everything_when_an_instance_does_not_tell(run, prune, model, tmp_path):
    run(model())
    assert "instance chat-a does not tell what it has loaded" in prune(says="cannot connect")["msg"]
    assert (tmp_path / "models/pub/m/f.gguf").exists()


def test_the_program_that_serves_the_folder(run, tmp_path):
    program = tmp_path / "model_server.py"
    assert run()["server"] is None
    assert run(server="one", check=True)["changed"] and not program.exists()
    made = run(server="one")
    assert made["changed"] and made["server"] == str(program) and program.read_text() == "one"
    assert not run(server="one")["changed"]
    assert run(server="two")["diff"][0]["before"] == "one"
    assert run()["server"] == str(program)
