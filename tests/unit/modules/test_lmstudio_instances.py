# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lmstudio_instances: launchd is made of dictionaries, the runner writes its status at once."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import plistlib
import socket
import threading
import time

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _former, _instance_host, _zipapp
from ansible_collections.lmfleet.mac.plugins.module_utils._launchd import Domain
from ansible_collections.lmfleet.mac.plugins.module_utils._lmstudio_http import Server
from ansible_collections.lmfleet.mac.plugins.modules import lmstudio_instances

MODEL = {"identifier": "m", "path": "p/n/f.gguf", "type": "llm", "context_length": 4096, "fingerprint": "1"}


class Mac:
    """Instances that become ready the moment launchd starts them; `says` changes what their status says."""

    def __init__(self, tmp_path, launchd, run_module):
        self.root = tmp_path
        self.launchd = launchd
        self.launchd.on_start = self.started
        self.run_module = run_module
        self.says = {}
        self.served = None
        self.runner = "# runner 1\n"

    def files(self):
        """Return the texts in the homes of the instances, by path."""
        homes = self.root / "instances"
        found = [path for path in homes.rglob("*") if path.is_file() and "lock" not in path.name]
        return {str(path.relative_to(homes)): path.read_text() for path in found}

    def archive(self):
        """Return the runner as the module shall put it on the Mac."""
        return _zipapp.build({"__main__.py": self.runner})

    def home(self, name):
        return self.root / "instances" / name

    def started(self, label, pid):
        self.report(label.rpartition(".")[2], pid)

    def report(self, name, pid=None):
        """Write status.json as the runner would for the instance.json that is there."""
        content = (self.home(name) / "instance.json").read_bytes()
        declaration = json.loads(content)
        pid = pid or self.launchd.jobs[f"lmfleet.instance.{name}"]["pid"]
        status = {
            "instance": name,
            "pid": pid,
            "runner": hashlib.sha256(self.archive()).hexdigest(),
            "daemon_pid": pid + 1000,
            "control_port": 40000 + pid,
            "address": declaration["address"],
            "port": declaration["port"],
            "generation": hashlib.sha256(content).hexdigest(),
            "state": "ready",
            "error": None,
            "updated_monotonic": time.monotonic(),
            "models": declaration["models"],
            "unmanaged": [],
        }
        (self.home(name) / "status.json").write_text(json.dumps({**status, **self.says.get(name, {})}))

    def look(self, url, _timeout, _token):
        if self.served is not None:
            return self.served
        for home in (self.root / "instances").iterdir():
            if (home / "instance.json").is_file():  # others may just be made
                declaration = json.loads((home / "instance.json").read_text())
                if url.endswith(f":{declaration['port']}"):
                    return Server(True, {model["identifier"]: {} for model in declaration["models"]}, "loaded")
        return Server(False, None, "connection refused")

    def instance(self, name="chat-a", plist=None, **changes):
        declaration = {"name": name, "address": "127.0.0.1", "port": 18111, "poll_interval": 5, "models": [MODEL]}
        default = {
            "Label": f"lmfleet.instance.{name}",
            "ProgramArguments": ["/usr/bin/python3", "r", str(self.home(name))],
        }
        text = plistlib.dumps({**default, "KeepAlive": True, **(plist or {})}).decode()
        return {"name": name, "declaration": json.dumps({**declaration, **changes}), "plist": text}

    def run(self, *instances, check=False, **arguments):
        given = {
            "directory": str(self.root / "instances"),
            "models_directory": str(self.root / "models"),
            "runner": {"path": str(self.root / "runner.pyz"), "files": {"__main__.py": self.runner}},
            "instances": list(instances),
            "timeout": 2,
        }
        return self.run_module(lmstudio_instances, {**given, **arguments}, check)

    def actions(self, result):
        return {one["name"]: one["action"] for one in result["instances"]}


@pytest.fixture
def mac(tmp_path, launchd, run_module, monkeypatch):
    mac = Mac(tmp_path, launchd, run_module)
    other = Domain("system", "system", str(tmp_path / "LaunchDaemons"), launchd.domain.owner, "admin")
    monkeypatch.setattr(lmstudio_instances, "domain_for", lambda kind, _user: launchd.domain)
    monkeypatch.setattr(lmstudio_instances, "other_domain", lambda _kind, _user: other)
    monkeypatch.setattr(_instance_host, "look", mac.look)
    monkeypatch.setattr(_instance_host, "_SETTLE", 0.5)
    monkeypatch.setattr(_instance_host, "_LASTING", 0.1)
    monkeypatch.setattr(_instance_host, "_POLL", 0.05)
    return mac


