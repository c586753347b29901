# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Mac tells of memory, with a folder in place of the Mac and a script in place of lms."""

from __future__ import annotations

import copy
import json
import os

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _memory_facts
from ansible_collections.lmfleet.mac.plugins.plugin_utils import memory_plan

ESTIMATE = """\
Model: chat
Estimated GPU Memory:   1.50 GB
Estimated Total Memory: 2.25 GB

Estimate: This model may be loaded based on your resource guardrails settings.
"""
LOAD = {"context_length": 4096, "parallel": 2, "k_cache_quantization": "q8_0"}
MODEL = {"identifier": "chat", "path": "p/chat/f.gguf", "load": LOAD}


class Mac:
    """One instance that runs by a declaration, on a Mac whose lms notes how it is called."""

    def __init__(self, root):
        self.root = root
        self.home = root / "instances" / "a"
        self.home.mkdir(parents=True)
        self.calls = root / "calls"
        self.lms = root / "lms"
        self.answer(ESTIMATE)
        self.declare(MODEL)
        self.report("idle")
        self.wanted = {
            "root": str(root),
            "files": [MODEL["path"]],
            "settings": list(memory_plan.SETTINGS_THAT_COUNT),
            "instances": [{"name": "a", "models": [copy.deepcopy(MODEL)]}],
        }

    def answer(self, estimate):
        models = json.dumps([{"path": MODEL["path"], "modelKey": "chat-key", "deviceIdentifier": None}])
        (self.root / "estimate").write_text(estimate)
        self.lms.write_text(
            f'#!/bin/sh\necho "$HOME $LMS_API_SERVER_INFO_PATH $*" >>{self.calls}\n'
            f"case $1 in ls) echo '{models}';; *) cat {self.root}/estimate;; esac\n"
        )
        self.lms.chmod(0o755)

    def declare(self, *models):
        load = {"cpu_threads": 8, "mmap": True}
        there = [{**model, "load": {**model["load"], **load}} for model in models]
        (self.home / "instance.json").write_text(json.dumps({"lms": str(self.lms), "models": there}))

    def report(self, status, pid=None):
        report = {"daemon_pid": pid or os.getpid(), "models": [{"identifier": "chat", "status": status}]}
        (self.home / "status.json").write_text(json.dumps(report))

    def want(self, **load):
        self.wanted["instances"][0]["models"][0]["load"].update(load)

    def facts(self):
        user = {"name": "admin", "uid": os.getuid(), "gid": os.getgid(), "home": "/Users/admin"}
        return _memory_facts.gather(self.wanted, user, 0)

    def called(self):
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def mac(tmp_path):
    return Mac(tmp_path)


def test_a_mac_on_which_nothing_changes_is_settled_and_not_asked(mac):
    facts = mac.facts()
    assert (facts["settled"], facts["estimates"], facts["files"]) == (True, {}, {})
    assert mac.called() == []


def test_a_changed_setting_is_estimated_with_the_exact_key(mac):
    mac.want(context_length=8192, gpu=0.5)
    facts = mac.facts()
    assert facts["settled"] is False
    assert facts["estimates"] == {"a/chat": {"gpu_mb": 1536, "total_mb": 2304}}
    place = f"{mac.home} {mac.home}/.lmstudio/.internal/http-server.json"
    assert mac.called() == [
        f"{place} ls --json",
        f"{place} load chat-key --estimate-only -y --context-length 8192 --parallel 2 --gpu 0.5",
    ]


def test_a_setting_that_lms_cannot_be_told_is_not_estimated(mac):
    mac.want(k_cache_quantization="q4_0")
    facts = mac.facts()
    assert (facts["settled"], facts["estimates"], mac.called()) == (False, {}, [])


def test_an_instance_that_does_not_run_is_not_asked(mac):
    mac.want(context_length=8192)
    mac.report("idle", pid=2**22 + 1)
    assert mac.facts()["estimates"] == {}
    assert mac.called() == []


def test_a_model_that_failed_to_load_is_looked_at_again(mac):
    mac.report("failed")
    assert mac.facts()["settled"] is False


@pytest.mark.parametrize("text", ["", "[", '{"models": 1}', '{"models": [1, {"load": 2}]}'])
def test_a_declaration_that_is_none_is_like_no_declaration(mac, text):
    (mac.home / "instance.json").write_text(text)
    facts = mac.facts()
    assert (facts["settled"], facts["estimates"]) == (False, {})


@pytest.mark.parametrize("text", ["", "Error: no such model", "Estimated GPU Memory: much GB"])
def test_an_answer_that_is_no_estimate_is_none(mac, text):
    mac.answer(text)
    mac.want(context_length=8192)
    assert mac.facts()["estimates"] == {}


def test_files_are_described_by_their_paths(mac):
    file = mac.root / "models" / MODEL["path"]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no model")
    assert mac.facts()["files"] == {MODEL["path"]: {"size_bytes": 8, "problem": "it is not a GGUF file"}}


def test_measured_values_are_read_and_useless_ones_said(mac):
    good = {"sha256": "a", "load": LOAD, "total_mb": 1000, "gpu_mb": 900}
    records = [good, {"sha256": "a", "load": {}}, {"sha256": "a", "load": {}, "total_mb": "much"}, 1]
    (mac.root / "memory.json").write_text(json.dumps({"measured": records}))
    facts = mac.facts()
    assert facts["measured"] == [good]
    assert facts["problem"] == f"{mac.root}/memory.json: 3 of 4 records lack sha256, load or total_mb"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"measured": 1}', '{"other": []}'])
def test_a_file_that_holds_no_measured_values_is_said(mac, text):
    (mac.root / "memory.json").write_text(text)
    facts = mac.facts()
    assert facts["measured"] == []
    assert "memory.json is not used" in facts["problem"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Estimated GPU Memory: 512 MB\nEstimated Total Memory: 1 GiB", {"gpu_mb": 512, "total_mb": 1024}),
        ("Estimated Total Memory: 1 GB", None),
    ],
)
def test_estimates_are_read_in_their_units(text, found):
    assert _memory_facts.parse_estimate(text) == found
