# SPDX-License-Identifier: GPL-3.0-or-later
"""The module mac_host_check, with the commands of a Mac replaced by what they print."""

from __future__ import annotations

import json
import os
import pwd
import socket
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.lmfleet.mac.plugins.module_utils import _command, _launchd, _ports
from ansible_collections.lmfleet.mac.plugins.modules import mac_host_check

SYSCTL = """\
hw.memsize: 68719476736
hw.perflevel0.physicalcpu: 8
hw.perflevel1.physicalcpu: 4
kern.osproductversion: 15.5
machdep.cpu.brand_string: Apple M4 Max
"""
PORT = {"label": "lmfleet.instance.a", "domain": "gui", "use": "instance a"}


class Mac:
    """Answers of a sound Mac; a test changes what it is about."""

    def __init__(self, monkeypatch):
        self.answers = {
            "sysctl": (0, SYSCTL),
            "launchctl": (0, "gui/501/x = {\n\tpid = 10\n}\n"),
            "lsof": (0, ""),
            "ps": (0, "10 1\n11 10\n12 1\n"),
        }
        self.uname = ("Darwin", "mac", "24.5.0", "", "arm64")
        monkeypatch.setattr(os, "uname", lambda: os.uname_result(self.uname))
        monkeypatch.setattr(_command, "run", self.run)
        monkeypatch.setattr(_ports, "run", self.run)
        monkeypatch.setattr(_launchd.Launchctl, "_call", lambda _self, *_words: self.run(["launchctl"], 1))

    def run(self, command, timeout):
        code, output = self.answers[os.path.basename(command[0])]
        return _command.Result(code, output, "")


@pytest.fixture
def mac(monkeypatch):
    return Mac(monkeypatch)


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def run(capsys, **arguments):
    with patch_module_args({"min_free_disk_mb": 1, **arguments}), pytest.raises(SystemExit):
        mac_host_check.main()
    return json.loads(capsys.readouterr().out)


def test_the_facts_of_a_sound_mac(mac, capsys):
    result = run(capsys, domains=["gui"])
    assert not result.get("failed"), result
    assert result["changed"] is False
    facts = result["facts"]
    assert (facts["memory_mb"], facts["performance_cores"], facts["efficiency_cores"]) == (65536, 8, 4)
    assert (facts["chip"], facts["macos_version"], facts["gui_session"]) == ("Apple M4 Max", "15.5", True)
    assert facts["free_disk_mb"] > 0


def test_no_session_at_the_screen_is_refused(mac, capsys):
    mac.answers["launchctl"] = (125, "")
    assert "no session at the screen" in run(capsys, domains=["gui"])["msg"]


def test_another_system_is_refused_without_asking_for_mac_things(mac, capsys):
    mac.uname = ("Linux", "box", "6.1", "", "x86_64")
    mac.answers = {}
    assert "Linux on x86_64" in run(capsys)["msg"]


@pytest.mark.parametrize(("offset", "told"), [(7200, "behind"), (-7200, "ahead of"), (60, None), (-60, None)])
def test_a_clock_that_is_wrong_is_warned_of(mac, capsys, monkeypatch, offset, told):
    warnings = []
    monkeypatch.setattr(mac_host_check.AnsibleModule, "warn", lambda _self, text: warnings.append(text))
    assert not run(capsys, controller_time=time.time() + offset).get("failed")
    assert [told in warning for warning in warnings] == ([True] if told else [])


def test_a_user_that_is_not_there_is_named(mac, capsys):
    assert "no user nobody-such" in run(capsys, user="nobody-such")["msg"]


def test_a_port_of_another_program_is_refused_by_name(mac, capsys, taken_port):
    mac.answers["lsof"] = (0, f"p12\ncnginx\nn127.0.0.1:{taken_port}\n")
    message = run(capsys, ports=[{**PORT, "port": taken_port}])["msg"]
    assert f"port {taken_port}, wanted for instance a, is taken by nginx (pid 12)" in message


