# SPDX-License-Identifier: GPL-3.0-or-later
"""The traps of LM Studio, one test each: a stand-in that is kinder than the real thing proves nothing."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

KEY = "smollm2"
EMBED_KEY = "text-embedding-nomic-embed"
PATH = "lmfleet/SmolLM2/smollm2.gguf"


def wait_for(condition, seconds=5.0):
    """Return the first true value of ``condition()``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s")


# -- installation ----------------------------------------------------------------------------------------------


def _bootstrap(instance, tmp_path, **environment):
    unpacked = tmp_path / "unpacked"
    shutil.copytree(instance.llmster.parent, unpacked)
    home = tmp_path / "mac-user"
    home.mkdir()
    env = {"HOME": str(home), **environment}
    command = [*_python(), unpacked / "llmster", "bootstrap"]
    run = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    return run, home


def _python():
    return ["/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable, "-IS"]


def test_version_is_printed_with_a_plus(instance):
    run = subprocess.run([*_python(), instance.llmster, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == "0.0.25+1\n"


def test_bootstrap_installs_below_home_and_tells_where(instance, tmp_path):
    run, home = _bootstrap(instance, tmp_path, LMS_BOOTSTRAP_INSTALL_SH="1", LMS_NO_MODIFY_PATH="1")
    assert run.returncode == 0
    location = json.loads((home / ".lmstudio/.internal/llmster-install-location.json").read_text())
    assert location["path"] == str(home / ".lmstudio/llmster/0.0.25-1/llmster")
    assert set(location) == {"path", "argv", "cwd"}
    assert os.access(location["path"], os.X_OK)
    assert os.access(home / ".lmstudio/bin/lms", os.X_OK)
    assert not (home / ".zprofile").exists()


def test_bootstrap_edits_the_shell_profile_unless_told_not_to(instance, tmp_path):
    _run, home = _bootstrap(instance, tmp_path, LMS_BOOTSTRAP_INSTALL_SH="1")
    assert ".lmstudio/bin" in (home / ".zprofile").read_text()


def test_bootstrap_asks_without_the_installer_variable(instance, tmp_path):
    run, home = _bootstrap(instance, tmp_path)
    assert run.returncode != 0
    assert not (home / ".lmstudio/bin").exists()


def test_archive_has_the_vendors_shape_and_reproducible_bytes(instance, tmp_path):
    builder = os.path.join(os.path.dirname(os.path.dirname(__file__)), "build_archive.py")
    archives = []
    for out in (tmp_path / "a", tmp_path / "b"):
        subprocess.run(
            [sys.executable, builder, "--version", "0.0.24-1", "--out", out], check=True, capture_output=True
        )
        archives.append(out / "0.0.24-1-darwin-arm64.full.tar.gz")
    assert archives[0].read_bytes() == archives[1].read_bytes()
    listed = subprocess.run(["tar", "tzf", archives[0]], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split("/")[0] for name in listed} == {"llmster", ".bundle", "llmster.zip"}
    summed = subprocess.run(["sha512sum", archives[0]], check=True, capture_output=True, text=True).stdout.split()[0]
    assert archives[0].with_name(archives[0].name + ".sha512").read_text().split()[0] == summed


# -- homes and discovery ---------------------------------------------------------------------------------------


def test_home_is_what_the_pointer_file_says(make_instance, tmp_path):
    instance = make_instance()
    elsewhere = tmp_path / "elsewhere"
    (instance.home / ".lmstudio-home-pointer").write_text(str(elsewhere))
    instance.info = elsewhere / ".internal" / "http-server.json"
    instance.start()
    assert not instance.lmstudio.exists()


def test_old_cache_folder_is_the_home_and_the_pointer_is_written(make_instance):
    instance = make_instance()
    old = instance.home / ".cache" / "lm-studio"
    old.mkdir(parents=True)
    instance.info = old / ".internal" / "http-server.json"
    instance.start()
    assert (instance.home / ".lmstudio-home-pointer").read_text() == str(old)


def test_control_ports_are_taken_in_order_and_a_sixth_daemon_fails(make_instance):
    ports = [make_instance(f"i{number}").start().published()["port"] for number in range(5)]
    assert ports == [41343, 52993, 16141, 39414, 22931]
    sixth = make_instance("i5").popen()
    assert sixth.wait(10) == 1


def test_second_daemon_of_one_home_is_refused(instance):
    instance.start()
    assert instance.popen().wait(10) == 1


def test_without_its_file_lms_attaches_to_a_foreign_daemon(make_instance):
    foreign = make_instance("foreign").start()
    mine = make_instance("mine")
    status = mine.json("daemon", "status", strict=False)
    assert status == {"status": "running", "pid": foreign.process.pid, "isDaemon": True}
    assert "already running" in mine.lms("daemon", "up", strict=False).stderr


def test_stale_file_is_as_good_as_none(make_instance):
    mine = make_instance("mine").start()
    mine.process.kill()
    mine.process.wait()
    assert mine.info.exists()
    foreign = make_instance("foreign").start()
    assert mine.json("daemon", "status", strict=False)["pid"] == foreign.process.pid
    assert mine.json("daemon", "status") == {"status": "not-running"}


def test_info_path_selects_exactly_one_daemon_and_fails_closed(make_instance):
    first, second = make_instance("first").start(), make_instance("second").start()
    assert first.json("daemon", "status")["pid"] == first.process.pid
    assert second.json("daemon", "status")["pid"] == second.process.pid
    absent = make_instance("absent")
    run = absent.lms("ps", "--json")
    assert (run.returncode, run.stdout) == (1, "")


def test_daemon_is_started_by_itself_unless_the_info_path_is_set(instance, installation):
    """In a PID namespace: the detached daemon ends with its first process."""
    if os.geteuid() != 0:
        pytest.skip("needs the right to make a PID namespace")
    place = json.loads((installation / ".lmstudio/.internal/llmster-install-location.json").read_text())
    instance.internal.mkdir(parents=True)
    (instance.internal / "llmster-install-location.json").write_text(json.dumps(place))
    for strict, expected in ((True, 1), (False, 0)):
        env = dict(instance.environment)
        if strict:
            env["LMS_API_SERVER_INFO_PATH"] = str(instance.info)
        command = [*_python(), str(instance.lms_program), "ls", "--json"]
        wrapped = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh", *command]
        run = subprocess.run(wrapped, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert run.returncode == expected, run.stderr
    assert [model["modelKey"] for model in json.loads(run.stdout)] == [EMBED_KEY, KEY]


def test_kill_leaves_a_stale_file_and_sigterm_does_not(instance):
    instance.start()
    instance.process.terminate()
    assert instance.process.wait(5) == 0
    assert not instance.info.exists()
    instance.start()
    instance.process.kill()
    instance.process.wait()
    assert instance.published()["pid"] == instance.process.pid


# -- exit codes, output, flags ---------------------------------------------------------------------------------


def test_status_commands_exit_zero_when_nothing_runs(make_instance):
    instance = make_instance()
    for command, answer in (("server", {"running": False}), ("daemon", {"status": "not-running"})):
        run = instance.lms(command, "status", "--json")
        assert (run.returncode, json.loads(run.stdout)) == (0, answer)


def test_server_status_tells_the_port(instance):
    instance.start()
    assert instance.json("server", "status") == {"running": False}
    instance.lms("server", "start", "--port", "1300", "--bind", "127.0.0.1")
    assert instance.json("server", "status") == {"running": True, "port": 1300}


def test_unload_of_an_unknown_identifier_exits_zero(instance):
    run = instance.start().lms("unload", "nothing")
    assert run.returncode == 0
    assert "nothing" in run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", KEY, "-y", "--flash-attention"),
        ("load", KEY, "-y", "--threads", "4"),
        ("load", KEY, "-y", "--parallel", "0"),
        ("load", KEY, "-y", "--parallel", "1024"),
        ("load", KEY, "-y", "--gpu", "2"),
        ("load", KEY, "-y", "--ttl", "soon"),
        ("load", KEY, KEY, "-y"),
        ("ps", "--jsn"),
        ("server", "begin"),
        ("serve",),
    ],
)
def test_unknown_flags_and_wrong_values_are_refused(instance, arguments):
    instance.start()
    run = instance.lms(*arguments)
    assert run.returncode == 1
    assert run.stderr.startswith("error:")
    assert instance.loaded() == {}


def test_load_writes_spinner_escapes_to_stdout_and_words_to_stderr(instance):
    run = instance.start().lms("load", KEY, "-y")
    assert "\x1b[" in run.stdout
    assert "loaded successfully" in run.stderr


def test_a_server_that_asks_for_tokens_refuses_everything_without_one(instance):
    instance.serve()
    instance.knobs(api_tokens=["sk-lm-right"])
    for path in ("/lmstudio-greeting", "/v1/models", "/api/v1/models", "/nonsense"):
        status, body = instance.http("GET", path)
        assert (status, body["error"]["code"], body["error"]["type"]) == (401, "invalid_api_key", "invalid_request")
    assert instance.http("GET", "/v1/models", headers={"Authorization": "Bearer sk-lm-wrong"})[0] == 401
    for headers in ({"Authorization": "Bearer sk-lm-right"}, {"x-api-key": "sk-lm-right"}):
        assert instance.http("GET", "/lmstudio-greeting", headers=headers) == (200, {"lmstudio": True})
    # lms does not go through the server.
    assert instance.lms("ps", "--json").returncode == 0


def test_hang_hangs_lms_for_ever(instance):
    instance.start()
    instance.knobs(hang=True)
    with pytest.raises(subprocess.TimeoutExpired):
        instance.lms("ps", "--json", timeout=4)


def test_lms_bootstrap_and_import_need_a_terminal(instance, tmp_path):
    instance.start()
    assert instance.lms("bootstrap").returncode == 1
    source = tmp_path / "extra.gguf"
    shutil.copy(instance.models / PATH, source)
    assert instance.lms("import", str(source), "-y", "--user-repo", "me/extra").returncode == 1
    assert source.exists()
    assert instance.lms("import", str(source), "-y", "--user-repo", "me/extra", "-c", "--dry-run").returncode == 0
    assert not (instance.models / "me").exists()
    assert instance.lms("import", str(source), "-y", "--user-repo", "me/extra", "-L").returncode == 0
    assert (instance.models / "me/extra/extra.gguf").samefile(source)


def test_what_needs_the_network_fails(instance):
    instance.start()
    for command in (("get", KEY, "-y"), ("daemon", "update"), ("runtime", "update")):
        assert instance.lms(*command).returncode == 1
    survey = instance.json("runtime", "survey")
    assert survey["engines"]


# -- the server ------------------------------------------------------------------------------------------------


def test_server_start_without_port_takes_the_last_one_and_without_bind_loopback(instance):
    instance.start()
    instance.lms("server", "start", "--port", "1301", "--bind", "0.0.0.0")
    instance.lms("server", "stop")
    assert instance.lms("server", "start").returncode == 0
    config = json.loads((instance.internal / "http-server-config.json").read_text())
    assert (config["port"], config["networkInterface"]) == (1301, "127.0.0.1")


def test_taken_port_is_told_on_stderr(instance):
    instance.start()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 1302))
        other.listen()
        run = instance.lms("server", "start", "--port", "1302", "--bind", "127.0.0.1")
    assert (run.returncode, run.stdout) == (1, "")
    assert "1302" in run.stderr
    assert instance.json("server", "status") == {"running": False}


