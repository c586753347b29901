# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lmstudio_install, with an archive whose llmster is a shell script."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _versions
from ansible_collections.lmfleet.mac.plugins.module_utils._command import Result
from ansible_collections.lmfleet.mac.plugins.modules import lmstudio_install

LLMSTER = """#!/bin/sh
case "$1" in
--version) echo "0.0.25+1" ;;
bootstrap)
  [ "$LMS_BOOTSTRAP_INSTALL_SH$LMS_NO_MODIFY_PATH" = 11 ] || { echo "would ask" >&2; exit 1; }
  target="$HOME/.lmstudio/llmster/0.0.25-1"
  mkdir -p "$target" "$HOME/.lmstudio/bin" "$HOME/.lmstudio/.internal"
  cp "$0" "$target/llmster" && cp "$0" "$HOME/.lmstudio/bin/lms"
  echo "{\\"path\\": \\"$target/llmster\\", \\"argv\\": [], \\"cwd\\": \\"$target\\"}" \\
    > "$HOME/.lmstudio/.internal/llmster-install-location.json" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Return a function that writes an archive and returns the module's arguments for it."""

    def make(script=LLMSTER, name="llmster", version="0.0.25-1"):
        path = tmp_path / f"{version}-darwin-arm64.full.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for member, text in ((name, script), (".bundle/x", "x")):
                info = tarfile.TarInfo(member)
                info.size, info.mode = len(text), 0o755
                tar.addfile(info, io.BytesIO(text.encode()))
        digest = hashlib.sha512(path.read_bytes()).hexdigest()
        directory = str(tmp_path / "root" / "llmster")
        return {"version": version, "url": str(path), "checksum": f"sha512:{digest}", "directory": directory}

    return make


@pytest.fixture
def run(run_module):
    return lambda arguments, check=False: run_module(lmstudio_install, arguments, check)


def left(arguments):
    """Return what is in the folder of the installs, but for the lock and the history."""
    return sorted(set(os.listdir(arguments["directory"])) - {".lmfleet.lock", "selected.json"})


def test_check_then_install_then_nothing(run, make, monkeypatch):
    arguments = make()
    before = run(arguments, check=True)
    assert before["changed"] and not os.path.exists(arguments["directory"])

    made = run(arguments)
    assert made["changed"] and made["diff"] == before["diff"]
    home = os.path.join(arguments["directory"], "0.0.25-1")
    assert made["home"] == home and made["lms"] == f"{home}/.lmstudio/bin/lms"
    assert made["llmster"] == before["llmster"] == f"{home}/.lmstudio/llmster/0.0.25-1/llmster"
    assert left(arguments) == ["0.0.25-1"] and "archive" not in os.listdir(home)

    monkeypatch.setattr(lmstudio_install, "call", lambda *_: pytest.fail("an unchanged install starts a process"))
    os.unlink(arguments["url"])
    for check in (False, True):
        again = run(arguments, check)
        assert not again["changed"] and again["diff"] == [] and again["llmster"] == made["llmster"]


def test_the_checksum_may_be_in_a_file(run, make, tmp_path):
    arguments = make()
    name = os.path.basename(arguments["url"])
    (tmp_path / "sums").write_text(f"{arguments['checksum'][7:]}  {name}\n")
    for place in (f"file://{tmp_path}/sums", f"{tmp_path}/sums"):
        assert "failed" not in run({**arguments, "checksum": f"sha512:{place}"})


def test_a_wrong_checksum_leaves_nothing_and_says_which(run, make):
    arguments = {**make(), "checksum": "sha512:" + "0" * 128}
    failed = run(arguments)
    for part in (arguments["url"], "expected " + "0" * 128, "got "):
        assert part in failed["msg"]
    assert left(arguments) == []


