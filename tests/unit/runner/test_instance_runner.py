# SPDX-License-Identifier: GPL-3.0-or-later
"""The instance runner: its decisions, and its life with a small LM Studio of scripts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from instance_runner import plan as runner
from instance_runner.declaration import parse_declaration
from instance_runner.errors import DeclarationError
from instance_runner.runner import DECLARATION_CHECK, PORT_RETRY

# -- Decisions -----------------------------------------------------------------------------------------------------


def model(identifier="m", fingerprint="1", path="p/n/f"):
    return runner.Model(identifier, path, "llm", 4096, 2, None, fingerprint, {})


def shown(identifier="m", **changes):
    return {"identifier": identifier, "path": "p/n/f", "contextLength": 4096, "parallel": 2, "ttlMs": None, **changes}


def known(fingerprint="1", **changes):
    return runner.Known(fingerprint, runner.settings_of(shown(**changes)), None)


@pytest.mark.parametrize(
    ("declared", "loaded", "ours", "unload", "load", "unmanaged"),
    [
        ([model()], [], {}, [], ["m"], []),
        ([model()], [shown()], {"m": known()}, [], [], []),
        ([model(fingerprint="2")], [shown()], {"m": known()}, ["m"], ["m"], []),
        ([], [shown()], {"m": known()}, ["m"], [], []),
        ([], [], {"m": known()}, [], [], []),
        ([model()], [shown(), shown("x")], {"m": known()}, [], [], ["x"]),
        # somebody else's model under our name, or ours loaded again by hand or just in time
        ([model()], [shown()], {}, ["m"], ["m"], []),
        ([model()], [shown(contextLength=1)], {"m": known()}, ["m"], ["m"], []),
        ([model()], [shown(ttlMs=3600000)], {"m": known()}, ["m"], ["m"], []),
        # LM Studio gave other settings than asked for: loading again would not change that
        ([model()], [shown(parallel=1)], {"m": known(parallel=1)}, [], [], []),
        ([model(), model("m-2")], [shown()], {"m": known()}, [], ["m-2"], []),
    ],
)
def test_the_plan_of_models(declared, loaded, ours, unload, load, unmanaged):
    plan = runner.plan_models(tuple(declared), loaded, ours)
    assert (plan.unload, [one.identifier for one in plan.load], plan.unmanaged) == (unload, load, unmanaged)


def test_differences_are_told_only_for_what_was_declared_and_is_shown():
    assert runner.differences(model(), shown(parallel=1)) == "parallel is 1, declared 2"
    assert runner.differences(model(), shown(parallel=None)) == ""
    assert runner.differences(model()._replace(parallel=None), shown(parallel=1)) == ""


def test_what_is_not_declared_is_not_passed_to_lms():
    assert runner.load_arguments(model(), "key") == (
        ["load", "key", "-y", "--identifier", "m", "--context-length", "4096", "--parallel", "2"]
    )
    bare = model()._replace(context_length=None, parallel=None, gpu="0.5")
    assert runner.load_arguments(bare, "key") == ["load", "key", "-y", "--identifier", "m", "--gpu", "0.5"]


def valid(**changes):
    times = dict.fromkeys(("start_timeout", "load_timeout", "stop_timeout", "poll_interval"), 5)
    entry = {"identifier": "m", "path": "p/n/f", "type": "llm", "fingerprint": "1"}
    return {
        "name": "a",
        "address": "::1",
        "port": 1,
        "llmster": "/l",
        "lms": "/s",
        **times,
        "models": [entry],
        **changes,
    }


def test_a_declaration():
    content = json.dumps(valid()).encode()
    declaration = parse_declaration(content)
    assert declaration.models[0].parallel is None and declaration.generation == hashlib.sha256(content).hexdigest()
    other = parse_declaration(json.dumps(valid(models=[])).encode())
    assert not declaration.needs_new_start(other)
    assert declaration.needs_new_start(parse_declaration(json.dumps(valid(port=2)).encode()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 70000}, "port 70000 is not between"),
        ({"port": True}, "port is missing or of the wrong type"),
        ({"poll_interval": 0}, "poll_interval must be more than 0"),
        ({"lms": ""}, "lms is missing"),
        ({"address": "-a"}, "address must not begin with '-'"),
        ({"models": [{**valid()["models"][0], "identifier": "-a"}]}, "model -a: identifier must not begin with '-'"),
        ({"runtimes": {"-a": "1"}}, "runtimes: a name must not begin with '-'"),
        ({"purge": "yes"}, "purge must be true or false"),
        ({"runtimes": {"engine": 2}}, "runtimes must be an object of name and version"),
        ({"log_max_bytes": 0}, "log_max_bytes must be 1 or more"),
        ({"status_port": 0}, "status_port must be a number"),
        ({"status_port": 1, "status_address": 5}, "status_address is missing or of the wrong type"),
        ({"models": {}}, "models must be a list"),
        ({"models": [{"identifier": "x"}]}, "model x: path is missing"),
        ({"models": valid()["models"] * 2}, "identifier m is declared twice"),
        ({"models": [{**valid()["models"][0], "parallel": "4"}]}, "model m: parallel is missing or of the wrong type"),
    ],
)
def test_invalid_declarations(changes, said):
    with pytest.raises(DeclarationError) as error:
        parse_declaration(json.dumps(valid(**changes)).encode())
    assert said in str(error.value)


# -- Life ----------------------------------------------------------------------------------------------------------


def test_start_load_stop(instance, is_alive):
    config = instance.home / ".lmstudio" / ".internal" / "http-server-config.json"
    config.write_text('{"cors": "kept", "justInTimeModelLoading": true}')
    status = instance.start().ready()
    content = (instance.home / "instance.json").read_bytes()
    assert status["generation"] == hashlib.sha256(content).hexdigest()
    assert status["runner"] == hashlib.sha256(instance.program.read_bytes()).hexdigest()
    assert (status["control_port"], status["port"], status["error"]) == (41343, instance.port, None)
    assert status["models"][0] == {
        "identifier": "m",
        "key": "key-of-one",
        "path": "p/n/one",
        "status": "idle",
        "queued": 0,
        "parallel": 2,
        "context_length": 4096,
        "ttl_ms": None,
        "config": {"context_length": 4096},
        "fingerprint": "1",
        "error": None,
        "attempts": 0,
    }
    assert instance.fake()["jit"] is False and instance.fake()["kept"] == "kept"
    assert instance.calls("server") == [["server", "start", "--port", str(instance.port), "--bind", "127.0.0.1"]]
    assert len(instance.calls("load")) == 1

    assert instance.stop() == 0
    assert not is_alive(status["daemon_pid"])
    stopped = instance.status()
    assert (stopped["state"], stopped["daemon_pid"]) == ("stopping", None)


def test_the_status_stays_fresh_and_idle_costs_no_lms(instance):
    first = instance.start().ready()
    # the very first poll may still ask, because it sees a loaded model that HTTP had not shown before
    time.sleep(0.5)
    asked = len(instance.calls("ps"))
    time.sleep(1)
    assert instance.status()["updated_at"] >= first["updated_at"] + 1 and len(instance.calls("ps")) == asked


def test_a_busy_model_is_asked_for_at_every_poll(instance):
    instance.start().ready()
    loaded = instance.fake()["loaded"]
    instance.knob(loaded={"m": {**loaded["m"], "queued": 3, "status": "generating"}, "x": {"identifier": "x"}})
    busy = instance.until(lambda status: status["models"][0]["queued"] == 3)
    assert busy["models"][0]["status"] == "generating" and busy["unmanaged"] == ["x"] and busy["state"] == "ready"
    instance.knob(loaded=loaded)
    instance.until(lambda status: status["models"][0]["queued"] == 0 and not status["unmanaged"])


def test_the_status_is_published_as_declared_and_changes_live(instance):
    def told(port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            return json.load(answer)

    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe:
        first, second = probe.getsockname()[1], taken.getsockname()[1]
        probe.close()
        instance.declare(status_port=first)
        status = instance.start().ready()
        assert (status["status_address"], status["status_port"]) == ("127.0.0.1", first)
        assert told(first)["models"] == [{"identifier": "m", "loaded": True, "queued": 0, "parallel": 2}]
        instance.declare(status_port=second)
        blocked = instance.until(lambda status: status["state"] == "degraded")
        assert f"cannot be published at 127.0.0.1:{second}" in blocked["error"] and blocked["status_port"] is None
    instance.declare(status_port=None)
    assert instance.ready()["status_port"] is None and instance.process.poll() is None
    assert status["daemon_pid"] == instance.status()["daemon_pid"]


def test_queues_are_looked_at_often_for_a_while_after_the_last_request(instance):
    instance.start().ready()
    idle = {**instance.fake()["loaded"], "x": {"identifier": "x"}}  # another model to list is looked at at once
    instance.knob(loaded={**idle, "m": {**idle["m"], "queued": 1}})
    instance.until(lambda status: status["models"][0]["queued"] == 1)
    instance.knob(loaded=idle)
    instance.until(lambda status: status["models"][0]["queued"] == 0)
    asked = len(instance.calls("ps"))
    deadline = time.monotonic() + 15
    while len(instance.calls("ps")) < asked + 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_only_the_changed_models_are_loaded_again(instance):
    instance.declare(models=[instance.model("m"), instance.model("n", "two"), instance.model("o")])
    before = instance.start().ready()
    changed = [instance.model("m"), instance.model("n", "two", parallel=8, fingerprint="2"), instance.model("p")]
    instance.declare(models=changed)
    generation = hashlib.sha256((instance.home / "instance.json").read_bytes()).hexdigest()
    after = instance.until(lambda status: status["generation"] == generation and status["state"] == "ready")
    assert after["daemon_pid"] == before["daemon_pid"]
    assert {name: entry["parallel"] for name, entry in instance.fake()["loaded"].items()} == {"m": 2, "n": 8, "p": 2}
    assert [words[4] for words in instance.calls("load")] == ["m", "n", "o", "n", "p"]
    assert len(instance.calls("ls")) == 2, "one for each change, however many models it loads"


def test_a_model_that_disappeared_is_loaded_again(instance):
    instance.start().ready()
    instance.knob(loaded={})
    instance.until(lambda status: status["state"] == "ready" and len(instance.calls("load")) == 2)


def test_a_stranger_under_our_name_is_replaced(instance):
    instance.start().ready()
    instance.knob(
        loaded={"m": {**instance.fake()["loaded"]["m"], "path": "p/n/two", "ttlMs": 3600000}, "x": {"identifier": "x"}}
    )
    instance.until(lambda _status: instance.fake()["loaded"].get("m", {}).get("path") == "p/n/one")
    assert "x" in instance.fake()["loaded"]
    drift = instance.until(lambda status: status["drift"] and status["state"] == "ready")["drift"]
    assert drift == ["x (None) is loaded and not declared"]


def test_a_refused_model_does_not_stop_the_others_and_is_tried_again(instance):
    instance.knob(refuse="m")
    instance.declare(models=[instance.model("m"), instance.model("n", "two")])
    status = instance.start().until(lambda status: status["state"] == "degraded" and status["models"][1]["key"])
    assert status["error"] == "model m: load failed: not enough memory"
    assert (status["models"][0]["status"], status["models"][0]["attempts"]) == ("failed", 1)
    instance.knob(refuse=None)
    assert instance.ready()["error"] is None


def test_a_file_lm_studio_does_not_list(instance):
    instance.declare(models=[instance.model("m", "three")])
    status = instance.start().until(lambda status: status["state"] == "degraded")
    assert "LM Studio does not list p/n/three" in status["error"]


def test_other_settings_than_asked_for_are_said_not_loaded_for_ever(instance):
    instance.knob(gives_parallel=1)
    status = instance.start().until(lambda status: status["state"] == "degraded")
    assert status["error"] == "model m: parallel is 1, declared 2"
    time.sleep(0.6)
    assert len(instance.calls("load")) == 1


def test_settings_that_only_the_server_shows_are_read_back(instance):
    instance.knob(config={"flash_attention": False, "eval_batch_size": 512})
    instance.declare(models=[instance.model("m", load={"flash_attention": True, "eval_batch_size": 512, "mmap": True})])
    status = instance.start().until(lambda status: status["state"] == "degraded")
    assert status["error"] == "model m: flash_attention is false, declared true"


def test_a_model_loaded_anew_with_other_settings_is_brought_back(instance):
    instance.start().ready()
    instance.knob(config={"flash_attention": True})
    instance.until(lambda status: status["state"] == "ready" and len(instance.calls("load")) == 2)


def test_what_somebody_else_loads_in_the_same_moment_is_replaced(instance):
    instance.knob(somebody_is_quicker=True)
    status = instance.start().until(lambda status: status["state"] == "degraded")
    assert (
        status["error"]
        == "model m: loaded by somebody else, and parallel is 1, declared 2, ttl is 300 s, declared none"
    )
    instance.ready()
    assert len(instance.calls("load")) == 2 and len(instance.calls("unload")) == 1


def test_a_time_to_live_is_no_setting_of_ours(instance):
    instance.knob(ttl=3600000)
    status = instance.start().until(lambda status: status["state"] == "degraded")
    assert status["error"] == "model m: ttl is 3600 s, declared none"


def test_what_is_not_declared_is_told_and_with_purge_unloaded(instance):
    instance.start().ready()
    stranger = {"identifier": "x", "path": "p/n/two", "ttlMs": 3600000}
    instance.knob(loaded={**instance.fake()["loaded"], "x": stranger})
    status = instance.until(lambda status: status["drift"])
    assert status["state"] == "ready" and status["unmanaged"] == ["x"]
    assert status["drift"] == [
        "x (p/n/two) is loaded and not declared, for 3600 s after its last use, as just-in-time loading does"
    ]
    instance.declare(purge=True)
    instance.until(lambda status: not status["drift"] and status["state"] == "ready")
    assert set(instance.fake()["loaded"]) == {"m"} and len(instance.calls("load")) == 1


def test_a_load_that_ends_after_it_was_given_up_is_taken(instance):
    instance.knob(slow_load=3)
    instance.declare(load_timeout=1)
    instance.start(RETRY_FIRST=60).until(lambda status: status["state"] == "degraded")
    instance.ready()
    assert "loaded m after all" in instance.log() and len(instance.calls("load")) == 1


def test_a_load_that_takes_too_long_is_given_up(instance):
    instance.knob(load_seconds=30)
    instance.declare(load_timeout=1)
    status = instance.start().until(lambda status: status["state"] == "degraded")
    assert "load failed (after 1 s): no answer in time" in status["error"]


def test_the_status_stays_fresh_during_a_long_load(instance):
    instance.knob(load_seconds=2)
    instance.start().until(lambda status: status["models"][0]["status"] == "loading")
    began = instance.status()["updated_at"]
    instance.until(lambda status: status["models"][0]["status"] == "loading" and status["updated_at"] > began + 1)
    instance.ready()


def test_an_lms_that_hangs_is_said_and_nothing_is_loaded_blindly(instance):
    instance.knob(lms_hangs="ps")
    instance.start(LMS_TIMEOUT=1.0)
    status = instance.until(lambda status: status["state"] == "degraded")
    assert "lms ps does not tell what is loaded: no answer in time" in status["error"]
    instance.until(lambda _status: len(instance.calls("ps")) >= 3)  # it goes on asking
    assert instance.calls("load") == []
    instance.knob(lms_hangs=None)
    instance.ready()
    assert set(instance.fake()["loaded"]) == {"m"}


def test_a_runtime_is_selected_before_a_load_and_another_one_loads_anew(instance):
    instance.declare(runtimes={"engine": "2"})
    first = instance.start().ready()
    assert first["runtimes"] == {"engine": "2"} and len(instance.calls("load")) == 1
    calls = [json.loads(line)[0] for line in (instance.home / "calls").read_text().splitlines()]
    assert calls.index("runtime") < calls.index("load")
    instance.declare(runtimes={"engine": "1"})
    again = instance.until(lambda status: status["runtimes"] == {"engine": "1"} and status["state"] == "ready")
    assert again["daemon_pid"] == first["daemon_pid"] and len(instance.calls("load")) == 2


def test_a_runtime_that_is_not_there_is_said_and_the_models_are_served(instance):
    instance.declare(runtimes={"engine": "3"})
    status = instance.start().until(lambda status: status["state"] == "degraded" and status["models"][0]["key"])
    assert "runtime engine: version 3 is not installed (installed is 1, 2)" in status["error"]


def test_it_is_not_ready_before_it_has_looked_at_another_runtime(instance):
    first = instance.start().ready()
    instance.knob(lms_hangs="runtime")
    instance.declare(runtimes={"engine": "3"})
    status = instance.until(lambda status: status["generation"] != first["generation"])
    assert status["state"] == "loading"


def test_running_requests_are_waited_for_before_the_daemon_ends(instance, is_alive):
    daemon = instance.start().ready()["daemon_pid"]
    entry = instance.fake()["loaded"]["m"]
    instance.knob(loaded={"m": {**entry, "queued": 2, "status": "generating"}})
    instance.declare(stop_timeout=60)
    instance.process.send_signal(signal.SIGTERM)
    instance.until(lambda status: status["state"] == "stopping" and "2 request(s) running" in instance.log())
    assert instance.process.poll() is None and is_alive(daemon)
    instance.knob(loaded={"m": entry})
    assert instance.end() == 0 and not is_alive(daemon) and "cut off" not in instance.log()


def test_requests_that_do_not_end_are_cut_off(instance):
    instance.declare(stop_timeout=1)
    instance.start().ready()
    entry = instance.fake()["loaded"]["m"]
    instance.knob(loaded={"m": {**entry, "queued": 1, "status": "generating"}})
    assert instance.stop() == 0
    assert "1 request(s) are cut off: they did not end within 1 s" in instance.log()


@pytest.mark.parametrize(
    ("knob", "said"),
    [("hands_over", "is its daemon"), ("lms_reaches", "lms talks to process")],
)
def test_a_daemon_that_is_not_the_own_one_is_refused(instance, knob, said):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        instance.knob(**{knob: stranger.pid})
        assert instance.start().end() == 1
        assert stranger.poll() is None
        stranger.kill()
    error = instance.status()["error"]
    assert said in error and f"process {stranger.pid}" in error and "does not run two daemons side by side" in error
    assert instance.calls("server") == [] if knob == "lms_reaches" else not (instance.home / "calls").exists()


def test_stop_during_a_load_is_prompt(instance, is_alive):
    instance.knob(load_seconds=30)
    status = instance.start().until(lambda status: status["models"][0]["status"] == "loading")
    began = time.monotonic()
    assert instance.stop() == 0 and time.monotonic() - began < 3 and not is_alive(status["daemon_pid"])


def test_a_daemon_that_dies_ends_the_runner(instance):
    status = instance.start().ready()
    os.kill(status["daemon_pid"], signal.SIGKILL)
    assert instance.end() == 1
    assert instance.status()["error"] == "llmster ended by itself with exit code -9"
    instance.start().ready()


def test_a_daemon_that_never_comes_up_says_so_in_the_next_start_too(instance):
    instance.knob(crash=True)
    for _start in range(2):
        assert instance.start().end() == 1
    assert instance.status()["error"] == "llmster ended by itself with exit code 9"
    instance.knob(crash=False)
    assert instance.start().ready()["error"] is None


def test_a_server_that_hangs_ends_the_runner(instance):
    instance.start(HTTP_TIMEOUT=0.3).ready()
    instance.knob(hang=True)
    assert instance.end() == 1
    assert "the server did not answer 3 polls in a row" in instance.status()["error"]


def test_a_stubborn_daemon_is_killed(instance, is_alive):
    instance.knob(stubborn=True)
    status = instance.start(END_TIMEOUT=1.0).ready()
    assert instance.stop() == 0 and not is_alive(status["daemon_pid"])
    assert "did not stop within 1 s, killing it" in instance.log()


def test_a_killed_runner_leaves_no_daemon_behind_for_long(instance, is_alive):
    before = instance.start().ready()
    instance.process.kill()
    instance.process.wait()
    assert is_alive(before["daemon_pid"])
    after = instance.start().ready()
    assert not is_alive(before["daemon_pid"]) and after["daemon_pid"] != before["daemon_pid"]
    assert "left behind" in instance.log()


def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(instance):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        (instance.home / "status.json").write_text(json.dumps({"daemon_pid": stranger.pid}))
        info = instance.home / ".lmstudio" / ".internal" / "http-server.json"
        info.write_text(json.dumps({"pid": stranger.pid, "port": 41343}))
        instance.start().ready()
        assert stranger.poll() is None
        stranger.kill()


def test_the_llmster_of_another_instance_is_left_alone(instance, tmp_path):
    other = type(instance)(tmp_path / "other")
    for program in ("llmster", "lms"):
        os.replace(tmp_path / "other" / program, tmp_path / program)
    other.declare(llmster=instance.declaration["llmster"], lms=instance.declaration["lms"])
    try:
        pid = other.start().ready()["daemon_pid"]
        (instance.home / "status.json").write_text(json.dumps({"daemon_pid": pid}))
        instance.start().ready()
        assert other.process.poll() is None and other.status()["daemon_pid"] == pid
    finally:
        other.stop()


def test_another_address_asks_for_a_new_start_and_another_timeout_does_not(instance, is_alive):
    status = instance.start().ready()
    instance.declare(stop_timeout=2)
    generation = hashlib.sha256((instance.home / "instance.json").read_bytes()).hexdigest()
    instance.until(lambda status: status["generation"] == generation and status["state"] == "ready")
    instance.declare(address="localhost")
    assert instance.end() == 0 and not is_alive(status["daemon_pid"])


def test_an_edit_that_breaks_the_declaration_is_said_and_serving_goes_on(instance):
    before = instance.start().ready()
    (instance.home / "instance.json").write_text("{")
    status = instance.until(lambda status: status["state"] == "degraded")
    assert "instance.json was changed and is invalid: not JSON" in status["error"]
    assert status["generation"] == before["generation"]
    instance.declare()
    instance.ready()


def test_what_requests_have_to_wait_for_is_looked_at_often():
    assert DECLARATION_CHECK <= 0.25 and PORT_RETRY <= 1


def test_a_port_in_use_is_waited_for(instance):
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", instance.port))
        squatter.listen()
        status = instance.start().until(lambda status: status["error"])
        assert status["state"] == "starting" and status["daemon_pid"] is None
        assert status["error"] == f"port {instance.port} on 127.0.0.1 is in use by another program"
    instance.ready()


def run_once(program, home):
    """Run the runner to its end."""
    command = [sys.executable, str(program), str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_two_runners_never_share_a_home(instance, program):
    instance.start().ready()
    second = run_once(program, instance.home)
    assert second.returncode == 1 and "another runner holds" in second.stdout


@pytest.mark.parametrize("content", [None, b"{", json.dumps(valid(port="x")).encode()])
def test_an_invalid_declaration_is_exit_code_78(tmp_path, program, content):
    if content is not None:
        (tmp_path / "instance.json").write_bytes(content)
    result = run_once(program, tmp_path)
    assert result.returncode == 78 and result.stderr.startswith(f"{tmp_path}/instance.json: ")
    assert not (tmp_path / "status.json").exists()