def test_unknown_path_is_answered_200_with_an_error(instance):
    instance.serve()
    for method, path in (("GET", "/health"), ("GET", "/metrics"), ("POST", "/v1/models"), ("GET", "/")):
        status, body = instance.http(method, path, {} if method == "POST" else None)
        assert status == 200
        assert body["error"].startswith("Unexpected endpoint or method")


def test_greeting_is_exact_on_both_ports(instance):
    instance.serve()
    for port in (1234, instance.published()["port"]):
        with instance.request("GET", "/lmstudio-greeting", port=port) as response:
            assert (response.status, response.read()) == (200, b'{"lmstudio":true}')


def test_control_port_serves_no_models(instance):
    instance.serve()
    _status, body = instance.http("GET", "/api/v1/models", port=instance.published()["port"])
    assert "error" in body


def test_hang_accepts_and_never_answers(instance):
    instance.serve()
    instance.knobs(**{"hang@chat-a": True})
    with pytest.raises(TimeoutError), instance.request("GET", "/lmstudio-greeting", timeout=1):
        pass
    instance.knobs(**{"hang@other": True})
    assert instance.http("GET", "/lmstudio-greeting") == (200, {"lmstudio": True})


# -- models on disk --------------------------------------------------------------------------------------------


def test_ls_shape(instance):
    instance.start()
    embedding, llm = instance.json("ls")
    assert llm == {
        "type": "llm",
        "modelKey": KEY,
        "format": "gguf",
        "displayName": "SmolLM2",
        "publisher": "lmfleet",
        "path": PATH,
        "sizeBytes": 64 * 1024 * 1024,
        "indexedModelIdentifier": PATH,
        "deviceIdentifier": None,
        "paramsString": "1B",
        "architecture": "llama",
        "quantization": {"name": "Q4_K_M", "bits": 4},
        "vision": False,
        "trainedForToolUse": False,
        "maxContextLength": 32768,
    }
    assert embedding["type"] == "embedding"
    assert {"vision", "trainedForToolUse"}.isdisjoint(embedding)