def test_check_then_start_then_nothing(mac, tmp_path):
    two = mac.instance(), mac.instance("chat-b", port=18112)
    before = mac.run(*two, check=True)
    assert (
        mac.actions(before) == {"chat-a": "start", "chat-b": "start"} and before["instances"][0]["why"] == "it is new"
    )
    assert sorted(os.listdir(tmp_path)) == [] and mac.launchd.names() == []

    made = mac.run(*two)
    assert made["changed"] and mac.actions(made) == mac.actions(before) and made["diff"] == before["diff"]
    one = made["instances"][0]
    assert one["ready"] and one["pid"] and one["daemon_pid"] == one["pid"] + 1000 and one["port"] == 18111
    assert os.readlink(mac.home("chat-a") / ".lmstudio" / "models") == str(tmp_path / "models")
    assert (tmp_path / "runner.pyz").read_bytes() == mac.archive() and (mac.home("chat-a") / "logs").is_dir()

    mac.launchd.calls.clear()
    for check in (False, True):
        again = mac.run(*two, check=check)
        assert not again["changed"] and again["diff"] == [] and all(one["ready"] for one in again["instances"])
        assert [one["pid"] for one in again["instances"]] == [one["pid"] for one in made["instances"]]
    assert mac.launchd.names() == []
    assert len(mac.launchd.calls) == 6  # one look per instance and run, and one at what is disabled


def test_a_changed_model_restarts_nothing(mac, monkeypatch):
    mac.run(mac.instance())
    mac.launchd.calls.clear()
    changed = mac.instance(models=[{**MODEL, "fingerprint": "2"}, {**MODEL, "identifier": "m-2"}])
    real = _instance_host.atomic_write

    def written(path, content, *more):
        real(path, content, *more)
        mac.report("chat-a")

    monkeypatch.setattr(_instance_host, "atomic_write", written)
    result = mac.run(changed)
    assert mac.actions(result) == {"chat-a": "live"} and result["instances"][0]["ready"]
    assert mac.launchd.names() == [] and '"fingerprint": "2"' in result["diff"][0]["after"]
    assert not mac.run(changed)["changed"]


def test_a_new_instance_leaves_the_others_alone(mac):
    first = mac.run(mac.instance())["instances"][0]
    both = mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    assert mac.actions(both) == {"chat-a": "nothing", "chat-b": "start"} and both["instances"][0]["pid"] == first["pid"]


def test_another_port_restarts(mac):
    mac.run(mac.instance())
    mac.launchd.calls.clear()
    result = mac.run(mac.instance(port=18113))
    assert result["instances"][0]["why"] == "changed: port"
    label = "lmfleet.instance.chat-a"
    assert mac.launchd.names() == [f"bootout {label}", f"bootstrap {label}"]


def test_a_new_runner_restarts(mac, tmp_path):
    mac.run(mac.instance())
    mac.runner = "# runner 2\n"
    assert mac.run(mac.instance(), check=True)["instances"][0]["why"] == "the instance runner changed"
    assert mac.actions(mac.run(mac.instance())) == {"chat-a": "restart"}
    assert (tmp_path / "runner.pyz").read_bytes() == mac.archive() and not mac.run(mac.instance())["changed"]


def test_a_run_killed_after_writing_the_runner_still_restarts(mac, tmp_path):
    mac.run(mac.instance())
    mac.runner = "# runner 2\n"
    (tmp_path / "runner.pyz").write_bytes(mac.archive())
    assert mac.actions(mac.run(mac.instance())) == {"chat-a": "restart"}


def test_a_job_that_is_not_loaded_is_started(mac):
    mac.run(mac.instance())
    mac.launchd.jobs.clear()
    assert mac.run(mac.instance())["instances"][0]["why"] == "its launchd job is not loaded"


