# SPDX-License-Identifier: GPL-3.0-or-later
"""The module mac_host_settings, with pmset and sysctl made of dictionaries. Sandbox Macs run it in tests/e2e."""

from __future__ import annotations

import os

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _host_settings, _launchd
from ansible_collections.lmfleet.mac.plugins.module_utils._command import Result
from ansible_collections.lmfleet.mac.plugins.modules import mac_host_settings

PLIST = """\
<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict>
<key>Label</key><string>lmfleet.gpu-memory-limit</string>
<key>ProgramArguments</key><array><string>/usr/sbin/sysctl</string><string>iogpu.wired_limit_mb=9000</string></array>
<key>RunAtLoad</key><true/>
</dict></plist>
"""


class Mac:
    """Answers of a Mac with 16 GB; `deaf` settings are taken and have no effect."""

    def __init__(self):
        self.power = {"sleep": 1, "womp": 1}
        self.sysctl = {"hw.memsize": 16 * 2**30, "iogpu.wired_limit_mb": 0}
        self.deaf = set()

    def run(self, command, timeout):
        words = command[1:]
        if words == ["-g", "custom"]:
            return Result(0, "AC Power:\n" + "".join(f" {name}  {value}\n" for name, value in self.power.items()), "")
        if words[0] == "-a":
            new = dict(zip(words[1::2], map(int, words[2::2]), strict=True))
            self.power.update({name: value for name, value in new.items() if name not in self.deaf})
            return Result(0, "", "")
        if words[0] == "-n":
            return Result(0, f"{self.sysctl[words[1]]}\n", "")
        name, _equals, value = words[0].partition("=")
        self.sysctl[name] = int(value)
        return Result(0, "", "")


@pytest.fixture
def mac(monkeypatch, launchd):
    mac = Mac()
    launchd.exits[_host_settings.LABEL] = 0
    monkeypatch.setattr(_host_settings, "run", mac.run)
    monkeypatch.setattr(_host_settings, "_launchctl", lambda: _launchd.Launchctl(launchd.domain))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return mac


LIMIT = {"gpu_memory_limit_mb": 9000, "boot_plist": PLIST}


def test_what_differs_is_set_and_a_second_run_changes_nothing(run_module, mac):
    wanted = {"power": {"sleep": 0, "womp": 1, "autorestart": 1}, **LIMIT}
    would = run_module(mac_host_settings, wanted, check=True)
    assert (mac.power["sleep"], mac.sysctl["iogpu.wired_limit_mb"]) == (1, 0)
    did = run_module(mac_host_settings, wanted)
    assert did == would
    assert did["changes"][:2] == ["pmset sleep 0", "sysctl iogpu.wired_limit_mb=9000"]
    assert did["unsupported"] == ["autorestart"]
    assert (mac.power, mac.sysctl["iogpu.wired_limit_mb"]) == ({"sleep": 0, "womp": 1}, 9000)
    again = run_module(mac_host_settings, wanted)
    assert (again["changed"], again["changes"], again["diff"]["after"]) == (False, [], "")


def test_a_limit_that_is_taken_out_goes_with_its_job(run_module, mac, launchd):
    run_module(mac_host_settings, LIMIT)
    assert list(launchd.jobs) == [_host_settings.LABEL]
    assert run_module(mac_host_settings, {})["changed"] is True
    assert (launchd.jobs, mac.sysctl["iogpu.wired_limit_mb"]) == ({}, 0)
    launchd.calls.clear()
    assert run_module(mac_host_settings, {})["changed"] is False
    assert launchd.calls == []


def test_a_job_that_was_disabled_is_enabled(run_module, mac, launchd):
    run_module(mac_host_settings, LIMIT)
    launchd.disabled.add(_host_settings.LABEL)
    assert run_module(mac_host_settings, LIMIT)["changes"] == [f"launchd job system/{_host_settings.LABEL}: enable"]
    assert launchd.disabled == set()


def test_a_setting_that_has_no_effect_is_an_error(run_module, mac):
    mac.deaf = {"sleep"}
    message = run_module(mac_host_settings, {"power": {"sleep": 0}})["msg"]
    assert "are not in effect: pmset sleep 0" in message


@pytest.mark.parametrize(
    ("arguments", "root", "told"),
    [
        ({**LIMIT, "gpu_memory_limit_mb": 99000}, True, "1024 to 14336"),
        ({"gpu_memory_limit_mb": 9000}, True, "boot_plist"),
        ({"power": {"nap": 1}}, True, "nap"),
        ({"power": {"sleep": 0}}, False, "mac_host_power: {}"),
    ],
)
def test_bad_input_changes_nothing(run_module, mac, monkeypatch, arguments, root, told):
    before = (dict(mac.power), dict(mac.sysctl))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 501)
    result = run_module(mac_host_settings, arguments)
    assert result["failed"]
    assert told in result["msg"]
    assert (mac.power, mac.sysctl) == before