def test_key_comes_from_the_folder_and_embeddings_get_a_prefix(instance):
    instance.add_model("lmfleet/Other-Model-GGUF/Whatever.gguf")
    instance.add_model("somebody/SmolLM2/same-name.gguf")
    instance.start()
    keys = {model["path"]: model["modelKey"] for model in instance.json("ls")}
    assert keys == {
        "lmfleet/Other-Model-GGUF/Whatever.gguf": "other-model",
        "lmfleet/Nomic-Embed/nomic.gguf": EMBED_KEY,
        PATH: "lmfleet/smollm2",
        "somebody/SmolLM2/same-name.gguf": "somebody/smollm2",
    }


def test_only_files_two_folders_deep_count_and_new_ones_appear_by_themselves(instance):
    instance.start()
    instance.add_model("too-shallow/model.gguf")
    instance.add_model("much/too/deep/model.gguf")
    (instance.models / "lmfleet" / "SmolLM2" / "half.gguf").write_bytes(b"GGUF\x03\x00")
    assert len(instance.json("ls")) == 2
    instance.add_model("lmfleet/new/model.gguf")
    assert len(instance.json("ls")) == 3


def test_models_folder_may_be_a_symlink_shared_between_homes(instance, make_instance):
    other = make_instance("other")
    other.lmstudio.mkdir()
    other.models.symlink_to(instance.models)
    other.start()
    assert len(other.json("ls")) == 2