def test_a_port_of_an_unseen_program_is_refused(mac, capsys, taken_port):
    assert "another user's program" in run(capsys, ports=[{**PORT, "port": taken_port}])["msg"]


def test_a_port_of_the_own_job_is_accepted(mac, capsys, taken_port):
    mac.answers["lsof"] = (0, f"p11\ncllmster\nn127.0.0.1:{taken_port}\n")
    assert run(capsys, ports=[{**PORT, "port": taken_port}])["facts"]["listeners"] == []


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [({}, True), ({"pid": 99}, False), ({"state": "starting"}, False), ({"address": "10.0.0.1"}, False)],
    ids=["ready", "another pid", "not ready", "another address"],
)
def test_a_job_that_reports_the_port_is_believed_only_where_launchd_agrees(
    mac, capsys, taken_port, tmp_path, changes, accepted
):
    report = {"pid": 10, "state": "ready", "address": "127.0.0.1", "port": taken_port, **changes}
    (tmp_path / "status.json").write_text(json.dumps(report))
    result = run(capsys, ports=[{**PORT, "port": taken_port, "status": str(tmp_path / "status.json")}])
    assert result.get("failed", False) is not accepted


def test_a_job_that_reports_that_it_publishes_its_status_there_is_believed(mac, capsys, taken_port, tmp_path):
    report = {"pid": 10, "state": "ready", "address": "127.0.0.1", "port": 1}
    wanted = [{**PORT, "port": taken_port, "status": str(tmp_path / "status.json")}]
    for published, accepted in ((taken_port, True), (None, False)):
        status = {**report, "status_address": published and "127.0.0.1", "status_port": published}
        (tmp_path / "status.json").write_text(json.dumps(status))
        assert run(capsys, ports=wanted).get("failed", False) is not accepted


def test_a_free_port_for_a_job_that_runs_is_free(mac, capsys, taken_port, tmp_path):
    mac.answers["lsof"] = (0, f"p11\ncllmster\nn127.0.0.1:{taken_port}\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    status = str(tmp_path / "status.json")
    ports = [{**PORT, "port": port, "status": status} for port in (taken_port, free)]
    assert run(capsys, ports=ports)["facts"]["listeners"] == []


@pytest.mark.parametrize(("user", "accepted"), [("own", True), ("other", False)])
def test_the_port_of_an_instance_that_the_run_ends_is_free_for_another(
    mac, capsys, taken_port, tmp_path, user, accepted
):
    """One is renamed, or two swap their ports: the listener is a child of a runner of the same user."""
    home = pwd.getpwuid(os.getuid()).pw_dir if user == "own" else "/Users/somebody"
    mac.answers["lsof"] = (0, f"p21\ncllmster\nn127.0.0.1:{taken_port}\n")
    runner = f"20 /usr/bin/python3 {home}/.lmfleet/instance_runner.pyz {home}/.lmfleet/instances/old\n"
    mac.answers["ps"] = (0, f"10 1\n20 1\n21 20\n{runner}")
    result = run(capsys, ports=[{**PORT, "port": taken_port, "status": str(tmp_path / "none.json")}])
    assert result.get("failed", False) is not accepted
    # The port of the gateway, which has no status file, cannot be one that an instance gives up.
    assert run(capsys, ports=[{**PORT, "port": taken_port}])["failed"]


def test_a_job_that_is_not_loaded_owns_no_port(mac, capsys, taken_port):
    mac.answers["lsof"] = (0, f"p11\ncllmster\nn127.0.0.1:{taken_port}\n")
    mac.answers["launchctl"] = (113, "")
    assert run(capsys, ports=[{**PORT, "port": taken_port}])["failed"]


def test_a_folder_that_is_not_there_yet_counts_for_its_volume(mac, capsys, tmp_path):
    assert run(capsys, disk_path=str(tmp_path / "not" / "yet"))["facts"]["free_disk_mb"] > 0
