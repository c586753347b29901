# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: LM Studio homes in temporary folders, daemons in a private network namespace."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent
REPOSITORY = FOLDER.parents[2]
VERSION = "0.0.25-1"
CONTROL_PORTS = (41343, 52993, 16141, 39414, 22931)

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
# A started program ends when the test run is killed. (preexec_fn would warn in a threaded test run.)
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")


def mac_python() -> str:
    """Return the oldest fitting interpreter: what runs on a Mac must run on Python 3.9."""
    found = sorted(Path.home().glob(".pyenv/versions/3.9*/bin/python3.9"))
    return str(found[0]) if found else "/usr/bin/python3"


MAC_PYTHON = mac_python()


def loopback_up() -> None:
    """Bring up lo in the current network namespace (ip may not be installed)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14s", b"lo", 1 | 64, b"")  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(sock, 0x8914, request)  # SIOCSIFFLAGS


def wait_for(condition, seconds: float = 5.0, what: str = "the condition"):
    """Return the first true value of ``condition()``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.fixture(autouse=True)
def private_network():
    """Put the test's thread, and all it starts, into a network namespace of its own.

    The five control ports are one set per machine: without the right to make a namespace they must be free.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if _LIBC.unshare(_CLONE_NEWNET) != 0:
            for port in CONTROL_PORTS:
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        pytest.skip(f"no right to make a network namespace, and port {port} is in use")
            yield
            return
        loopback_up()
        yield
        assert _LIBC.setns(before, _CLONE_NEWNET) == 0
    finally:
        os.close(before)


@pytest.fixture(scope="session")
def installation(tmp_path_factory) -> Path:
    """Build the archive, unpack it and bootstrap it; return the HOME it was installed into."""
    folder = tmp_path_factory.mktemp("install")
    build = [sys.executable, FOLDER / "build_archive.py", "--version", VERSION, "--out", folder]
    subprocess.run(build, check=True, capture_output=True)
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xzf", folder / f"{VERSION}-darwin-arm64.full.tar.gz", "-C", unpacked], check=True)
    home = folder / "home"
    home.mkdir()
    environment = {"HOME": str(home), "LMS_BOOTSTRAP_INSTALL_SH": "1", "LMS_NO_MODIFY_PATH": "1"}
    command = [MAC_PYTHON, "-IS", unpacked / "llmster", "bootstrap"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=30)
    return home


class Instance:
    """One HOME with its daemon, and the ways to talk to it."""

    def __init__(self, installation: Path, home: Path, environment: dict[str, str]):
        self.home = home
        self.lmstudio = home / ".lmstudio"
        self.internal = self.lmstudio / ".internal"
        self.models = self.lmstudio / "models"
        self.info = self.internal / "http-server.json"
        self.llmster = installation / ".lmstudio" / "llmster" / VERSION / "llmster"
        self.lms_program = installation / ".lmstudio" / "bin" / "lms"
        self.environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", **environment}
        self.port = 1234
        self.process: subprocess.Popen | None = None
        home.mkdir(parents=True, exist_ok=True)

    def add_model(self, path: str, **options) -> Path:
        """Write a fake model file; options as those of fake_models.py, with underscores."""
        target = self.models / path
        command = [sys.executable, FOLDER / "fake_models.py", target]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        subprocess.run(command, check=True, capture_output=True)
        return target

    def popen(self, **options) -> subprocess.Popen:
        """Start llmster without waiting for it."""
        return subprocess.Popen(
            [*DIE_WITH_PARENT, MAC_PYTHON, "-IS", self.llmster], env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options,
        )  # fmt: skip

    def start(self) -> Instance:
        """Start the daemon and wait until it has published its control port."""
        self.process = self.popen()
        wait_for(lambda: self.published().get("pid") == self.process.pid, what="http-server.json")
        return self

    def published(self) -> dict:
        """Return http-server.json, or {} when there is none."""
        try:
            return json.loads(self.info.read_text())
        except (OSError, ValueError):
            return {}

    def serve(self, port: int = 1234, jit: bool = True) -> Instance:
        """Start the daemon and its HTTP server."""
        self.internal.mkdir(parents=True, exist_ok=True)
        (self.internal / "http-server-config.json").write_text(json.dumps({"justInTimeModelLoading": jit}))
        self.start()
        self.port = port
        assert self.lms("server", "start", "--port", str(port), "--bind", "127.0.0.1").returncode == 0
        return self

    def stop(self) -> None:
        """End the daemon, with force if it takes longer than three seconds."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def lms(self, *arguments: str, strict: bool = True, timeout: float = 15, **environment: str):
        """Run lms; ``strict`` sets LMS_API_SERVER_INFO_PATH to this instance's file."""
        env = dict(self.environment, **environment)
        if strict:
            env["LMS_API_SERVER_INFO_PATH"] = str(self.info)
        return subprocess.run(
            [*DIE_WITH_PARENT, MAC_PYTHON, "-IS", self.lms_program, *arguments], env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def json(self, *arguments: str, **options):
        """Return what lms prints as JSON."""
        return json.loads(self.lms(*arguments, "--json", **options).stdout)

    def loaded(self) -> dict[str, dict]:
        """Return {identifier: entry} of ``lms ps --json``."""
        return {model["identifier"]: model for model in self.json("ps")}

    @contextlib.contextmanager
    def request(self, method: str, path: str, body=None, timeout: float = 20, port: int | None = None, headers=()):
        """Send a request and give the response, to be read by the caller."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
            yield connection.getresponse()
        finally:
            connection.close()

    def http(self, method: str, path: str, body=None, **options):
        """Return (status, parsed body)."""
        with self.request(method, path, body, **options) as response:
            return response.status, json.loads(response.read())

    def chat(self, model: str, text: str = "hello", **options):
        """Return (status, body) of a chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], **options}
        return self.http("POST", "/v1/chat/completions", body)

    def knobs(self, **values) -> None:
        """Set the test knobs of this machine; a name without a dot is one of llmster's."""
        path = Path(self.environment["LMFLEET_SANDBOX_KNOBS"])
        temporary = path.with_suffix(".tmp")
        named = {name if name == "memory_gb" else f"llmster.{name}": value for name, value in values.items()}
        temporary.write_text(json.dumps(named))
        temporary.replace(path)


@pytest.fixture
def make_instance(installation, tmp_path):
    """Return a function that makes an Instance by name; all daemons end with the test."""
    made = []

    def make(name: str = "chat-a", **environment: str) -> Instance:
        environment.setdefault("LMFLEET_SANDBOX_KNOBS", str(tmp_path / "knobs.json"))
        instance = Instance(installation, tmp_path / "homes" / name, environment)
        made.append(instance)
        return instance

    yield make
    for instance in made:
        instance.stop()


@pytest.fixture
def instance(make_instance) -> Instance:
    """An instance with one language model and one embedding model, not started."""
    made = make_instance()
    made.add_model("lmfleet/SmolLM2/smollm2.gguf", kind="llm", name="SmolLM2", tokens_per_second=1000)
    made.add_model("lmfleet/Nomic-Embed/nomic.gguf", kind="embedding", name="Nomic Embed")
    return made