def test_an_install_that_was_cut_off_is_done_again(run, make):
    arguments = make()
    home = run(arguments)["home"]
    os.unlink(os.path.join(home, "installed.json"))
    open(os.path.join(home, "rubbish"), "w").close()
    assert run(arguments)["changed"]
    assert "rubbish" not in os.listdir(home)


def test_a_lost_program_is_installed_again(run, make):
    arguments = make()
    os.unlink(run(arguments)["lms"])
    assert run(arguments)["changed"] and not run(arguments)["changed"]


@pytest.fixture
def version(make):
    """Return a function that returns the arguments for one version, with an archive of its own, made once."""

    @functools.cache
    def version(number):
        return make(LLMSTER.replace("0.0.25", f"0.0.{number}"), version=f"0.0.{number}-1")

    return version


def test_going_back_to_a_version_needs_no_download_and_is_told(run, version):
    first, second = version(25), version(26)
    run(first)
    assert run(second)["versions"] == ["0.0.26-1", "0.0.25-1"]
    for number in (25, 26):
        os.unlink(version(number)["url"])
    before = run(first, check=True)
    back = run(first)
    assert back["changed"] and not back["installed"] and back["versions"] == ["0.0.25-1", "0.0.26-1"]
    assert back["diff"] == before["diff"] and "selected" in back["diff"][0]["before_header"]
    assert not run(first)["changed"] and left(first) == ["0.0.25-1", "0.0.26-1"]


def test_the_versions_selected_last_stay(run, version):
    for number in (24, 25, 24, 26):
        before = run(version(number), check=True)
        done = run(version(number))
        assert done["removed"] == before["removed"] and done["diff"] == before["diff"]
    assert done["removed"] == ["0.0.25-1"] and left(version(26)) == ["0.0.24-1", "0.0.26-1"]
    only = run({**version(26), "keep_versions": 1})
    assert (
        only["changed"] and only["removed"] == ["0.0.24-1"] and not run({**version(26), "keep_versions": 1})["changed"]
    )
    assert "at least 1" in run({**version(26), "keep_versions": 0})["msg"]


def test_a_version_that_something_runs_from_stays(run, version, tmp_path, monkeypatch):
    old = run(version(24))
    instance = tmp_path / "root" / "instances" / "chat-a"
    instance.mkdir(parents=True)
    (instance / "instance.json").write_text(json.dumps({"llmster": old["llmster"]}))
    only = {**version(25), "keep_versions": 1}
    assert run(only)["removed"] == [] and left(only) == ["0.0.24-1", "0.0.25-1"]
    (instance / "instance.json").unlink()
    said = f"/usr/bin/python3 -m something\n{old['home']}/.lmstudio/llmster/0.0.24-1/llmster\n"
    with monkeypatch.context() as busy:
        busy.setattr(_versions, "run", lambda *_, **__: Result(0, said, ""))
        assert not run(only)["changed"]
    assert run(only)["removed"] == ["0.0.24-1"]


def test_the_version_that_an_unfinished_change_goes_back_to_stays(run, version, tmp_path):
    old = run(version(24))
    instance = tmp_path / "root" / "instances" / "chat-a"
    instance.mkdir(parents=True)
    former = {"declaration": json.dumps({"llmster": old["llmster"]}), "unfinished": True}
    (instance / "former.json").write_text(json.dumps(former))
    only = {**version(25), "keep_versions": 1}
    assert run(only)["removed"] == []
    (instance / "former.json").write_text(json.dumps({**former, "unfinished": False}))
    assert run(only)["removed"] == ["0.0.24-1"]


def test_what_killed_runs_left_is_removed_and_strangers_stay(run, version):
    arguments = version(25)
    directory = arguments["directory"]
    os.makedirs(os.path.join(directory, "0.0.20-1", "archive"))
    os.makedirs(os.path.join(directory, "notes"))
    for name in (".0.0.20-1.part", ".0.0.25-1.part", "readme"):
        with open(os.path.join(directory, name), "w") as stream:
            stream.write("half")
    assert run(arguments)["removed"] == [".0.0.20-1.part", "0.0.20-1"]
    assert left(arguments) == ["0.0.25-1", "notes", "readme"] and not run(arguments)["changed"]


