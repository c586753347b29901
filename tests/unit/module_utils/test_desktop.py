# SPDX-License-Identifier: GPL-3.0-or-later
"""LM Studio that is not ours is found. A running one stands in tests/e2e/test_instances.py."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _desktop

FOUND = {"apps": [], "home": "/Users/a/.lmstudio", "foreign_control_ports": [41343]}


def test_apps_for_all_users_and_for_one(tmp_path):
    for app in ("all/LM Studio.app", "home/Applications/Bionic.app", "all/Mail.app"):
        (tmp_path / app).mkdir(parents=True)
    found = _desktop.apps(str(tmp_path / "home"), (str(tmp_path / "all"),))
    assert [os.path.basename(path) for path in found] == ["LM Studio.app", "Bionic.app"]


def test_the_home_is_where_lm_studio_looks_for_it(tmp_path):
    assert _desktop.lmstudio_home(str(tmp_path)) is None
    for name in (".lmstudio", ".cache/lm-studio", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        if name == "elsewhere":
            (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/elsewhere\n")
        assert _desktop.lmstudio_home(str(tmp_path)) == str(tmp_path / name)


@pytest.mark.parametrize(
    ("pid", "foreign"),
    [(os.getpid(), [22931]), (2**22 + 1, [41343, 22931]), ("x", [41343, 22931])],
    ids=["alive", "gone", "no pid"],
)
def test_daemons_of_others(tmp_path, monkeypatch, pid, foreign):
    monkeypatch.setattr(_desktop._ports, "accepts", lambda _address, port: port in (41343, 22931))
    info = tmp_path / "chat-a" / ".lmstudio" / ".internal" / "http-server.json"
    info.parent.mkdir(parents=True)
    info.write_text(json.dumps({"port": 41343, "pid": pid}))
    (tmp_path / "chat-b").mkdir()
    assert _desktop.foreign_daemons(str(tmp_path)) == foreign


def test_no_daemon_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(_desktop._ports, "accepts", lambda *_where: False)
    assert _desktop.foreign_daemons(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("daemons", "root", "told"),
    [
        (4, "/Users/a/.lmfleet", None),
        (5, "/Users/a/.lmfleet", "5 instances are declared, and 4 can run"),
        (1, "/Users/a/.lmstudio", "Set lmfleet_root to another folder"),
        (1, "/Users/a/.lmstudio/fleet", "Set lmfleet_root to another folder"),
    ],
)
def test_what_does_not_go_together(daemons, root, told):
    lines = _desktop.problems(FOUND, daemons, root)
    assert [told in line for line in lines] == ([True] if told else [])