# -- loading ---------------------------------------------------------------------------------------------------


def test_load_matches_fuzzily_with_yes(instance):
    instance.start()
    assert instance.lms("load", "smlm", "-y").returncode == 0
    assert list(instance.loaded()) == [KEY]
    assert instance.lms("load", "zzz", "-y").returncode == 1


def test_exact_compares_the_path_not_the_key(instance):
    instance.start()
    assert instance.lms("load", KEY, "-y", "--exact").returncode == 1
    assert instance.lms("load", PATH, "-y", "--exact").returncode == 0


def test_ambiguous_load_without_yes_needs_a_terminal(instance):
    instance.start()
    assert instance.lms("load", "m").returncode == 1
    assert instance.loaded() == {}


def test_second_load_stacks_another_instance(instance):
    instance.start()
    for _ in range(3):
        assert instance.lms("load", KEY, "-y").returncode == 0
    assert list(instance.loaded()) == [KEY, f"{KEY}:2", f"{KEY}:3"]


def test_same_identifier_twice_is_an_error(instance):
    instance.start()
    assert instance.lms("load", KEY, "-y", "--identifier", "a").returncode == 0
    run = instance.lms("load", KEY, "-y", "--identifier", "a")
    assert run.returncode == 1
    assert '"a"' in run.stderr
    assert list(instance.loaded()) == ["a"]