def test_a_history_that_is_broken_is_written_anew(run, version):
    run(version(24))
    run(version(25))
    path = os.path.join(version(25)["directory"], "selected.json")
    for broken in ("{", "[]", '{"versions": 3}'):
        with open(path, "w") as stream:
            stream.write(broken)
        assert run(version(25))["versions"] == ["0.0.25-1", "0.0.24-1"]


def test_a_disk_without_room_is_said_before_anything_is_fetched(run, make, monkeypatch):
    arguments = make()
    monkeypatch.setattr(lmstudio_install, "free_bytes", lambda _folder: 2_000_000)
    monkeypatch.setattr(lmstudio_install, "size_of", lambda _url: 580_000_000)
    failed = run(arguments)
    for part in ("2 MB are free", "archive of 580 MB", "2320 MB"):
        assert part in failed["msg"]
    assert left(arguments) == []


def test_a_bootstrap_that_hangs_is_ended_and_leaves_nothing(run, make):
    arguments = {**make("#!/bin/sh\nsleep 60\n"), "timeout": 1}
    assert "bootstrap did not install it; it said: no answer in time" in run(arguments)["msg"] and left(arguments) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (LLMSTER.replace("0.0.25+1", "0.0.24+9"), "--version must print 0.0.25+1, it printed '0.0.24+9'"),
        ("#!/bin/sh\necho no room >&2; exit 1\n", "bootstrap did not install it; it said: no room"),
        ("#!/bin/sh\nexit 0\n", "bootstrap did not install it"),
    ],
)
def test_an_install_that_fails_leaves_nothing(run, make, script, said):
    arguments = make(script)
    assert said in run(arguments)["msg"] and left(arguments) == []


def test_an_archive_without_llmster(run, make):
    arguments = make(name="readme")
    assert "there is no llmster in the archive" in run(arguments)["msg"] and left(arguments) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checksum": "md5:1"}, "must be sha512:"),
        ({"checksum": "sha512:abc"}, "neither 128 hex digits nor the place of a file"),
        ({"version": "../x"}, "is not a version"),
        ({"url": "/nowhere/a.tar.gz"}, "no such file on this Mac"),
        ({"src": "/x.tar.gz"}, "mutually exclusive"),
        ({"checksum": None}, "checksum"),
        ({"url": "ftp://x/a.tar.gz"}, "neither an http"),
    ],
)
def test_bad_arguments(run, make, changes, said):
    assert said in run({**make(), **changes})["msg"]


def test_a_file_of_the_controller_needs_the_action_plugin(run, make):
    arguments = make()
    del arguments["url"]
    assert "through the action plugin" in run({**arguments, "src": "/x.tar.gz"})["msg"]
    assert "one of the following is required: url, src" in run(arguments)["msg"]


def test_what_stands_there_is_told_as_a_run_would_see_it(run, version):
    directory = version(25)["directory"]
    assert _versions.standing(directory) == {"versions": [], "leftovers": []}
    made = run(version(25))
    found = _versions.standing(directory)
    assert found["versions"] == ["0.0.25-1"] and found["leftovers"] == []
    assert found["selected"] == {
        **{key: made[key] for key in ("version", "home", "llmster", "lms")},
        "sha512": version(25)["checksum"][7:],
    }
    run(version(24))
    os.makedirs(os.path.join(directory, "0.0.20-1"))
    found = _versions.standing(directory)
    assert found["versions"] == ["0.0.24-1", "0.0.25-1"] and found["leftovers"] == ["0.0.20-1"]
    os.unlink(found["selected"]["lms"])
    assert _versions.standing(directory)["selected"]["version"] == "0.0.25-1"