def test_purge_removes_what_is_not_declared_and_nothing_else(mac, tmp_path):
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    (tmp_path / "models" / "file").parent.mkdir()
    (tmp_path / "models" / "file").touch()
    agents = tmp_path / "LaunchAgents"
    stranger = plistlib.dumps({"ProgramArguments": ["x", "/elsewhere/instances/x"]})
    (agents / "lmfleet.instance.x.plist").write_bytes(stranger)
    (agents / "org.example.plist").write_bytes(stranger)
    (tmp_path / "instances" / "notes").mkdir()

    assert mac.actions(mac.run(mac.instance(), purge_instances=False)) == {"chat-a": "nothing"}
    before = mac.run(mac.instance(), check=True)
    result = mac.run(mac.instance())
    assert result["changed"] and mac.actions(result) == mac.actions(before) == {"chat-a": "nothing", "chat-b": "remove"}
    assert sorted(os.listdir(agents)) == [
        "lmfleet.instance.chat-a.plist",
        "lmfleet.instance.x.plist",
        "org.example.plist",
    ]
    assert "lmfleet.instance.chat-b" not in mac.launchd.jobs and not mac.home("chat-b").exists()
    assert (tmp_path / "models" / "file").exists() and (tmp_path / "instances" / "notes").exists()
    assert not mac.run(mac.instance())["changed"]


def test_a_removal_that_was_cut_off_is_finished(mac, tmp_path):
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    os.unlink(tmp_path / "LaunchAgents" / "lmfleet.instance.chat-b.plist")
    (tmp_path / "instances" / ".removed-old-1").mkdir()
    assert mac.actions(mac.run(mac.instance())) == {"chat-a": "nothing", "chat-b": "remove"}
    assert sorted(os.listdir(tmp_path / "instances")) == [".lmfleet.lock", "chat-a"]


def test_a_port_of_another_program_is_said_before_anything_changes(mac, monkeypatch, tmp_path):
    monkeypatch.setattr(_instance_host, "holders", lambda _port: {42: "nginx"})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        for check in (True, False):
            failed = mac.run(mac.instance(port=port), check=check)
            assert f"instance chat-a: port {port} on 127.0.0.1 is held by nginx (process 42)" in failed["msg"]
    assert not mac.home("chat-a").exists() and mac.launchd.names() == []


def test_no_session_is_said_before_anything_changes(mac):
    mac.launchd.no_domain = True
    assert "log in as admin" in mac.run(mac.instance())["msg"] and not mac.home("chat-a").exists()


def test_an_instance_that_does_not_become_ready_is_named_with_what_was_seen(mac, tmp_path):
    mac.says["chat-b"] = {"state": "degraded", "error": "model m: no memory", "models": [{"attempts": 3}]}
    log = tmp_path / "log"
    log.write_text("first\nlast\n")
    failed = mac.run(
        mac.instance(), mac.instance("chat-b", port=18112, plist={"StandardOutPath": str(log)}), timeout=30
    )
    for part in ("instance chat-b at 127.0.0.1:18112", "with m;", "degraded: model m: no memory", "first | last"):
        assert part in failed["msg"]
    assert "chat-a" not in failed["msg"]
    assert {one["name"]: one["ready"] for one in failed["instances"]} == {"chat-a": True, "chat-b": False}


def test_a_ready_status_is_not_believed_when_the_server_says_otherwise(mac):
    mac.served = Server(True, {}, "loaded: nothing")
    assert "not loaded: m" in mac.run(mac.instance(), timeout=1)["msg"]


def test_settings_read_back_name_the_knob(mac):
    mac.served = Server(True, {"m": {"context_length": 2048}}, "loaded: m")
    assert "m: context_length is 2048, declared 4096" in mac.run(mac.instance())["msg"]


def test_instances_that_share_a_daemon_fail_loudly(mac):
    mac.says = {name: {"daemon_pid": 5, "control_port": 41343} for name in ("chat-a", "chat-b")}
    failed = mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    assert "instances chat-a and chat-b share daemon 5, control port 41343. They are one server" in failed["msg"]


def tuning(value, instance="chat-a"):
    content = json.dumps({"load": {"fields": [{"key": "llm.load.contextLength", "value": value}]}})
    return {"instance": instance, "model": "m", "path": MODEL["path"], "content": content, "template": "tuning.json.j2"}


def test_tuning_files_are_there_before_an_instance_starts(mac):
    file = mac.home("chat-a") / ".lmstudio/.internal/user-concrete-model-default-config/p/n/f.gguf.json"
    seen = []

    def started(label, pid):
        seen.append(json.loads(file.read_text())["load"]["fields"])
        mac.started(label, pid)

    mac.launchd.on_start = started
    before = mac.run(mac.instance(), tunings=[tuning(4096)], check=True)
    assert not mac.home("chat-a").exists()
    made = mac.run(mac.instance(), tunings=[tuning(4096)])
    assert seen == [[{"key": "llm.load.contextLength", "value": 4096}]]
    assert made["diff"] == before["diff"] and made["tunings"] == before["tunings"]
    for check in (False, True):
        assert not mac.run(mac.instance(), tunings=[tuning(4096)], check=check)["changed"]


