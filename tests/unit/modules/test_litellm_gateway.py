# SPDX-License-Identifier: GPL-3.0-or-later
"""The module litellm_gateway, with uv, pip and LiteLLM replaced by a script that leaves what they would leave."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.lmfleet.mac.plugins.module_utils import _command, _files, _gateway_host
from ansible_collections.lmfleet.mac.plugins.modules import litellm_gateway

LOCK = "litellm==1.106.2 \\\n    --hash=sha256:00\n"


class Commands:
    """Stands for every program the module starts; remembers them, and fails where a test wants it."""

    def __init__(self):
        self.started, self.failing, self.said = [], {}, ""
        self.python = "3 12"

    def __call__(self, argv, timeout, env=None, cwd=None):
        line = " ".join(map(str, argv))
        self.started.append((line, env))
        for part, error in self.failing.items():
            if part in line:
                return _command.Result(1, "", error)
        if " -m venv " in line or " venv " in line:
            Path(argv[-1], "bin").mkdir(parents=True)
        return _command.Result(0, self.python if "version_info" in line else self.said, "")

    def lines(self, part):
        return [line for line, __ in self.started if part in line]


@pytest.fixture
def commands(monkeypatch):
    commands = Commands()
    monkeypatch.setattr(_gateway_host, "run", commands)
    return commands


@pytest.fixture
def root(tmp_path):
    return tmp_path / "gateway"


@pytest.fixture
def run(root, commands, capsys):
    def run(**arguments):
        commands.started.clear()
        arguments = {
            "root": str(root),
            "version": "1.106.2",
            "requirements": LOCK,
            "uv_requirements": "uv==1 --hash=sha256:00",
            "python": "/opt/python",
            "config": "model_list: []",
            "plugin": "registry = 1",
            "launcher": "#!/bin/sh",
            "server": "serve()",
            "runner": "run()",
            **arguments,
        }
        for name in {"config", "environment", "service_environment"} & set(arguments):
            arguments[name] = json.dumps(arguments[name])
        with patch_module_args(arguments), pytest.raises(SystemExit):
            litellm_gateway.main()
        return json.loads(capsys.readouterr().out)

    return run


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_check_mode_first_tells_and_changes_nothing(run, root, commands):
    result = run(_ansible_check_mode=True)
    assert result["changed"]
    assert result["actions"][:2] == ["tools", "venv"]
    assert result["actions"][-1] == "switch"
    assert result["release"] is None
    assert result["root"] == str(root)
    assert not root.exists()
    assert commands.started == []


def test_it_installs_and_then_leaves_it(run, root, commands):
    result = run()
    assert result["changed"]
    assert os.readlink(root / "current") == "releases/" + result["release"] == "releases/1"
    assert os.path.samefile(root / "current" / "venv", result["venv"])
    secret = ("current/config.yaml", "current/gateway.env", "master_key", "client_keys.json")
    assert {name: mode(root / name) for name in secret} == dict.fromkeys(secret, 0o600)
    assert mode(root / "releases") == mode(root / "releases" / "1") == 0o700
    assert mode(root / "current" / "run-gateway") == 0o755
    assert (root / "logs").is_dir()
    assert "--require-hashes" in commands.lines("pip install")[0]
    assert "--require-hashes" in commands.lines("pip sync")[0]
    before = tree(root)
    again = run()
    assert (again["changed"], again["actions"], again["diff"]) == (False, [], [])
    assert commands.started == []
    assert run(_ansible_check_mode=True)["changed"] is False
    assert tree(root) == before


@pytest.mark.parametrize(
    ("version", "lock", "message"),
    [
        ("1.82.7", LOCK, "published by an attacker"),
        ("1.82.8", LOCK, "published by an attacker"),
        ("1.107.0", LOCK, "published by an attacker"),
        ("1.83.9", LOCK, "known security holes"),
        ("1.9.0", LOCK, "known security holes"),
        ("latest", LOCK, "not an exact version"),
        ("1.106.3", LOCK, "The lock pins LiteLLM 1.106.2"),
        ("1.106.2", "uv==1", "does not pin litellm"),
        ("1.106.2", "litellm==1.106.2", "has no hashes"),
    ],
)
def test_versions_that_are_refused(run, root, version, lock, message):
    result = run(version=version, requirements=lock)
    assert result["failed"]
    assert message in result["msg"]
    assert not root.exists()


def test_another_user_is_refused(run, root):
    assert "shall belong to nobody-else" in run(user="nobody-else")["msg"]
    assert not root.exists()


@pytest.mark.parametrize("address", ["localhost", "mac-1.example.net", "127.1", "[::1]", ""])
def test_what_is_no_ip_address_is_refused(run, root, address):
    assert f"{address!r} is no address to listen on. Set litellm_address" in run(service={"address": address})["msg"]
    assert not root.exists()


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000])
def test_what_is_no_port_is_refused(run, root, port):
    assert f"{port} is no port to listen on. Set litellm_port" in run(service={"port": port})["msg"]
    assert not root.exists()


def test_pythons_that_do_not_fit_are_refused(run, root, commands):
    commands.python = "3 9"
    assert "/opt/python is Python 3.9" in run()["msg"]
    assert not list(root.glob("venv-*"))


@pytest.mark.parametrize(("cores", "workers"), [("1", 1), ("6", 3), ("32", 8)])
def test_without_a_number_of_workers_the_machine_is_asked(run, root, commands, cores, workers):
    commands.said = cores + "\n"
    run(service={"workers": 0})
    assert json.loads((root / "current" / "release.json").read_text())["workers"] == workers


def test_without_fast_and_slow_cores_all_are_counted(run, root, commands, monkeypatch):
    commands.failing = {"sysctl": "unknown oid"}
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    run(service={"workers": 0})
    assert json.loads((root / "current" / "release.json").read_text())["workers"] == 5


def test_uv_brings_the_python_when_none_is_given(run, root, commands):
    run(python=None, python_version="3.12.16")
    assert commands.lines("python install")[0].endswith("python install --no-bin 3.12.16")
    assert "--managed-python --python 3.12.16" in commands.lines("bin/uv venv")[0]
    environment = next(env for line, env in commands.started if "python install" in line)
    assert environment["UV_PYTHON_INSTALL_DIR"] == str(root / "python")


def test_the_environment_reaches_installation_and_service(run, root, commands):
    run(environment={"UV_DEFAULT_INDEX": "http://mirror/a b'c"}, service_environment={"NO_DOCS": "True"})
    environment = next(env for line, env in commands.started if "pip sync" in line)
    assert environment["UV_DEFAULT_INDEX"] == "http://mirror/a b'c"
    assert "NO_DOCS" not in environment
    script = '. ./gateway.env; printf \'%s|\' "$UV_DEFAULT_INDEX" "$NO_DOCS" "$LITELLM_MASTER_KEY"'
    read = subprocess.run(
        ["/bin/sh", "-c", script], cwd=root / "current", capture_output=True, text=True, check=True
    ).stdout
    assert read == f"http://mirror/a b'c|True|{(root / 'master_key').read_text().strip()}|"


@pytest.mark.parametrize("environment", [{"A-B": "1"}, {"A": "x\ny"}])
def test_environments_that_cannot_be(run, environment):
    assert "Correct litellm_environment" in run(environment=environment)["msg"]


def test_the_master_key_is_not_in_the_environment_variable(run):
    assert "give the key as master_key" in run(environment={"LITELLM_MASTER_KEY": "sk-x"})["msg"]


def test_the_master_key_is_made_once(run, root):
    run()
    key = (root / "master_key").read_text().strip()
    assert key.startswith("sk-")
    assert len(key) > 40
    run(config="model_list: []\nrouter_settings: {}")
    assert (root / "master_key").read_text().strip() == key


def test_a_given_master_key_is_kept_out_of_all_output(run, root):
    first = run(master_key="sk-geheim-1", _ansible_diff=True)
    second = run(master_key="sk-geheim-2", _ansible_diff=True)
    assert second["actions"] == ["gateway.env", "client_keys.json", "master_key", "switch"]
    assert (root / "master_key").read_text() == "sk-geheim-2\n"
    former, new = sorted(json.loads((root / "client_keys.json").read_text())["keys"], key=lambda entry: entry["key"])
    assert (former["key"], new) == ("sk-geheim-1", {"key": "sk-geheim-2", "until": None})
    assert 290 < former["until"] - time.time() <= 300
    assert "geheim" not in json.dumps([first, second])
    assert "LITELLM_MASTER_KEY=(hidden, new)" in json.dumps(second["diff"])


def test_the_password_of_redis_is_in_the_environment_file_only(run, root):
    result = run(redis_url="redis://:geheim@127.0.0.1:6379/0", _ansible_diff=True)
    assert "redis://:geheim@" in (root / "current" / "gateway.env").read_text()
    assert "geheim" not in json.dumps(result)
    assert "LMFLEET_REDIS_URL=(hidden)" in json.dumps(result["diff"])


@pytest.mark.parametrize("url", ["http://x:6379", "redis://", "geheim", "redis://x:port"])
def test_what_is_no_address_of_a_redis_is_refused_without_telling_it(run, root, url):
    result = run(redis_url=url)
    assert "litellm_redis_url is no address of a Redis" in result["msg"]
    assert "geheim" not in result["msg"]
    assert not root.exists()


def test_secrets_of_the_config_are_not_in_the_diff(run):
    config = (
        "router_settings: {num_retries: 2, redis_password: geheim}\ngeneral_settings:\n  master_key: os.environ/K\n"
    )
    after = run(config=config)["diff"][0]["after"]
    assert "geheim" not in after
    assert "num_retries: 2" in after
    assert "os.environ/K" in after


def test_a_config_without_secrets_is_shown_as_it_is(run):
    assert (
        run(config="model_list: []\nrouter_settings: {}\n")["diff"][0]["after"]
        == "model_list: []\nrouter_settings: {}\n"
    )


def test_what_is_in_the_environment_and_the_config_is_in_no_log_and_no_message(run, commands, monkeypatch):
    logged = []
    monkeypatch.setattr(AnsibleModule, "log", lambda _module, text, log_args=None: logged.append((text, log_args)))
    commands.failing = {"pip sync": "cannot reach http://me:geheim-1@proxy:8080 with geheim-2"}
    environment = {"HTTPS_PROXY": "http://me:geheim-1@proxy:8080", "LITELLM_SALT_KEY": "geheim-2", "NO_DOCS": "True"}
    result = run(environment=environment, service_environment={"A_TOKEN": "geheim-3"}, config="litellm_key: geheim-4")
    assert result["failed"]
    assert "installing LiteLLM 1.106.2 failed: cannot reach http://me:***" in result["msg"]
    assert result["invocation"]["module_args"]["version"] == "1.106.2"
    assert logged
    assert "geheim" not in str((result, logged))


@pytest.mark.parametrize("arguments", [{"environment": ["A"]}, {"service_environment": "A"}, {"config": {"a": 1}}])
def test_what_is_given_in_another_form_is_refused(run, arguments):
    (name,) = arguments
    assert f"{name} is not " in run(**arguments)["msg"]


def test_the_time_of_grace_begins_with_the_change_and_not_with_the_installation(run, root, runner, monkeypatch):
    run(master_key="sk-1")
    runner.serve("1")
    during = []

    def trial(*_arguments):
        monkeypatch.setattr(_gateway_host.time, "time", lambda: began + 200)
        runner.serve("1")

    def look(seconds):
        during.append(json.loads((root / "client_keys.json").read_text())["keys"])
        Runner.look(runner, seconds)

    began = time.time()
    monkeypatch.setattr(litellm_gateway, "trial", trial)
    monkeypatch.setattr(_gateway_host.time, "sleep", look)
    assert not run(master_key="sk-2")["unconfirmed"]
    assert during[0] == [{"key": "sk-2", "until": None}, {"key": "sk-1", "until": None}]
    new, former = json.loads((root / "client_keys.json").read_text())["keys"]
    assert new == {"key": "sk-2", "until": None}
    assert former["until"] == pytest.approx(began + 500, abs=30)


def test_a_former_key_can_be_revoked_without_another_release(run, root):
    run(master_key="sk-1")
    run(master_key="sk-2")
    result = run(master_key="sk-2", master_key_grace=0)
    assert result["actions"] == ["client_keys.json"]
    assert json.loads((root / "client_keys.json").read_text())["keys"] == [{"key": "sk-2", "until": None}]
    assert run(master_key="sk-2", master_key_grace=0)["changed"] is False


@pytest.mark.parametrize(
    ("change", "actions"),
    [
        ({"config": "model_list: [1]"}, ["config.yaml", "switch"]),
        ({"plugin": "registry = 2"}, ["lmfleet_registry.py", "switch"]),
        ({"launcher": "#!/bin/sh -e"}, ["run-gateway", "switch"]),
        ({"server": "serve(1)"}, ["gateway_server.py", "switch"]),
        ({"service": {"port": 4001}}, ["release.json", "switch"]),
        ({"service_environment": {"A": "1"}}, ["gateway.env", "switch"]),
        ({"requirements": LOCK + "# other"}, ["venv", "switch"]),
    ],
)
def test_each_change_is_another_release_and_restarts_nothing(run, root, change, actions):
    run()
    checked = run(_ansible_check_mode=True, **change)
    assert os.listdir(root / "releases") == ["1"]
    changed = run(**change)
    assert checked["actions"] == changed["actions"] == actions
    assert os.listdir(root / "releases") == [changed["release"]] == ["2"]
    assert run(**change)["changed"] is False


class Runner:
    """Stands for a runner that serves whatever `current` names, or refuses it."""

    def __init__(self, root):
        self.root, self.refuses, self.tried, self.ending = root, None, [], []
        self.program = self.refused_program = None

    def serve(self, name, **status):
        status = {"format": 1, "pid": os.getpid(), "at": time.time(), "serving": name, "starting": None, **status}
        status = {"refused": None, "groups": [], "ending": self.ending, **status}
        (self.root / "status.json").write_text(json.dumps(status))

    def look(self, _seconds):
        """Do what the runner would while the module waits."""
        if self.refused_program:
            written = os.stat(self.root / "gateway_runner.py").st_mtime_ns
            refused = {"program": self.refused_program, "written": written, "reason": "it ended: no luck"}
            self.serve(self.status()["serving"], program=self.status()["program"], refused_program=refused)
            return
        if self.program and self.program != self.status()["program"]:
            self.serve(self.status()["serving"], program=self.program)
            return
        wanted, serving = os.readlink(self.root / "current").rpartition("/")[2], self.status()["serving"]
        if self.refuses:
            self.serve(serving, refused={"release": wanted, "reason": self.refuses})
        else:
            self.serve(wanted)

    def status(self):
        return json.loads((self.root / "status.json").read_text())

    def trial(self, folder, root, key, timeout, database):
        self.tried.append((os.path.basename(folder), key))


@pytest.fixture
def runner(root, monkeypatch):
    runner = Runner(root)
    monkeypatch.setattr(_gateway_host.time, "sleep", runner.look)
    monkeypatch.setattr(litellm_gateway, "trial", runner.trial)
    return runner


def fingerprint(text):
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def test_another_runner_is_waited_for_until_it_goes_on_as_that(run, root, runner):
    run()
    runner.serve("1", program=fingerprint("run()\n"))
    runner.program = fingerprint("run(2)\n")
    checked, changed = run(runner="run(2)", _ansible_check_mode=True), run(runner="run(2)")
    assert checked["actions"] == changed["actions"] == ["gateway_runner.py"]
    assert runner.status()["program"] == runner.program
    assert run(runner="run(2)")["changed"] is False


def test_a_runner_that_is_not_yet_what_a_killed_run_has_written_is_waited_for(run, runner):
    run()
    runner.serve("1", program="the former one")
    runner.program = fingerprint("run()\n")
    assert run()["actions"] == ["gateway_runner.py"]
    assert runner.status()["program"] == runner.program


def test_a_runner_that_is_no_good_is_not_left_to_the_next_start(run, root, runner):
    run()
    runner.serve("1", program=fingerprint("run()\n"))
    runner.refused_program = fingerprint("broken\n")
    result = run(runner="broken", config="x: 1")
    assert result["failed"]
    assert result["msg"].endswith("the one before goes on: it ended: no luck")
    assert (root / "gateway_runner.py").read_text() == "run()\n"
    assert os.listdir(root / "releases") == ["1"], "nothing else has been changed"


def test_a_runner_that_a_killed_run_has_seen_refused_is_tried_again(run, root, runner):
    run()
    refused = {"program": fingerprint("run()\n"), "written": 1, "reason": "the Mac was busy"}
    runner.serve("1", program="the former one", refused_program=refused)
    runner.program = fingerprint("run()\n")
    assert run()["actions"] == ["gateway_runner.py"]
    runner.serve("1", program="the former one")
    runner.refused_program = fingerprint("run()\n")
    assert "Its file is the new one: what a restart of the Mac would begin with" in run()["msg"]


def test_one_of_former_times_is_started_anew_with_its_job(run, root, runner):
    run()
    runner.serve("1")
    checked, changed = run(runner="run(2)", _ansible_check_mode=True), run(runner="run(2)")
    assert checked["actions"] == changed["actions"] == ["gateway_runner.py"]
    assert "its job restarts, once" in str(checked["warnings"])
    assert "its job restarts, once" in str(changed["warnings"])
    assert (root / "gateway_runner.py").read_text() == "run(2)\n"


def test_it_returns_once_the_runner_serves_what_has_been_on_trial(run, runner):
    run()
    runner.serve("1")
    assert run(config="model_list: [1]", master_key="sk-new")["release"] == "2"
    assert runner.status()["serving"] == "2"
    assert runner.tried == [("2", "sk-new")]


def test_what_the_runner_refuses_is_undone(run, root, runner):
    run(master_key="sk-old")
    runner.serve("1")
    runner.refuses = "it ended with exit code 3: no luck"
    result = run(config="model_list: [1]", master_key="sk-new")
    assert result["failed"]
    assert "the one before still serves: it ended with exit code 3: no luck" in result["msg"]
    assert os.readlink(root / "current") == "releases/1"
    assert os.listdir(root / "releases") == ["1"]
    assert (root / "master_key").read_text() == "sk-old\n"
    assert "sk-new" not in (root / "client_keys.json").read_text()


def test_what_fails_on_trial_never_gets_to_the_runner(run, root, runner, monkeypatch):
    run()
    runner.serve("1")

    def trial(*_arguments):
        raise litellm_gateway.TrialError("it answers requests with any key")

    monkeypatch.setattr(litellm_gateway, "trial", trial)
    assert "on trial beside the one in use, it answers requests with any key" in run(config="x: 1")["msg"]
    assert os.readlink(root / "current") == "releases/1"


def test_a_runner_that_never_takes_it_is_named(run, root, runner, monkeypatch):
    run()
    runner.serve("1", at=time.time() + 10**6)
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr(_gateway_host.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(_gateway_host.time, "monotonic", lambda: next(clock))
    result = run(config="x: 1")
    assert "the runner did not serve it within 150 s; last seen: release 1 serves" in result["msg"]
    assert os.readlink(root / "current") == "releases/1"


def test_what_a_killed_run_left_refused_is_tried_again(run, runner):
    run()
    runner.serve("7", refused={"release": "1", "reason": "no luck"})
    assert run()["actions"] == ["switch"]
    assert runner.status()["serving"] == "2"


def test_what_a_killed_run_left_on_trial_goes_also_where_nothing_is_to_be_tried(run, root, monkeypatch):
    run()
    (root / ".trial-x").mkdir()
    run(_ansible_check_mode=True)
    with monkeypatch.context() as impatient, _files.exclusive(str(root), "another run"):
        impatient.setattr(litellm_gateway, "LOCK_TIMEOUT", 0)
        assert "held by another run" in run()["msg"]
    assert (root / ".trial-x").exists()
    assert run()["changed"] is False
    assert not (root / ".trial-x").exists()


def test_a_runner_that_is_gone_is_not_waited_for(run, runner):
    run()
    runner.serve("1", pid=2**22 + 1)
    result = run(config="x: 1")
    assert (result["release"], result["unconfirmed"]) == ("2", True)
    assert runner.tried == []


def test_a_runner_that_was_silent_for_a_while_is_waited_for(run, runner):
    run()
    runner.serve("1", at=time.time() - 60)
    result = run(config="x: 1")
    assert (result["release"], result["unconfirmed"]) == ("2", False)
    assert [name for name, __ in runner.tried] == ["2"]


def test_a_mode_that_was_opened_is_closed(run, root):
    run()
    (root / "current" / "gateway.env").chmod(0o644)
    assert run()["actions"] == ["gateway.env", "switch"]
    assert mode(root / "current" / "gateway.env") == 0o600


def test_another_mode_changes_no_secret(run, root):
    run(master_key="sk-1")
    run(master_key="sk-2")
    names = ("master_key", "client_keys.json", "current/gateway.env")
    before = {name: (root / name).read_text() for name in names}
    for name in names:
        (root / name).chmod(0o644)
    result = run()
    assert result["actions"] == ["gateway.env", "client_keys.json", "master_key", "switch"]
    assert {name: (root / name).read_text() for name in names} == before
    assert {mode(root / name) for name in names} == {0o600}


def test_a_failed_installation_leaves_nothing_half_built_and_the_old_one_in_use(run, root, commands):
    venv = os.path.basename(run()["venv"])
    commands.failing = {"pip sync": "no such host"}
    result = run(requirements=LOCK + "# other")
    assert result["failed"]
    assert "installing LiteLLM 1.106.2 failed: no such host" in result["msg"]
    assert "litellm_environment" in result["msg"]
    assert os.readlink(root / "current") == "releases/1"
    assert [path.name for path in root.glob("venv-*")] == [venv]


def test_what_a_killed_run_left_is_built_anew(run, root, commands):
    result = run()
    marker = Path(result["venv"], ".lmfleet-complete")
    marker.unlink()
    Path(result["venv"], "half").touch()
    assert run()["actions"] == ["venv"]
    assert marker.exists()
    assert not Path(result["venv"], "half").exists()


@pytest.mark.parametrize(
    ("failing", "said", "message"),
    [
        (
            {"yaml": "line 2: no such thing"},
            "",
            "renders to something that is not a YAML mapping: line 2: no such thing (line 2: num_retries: many)",
        ),
        (
            {"--validate_config": "LiteLLM: config validation failed: boom"},
            "found in line 2\n",
            "config.yaml.j2: LiteLLM refuses it: LiteLLM: config validation failed: boom (line 2: num_retries: many)",
        ),
        (
            {"--validate_config": "LiteLLM: config validation failed: no 'num_retries'", "find(root": "no luck"},
            "",
            "failed: no 'num_retries' (num_retries (line 2: num_retries: many))",
        ),
        (
            {},
            "Key 'num_retries' is not a valid argument for Router.__init__()",
            "LiteLLM knows no router setting num_retries (line 2: num_retries: many). Correct litellm_router_settings.",
        ),
    ],
)
def test_a_config_that_litellm_refuses_does_not_replace_the_one_in_use(run, root, commands, failing, said, message):
    run()
    before = (root / "current" / "config.yaml").read_text()
    commands.failing, commands.said = failing, said
    result = run(config="router_settings:\n  num_retries: many", config_source="config.yaml.j2")
    assert result["failed"]
    assert message in result["msg"]
    assert (root / "current" / "config.yaml").read_text() == before
    assert os.listdir(root / "releases") == ["1"]


def test_what_a_new_release_names_when_it_ends_is_found_in_the_config(run, runner):
    run()
    runner.serve("1")
    runner.refuses = "it ended with exit code 3: Invalid value 'many'"
    message = run(config="router_settings:\n  num_retries: many", config_source="config.yaml.j2")["msg"]
    assert "Of the config, which config.yaml.j2 renders to, it names: many (line 2: num_retries: many)." in message


def venv_names(root):
    return {path.name for path in root.glob("venv-*")}


def test_the_former_venv_is_kept_and_older_ones_are_not(run, root):
    first = os.path.basename(run()["venv"])
    second = os.path.basename(run(requirements=LOCK + "# 2")["venv"])
    os.utime(root / first / ".lmfleet-served", (1, 1))
    third = run(requirements=LOCK + "# 3")
    assert third["actions"][-1] == "remove"
    assert venv_names(root) == {second, os.path.basename(third["venv"])}
    back = run(requirements=LOCK + "# 2")
    assert back["actions"] == ["switch"]


def test_a_venv_that_never_served_does_not_replace_the_one_to_go_back_to(run, root, runner, monkeypatch):
    first = os.path.basename(run()["venv"])
    runner.serve("1")

    def trial(*_arguments):
        raise litellm_gateway.TrialError("no luck")

    with monkeypatch.context() as failing:
        failing.setattr(litellm_gateway, "trial", trial)
        assert run(requirements=LOCK + "# 2")["failed"]
    third = run(requirements=LOCK + "# 3")
    assert third["actions"][-1] == "remove"
    assert venv_names(root) == {first, os.path.basename(third["venv"])}


def test_what_answers_its_last_requests_is_kept_until_it_ends(run, root, runner):
    """LiteLLM imports much of itself only when it is asked for it."""
    venvs = [run()["venv"]]
    runner.ending = ["1", "2"]
    for number in (2, 3, 4):
        runner.serve(str(number - 1))
        venvs.append(run(requirements=f"{LOCK}# {number}")["venv"])
    assert sorted(os.listdir(root / "releases")) == ["1", "2", "4"]
    assert {str(path) for path in root.glob("venv-*")} == set(venvs)
    runner.ending = []
    runner.serve("4")
    assert run(requirements=f"{LOCK}# 4", _ansible_check_mode=True)["changed"] is False
    after = run(requirements=f"{LOCK}# 4")
    assert (after["changed"], after["actions"]) == (False, ["remove"])
    assert os.listdir(root / "releases") == ["4"]
    assert {str(path) for path in root.glob("venv-*")} == set(venvs[2:])


def test_while_a_runner_does_not_say_what_it_runs_nothing_is_removed(run, root, runner):
    run()
    (root / "releases" / "9").mkdir()
    runner.serve("9", at=time.time() - 60)
    run()
    assert (root / "releases" / "9").exists()


DATABASE = {
    "database_url": "postgresql://me:secret-word@db:5432/litellm",
    "database_requirements": "prisma==0.15.0 \\\n    --hash=sha256:00\n",
}


@pytest.fixture
def schema(commands, monkeypatch):
    """The installation of LiteLLM leaves its schema, which names more engines than one machine needs."""

    def leave(argv, *arguments):
        done = commands(argv, *arguments)
        if "sync" in argv:
            proxy = Path(argv[argv.index("--python") + 1]).parents[1] / "lib/python3.12/site-packages/litellm/proxy"
            proxy.mkdir(parents=True)
            (proxy / "schema.prisma").write_text('generator client {\n  binaryTargets = ["native", "linux-musl"]\n}\n')
        return done

    monkeypatch.setattr(_gateway_host, "run", leave)


@pytest.mark.usefixtures("schema")
def test_a_database_comes_on_top_of_what_is_installed(run, root, commands):
    venv = run()["venv"]
    result = run(**DATABASE)
    assert (result["venv"], "venv" in result["actions"], "database" in result["actions"]) == (venv, False, True)
    (folder,) = root.glob("database-*")
    assert (folder / "schema.prisma").read_text() == 'generator client {\n  binaryTargets = ["native"]\n}\n'
    ((__, environment),) = [started for started in commands.started if " -m prisma generate " in started[0]]
    assert environment["PYTHONPATH"] == str(folder)
    assert environment["PATH"].startswith(f"{folder}/bin:")
    assert "--require-hashes" in commands.lines(f"--target {folder}")[0]
    service = (root / "current" / "gateway.env").read_text()
    assert f"PYTHONPATH={folder}" in service
    assert DATABASE["database_url"] in service
    again = run(**DATABASE)
    assert (again["changed"], commands.started) == (False, [])


@pytest.mark.usefixtures("schema")
def test_the_address_of_a_database_is_kept_out_of_all_output(run, commands):
    result = run(**DATABASE, _ansible_diff=True)
    assert "secret-word" not in str(result)
    assert "secret-word" not in str(commands.lines(""))


def encrypts_with(root):
    """Return what LiteLLM is given to encrypt with in its database, as sh reads it."""
    script = '. ./gateway.env; printf %s "${LITELLM_SALT_KEY-none}"'
    command = ["/bin/sh", "-c", script]
    return subprocess.run(command, cwd=root / "current", capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("schema")
def test_the_first_master_key_is_kept_for_the_database(run, root):
    first = run(**DATABASE, master_key="sk-geheim-1", _ansible_diff=True)
    assert (root / "salt_key").read_text() == "sk-geheim-1\n"
    assert mode(root / "salt_key") == 0o600
    assert encrypts_with(root) == "sk-geheim-1"
    second = run(**DATABASE, master_key="sk-geheim-2", _ansible_diff=True)
    assert second["actions"] == ["gateway.env", "client_keys.json", "master_key", "switch"]
    third = run(**DATABASE, master_key="sk-geheim-3", _ansible_diff=True)
    assert (root / "master_key").read_text() == "sk-geheim-3\n"
    assert encrypts_with(root) == "sk-geheim-1"
    assert run(**DATABASE, master_key="sk-geheim-3")["changed"] is False
    assert "geheim" not in json.dumps([first, second, third])
    assert run(**DATABASE, master_key="sk-geheim-3")["changed"] is False


@pytest.mark.usefixtures("schema")
def test_a_gateway_that_had_no_such_key_keeps_the_master_key_that_it_has(run, root):
    run(**DATABASE, master_key="sk-geheim-1")
    (root / "salt_key").unlink()
    run(**DATABASE, master_key="sk-geheim-2")
    assert encrypts_with(root) == "sk-geheim-1"
    assert (root / "salt_key").read_text() == "sk-geheim-1\n"


@pytest.mark.usefixtures("schema")
def test_a_run_that_is_killed_before_the_keys_are_written_is_repaired(run, root, monkeypatch):
    run(**DATABASE, master_key="sk-geheim-1")
    (root / "salt_key").unlink()
    write = _gateway_host.Gateway.write

    def killed(self, name, text):
        if name == "master_key":
            raise OSError("killed")
        write(self, name, text)

    monkeypatch.setattr(_gateway_host.Gateway, "write", killed)
    assert run(**DATABASE, master_key="sk-geheim-2")["failed"]
    monkeypatch.setattr(_gateway_host.Gateway, "write", write)
    run(**DATABASE, master_key="sk-geheim-3")
    assert encrypts_with(root) == "sk-geheim-1"


@pytest.mark.usefixtures("schema")
def test_a_made_key_is_kept_for_the_database_too(run, root):
    run(**DATABASE)
    assert (root / "salt_key").read_text() == (root / "master_key").read_text()
    salt = encrypts_with(root)
    run(**DATABASE, master_key="sk-geheim-2")
    assert encrypts_with(root) == salt != "none"


@pytest.mark.usefixtures("schema")
@pytest.mark.parametrize("where", ["environment", "service_environment"])
def test_a_key_for_the_database_that_is_given_is_taken(run, root, where):
    run(**DATABASE, master_key="sk-geheim-1", **{where: {"LITELLM_SALT_KEY": "sk-geheim-0"}})
    assert encrypts_with(root) == "sk-geheim-0"
    assert not (root / "salt_key").exists()


def test_without_a_database_there_is_no_key_for_one(run, root):
    run()
    assert encrypts_with(root) == "none"
    assert not (root / "salt_key").exists()


@pytest.mark.usefixtures("schema")
def test_a_kept_key_is_in_no_message(run, root, commands):
    run(**DATABASE, master_key="sk-geheim-1")
    commands.failing = {"--validate_config": "config validation failed: it has sk-geheim-1 and sk-geheim-2"}
    result = run(**DATABASE, master_key="sk-geheim-2", config="model_list: [1]")
    assert "config validation failed" in result["msg"]
    assert "geheim" not in json.dumps(result)


@pytest.mark.usefixtures("schema")
def test_a_database_client_that_a_killed_run_left_is_made_anew(run, root, commands):
    run(**DATABASE)
    (folder,) = root.glob("database-*")
    (folder / ".lmfleet-complete").unlink()
    assert run(**DATABASE)["actions"] == ["database"]
    assert (folder / ".lmfleet-complete").exists()


@pytest.mark.usefixtures("schema")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"database_url": "mysql://me:secret-word@db/x"}, "litellm_database_url"),
        ({"database_url": "postgresql://me:secret-word@db:a/x"}, "litellm_database_url"),
        ({"database_url": "postgresql://me:secret-word@db"}, "litellm_database_url"),
        ({"database_requirements": "nodeenv==1"}, "litellm_postgres_requirements"),
        ({"environment": {"DATABASE_URL": "x"}}, "give the address as litellm_database_url only"),
    ],
)
def test_databases_that_cannot_be(run, root, commands, arguments, message):
    result = run(**{**DATABASE, **arguments})
    assert message in result["msg"]
    assert "secret-word" not in str(result)
    assert commands.started == []
    assert not (root / "config.yaml").exists()
