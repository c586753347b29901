# SPDX-License-Identifier: GPL-3.0-or-later
"""A real LiteLLM gateway, set up by the role's own task, in front of small backends that a test can steer."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from ansible.module_utils.testing import patch_module_args

REPOSITORY = Path(__file__).resolve().parents[2]
ROLE = REPOSITORY / "roles" / "litellm"
CACHE = REPOSITORY / ".cache"
START_TIMEOUT = 120


def module(name, **arguments):
    """Run a module of the collection in this process and return its result."""
    main = importlib.import_module(f"ansible_collections.lmfleet.mac.plugins.modules.{name}").main
    output = io.StringIO()
    with patch_module_args(arguments), contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main()
    return json.loads(output.getvalue())


class Backend(BaseHTTPRequestHandler):
    """Answers, or fails as `server.failing` says.

    True (HTTP 500), another status (with a page), html, hang, reset, or dies (in the middle).
    """

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        failing = self.server.failing
        if failing == "html":
            self.answer(200, b"<html><body>It works!</body></html>", "text/html")
        elif failing == "hang":
            while self.server.failing == "hang":
                time.sleep(0.05)
            self.close_connection = True
        elif failing == "reset" or (failing == "dies" and not asked.get("stream")):
            self.reset()
        elif failing not in (True, False, "dies"):
            self.answer(failing, b"<html><body>No such page</body></html>", "text/html")
        elif failing and failing != "dies":
            self.answer(500, {"error": {"message": "broken for a test"}})
        elif self.path.endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            self.answer(
                200, {"object": "list", "data": [vector], "model": asked["model"], "usage": {"total_tokens": 1}}
            )
        elif asked.get("stream"):
            self.stream(asked["model"])
        else:
            time.sleep(self.server.answer_seconds)
            message = {"role": "assistant", "content": self.server.name}
            said = {"message": message} if self.chats else {"text": self.server.name}
            choice = {"index": 0, **said, "finish_reason": "stop"}
            kind = "chat.completion" if self.chats else "text_completion"
            self.answer(200, self.completion(kind, asked["model"], choice))

    @property
    def chats(self):
        return self.path.endswith("/chat/completions")

    def stream(self, model):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in itertools.count():
            if number == 2 and self.server.failing == "dies":
                self.reset()
                return
            word = self.server.word.format(number)
            choice = {"index": 0, **({"delta": {"content": word}} if self.chats else {"text": word})}
            kind = "chat.completion.chunk" if self.chats else "text_completion"
            chunk = self.completion(kind, model, {**choice, "finish_reason": None})
            self.server.sent.append(time.monotonic())
            self.event(json.dumps(chunk))
            time.sleep(self.server.chunk_seconds)
            if number >= 4 and not self.server.holding:
                break
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, text):
        data = f"data: {text}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def completion(self, kind, model, choice):
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"id": "1", "object": kind, "created": 1, "model": model, "choices": [choice], "usage": usage}

    def reset(self):
        """End the connection as a machine does that goes down."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def answer(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


class BackendServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name, port=0):
        super().__init__(("127.0.0.1", port), Backend)
        self.name = name
        self.calm()
        self.api_base = f"http://127.0.0.1:{self.server_port}/v1"

    def calm(self):
        """Behave, and forget what was asked."""
        self.asked, self.sent = 0, []
        self.failing, self.chunk_seconds, self.answer_seconds, self.holding = False, 0.2, 0, False
        self.word = "{} "

    def run(self):
        """Answer from now on, in a thread."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def kill(self):
        """Take no more connections, and break those there are."""
        self.failing = "reset"
        self.shutdown()
        self.server_close()

    def handle_error(self, _request, _address):
        """A client that goes away in the middle is nothing to tell."""

    def deployment(self, **extra):
        """Return this backend as litellm_deployments takes it."""
        values = {"id": f"mac-{self.name}", "model_group": "chat", "model": "m", "api_base": self.api_base}
        return {**values, **extra}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Installation:
    """The folder of a gateway. configure() runs the first task of the role, in a play of its own."""

    def __init__(self, root, workplace):
        self.root, self.workplace = root, workplace
        self.variables = {
            "litellm_root": str(root),
            "litellm_requirements": "requirements-linux-x86_64.txt",
            "litellm_python": sys.executable,
            "litellm_environment": {
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(CACHE / "mirror" / "wheels"),
                "UV_NO_INDEX": "1",
                "UV_FIND_LINKS": str(CACHE / "mirror" / "wheels"),
            },
        }

    def play(self, **variables):
        """Run the task; return (exit code, output)."""
        for name in ("files", "templates"):
            link = self.workplace / name
            if not link.exists():
                link.symlink_to(ROLE / name)
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "vars_files": [str(ROLE / "defaults" / "main.yml"), str(ROLE / "vars" / "main.yml")],
            "tasks": yaml.safe_load((ROLE / "tasks" / "main.yml").read_text())[:1],
        }
        (self.workplace / "play.yml").write_text(yaml.safe_dump([play]))
        (self.workplace / "vars.json").write_text(json.dumps({**self.variables, **variables}))
        (self.workplace / "ansible.cfg").write_text("")
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
            "ANSIBLE_HOME": str(self.workplace / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        }
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-v", "-e", "@vars.json", "play.yml"],
            cwd=self.workplace,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout

    def configure(self, **variables):
        """Run the task and expect it to end well; return its output."""
        code, output = self.play(**variables)
        assert code == 0, output
        return output


class Gateway:
    """A running gateway and its client."""

    def __init__(self, installation, port):
        self.root, self.port, self.url = installation.root, port, f"http://127.0.0.1:{port}"
        self.log = self.root / "logs" / "gateway.log"
        self.start()

    def start(self):
        with (self.root / "logs" / "runner.log").open("w") as log:
            # As launchd does it: hardly any environment, and the home of the user.
            environment = {"HOME": str(self.root), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
            environment["LMFLEET_TESTS"] = os.environ.get("LMFLEET_TESTS", "")  # see leftovers.py
            command = [sys.executable, str(self.root / "gateway_runner.py"), str(self.root)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    @property
    def key(self):
        return (self.root / "master_key").read_text().strip()

    def wait(self):
        result = module("litellm_health", url=self.url, timeout=START_TIMEOUT)
        assert not result.get("failed"), result["msg"] + self.log.read_text()[-3000:]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(40)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def declare(self, deployments=None, **arguments):
        """Run litellm_deployments and expect it to end well."""
        result = self.try_to_declare(deployments, **arguments)
        assert not result.get("failed"), result["msg"]
        return result

    def try_to_declare(self, deployments=None, **arguments):
        given = {} if deployments is None else {"deployments": deployments, "purge": True}
        return module("litellm_deployments", registry=str(self.root / "registry"), **{**given, **arguments})

    def client_keys(self):
        """Return the keys that clients may send now."""
        entries = json.loads((self.root / "client_keys.json").read_text())["keys"]
        return [entry["key"] for entry in entries if entry["until"] is None or entry["until"] > time.time()]

    def status(self):
        """Return what the runner says of itself."""
        return json.loads((self.root / "status.json").read_text())

    def wait_until(self, condition, timeout=60):
        """Wait until the function returns something true, and return that."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {timeout} s; {self.status()}"
            time.sleep(0.1)
        return value

    def pause(self, owner, *ids, **arguments):
        """Have this owner pause exactly these deployments."""
        paused = [{"id": name, "state": "paused"} for name in ids]
        result = module(
            "litellm_deployments",
            registry=str(self.root / "registry"),
            deployments=paused,
            owner=owner,
            purge_pauses=True,
            **arguments,
        )
        assert not result.get("failed"), result["msg"]
        return result

    def reports(self):
        return [json.loads(path.read_text()) for path in (self.root / "registry" / "applied").glob("*.json")]

    def open(self, path, payload, key=None):
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or self.key}"}
        request = urllib.request.Request(self.url + path, json.dumps(payload).encode(), headers)
        return urllib.request.urlopen(request, timeout=30)

    def ask(self, model="chat", key=None):
        """Ask one question; return (status, id of the deployment, retries, body)."""
        payload = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        try:
            with self.open("/v1/chat/completions", payload, key) as reply:
                headers = reply.headers
                served, retries = headers["x-litellm-model-id"], int(headers["x-litellm-attempted-retries"] or 0)
                return reply.status, served, retries, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None, 0, error.read().decode()

    def ask_many(self, count, at_a_time=8, model="chat"):
        """Ask `count` questions; return how many each deployment answered, after all were answered."""
        with ThreadPoolExecutor(at_a_time) as pool:
            answers = list(pool.map(lambda _number: self.ask(model), range(count)))
        assert {answer[0] for answer in answers} == {200}, [a for a in answers if a[0] != 200][:3]
        return Counter(answer[1] for answer in answers)

    @contextlib.contextmanager
    def traffic(self, at_a_time=3):
        """Keep asking while the block runs; yields the list of answers, which is whole after the block."""
        answers, stopped = [], threading.Event()

        def run():
            while not stopped.is_set():
                try:
                    answers.append(self.ask())
                except OSError as error:
                    answers.append((0, None, 0, str(error)))

        threads = [threading.Thread(target=run) for _number in range(at_a_time)]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