def test_ps_shape(instance):
    instance.start()
    instance.lms("load", KEY, "-y", "--identifier", "a", "--parallel", "2", "-c", "512", "--ttl", "60")
    instance.lms("load", EMBED_KEY, "-y")
    llm, embedding = instance.json("ps")
    listed = {model["modelKey"]: model for model in instance.json("ls")}
    more = {"identifier": "a", "ttlMs": 60000, "lastUsedTime": None, "contextLength": 512, "status": "idle"}
    assert llm == {**listed[KEY], **more, "queued": 0, "parallel": 2}
    assert (embedding["parallel"], embedding["ttlMs"]) == (None, None)


def test_unload_frees_the_identifier(instance):
    instance.start()
    instance.lms("load", KEY, "-y", "--identifier", "a")
    assert instance.lms("unload", "a").returncode == 0
    assert instance.loaded() == {}
    instance.lms("load", KEY, "-y")
    instance.lms("load", EMBED_KEY, "-y")
    assert instance.lms("unload", "--all").returncode == 0
    assert instance.loaded() == {}


def test_estimate_only_exits_zero_either_way_and_loads_nothing(instance):
    instance.start()
    run = instance.lms("load", KEY, "--estimate-only")
    assert "Estimated GPU Memory:" in run.stdout
    assert "Estimated Total Memory:" in run.stdout
    assert "may be loaded" in run.stdout
    instance.knobs(load_memory_mb=1)
    run = instance.lms("load", KEY, "--estimate-only")
    assert run.returncode == 0
    assert "will fail to load" in run.stdout
    assert instance.loaded() == {}


def test_load_fails_when_memory_is_short(instance):
    instance.add_model("lmfleet/large/large.gguf", size_mb=5000)
    instance.serve()
    instance.knobs(load_memory_mb=2000)
    run = instance.lms("load", "large", "-y")
    assert run.returncode == 1
    assert "insufficient system resources" in run.stderr
    assert instance.lms("load", KEY, "-y").returncode == 0
    instance.knobs(memory_gb=16)
    assert instance.lms("load", "large", "-y").returncode == 0
    assert instance.lms("load", "large", "-y").returncode == 1, "two of 6 GB and one of 1 GB do not fit in 12 GB"
    status, body = instance.http("POST", "/api/v1/models/load", {"model": "large"})
    assert status >= 400
    assert "insufficient" in body["error"]["message"]


def _write_tuning(instance, **fields):
    path = instance.internal / "user-concrete-model-default-config" / (PATH + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"key": key, "value": value} for key, value in fields.items()]
    path.write_text(json.dumps({"preset": "", "operation": {"fields": []}, "load": {"fields": values}}))
    return path


TUNING = {
    "llm.load.contextLength": 8192,
    "llm.load.numParallelSessions": 3,
    "llm.load.llama.flashAttention": True,
    "llm.load.llama.evalBatchSize": 256,
    "llm.load.offloadKVCacheToGpu": False,
}
TUNED = {
    "context_length": 8192,
    "parallel": 3,
    "flash_attention": True,
    "eval_batch_size": 256,
    "offload_kv_cache_to_gpu": False,
}


def _instances(instance):
    models = instance.http("GET", "/api/v1/models")[1]["models"]
    return {i["id"]: i["config"] for model in models for i in model["loaded_instances"]}


def test_tuning_file_counts_on_every_load_path(instance):
    _write_tuning(instance, **TUNING)
    instance.serve()
    instance.lms("load", KEY, "-y", "--identifier", "by-lms")
    instance.http("POST", "/api/v1/models/load", {"model": KEY})
    assert _instances(instance) == {"by-lms": TUNED, KEY: TUNED}
    instance.lms("unload", KEY)
    assert instance.chat(KEY, max_tokens=1)[0] == 200
    assert _instances(instance)[KEY] == TUNED


def test_flags_win_over_the_tuning_file_and_a_broken_file_is_ignored(instance):
    path = _write_tuning(instance, **TUNING)
    instance.serve()
    instance.lms("load", KEY, "-y", "-c", "1024", "--parallel", "1")
    assert _instances(instance)[KEY] == {**TUNED, "context_length": 1024, "parallel": 1}
    path.write_text("{")
    instance.lms("load", KEY, "-y")
    assert _instances(instance)[f"{KEY}:2"]["context_length"] == 2048


# -- just-in-time loading --------------------------------------------------------------------------------------


def _v1_models(instance):
    return [model["id"] for model in instance.http("GET", "/v1/models")[1]["data"]]