def test_a_tuning_file_changed_by_hand_is_put_right_and_nothing_restarts(mac):
    made = mac.run(mac.instance(), tunings=[tuning(4096)])
    file = made["tunings"][0]["file"]
    pathlib.Path(file).write_text(tuning(1)["content"])
    result = mac.run(mac.instance(), tunings=[tuning(4096)])
    assert result["changed"] and mac.actions(result) == {"chat-a": "nothing"}
    assert [entry["before_header"] for entry in result["diff"]] == [file]


def test_a_model_that_is_no_longer_served_loses_its_tuning_and_without_tunings_files_stay(mac):
    made = mac.run(mac.instance(), tunings=[tuning(4096)])
    file = pathlib.Path(made["tunings"][0]["file"])
    assert not mac.run(mac.instance())["changed"] and file.exists()
    assert mac.run(mac.instance(), tunings=[])["changed"] and not file.exists()


def test_tunings_that_cannot_be_used_change_nothing(mac, tmp_path):
    broken = {**tuning(1), "content": "{"}
    assert "template tuning.json.j2, instance chat-a" in mac.run(mac.instance(), tunings=[broken])["msg"]
    assert "there is no instance chat-b" in mac.run(mac.instance(), tunings=[tuning(1, "chat-b")])["msg"]
    assert not mac.home("chat-a").exists()


def test_a_home_that_points_to_another_fails_loudly(mac):
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    for name in ("chat-a", "chat-b"):
        (mac.home(name) / ".lmstudio-home-pointer").write_text(str(mac.home("chat-a") / ".lmstudio") + "\n")
    failed = mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    assert f"share the home {mac.home('chat-a')}/.lmstudio" in failed["msg"]


def test_one_process_that_listens_for_two_fails_loudly(mac, monkeypatch):
    monkeypatch.setattr(_instance_host, "listeners", lambda: {18111: {7: "llmster"}, 18112: {7: "llmster"}})
    failed = mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    assert "share process 7, which listens for both" in failed["msg"]
    assert "msg" not in mac.run(mac.instance(), mac.instance("chat-b", port=18112))  # asked after a change only


def test_what_is_loaded_and_not_declared_is_a_warning_not_a_change(mac):
    mac.says = {"chat-a": {"drift": ["x (p/n/f) is loaded and not declared"], "unmanaged": ["x"]}}
    mac.run(mac.instance())
    result = mac.run(mac.instance())
    assert not result["changed"] and result["instances"][0]["drift"] == ["x (p/n/f) is loaded and not declared"]
    told = "instance chat-a: x (p/n/f) is loaded and not declared. To have such models unloaded: "
    assert f"{told}lmstudio_instances_purge: true" in json.dumps(result["warnings"])


def test_a_job_that_was_disabled_is_enabled_without_a_restart(mac):
    before = mac.run(mac.instance())["instances"][0]["pid"]
    mac.launchd.disabled.add("lmfleet.instance.chat-a")
    mac.launchd.calls.clear()
    assert mac.run(mac.instance(), check=True)["changed"] and mac.launchd.names() == []
    result = mac.run(mac.instance())
    assert result["changed"] and result["instances"][0]["pid"] == before and not mac.launchd.disabled
    assert mac.launchd.names() == ["enable lmfleet.instance.chat-a"]
    assert not mac.run(mac.instance())["changed"]


def test_a_property_list_edited_by_hand_is_repaired_and_shown(mac, tmp_path):
    mac.run(mac.instance())
    file = tmp_path / "LaunchAgents" / "lmfleet.instance.chat-a.plist"
    file.write_bytes(file.read_bytes().replace(b"<true/>", b"<false/>"))
    for check in (True, False):
        result = mac.run(mac.instance(), check=check)
        assert result["instances"][0]["why"] == "its property list changed"
        assert "<false/>" in result["diff"][0]["before"] and "<true/>" in result["diff"][0]["after"]
    assert not mac.run(mac.instance())["changed"]


