# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lmstudio_install, with an archive whose llmster is a shell script."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile

import pytest
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
    """Return what is in the folder of the installs, but for the lock."""
    return sorted(set(os.listdir(arguments["directory"])) - {".lmfleet.lock"})


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


def test_versions_live_side_by_side(run, make):
    first = make()
    run(first)
    second = make(LLMSTER.replace("0.0.25", "0.0.26"), version="0.0.26-1")
    run(second)
    assert left(first) == ["0.0.25-1", "0.0.26-1"]
    assert not run({**first, "url": "/gone"})["changed"]


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
        ({"url": "ftp://x/a.tar.gz"}, "neither an http"),
    ],
)
def test_bad_arguments(run, make, changes, said):
    assert said in run({**make(), **changes})["msg"]