def test_v1_models_lists_the_disk_with_jit_and_what_is_loaded_without(instance, make_instance):
    instance.serve()
    assert _v1_models(instance) == [EMBED_KEY, KEY]
    other = make_instance("other")
    other.lmstudio.mkdir()
    other.models.symlink_to(instance.models)
    other.serve(1235, jit=False)
    assert _v1_models(other) == []
    other.lms("load", KEY, "-y", "--identifier", "a")
    assert _v1_models(other) == ["a"]


def test_request_loads_a_model_just_in_time_with_an_hour_to_live(instance):
    instance.serve()
    assert instance.chat(KEY)[0] == 200
    loaded = instance.loaded()[KEY]
    assert (loaded["ttlMs"], loaded["contextLength"], loaded["parallel"]) == (3_600_000, 2048, 4)
    assert loaded["lastUsedTime"] > 1.7e12


def test_model_is_unloaded_when_its_time_to_live_is_over(instance):
    instance.serve()
    assert instance.chat(KEY, ttl=1)[0] == 200
    assert list(instance.loaded()) == [KEY]
    wait_for(lambda: not instance.loaded(), 4)


def test_without_jit_a_model_that_is_not_loaded_is_an_error(instance):
    instance.serve(jit=False)
    status, body = instance.chat(KEY)
    assert status == 404
    assert body["error"]["code"] == "model_not_found"
    assert instance.loaded() == {}


def test_unknown_model_is_an_error(instance):
    instance.serve()
    assert instance.chat("nothing")[0] == 404


# -- slots and the queue ---------------------------------------------------------------------------------------


def _slow(instance, parallel, speed=50):
    instance.add_model("lmfleet/slow/slow.gguf", tokens_per_second=speed)
    instance.serve()
    assert instance.lms("load", "slow", "-y", "--parallel", str(parallel)).returncode == 0


def test_queued_counts_running_and_waiting_and_the_slots_are_first_come_first_served(instance):
    _slow(instance, 2, speed=15)
    finished = []

    def ask(number):
        assert instance.chat("slow", max_tokens=20)[0] == 200
        finished.append(number)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        futures = []
        for number in range(6):
            futures.append(pool.submit(ask, number))
            wait_for(lambda number=number: instance.loaded()["slow"]["queued"] >= number + 1)
        peak = instance.loaded()["slow"]
        for future in futures:
            future.result(20)
    assert (peak["queued"], peak["status"]) == (6, "generating")
    assert [sorted(finished[i : i + 2]) for i in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]
    assert (instance.loaded()["slow"]["queued"], instance.loaded()["slow"]["status"]) == (0, "idle")


def test_slots_work_at_the_same_time(instance):
    _slow(instance, 4)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: instance.chat("slow", max_tokens=20)[0], range(4)))
    assert answers == [200] * 4
    assert time.monotonic() - began < 4 * 0.4, "four answers of 0.4 s each must overlap"


def test_client_that_leaves_frees_its_slot(instance):
    _slow(instance, 1, speed=1)
    body = {"model": "slow", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with instance.request("POST", "/v1/chat/completions", body) as running:
        running.readline()
        waiting = instance.request("POST", "/v1/chat/completions", body, timeout=1)
        with waiting as second:
            second.close()
        wait_for(lambda: instance.loaded()["slow"]["queued"] == 1)
    wait_for(lambda: instance.loaded()["slow"]["queued"] == 0)


def test_unload_ends_what_runs_and_what_waits(instance):
    _slow(instance, 1, speed=1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(instance.chat, "slow") for _ in range(2)]
        wait_for(lambda: instance.loaded()["slow"]["queued"] == 2)
        instance.lms("unload", "slow")
        assert {future.result(5)[0] for future in futures} == {500}


def test_queue_knob_adds_to_queued(instance):
    instance.start()
    instance.lms("load", KEY, "-y", "--identifier", "a")
    instance.knobs(queue={"a": 7})
    assert instance.loaded()["a"]["queued"] == 7


def test_slow_factor_slows_the_fake_engine(instance):
    instance.serve()
    instance.lms("load", KEY, "-y")

    def seconds():
        began = time.monotonic()
        assert instance.chat(KEY, max_tokens=10)[0] == 200
        return time.monotonic() - began

    assert seconds() < 0.3
    instance.knobs(slow_factor=50)
    assert seconds() > 0.5


# -- the HTTP APIs ---------------------------------------------------------------------------------------------


def test_chat_answer_is_deterministic_and_counts_tokens(instance):
    instance.serve()
    first, second = instance.chat(KEY, "ping", max_tokens=4), instance.chat(KEY, "ping", max_tokens=4)
    assert first[0] == 200
    choice = first[1]["choices"][0]
    assert choice["message"]["content"] == second[1]["choices"][0]["message"]["content"]
    assert choice["message"]["content"].endswith("to: ping")
    assert choice["finish_reason"] == "length"
    assert first[1]["usage"]["completion_tokens"] == 4
    assert first[1]["model"] == KEY


def _events(response):
    """Return [(event name or None, data)] of a stream of server-sent events."""
    found = []
    for block in response.read().decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event"), lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"])))
    return found