def test_a_job_in_the_system_domain_needs_root(mac, tmp_path, monkeypatch):
    (tmp_path / "LaunchDaemons").mkdir()
    plist = tmp_path / "LaunchDaemons" / "lmfleet.instance.chat-a.plist"
    plist.write_text(mac.instance()["plist"])
    with monkeypatch.context() as user:
        user.setattr(os, "geteuid", lambda: 501)
        assert "run in launchd domain system" in mac.run(mac.instance())["msg"] and plist.exists()
    with monkeypatch.context() as root:
        root.setattr(os, "geteuid", lambda: 0)
        assert mac.run(mac.instance(), check=True)["instances"][0]["why"] == "it moves from launchd domain system"


def test_a_models_folder_with_files_is_not_thrown_away(mac):
    folder = mac.home("chat-a") / ".lmstudio" / "models" / "p"
    folder.mkdir(parents=True)
    said = f"instance chat-a: {folder.parent} is a folder with files in it"
    assert mac.run(mac.instance())["msg"].startswith(said) and folder.exists()


@pytest.mark.parametrize(
    ("instances", "said"),
    [
        ([{"declaration": "{"}], "not valid JSON"),
        ([{}, {}], "declared twice"),
        ([{}, {"name": "b"}], "not 'b'"),
    ],
)
def test_bad_declarations_change_nothing(mac, tmp_path, instances, said):
    failed = mac.run(*({**mac.instance(), **changes} for changes in instances))
    assert failed["failed"] and not (tmp_path / "instances").exists()
    assert said in failed["msg"] or "its name is" in failed["msg"]


def test_a_token_is_applied_live_and_seen_by_nobody(mac):
    mac.run(mac.instance())
    for before, after in ((None, "sk-lm-first"), ("sk-lm-first", "sk-lm-second")):
        instance = mac.instance(api_token=after)
        result = mac.run(instance, api_tokens={"chat-a": after}, check=True)
        assert mac.actions(result) == {"chat-a": "live"}
        assert "(hidden" in json.dumps(result["diff"])
        assert not [token for token in (before, after) if token and token in json.dumps(result)]
        mac.run(instance, api_tokens={"chat-a": after}, timeout=0)
    path = mac.home("chat-a") / "instance.json"
    assert json.loads(path.read_text())["api_token"] == "sk-lm-second"
    assert path.stat().st_mode & 0o077 == 0


def test_only_the_named_instances_change(mac):
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    wanted = [mac.instance(port=18121), mac.instance("chat-c", port=18113)]
    result = mac.run(*wanted, only=["chat-a"])
    assert mac.actions(result) == {"chat-a": "restart", "chat-c": "nothing"}
    assert sorted(mac.launchd.jobs) == ["lmfleet.instance.chat-a", "lmfleet.instance.chat-b"]
    assert mac.actions(mac.run(*wanted, check=True)) == {"chat-a": "nothing", "chat-c": "start", "chat-b": "remove"}
    mac.run(*wanted, only=["chat-b", "chat-c"])
    assert sorted(mac.launchd.jobs) == ["lmfleet.instance.chat-a", "lmfleet.instance.chat-c"]


@pytest.mark.parametrize(
    ("changes", "action", "models"),
    [
        ({"port": 18121}, "restart", ["m"]),
        ({"models": [{**MODEL, "fingerprint": "2"}]}, "live", ["m"]),
        ({"models": [MODEL, {**MODEL, "identifier": "m-2"}]}, "live", []),
        ({"models": []}, "live", ["m"]),
        ({"poll_interval": 6}, "live", []),
    ],
    ids=["port", "settings", "one more", "one less", "something else"],
)
def test_which_models_a_change_interrupts(mac, changes, action, models):
    mac.run(mac.instance())
    told = mac.run(mac.instance(**changes), check=True)["instances"][0]
    assert (told["action"], told["interrupted"]) == (action, [MODEL["identifier"] for _model in models])


def test_what_is_removed_interrupts_its_models(mac):
    mac.run(mac.instance())
    assert mac.run(check=True)["instances"][0]["interrupted"] == [MODEL["identifier"]]


@pytest.fixture
def broken(mac):
    """Ports and versions of llmster with which an instance does not become ready."""
    found = set()

    def started(label, pid):
        name = label.rpartition(".")[2]
        declaration = json.loads((mac.home(name) / "instance.json").read_text())
        if found & {declaration["port"], declaration.get("llmster")}:
            mac.says[name] = {"state": "degraded", "error": "no"}
        else:
            mac.says.pop(name, None)
        mac.report(name, pid)

    mac.launchd.on_start = started
    return found


