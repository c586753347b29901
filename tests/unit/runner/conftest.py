# SPDX-License-Identifier: GPL-3.0-or-later
"""A small LM Studio: llmster and lms are scripts that share HOME/fake.json. And a runner that works with them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _zipapp

FOLDER = Path(__file__).resolve().parents[3] / "roles" / "lmstudio_instances" / "files" / "runner"


def runner_files():
    """Return the files of the runner as its archive has them."""
    return {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*.py")}


# fake.json: {"server": [address, port], "loaded": {identifier: entry}, and the knobs of a test}
COMMON = """#!{python} -ISXutf8
import json, os, sys, time
HOME = os.environ["HOME"]
INFO = HOME + "/.lmstudio/.internal/http-server.json"
assert os.environ["LMS_API_SERVER_INFO_PATH"] == INFO
FILE = HOME + "/fake.json"
def read():
    try:
        return json.load(open(FILE))
    except OSError:
        return {{}}
def write(state):
    open(FILE + ".tmp", "w").write(json.dumps(state))
    os.rename(FILE + ".tmp", FILE)
"""

LLMSTER = """
import http.server, signal, threading
state = read()
if state.get("crash"):
    sys.exit(9)
config = json.load(open(HOME + "/.lmstudio/.internal/http-server-config.json"))
state.update(server=None, loaded={}, jit=config["justInTimeModelLoading"], kept=config.get("cors"))
write(state)
if state.get("stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
pid = state.get("hands_over") or os.getpid()
open(INFO + ".tmp", "w").write(json.dumps({"host": "127.0.0.1", "pid": pid, "port": 41343}))
os.rename(INFO + ".tmp", INFO)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        now = read()
        while now.get("hang"):
            time.sleep(1)
        body = {"error": "Unexpected endpoint"}
        if self.path == "/lmstudio-greeting":
            body = {"lmstudio": True}
        if self.path == "/api/v1/models":
            shown = [
                {"id": name, "config": {"context_length": entry.get("contextLength"), **now.get("config", {})}}
                for name, entry in now["loaded"].items()
            ]
            body = {"models": [{"loaded_instances": shown}]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer.allow_reuse_address = True
while not read().get("server"):
    time.sleep(0.05)
http.server.ThreadingHTTPServer(tuple(read()["server"]), Handler).serve_forever()
"""

LMS = """
state = read()
words = sys.argv[1:]
open(HOME + "/calls", "a").write(json.dumps(words) + "\\n")
if state.get("lms_hangs") == words[0]:
    time.sleep(60)
if words[:2] == ["server", "start"]:
    state["server"] = [words[words.index("--bind") + 1], int(words[words.index("--port") + 1])]
    write(state)
elif words == ["daemon", "status", "--json"]:
    pid = state.get("lms_reaches") or json.load(open(INFO))["pid"]
    print(json.dumps({"status": "running", "pid": pid, "isDaemon": True}))
elif words[:2] == ["runtime", "select"]:
    state["runtime"] = words[2]
    write(state)
elif words == ["runtime", "ls"]:
    print("LLM ENGINE SELECTED MODEL FORMAT")
    for one in ("engine@1", "engine@2"):
        print(one, "✓" if one == state.get("runtime", "engine@1") else "", "GGUF")
elif words == ["ls", "--json"]:
    print(json.dumps([
        {"path": "p/n/" + name, "modelKey": "key-of-" + name, "deviceIdentifier": None} for name in ("one", "two")
    ]))
elif words == ["ps", "--json"]:
    print(json.dumps(list(state["loaded"].values())))
elif words[0] == "unload":
    state["loaded"].pop(words[1], None)
    write(state)
elif words[0] == "load":
    def option(name):
        return words[words.index(name) + 1] if name in words else None
    if state.get("slow_load"):  # ends in the daemon whether or not lms waits for it
        if os.fork() == 0:
            time.sleep(state["slow_load"])
        else:
            time.sleep(60)
    if state.get("refuse") == option("--identifier"):
        sys.stderr.write("\\x1b[31mnot enough memory\\x1b[0m\\n")
        sys.exit(0)
    time.sleep(state.get("load_seconds", 0))
    state = read()
    identifier = option("--identifier")
    if state.pop("somebody_is_quicker", None):
        path = "p/n/" + words[1][len("key-of-"):]
        state["loaded"][identifier] = {"identifier": identifier, "path": path, "ttlMs": 300000, "parallel": 1}
        write(state)
        sys.exit("Error: " + identifier + " is in use")
    while identifier in state["loaded"]:
        identifier += ":2"
    state["loaded"][identifier] = {
        "identifier": identifier, "path": "p/n/" + words[1][len("key-of-"):], "modelKey": words[1],
        "ttlMs": state.get("ttl"), "status": "idle", "queued": 0,
        "contextLength": int(option("--context-length") or 2048),
        "parallel": state.get("gives_parallel") or int(option("--parallel") or 4),
    }
    write(state)
"""


class Instance:
    """One instance home with its runner; everything is polled, nothing slept for."""

    def __init__(self, folder):
        self.home = folder / "home"
        (self.home / ".lmstudio" / ".internal").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name, text in (("llmster", LLMSTER), ("lms", LMS)):
            (folder / name).write_text(COMMON.format(python=sys.executable) + text)
            (folder / name).chmod(0o755)
        self.declaration = {
            "name": "chat-a",
            "address": "127.0.0.1",
            "port": self.port,
            "llmster": str(folder / "llmster"),
            "lms": str(folder / "lms"),
            "start_timeout": 10,
            "load_timeout": 10,
            "stop_timeout": 3,
            "poll_interval": 0.2,
            "models": [self.model("m")],
        }
        self.process = None

    @staticmethod
    def model(identifier, file="one", **changes):
        entry = {"identifier": identifier, "path": f"p/n/{file}", "type": "llm", "fingerprint": "1"}
        return {**entry, "context_length": 4096, "parallel": 2, "gpu": None, **changes}

    def declare(self, **changes):
        self.declaration.update(changes)
        temporary = self.home / "instance.json.tmp"
        temporary.write_text(json.dumps(self.declaration))
        temporary.rename(self.home / "instance.json")

    def knob(self, **changes):
        file = self.home / "fake.json"
        state = json.loads(file.read_text()) if file.exists() else {}
        temporary = self.home / "fake.json.knob"
        temporary.write_text(json.dumps({**state, **changes}))
        temporary.rename(file)

    def fake(self):
        return json.loads((self.home / "fake.json").read_text())

    def start(self, **constants):
        """Start the runner; `constants` are module constants of it to change, such as LMS_TIMEOUT=0.5."""
        if not (self.home / "instance.json").exists():
            self.declare()
        files = runner_files()
        for name, value in constants.items():
            changed = {
                file: re.sub(rf"(?m)^{name} = [0-9.]+", f"{name} = {value}", text) for file, text in files.items()
            }
            assert sum(changed[file] != files[file] for file in files) == 1, name
            files = changed
        program = self.program = self.home / "instance_runner.pyz"
        program.write_bytes(_zipapp.build(files))
        with open(self.home / "log", "a") as log:
            self.process = subprocess.Popen([sys.executable, str(program), str(self.home)], stdout=log, stderr=log)
        return self

    def status(self):
        try:
            return json.loads((self.home / "status.json").read_text())
        except OSError:
            return {}

    def log(self):
        return (self.home / "log").read_text()

    def calls(self, verb):
        return [words for words in map(json.loads, (self.home / "calls").read_text().splitlines()) if words[0] == verb]

    def until(self, condition, seconds=15):
        """Wait until condition(status) holds for the runner of this start; return that status."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if status.get("pid") == self.process.pid and condition(status):
                return status
            assert time.monotonic() < deadline, f"last seen: {status}\n{self.log()}"
            time.sleep(0.05)

    def ready(self):
        return self.until(lambda status: status["state"] == "ready")

    def end(self, seconds=15):
        """Wait for the runner to end; return its exit code."""
        return self.process.wait(seconds)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.end()


def alive(pid):
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def is_alive():
    return alive


@pytest.fixture
def program(tmp_path):
    """The runner as it is put on a Mac."""
    file = tmp_path / "instance_runner.pyz"
    file.write_bytes(_zipapp.build(runner_files()))
    return file


@pytest.fixture
def instance(tmp_path):
    instance = Instance(tmp_path)
    yield instance
    daemon = instance.status().get("daemon_pid")
    if instance.process and instance.process.poll() is None:
        instance.process.kill()
        instance.process.wait()
    if daemon and alive(daemon):
        os.kill(daemon, signal.SIGKILL)