def test_chat_streams_token_by_token(instance):
    instance.serve()
    body = {"model": KEY, "messages": [{"role": "user", "content": "ping"}], "max_tokens": 4, "stream": True}
    with instance.request(
        "POST", "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}
    ) as answer:
        assert answer.getheader("Content-Type") == "text/event-stream"
        chunks = [data for _name, data in _events(answer)]
    assert chunks[-1] == "[DONE]"
    assert chunks[-2]["usage"]["completion_tokens"] == 4
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-2])
    assert text == instance.chat(KEY, "ping", max_tokens=4)[1]["choices"][0]["message"]["content"]


def test_stop_string_ends_the_answer_before_it(instance):
    instance.serve()
    body = instance.chat(KEY, "one two three", stop=["two"])[1]
    assert body["choices"][0]["message"]["content"].endswith("one ")
    assert body["choices"][0]["finish_reason"] == "stop"


def test_other_text_endpoints_answer(instance):
    instance.serve()
    status, body = instance.http("POST", "/v1/completions", {"model": KEY, "prompt": "ping", "max_tokens": 3})
    assert (status, body["object"]) == (200, "text_completion")
    status, body = instance.http("POST", "/v1/responses", {"model": KEY, "input": "ping"})
    assert body["output"][0]["content"][0]["text"].startswith("reply ")
    message = {"model": KEY, "max_tokens": 5, "messages": [{"role": "user", "content": "ping"}]}
    status, body = instance.http("POST", "/v1/messages", message)
    assert (body["type"], body["stop_reason"]) == ("message", "max_tokens")
    with instance.request("POST", "/v1/messages", {**message, "stream": True}) as answer:
        names = [name for name, _data in _events(answer)]
    assert (names[0], names[-1]) == ("message_start", "message_stop")
    with instance.request("POST", "/v1/responses", {"model": KEY, "input": "ping", "stream": True}) as answer:
        assert _events(answer)[-1][0] == "response.completed"


def test_embeddings_are_deterministic_unit_vectors(instance):
    instance.serve()
    status, body = instance.http("POST", "/v1/embeddings", {"model": EMBED_KEY, "input": ["a", "b", "a"]})
    assert status == 200
    vectors = [item["embedding"] for item in body["data"]]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1.0)


def test_chat_with_an_embedding_model_is_an_error(instance):
    instance.serve()
    assert instance.chat(EMBED_KEY)[0] == 400
    assert instance.http("POST", "/v1/embeddings", {"model": KEY, "input": "a"})[0] == 400


def test_rest_models_show_loaded_instances(instance):
    instance.serve()
    instance.lms("load", EMBED_KEY, "-y", "--identifier", "e")
    models = {model["key"]: model for model in instance.http("GET", "/api/v1/models")[1]["models"]}
    assert models[EMBED_KEY]["loaded_instances"] == [{"id": "e", "config": {"context_length": 2048}}]
    assert models[KEY]["loaded_instances"] == []
    assert models[KEY]["quantization"] == {"name": "Q4_K_M", "bits_per_weight": 4}