def declarations(mac):
    """Return what is declared on the Mac and what its tuning files are; statuses and the like do not count."""
    other = ("status.json", "former.json")
    return {name: text for name, text in mac.files().items() if not name.endswith(other)}


def instances_by_name(result):
    return {one["name"]: one for one in result["instances"]}


def test_what_does_not_become_ready_gets_back_what_it_had(mac, broken):
    mac.run(mac.instance(), tunings=[tuning(4096)])
    before = declarations(mac)
    broken.add(18121)
    failed = mac.run(mac.instance(port=18121), tunings=[tuning(8192)], restore=True)
    assert failed["failed"]
    assert "It has its former declaration back, and serves." in failed["msg"]
    assert failed["instances"][0]["restored"] is True
    assert declarations(mac) == before
    assert not mac.run(mac.instance(), tunings=[tuning(4096)])["changed"]
    kept = mac.run(mac.instance(port=18121))
    assert kept["failed"] and kept["instances"][0]["restored"] is False


def test_one_that_fails_takes_all_of_its_mac_back(mac, broken):
    old = [mac.instance(llmster="/1"), mac.instance("chat-b", port=18112, llmster="/1")]
    new = [mac.instance(port=18121, llmster="/2"), mac.instance("chat-b", port=18122, llmster="/2")]
    calm = mac.instance("chat-c", port=18113)
    mac.run(*old, calm)
    before = declarations(mac)
    broken.add(18121)
    failed = mac.run(*new, calm, restore=True)
    assert declarations(mac) == before
    told = instances_by_name(failed)
    assert {name: (one["ready"], one["restored"]) for name, one in told.items()} == {
        "chat-a": (False, True),
        "chat-b": (False, True),
        "chat-c": (True, False),
    }
    first, second = failed["msg"].split(" || ")
    assert first.startswith("instance chat-a at 127.0.0.1:18121: waited for its server with m; state degraded: no.")
    assert first.endswith("It has its former declaration back, and serves.")
    assert second.startswith("instance chat-b: it became ready, but the change of this Mac failed.")
    assert second.endswith("It has its former declaration back, and serves.")
    assert mac.actions(mac.run(*new, calm, check=True)) == {
        "chat-a": "restart",
        "chat-b": "restart",
        "chat-c": "nothing",
    }


def test_each_that_does_not_serve_again_is_named(mac, broken):
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    broken |= {18121, 18112}
    failed = mac.run(mac.instance(port=18121), mac.instance("chat-b", port=18122), restore=True)
    first, second = failed["msg"].split(" || ")
    assert first.startswith("instance chat-a at") and first.endswith("back, and serves.")
    assert second.startswith("instance chat-b: it became ready") and "does not serve either: instance chat-b" in second
    assert instances_by_name(failed)["chat-b"]["restored"] is False


def test_instances_that_share_something_after_a_change_go_back(mac):
    mac.run(mac.instance(llmster="/1"), mac.instance("chat-b", port=18112, llmster="/1"))
    before = declarations(mac)

    def started(label, pid):
        name = label.rpartition(".")[2]
        new = "/2" in (mac.home(name) / "instance.json").read_text()
        mac.says[name] = {"daemon_pid": 5} if new else {}
        mac.report(name, pid)

    mac.launchd.on_start = started
    failed = mac.run(mac.instance(llmster="/2"), mac.instance("chat-b", port=18112, llmster="/2"), restore=True)
    assert "share daemon 5" in failed["msg"] and failed["msg"].count("former declaration back, and serves") == 2
    assert declarations(mac) == before


