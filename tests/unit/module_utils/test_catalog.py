# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching from LM Studio's catalogue, with programs that behave as badly as the vendor's may."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _lms_get, _model_files
from ansible_collections.lmfleet.mac.plugins.module_utils._model_files import ModelError, ModelFolder, checked_models

REPOSITORY = Path(__file__).resolve().parents[3]
KEY = "tiny/tiny-chat"

#: Publishes itself, as llmster does, and notes how it lives and ends.
LLMSTER = """#!/bin/sh
{before}
mkdir -p "$HOME/.lmstudio/.internal"
echo "started for $LMS_API_SERVER_INFO_PATH" >>{notes}
trap 'echo ended >>{notes}; exit 0' TERM
printf '{{"host": "127.0.0.1", "port": 41343, "pid": %s}}' {pid} >"$HOME/.lmstudio/.internal/http-server.json"
while :; do sleep 0.05; done
"""
#: `get` does what a test asks for; `ls` lists a model that every LM Studio has, and what was got.
LMS = """#!/bin/sh
echo "$*" >>{notes}
models="$HOME/.lmstudio/models/lmstudio-community/Tiny"
mkdir -p "$models"
case $1 in
get) {get} ;;
ls) printf '[{{"modelKey": "text-embedding-nomic"}}'; cat "$HOME/keys" 2>/dev/null; printf ']' ;;
esac
"""
GOT = """printf '\\033[2K⠙ Resolving\\n'; echo Downloading >&2; printf %s '{content}' >"$models/{name}"; """
LISTED = """printf ', {{"modelKey": "{key}"}}' >"$HOME/keys"; """


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name in ("START_TIMEOUT", "LIST_TIMEOUT"):
        monkeypatch.setattr(_lms_get, name, 2.0)
    monkeypatch.setattr(_lms_get, "_WATCH_INTERVAL", 0.1)


class Mac:
    """A models folder, and an installed LM Studio whose `lms get` runs the shell commands `get`."""

    def __init__(self, folder: Path):
        self.folder, self.notes = folder, folder / "notes"
        self.programs("")

    def programs(self, get: str, before: str = "", pid: str = "$$") -> None:
        internal = self.folder / "home/.lmstudio/.internal"
        for place in (internal, self.folder / "home/.lmstudio/bin"):
            place.mkdir(parents=True, exist_ok=True)
        llmster = self.folder / "home/llmster"
        (internal / "llmster-install-location.json").write_text(json.dumps({"path": str(llmster)}))
        lms = self.folder / "home/.lmstudio/bin/lms"
        lms.write_text(LMS.format(notes=self.notes, get=get or ":"))
        llmster.write_text(LLMSTER.format(notes=self.notes, before=before, pid=pid))
        for program in (lms, llmster):
            program.chmod(0o755)

    def fetch(self, *entries: dict, timeout: float = 20) -> None:
        files = checked_models(list(entries))
        folder = ModelFolder(str(self.folder / "models"), lmstudio=str(self.folder / "home"))
        os.makedirs(folder.partial, exist_ok=True)
        missing = folder.missing(files, remember=False)
        folder.require_space(missing)
        folder.fetch_all(missing, timeout)

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []

    def gets(self) -> list[str]:
        return [line for line in self.noted() if line.startswith("get")]


@pytest.fixture
def mac(tmp_path):
    return Mac(tmp_path)


def entry(name="a.gguf", content="weights", catalog=f"{KEY}@q4_k_m", model="tiny", **more):
    return {"name": model, "path": f"tiny/{model}/{name}", "catalog": catalog, "sha256": sha256(content), **more}


def good(name="a.gguf", content="weights", key=KEY) -> str:
    return GOT.format(name=name, content=content) + LISTED.format(key=key)


def test_a_daemon_of_its_own_fetches_and_is_gone(mac):
    mac.programs(good())
    mac.fetch(entry())
    assert (mac.folder / "models/tiny/tiny/a.gguf").read_text() == "weights"
    home = mac.folder / "partial/catalog"
    assert mac.noted() == [
        f"started for {home}/.lmstudio/.internal/http-server.json",
        f"get {KEY}@q4_k_m --gguf -y",
        "ls --json",
        "ended",
    ]
    assert os.listdir(mac.folder / "partial") == []
    mac.fetch(entry())
    assert len(mac.gets()) == 1


def test_all_files_of_a_model_come_with_one_get_the_first_part_last(mac):
    mac.programs(good("config.json", "{}") + good("model.safetensors"))
    mac.fetch(entry("model.safetensors"), entry("config.json", "{}"))
    assert mac.gets() == [f"get {KEY}@q4_k_m --mlx -y"]
    assert sorted(os.listdir(mac.folder / "models/tiny/tiny")) == ["config.json", "model.safetensors"]


def test_two_models_may_be_the_same_of_the_catalogue(mac):
    mac.programs(good())
    mac.fetch(entry(), entry(model="tiny-2"))
    assert (mac.folder / "models/tiny/tiny-2/a.gguf").exists() and len(mac.gets()) == 2


def test_a_name_without_publisher_is_that_model_and_no_other(mac):
    mac.programs(good())
    mac.fetch(entry(catalog="tiny-chat"))
    mac.programs(good("b.gguf", key="tiny/tiny-chat-2"))
    with pytest.raises(ModelError) as told:
        mac.fetch(entry("b.gguf", catalog="tiny-chat", model="other"))
    for words in ("model other: after lms get tiny-chat", "no model with the key tiny-chat", "text-embedding-nomic"):
        assert words in str(told.value)
    assert "tiny/tiny-chat-2" in str(told.value) and "lms said: Downloading" in str(told.value)
    assert os.listdir(mac.folder / "partial") == [] and not (mac.folder / "models/tiny/other").exists()