def test_rest_load_takes_no_parallel_and_unload_names_the_instance(instance):
    instance.serve()
    status, _body = instance.http("POST", "/api/v1/models/load", {"model": KEY, "parallel": 2})
    assert status == 400
    request = {"model": KEY, "context_length": 512, "echo_load_config": True}
    status, body = instance.http("POST", "/api/v1/models/load", request)
    assert (status, body["status"], body["instance_id"]) == (200, "loaded", KEY)
    assert body["load_config"]["context_length"] == 512
    unloaded = instance.http("POST", "/api/v1/models/unload", {"instance_id": KEY})
    assert unloaded == (200, {"instance_id": KEY})
    assert instance.http("POST", "/api/v1/models/unload", {"instance_id": KEY})[0] == 404


def test_rest_download_fails_without_a_network(instance):
    instance.serve()
    assert instance.http("POST", "/api/v1/models/download", {"model": KEY})[1] == {"status": "already_downloaded"}
    job = instance.http("POST", "/api/v1/models/download", {"model": "some/thing"})[1]
    assert job["status"] == "failed"
    status = instance.http("GET", f"/api/v1/models/download/status/{job['job_id']}")[1]
    assert (status["status"], status["downloaded_bytes"]) == ("failed", 0)


# -- starting and stopping -------------------------------------------------------------------------------------


def test_crash_on_start(instance):
    instance.knobs(crash_on_start=True)
    assert instance.popen().wait(10) == 1
    assert not instance.info.exists()


def test_slow_stop(instance):
    instance.start()
    instance.knobs(slow_stop_seconds=1)
    began = time.monotonic()
    instance.process.send_signal(signal.SIGTERM)
    assert instance.process.wait(5) == 0
    assert time.monotonic() - began >= 1


def test_log_stream_shows_what_a_model_is_asked(instance):
    instance.serve()
    environment = dict(instance.environment, LMS_API_SERVER_INFO_PATH=str(instance.info))
    command = [*_python(), instance.lms_program, "log", "stream", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        reader.stderr.readline()
        lines = []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            line = pool.submit(reader.stdout.readline)
            wait_for(lambda: instance.chat(KEY, "watch me", max_tokens=1)[0] == 200 and line.done())
            lines.append(line.result())
        reader.terminate()
    assert "watch me" in json.loads(lines[0])["data"]["input"]


def test_idle_daemon_uses_no_cpu_and_little_memory(instance):
    instance.serve()
    instance.lms("load", KEY, "-y")
    before = _cpu_ticks(instance.process.pid)
    time.sleep(2)
    assert _cpu_ticks(instance.process.pid) == before
    with open(f"/proc/{instance.process.pid}/status") as status:
        resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident < 24 * 1024


def _cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


# -- runtimes, logs, a daemon that shares ------------------------------------------------------------------------


def test_a_runtime_is_named_exactly_and_by_its_version_when_there_are_several(instance):
    instance.start()
    name = "llama.cpp-mac-arm64-apple-metal-advsimd"

    def selected():
        return [line.split()[0] for line in instance.lms("runtime", "ls").stdout.splitlines()[1:] if "✓" in line]

    assert f"{name}@2.27.1" in selected()
    for words in (("llama.cpp",), (name,), (f"{name}@9.9.9",), (f"{name}@2.26.0", "--latest")):
        assert instance.lms("runtime", "select", *words).returncode == 1
    assert instance.lms("runtime", "select", f"{name}@2.26.0").returncode == 0
    assert f"{name}@2.26.0" in selected() and f"{name}@2.27.1" not in selected()
    assert instance.lms("runtime", "remove", f"{name}@2.26.0", "-y").returncode == 0
    assert f"{name}@2.27.1" in selected()


def test_the_daemon_keeps_a_log_of_the_day(instance):
    instance.start()
    (log,) = wait_for(lambda: list((instance.lmstudio / "server-logs").rglob("*.log")))
    assert wait_for(lambda: "ready, control port" in log.read_text())


def test_a_sharing_daemon_publishes_the_one_it_found(make_instance):
    first, second = make_instance("first").start(), make_instance("second")
    second.knobs(share=True)
    second.process = second.popen()
    assert wait_for(second.published)["pid"] == first.process.pid
    assert second.json("daemon", "status")["pid"] == first.process.pid