def test_what_cannot_be_put_back_is_named_with_the_reason(mac, broken, monkeypatch):
    mac.run(mac.instance())
    broken.add(18121)
    monkeypatch.setattr(lmstudio_instances, "recall", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    failed = mac.run(mac.instance(port=18121), restore=True)
    assert failed["msg"].endswith("Its former declaration could not be put back: disk is full")


@pytest.mark.parametrize("step", ["stop", "make_home", "wait_ready"])
def test_a_change_that_was_killed_before_it_was_seen_to_serve_goes_back(mac, broken, monkeypatch, step):
    mac.run(mac.instance(), tunings=[tuning(4096)])
    before = declarations(mac)
    broken.add(18121)
    kill(mac, monkeypatch, step, mac.instance(port=18121), tunings=[tuning(8192)])
    failed = mac.run(mac.instance(port=18121), tunings=[tuning(8192)], restore=True)
    assert "back, and serves." in failed["msg"] and failed["instances"][0]["restored"]
    assert declarations(mac) == before


def test_two_changes_that_were_killed_go_back_to_what_served_last(mac, broken, monkeypatch):
    mac.run(mac.instance(), tunings=[tuning(4096)])
    before = declarations(mac)
    broken |= {18121, 18122}
    for port in (18121, 18122):
        kill(mac, monkeypatch, "wait_ready", mac.instance(port=port), tunings=[tuning(port)])
    mac.run(mac.instance(port=18122), tunings=[tuning(18122)], restore=True)
    assert declarations(mac) == before


def test_a_change_that_was_seen_to_serve_does_not_go_back_when_it_fails_later(mac, broken, monkeypatch):
    mac.run(mac.instance())
    kill(mac, monkeypatch, "wait_ready", mac.instance(port=18121))
    assert mac.actions(mac.run(mac.instance(port=18121), restore=True)) == {"chat-a": "nothing"}
    mac.says["chat-a"] = {"state": "degraded", "error": "no"}
    mac.report("chat-a")
    failed = mac.run(mac.instance(port=18121), restore=True)
    assert "former declaration" not in failed["msg"] and '"port": 18121' in declarations(mac)["chat-a/instance.json"]


def kill(mac, monkeypatch, step, *instances, **arguments):
    """Run the module, and kill it where it begins a step."""

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr(_instance_host.InstanceHost, step, killed)
        mac.run(*instances, **arguments)


def test_what_the_last_change_replaced_is_put_back_on_request(mac):
    old = [mac.instance(llmster="/1")], [tuning(4096)]
    new = [mac.instance(port=18121, llmster="/2"), mac.instance("chat-b", port=18122)], [tuning(8192)]
    back = {"tunings": new[1], "only": ["chat-a", "chat-b"], "revert": True}
    mac.run(*old[0], tunings=old[1])
    before = declarations(mac)
    mac.run(*new[0], tunings=new[1], restore=True)
    assert (mac.home("chat-a") / "former.json").stat().st_mode & 0o777 == 0o600
    for check in (True, False):
        told = instances_by_name(mac.run(*new[0], **back, check=check))
        assert (told["chat-a"]["action"], told["chat-a"]["why"]) == ("restart", "changed: llmster, port")
        assert (told["chat-b"]["action"], told["chat-b"]["restored"]) == ("nothing", False), "what is new stays"
        assert told["chat-a"]["restored"] is not check
    assert told["chat-a"]["port"] == 18111
    after = declarations(mac)
    assert {name: after[name] for name in before} == before and "chat-b/instance.json" in after

    again = mac.run(*new[0], **back)
    assert not again["changed"] and not instances_by_name(again)["chat-a"]["restored"]
    assert mac.actions(mac.run(*new[0], tunings=new[1])) == {"chat-a": "restart", "chat-b": "nothing"}
    assert '"port": 18121' in declarations(mac)["chat-a/instance.json"]


def test_what_the_last_run_left_alone_does_not_go_back(mac):
    mac.run(mac.instance(), tunings=[tuning(4096)])
    for _run in range(2):
        mac.run(mac.instance(port=18121), tunings=[tuning(8192)])
    before = declarations(mac)
    result = mac.run(mac.instance(port=18121), tunings=[tuning(4096)], only=["chat-a"], revert=True)
    assert not result["changed"] and declarations(mac) == before


def test_a_revert_that_does_not_serve_fails_and_can_be_tried_again(mac, broken):
    mac.run(mac.instance())
    mac.run(mac.instance(port=18121))
    broken.add(18111)
    failed = mac.run(mac.instance(port=18121), only=["chat-a"], revert=True)
    assert "instance chat-a at 127.0.0.1:18111" in failed["msg"] and not failed["instances"][0]["restored"]
    broken.clear()
    mac.run(mac.instance(port=18121))
    assert mac.run(mac.instance(port=18121), only=["chat-a"], revert=True)["instances"][0]["restored"]


def test_all_have_stopped_before_the_first_starts_so_that_ports_can_be_swapped(mac):
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    stopping = []

    def started(label, pid):
        stopping.extend(mac.launchd.draining)
        mac.started(label, pid)

    mac.launchd.on_start = started
    mac.launchd.draining = {"lmfleet.instance.chat-b": 5}
    swapped = mac.run(mac.instance(port=18112), mac.instance("chat-b", port=18111))
    assert mac.actions(swapped) == {"chat-a": "restart", "chat-b": "restart"} and stopping == []


def test_what_is_removed_goes_before_its_port_is_taken_and_its_files_are_deleted_afterwards(mac, monkeypatch):
    mac.run(mac.instance())
    mac.launchd.calls.clear()
    deleted = []
    monkeypatch.setattr(_instance_host.shutil, "rmtree", lambda *_, **_more: deleted.append(list(mac.launchd.jobs)))
    mac.run(mac.instance("chat-b"))
    assert mac.launchd.names() == ["bootout lmfleet.instance.chat-a", "bootstrap lmfleet.instance.chat-b"]
    assert deleted == [["lmfleet.instance.chat-b"]]


def test_an_instance_is_ready_as_soon_as_its_runner_says_so(mac, monkeypatch):
    monkeypatch.setattr(_instance_host, "_POLL", 60)
    says = []

    def started(label, pid):
        (mac.home("chat-a") / "status.json").write_text(json.dumps({"pid": pid, "state": "loading"}))
        says.append(threading.Timer(0.2, mac.started, [label, pid]))
        says[0].start()

    mac.launchd.on_start = started
    began = time.monotonic()
    assert mac.run(mac.instance(), timeout=90)["instances"][0]["ready"] and time.monotonic() - began < 30
    says[0].join()


def test_models_are_unloaded_before_others_are_loaded(mac, monkeypatch):
    other = {**MODEL, "identifier": "n"}
    mac.run(mac.instance(models=[MODEL, other]), mac.instance("chat-b", port=18112))
    real, seen = _instance_host.atomic_write, []

    def written(path, content, *more):
        real(path, content, *more)
        if path.endswith("/instance.json"):
            name = pathlib.Path(path).parent.name
            seen.append(f"{name} begins")
            time.sleep(0.1 if name == "chat-a" else 0)
            mac.report(name)
            seen.append(f"{name} is done")

    monkeypatch.setattr(_instance_host, "atomic_write", written)
    mac.run(mac.instance(models=[MODEL]), mac.instance("chat-b", port=18112, models=[MODEL, other]))
    assert seen == ["chat-a begins", "chat-a is done", "chat-b begins", "chat-b is done"]


def test_a_port_of_an_instance_that_stays_is_said_before_anything_changes(mac, monkeypatch):
    mac.says["chat-b"] = {"daemon_pid": os.getpid()}
    mac.run(mac.instance(), mac.instance("chat-b", port=18112))
    mac.launchd.calls.clear()
    monkeypatch.setattr(_instance_host, "is_taken", lambda _address, port: port == 18112)
    wanted = mac.instance(port=18112), mac.instance("chat-b", port=18111)
    failed = mac.run(*wanted, only=["chat-a"])
    assert "instance chat-a: port 18112 on 127.0.0.1 is held by instance chat-b, which stays" in failed["msg"]
    assert mac.launchd.names() == []
    assert mac.actions(mac.run(*wanted, check=True)) == {"chat-a": "restart", "chat-b": "restart"}
    wider = mac.instance(), mac.instance("chat-b", port=18112, address="0.0.0.0")
    assert mac.actions(mac.run(*wider, check=True)) == {"chat-a": "nothing", "chat-b": "restart"}


def test_a_full_disk_names_the_instance_and_stops_nothing(mac, monkeypatch):
    mac.run(mac.instance())
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(_former, "atomic_write", lambda *_: (_ for _ in ()).throw(full))
        mac.launchd.calls.clear()
        failed = mac.run(mac.instance(port=18121))
        assert failed["msg"] == "instance chat-a: [Errno 28] No space left on device" and mac.launchd.names() == []
    monkeypatch.setattr(lmstudio_instances, "write", lambda *_: (_ for _ in ()).throw(full))
    failed = mac.run(mac.instance(), tunings=[tuning(4096)])
    assert failed["msg"] == "instance chat-a: [Errno 28] No space left on device"


def test_a_removal_that_fails_names_the_instance(mac, monkeypatch):
    mac.run(mac.instance())
    monkeypatch.setattr(_instance_host, "remove_file", lambda _path: (_ for _ in ()).throw(OSError("disk is full")))
    assert mac.run()["msg"] == "instance chat-a cannot be removed: disk is full"