def test_a_model_that_is_listed_late_is_waited_for(mac):
    mac.programs(GOT.format(name="a.gguf", content="weights") + f"(sleep 1; {LISTED.format(key=KEY)}) >&- 2>&- &")
    mac.fetch(entry())


def test_another_content_is_not_kept(mac):
    mac.programs(good(content="other"))
    with pytest.raises(ModelError) as told:
        mac.fetch(entry())
    assert f"wrong sha256 of a.gguf: expected {sha256('weights')}, got {sha256('other')}" in str(told.value)
    assert os.listdir(mac.folder / "partial") == [] and not (mac.folder / "models").exists()


def test_another_file_is_told(mac):
    mac.programs(good("b.gguf"))
    with pytest.raises(ModelError, match=r"fetched b.gguf, and no a.gguf. Nothing was kept. Correct the name"):
        mac.fetch(entry())
    assert os.listdir(mac.folder / "partial") == []


def test_what_was_fetched_before_an_error_is_kept_for_the_next_run(mac):
    mac.programs(GOT.format(name="one", content="weights") + "echo 'Error: network unreachable' >&2; exit 1")
    with pytest.raises(ModelError, match=r"lms get .* failed, LM Studio has no model with the key .*unreachable"):
        mac.fetch(entry())
    kept = mac.folder / "partial/catalog/.lmstudio/models/lmstudio-community/Tiny/one"
    assert kept.exists()
    mac.programs(f'mv "$models/one" "$models/a.gguf"; {LISTED.format(key=KEY)}')
    mac.fetch(entry())
    assert (mac.folder / "models/tiny/tiny/a.gguf").read_text() == "weights"


def test_what_is_there_whole_is_not_fetched_again(mac):
    there = mac.folder / "partial/catalog/.lmstudio/models/x"
    there.mkdir(parents=True)
    (there / "a.gguf").write_text("weights")
    mac.fetch(entry())
    assert mac.noted() == [] and not (mac.folder / "partial/catalog").exists()


def test_a_get_that_hangs_is_ended_with_its_daemon(mac):
    mac.programs("exec sleep 300")
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"was not complete within 1 s; run again to go on"):
        mac.fetch(entry(), timeout=1)
    assert time.monotonic() - began < 100 and mac.noted()[-1] == "ended"


def test_a_disk_that_fills_up_ends_it(mac, monkeypatch):
    mac.programs(f"until grep -q ended {mac.notes}; do sleep 0.1; done")
    monkeypatch.setattr(ModelFolder, "_has_room", lambda _self: False)
    with pytest.raises(ModelError, match=r"was ended, because the disk of .* is nearly full"):
        mac.fetch(entry())


@pytest.mark.parametrize(("size", "free"), [(None, 0), (10_000, 9_000)])
def test_it_is_not_begun_without_room(mac, monkeypatch, size, free):
    mac.programs(good())
    monkeypatch.setattr(_model_files, "free_bytes", lambda _folder: _model_files.RESERVE + free)
    with pytest.raises(ModelError, match="needed to fetch tiny"):
        mac.fetch(entry(size=size))
    assert mac.noted() == []
    there = mac.folder / "partial/catalog/.lmstudio/models/x"
    there.mkdir(parents=True)
    (there / "downloading.part").write_bytes(b"x" * 2_000)
    if size:
        mac.fetch(entry(size=size))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"before": "echo no free control port >&2; exit 1"},
            "ended with exit code 1: no free control port. It needs one",
        ),
        ({"before": "exec sleep 300"}, "was not up within 2 s: it said nothing"),
        ({"pid": "1"}, "was not up within"),
        ({"pid": str(os.getpid())}, f"works with another daemon (process {os.getpid()})"),
    ],
    ids=["ends", "is silent", "tells nothing of its own", "is another one"],
)
def test_a_daemon_that_is_none_is_told(mac, changes, said):
    mac.programs(good(), **changes)
    with pytest.raises(ModelError) as told:
        mac.fetch(entry())
    assert said in str(told.value) and not mac.gets()


def test_without_an_install_it_says_where_it_looked(mac):
    (mac.folder / "home/llmster").unlink()
    with pytest.raises(ModelError, match=rf"needs an LM Studio, which is not installed in {mac.folder}/home"):
        mac.fetch(entry())


def test_a_run_that_is_killed_leaves_no_daemon_and_the_next_one_goes_on(mac):
    mac.programs("exec sleep 300")
    program = (
        "import sys; from ansible_collections.lmfleet.mac.plugins.module_utils import _lms, _lms_get;"
        "install = _lms.find_install(sys.argv[1]);"
        "_lms_get.fetch(install, sys.argv[2], 'tiny/tiny-chat', 'gguf', 300, lambda: True)"
    )
    home = mac.folder / "partial/catalog"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "collections")}
    run = subprocess.Popen([sys.executable, "-c", program, mac.folder / "home", home], env=environment)
    deadline = time.monotonic() + 60
    while not mac.gets() and time.monotonic() < deadline:
        time.sleep(0.05)
    daemon = json.loads((home / ".lmstudio/.internal/http-server.json").read_text())["pid"]
    os.kill(daemon, 0)
    run.send_signal(signal.SIGKILL)
    run.wait()
    mac.programs(good())
    mac.fetch(entry())
    assert [line for line in mac.noted() if line == "ended"] == ["ended", "ended"]
    with pytest.raises(ProcessLookupError):
        os.kill(daemon, 0)
