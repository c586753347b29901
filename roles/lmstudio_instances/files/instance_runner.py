# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one LM Studio instance: ``instance_runner.py <instance home>``, as the program of a launchd job.

It starts llmster in the foreground with a HOME of its own, starts the server, loads the models that
``<instance home>/instance.json`` declares, and then watches. What it sees stands in ``<instance home>/status.json``.

Exit codes: 0 stopped, or the declaration changed in a way that needs a new start; 1 the daemon died or went silent
(launchd starts it again); 78 the declaration is invalid.

Needs nothing but the Python 3.9 of the Command Line Tools.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

EXIT_LOST = 1
EXIT_CONFIG = 78

LMS_TIMEOUT = 30.0  # seconds for a question to lms; loads have a timeout of their own
HTTP_TIMEOUT = 5.0  # seconds for one request to the server
IDLE_PS_INTERVAL = 30.0  # seconds between two `lms ps` while no request runs
SILENT_POLLS = 3  # polls without greeting after which the server counts as hung
RETRY_FIRST, RETRY_MOST = 5.0, 300.0  # seconds until a failed load is tried again, doubled each time
DECLARATION_CHECK = 1.0  # seconds between two looks at instance.json
PORT_RETRY = 5.0  # seconds between two tries for a port that is taken

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\r\x07]")


class DeclarationError(Exception):
    """instance.json cannot be used; the text says why."""


class StopRequestedError(Exception):
    """launchd wants the job to end."""


class ReplacedError(Exception):
    """The declaration changed in something only a new start can apply."""


class DaemonLostError(Exception):
    """The daemon died, went silent, or never came up; the text says which."""


# -- The declaration -----------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A model to keep loaded. None for context_length, parallel or gpu: not passed to `lms load`."""

    identifier: str
    path: str
    type: str
    context_length: int | None
    parallel: int | None
    gpu: str | None
    fingerprint: str


class Declaration(NamedTuple):
    """instance.json; times in seconds. `generation` is the sha256 of its bytes."""

    name: str
    address: str
    port: int
    llmster: str
    lms: str
    start_timeout: float
    load_timeout: float
    stop_timeout: float
    poll_interval: float
    models: tuple[Model, ...]
    generation: str

    def needs_new_start(self, other: Declaration) -> bool:
        """Tell whether anything but the models differs."""
        return self._replace(models=(), generation="") != other._replace(models=(), generation="")


_TEXT, _NUMBER, _COUNT = (str,), (int, float), (int,)
_FIELDS = {
    "name": _TEXT,
    "address": _TEXT,
    "port": _COUNT,
    "llmster": _TEXT,
    "lms": _TEXT,
    "start_timeout": _NUMBER,
    "load_timeout": _NUMBER,
    "stop_timeout": _NUMBER,
    "poll_interval": _NUMBER,
}
_MODEL_FIELDS = {"identifier": _TEXT, "path": _TEXT, "type": _TEXT, "fingerprint": _TEXT}
_MODEL_OPTIONS = {"context_length": _COUNT, "parallel": _COUNT, "gpu": (str, int, float)}


def parse_declaration(content: bytes) -> Declaration:
    """Return the Declaration in the bytes of an instance.json. Raises DeclarationError."""
    try:
        data = json.loads(content)
    except ValueError as error:
        raise DeclarationError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DeclarationError("not a JSON object")
    values = {name: _checked(data, name, kinds, "") for name, kinds in _FIELDS.items()}
    if not 1 <= values["port"] <= 65535:
        raise DeclarationError(f"port {values['port']} is not between 1 and 65535")
    for name, kinds in _FIELDS.items():
        if kinds is _NUMBER and values[name] <= 0:
            raise DeclarationError(f"{name} must be more than 0 seconds")
    entries = data.get("models")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DeclarationError("models must be a list of objects")
    models = tuple(_parse_model(entry) for entry in entries)
    identifiers = [model.identifier for model in models]
    for identifier in identifiers:
        if identifiers.count(identifier) > 1:
            raise DeclarationError(f"identifier {identifier} is declared twice")
    return Declaration(models=models, generation=hashlib.sha256(content).hexdigest(), **values)


def _parse_model(entry: dict[str, Any]) -> Model:
    where = f"model {entry.get('identifier')}: "
    values = {name: _checked(entry, name, kinds, where) for name, kinds in _MODEL_FIELDS.items()}
    for name, kinds in _MODEL_OPTIONS.items():
        values[name] = None if entry.get(name) is None else _checked(entry, name, kinds, where)
    if values["gpu"] is not None:
        values["gpu"] = str(values["gpu"])
    return Model(**values)


def _checked(data: dict[str, Any], name: str, kinds: tuple[type, ...], where: str) -> Any:
    value = data.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
        raise DeclarationError(f"{where}{name} is missing or of the wrong type: {value!r}")
    return value


# -- What is loaded against what is declared: pure -----------------------------------------------------------------


class Known(NamedTuple):
    """A model this runner loaded: with which fingerprint, and what `lms ps` showed right after."""

    fingerprint: str
    settings: tuple[Any, ...]


class ModelPlan(NamedTuple):
    unload: list[str]
    load: list[Model]
    unmanaged: list[str]


def settings_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Return what of a `lms ps` entry must stay as it was after the load; a JIT load shows by its ttlMs."""
    return entry.get("path"), entry.get("contextLength"), entry.get("parallel"), entry.get("ttlMs")


def plan_models(declared: tuple[Model, ...], loaded: list[dict[str, Any]], known: dict[str, Known]) -> ModelPlan:
    """Return what to unload, what to load, and which loaded identifiers are nobody's business here.

    A declared identifier that somebody else loaded, or loaded again with other settings, is replaced: clients that
    ask for it would be served something else than declared.
    """
    by_identifier = {entry.get("identifier"): entry for entry in loaded}
    wanted = {model.identifier: model for model in declared}
    unload = [name for name in known if name not in wanted and name in by_identifier]
    load = []
    for model in declared:
        entry = by_identifier.get(model.identifier)
        ours = known.get(model.identifier)
        if entry is None:
            load.append(model)
        elif ours is None or ours.fingerprint != model.fingerprint or ours.settings != settings_of(entry):
            unload.append(model.identifier)
            load.append(model)
    unmanaged = [name for name in by_identifier if name not in wanted and name not in known]
    return ModelPlan(unload, load, unmanaged)


def differences(model: Model, entry: dict[str, Any]) -> str:
    """Return how a loaded model differs from its declaration, "" when it does not."""
    found = []
    for name, shown in (("context_length", entry.get("contextLength")), ("parallel", entry.get("parallel"))):
        wanted = getattr(model, name)
        if wanted is not None and shown is not None and shown != wanted:
            found.append(f"{name} is {shown}, declared {wanted}")
    return ", ".join(found)


def load_arguments(model: Model, key: str) -> list[str]:
    """Return the arguments of `lms` that load the model whose exact key is `key`."""
    arguments = ["load", key, "-y", "--identifier", model.identifier]
    if model.context_length is not None:
        arguments += ["--context-length", str(model.context_length)]
    if model.parallel is not None:
        arguments += ["--parallel", str(model.parallel)]
    if model.gpu is not None:
        arguments += ["--gpu", model.gpu]
    return arguments


# -- Small transports ----------------------------------------------------------------------------------------------


def log(text: str) -> None:
    """Write one line with a time stamp to stdout, which launchd appends to the log file."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text, flush=True)


def write_atomically(path: str, value: object) -> None:
    """Write `value` as JSON so that a reader sees the old file or the new one."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2)
        stream.write("\n")
    os.replace(temporary, path)


def read_object(path: str) -> dict[str, Any]:
    """Return the JSON object in a file, {} when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def reachable_address(address: str) -> str:
    """Return where a server bound to `address` is reached from this Mac."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def get_json(address: str, port: int, path: str) -> Any:
    """Return the JSON body of a GET, None when there is none; the status code proves nothing and is not looked at."""
    connection = http.client.HTTPConnection(reachable_address(address), port, timeout=HTTP_TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def loaded_identifiers(address: str, port: int) -> set[str] | None:
    """Return the identifiers the server serves, None when it does not tell."""
    body = get_json(address, port, "/api/v1/models")
    try:
        return {str(loaded["id"]) for model in body["models"] for loaded in model["loaded_instances"]}
    except (KeyError, TypeError):
        return None


def port_trouble(address: str, port: int) -> str:
    """Return why a server could not listen there, "" when it could.

    Connecting comes first: on macOS a socket may be bound beside one that listens on all addresses.
    """
    try:
        socket.create_connection((reachable_address(address), port), timeout=1).close()
        return f"port {port} on {address} is in use by another program"
    except OSError:
        pass
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {port} on {address} is in use by another program"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"this Mac does not have the address {address} (now)"
            return f"cannot listen on port {port} of {address}: {error.strerror}"
    return ""


def process_row(pid: int) -> tuple[int, str] | None:
    """Return (parent pid, command line) of a process, None when there is no such process."""
    try:
        answer = subprocess.run(
            ["/bin/ps", "-ww", "-o", "ppid=", "-o", "command=", "-p", str(pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = answer.stdout.decode("utf-8", "replace").strip().split(None, 1)
    return (int(words[0]), words[1]) if len(words) == 2 else None


class Answer(NamedTuple):
    """What a call of lms left behind. Its exit code says nothing, so it is not kept."""

    out: str
    err: str
    timed_out: bool

    def said(self) -> str:
        """Return the last thing it said, for an error message."""
        if self.timed_out:
            return "no answer in time"
        text = _ESCAPES.sub("", self.err).strip() or _ESCAPES.sub("", self.out).strip()
        return " | ".join(line.strip() for line in text.splitlines()[-5:] if line.strip()) or "it said nothing"

    def parsed(self) -> list[dict[str, Any]] | None:
        """Return stdout as a JSON list of objects, None when it is not one."""
        try:
            value = json.loads(self.out)
        except ValueError:
            return None
        return value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else None


class Wakeups:
    """Sleeps that a signal ends at once; SIGTERM is remembered, SIGCHLD only wakes."""

    def __init__(self) -> None:
        self.stop_requested = False
        self._reader, writer = os.pipe()
        for end in (self._reader, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self.stop_requested = True

    def sleep(self, seconds: float) -> None:
        """Sleep until a signal arrives or the time is over."""
        if select.select([self._reader], [], [], max(0.0, seconds))[0]:
            os.read(self._reader, 4096)


class Places:
    """The files of one instance."""

    def __init__(self, home: str) -> None:
        self.home = os.path.abspath(home)
        internal = os.path.join(self.home, ".lmstudio", ".internal")
        self.declaration = os.path.join(self.home, "instance.json")
        self.status = os.path.join(self.home, "status.json")
        self.lock = os.path.join(self.home, ".runner.lock")
        self.daemon_info = os.path.join(internal, "http-server.json")
        self.server_config = os.path.join(internal, "http-server-config.json")

    def environment(self) -> dict[str, str]:
        """Return the environment that makes llmster and lms work for this instance and no other."""
        return {**os.environ, "HOME": self.home, "LMS_API_SERVER_INFO_PATH": self.daemon_info}


# -- The runner ----------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """A load that failed `attempts` times in a row; tried again when the monotonic clock reaches `retry_at`."""

    attempts: int
    error: str
    retry_at: float


class Runner:
    """One instance, from start to stop."""

    def __init__(self, places: Places, declaration: Declaration, wakeups: Wakeups) -> None:
        self.places = places
        self.declaration = declaration
        self.wakeups = wakeups
        self.version = _sha256_of(__file__)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.daemon_pid: int | None = None
        self.control_port: int | None = None
        self.phase = "starting"
        self.error: str | None = None
        self.declaration_error: str | None = None
        self.loaded: list[dict[str, Any]] = []
        self.known: dict[str, Known] = {}
        self.failures: dict[str, Failure] = {}
        self.loading: str | None = None
        self.blind: str | None = None
        self._declaration_stamp = _stamp(places.declaration)
        self._served: set[str] | None = None
        self._silent = 0
        self._next_poll = 0.0
        self._next_ps = 0.0

    def run(self) -> int:
        """Run until launchd stops the job or something is lost; return the exit code."""
        code = 0
        try:
            self._end_previous_daemon()
            self._start_daemon()
            self._start_server()
            self._watch()
        except StopRequestedError:
            log("stopping: launchd asked for it")
        except ReplacedError:
            log("stopping: the declaration changed, a new start applies it")
        except DaemonLostError as error:
            self.error = str(error)
            log(f"stopping: {error}")
            code = EXIT_LOST
        finally:
            self._stop_daemon()
        return code

    # Status

    def state(self) -> str:
        """Return the state as status.json knows it."""
        if self.phase != "watching":
            return self.phase
        if self.failures or self.blind or self.declaration_error or self._differences():
            return "degraded"
        plan = plan_models(self.declaration.models, self.loaded, self.known)
        return "loading" if plan.load or plan.unload else "ready"

    def _differences(self) -> list[str]:
        found = []
        for model in self.declaration.models:
            entry = self._entry(model.identifier)
            ours = self.known.get(model.identifier)
            if entry and ours and ours.fingerprint == model.fingerprint:
                text = differences(model, entry)
                found += [f"model {model.identifier}: {text}"] if text else []
        return found

    def _entry(self, identifier: str) -> dict[str, Any] | None:
        return next((entry for entry in self.loaded if entry.get("identifier") == identifier), None)

    def write_status(self) -> None:
        """Write status.json."""
        problems = [f"model {name}: {failure.error}" for name, failure in self.failures.items()]
        problems += self._differences()
        if self.declaration_error:
            problems.append(f"instance.json was changed and is invalid: {self.declaration_error}")
        if self.blind:
            problems.append(f"lms ps does not tell what is loaded: {self.blind}")
        status = {
            "instance": self.declaration.name,
            "pid": os.getpid(),
            "runner": self.version,
            "llmster": self.declaration.llmster,
            "daemon_pid": self.daemon_pid,
            "control_port": self.control_port,
            "address": self.declaration.address,
            "port": self.declaration.port,
            "generation": self.declaration.generation,
            "state": self.state(),
            "error": "; ".join(problems) or self.error,
            "updated_at": time.time(),
            "models": [self._model_status(model) for model in self.declaration.models],
            "unmanaged": plan_models(self.declaration.models, self.loaded, self.known).unmanaged,
        }
        try:
            write_atomically(self.places.status, status)
        except OSError as error:  # a full disk must not take the models down
            log(f"cannot write {self.places.status}: {error}")

    def _model_status(self, model: Model) -> dict[str, Any]:
        entry = self._entry(model.identifier) or {}
        failure = self.failures.get(model.identifier)
        status = entry.get("status")
        if self.loading == model.identifier:
            status = "loading"
        elif failure:
            status = "failed"
        ours = self.known.get(model.identifier)
        return {
            "identifier": model.identifier,
            "key": entry.get("modelKey"),
            "path": model.path,
            "status": status or "missing",
            "queued": entry.get("queued") or 0,
            "parallel": entry.get("parallel"),
            "context_length": entry.get("contextLength"),
            "ttl_ms": entry.get("ttlMs"),
            "fingerprint": ours.fingerprint if ours else None,
            "error": failure.error if failure else None,
            "attempts": failure.attempts if failure else 0,
        }

    # Waiting

    def _pause(self, seconds: float) -> None:
        """Sleep; raise StopRequestedError or DaemonLostError as soon as there is a reason to."""
        if not self.wakeups.stop_requested:
            self.wakeups.sleep(seconds)
        if self.wakeups.stop_requested:
            raise StopRequestedError
        if self.daemon is not None and self.daemon.poll() is not None:
            raise DaemonLostError(f"llmster ended by itself with exit code {self.daemon.returncode}")

    def _lms(self, arguments: list[str], timeout: float = LMS_TIMEOUT, refresh: bool = False) -> Answer:
        """Call lms for this instance; with `refresh` the status of the other models is kept up to date meanwhile."""
        # Files, not pipes: whatever lms leaves running must not keep this waiting.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                process = subprocess.Popen(
                    [self.declaration.lms, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self.places.environment(),
                    cwd=self.places.home,
                )
            except OSError as error:
                return Answer("", f"cannot run {self.declaration.lms}: {error.strerror}", False)
            timed_out = not self._wait_for(process, time.monotonic() + timeout, refresh)
            return Answer(_content(out), _content(err), timed_out)

    def _wait_for(self, process: subprocess.Popen[bytes], deadline: float, refresh: bool) -> bool:
        """Return whether the process ended by itself before the deadline; it is gone afterwards in any case."""
        next_beat = time.monotonic() + self.declaration.poll_interval
        try:
            while process.poll() is None:
                now = time.monotonic()
                if now >= deadline:
                    return False
                if now >= next_beat:
                    next_beat = now + self.declaration.poll_interval
                    if refresh:
                        self._look_at_loaded()
                    self.write_status()
                self._pause(min(deadline, next_beat) - time.monotonic())
            return True
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    # Start

    def _end_previous_daemon(self) -> None:
        """End the llmster of this home that a killed runner left behind: it holds the port and the memory.

        A pid in a file may belong to anyone by now. It is ours when its command is our llmster and no runner is its
        parent: the llmster of another instance has one.
        """
        before = read_object(self.places.status)
        if before.get("state") == "stopping" and before.get("error"):
            # Said on until this start has made it better: a job that dies at once would never show why.
            self.error = f"before this start: {str(before['error']).replace('before this start: ', '')}"
        self.write_status()
        programs = {self.declaration.llmster, str(before.get("llmster") or self.declaration.llmster)}
        for pid in (before.get("daemon_pid"), read_object(self.places.daemon_info).get("pid")):
            if isinstance(pid, int) and pid > 1 and _is_orphan(pid, programs):
                log(f"ending process {pid}, the llmster that an earlier run left behind")
                self._end_process(pid)

    def _end_process(self, pid: int) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + self.declaration.stop_timeout
            try:
                os.kill(pid, number)
                while time.monotonic() < deadline:
                    self._pause(0.2)
                    os.kill(pid, 0)
            except (ProcessLookupError, PermissionError):
                return

    def _start_daemon(self) -> None:
        self._wait_for_port()
        _remove(self.places.daemon_info)
        self._write_server_config()
        try:
            self.daemon = subprocess.Popen(
                [self.declaration.llmster],
                stdin=subprocess.DEVNULL,
                env=self.places.environment(),
                cwd=self.places.home,
            )
        except OSError as error:
            raise DaemonLostError(f"cannot run {self.declaration.llmster}: {error.strerror}") from None
        self.daemon_pid = self.daemon.pid
        self.write_status()
        log(f"llmster started as process {self.daemon.pid}")
        deadline = time.monotonic() + self.declaration.start_timeout
        while True:
            info = read_object(self.places.daemon_info)
            if isinstance(info.get("pid"), int) and isinstance(info.get("port"), int):
                self.daemon_pid, self.control_port = info["pid"], info["port"]
                break
            if time.monotonic() >= deadline:
                raise DaemonLostError(
                    f"llmster did not open its control port within {self.declaration.start_timeout:g} s"
                )
            self._beat(0.2)
        self.write_status()

    def _wait_for_port(self) -> None:
        """Wait until the port is free: starting llmster before would only make it crash again and again."""
        while True:
            trouble = port_trouble(self.declaration.address, self.declaration.port)
            if not trouble:
                return
            if self.error != trouble:
                log(f"waiting: {trouble}")
                self.error = trouble
            self.write_status()
            self._pause(PORT_RETRY)
            self._check_declaration()

    def _write_server_config(self) -> None:
        config = read_object(self.places.server_config)
        config.update(
            port=self.declaration.port,
            networkInterface=self.declaration.address,
            justInTimeModelLoading=False,  # a model that is not declared is not loaded by a request for it
        )
        os.makedirs(os.path.dirname(self.places.server_config), exist_ok=True)
        write_atomically(self.places.server_config, config)

    def _start_server(self) -> None:
        place = f"{self.declaration.address}:{self.declaration.port}"
        deadline = time.monotonic() + self.declaration.start_timeout
        arguments = ["server", "start", "--port", str(self.declaration.port), "--bind", self.declaration.address]
        answer = self._lms(arguments, self.declaration.start_timeout)
        while not self._greets():
            if time.monotonic() >= deadline:
                raise DaemonLostError(f"no greeting on {place} after `lms server start`; lms said: {answer.said()}")
            self._beat(0.3)
        log(f"server listens on {place}, control port {self.control_port}")
        self.error = None
        self.phase = "watching"
        self._look_at_loaded()
        self.write_status()

    def _beat(self, seconds: float) -> None:
        now = time.monotonic()
        if now >= self._next_poll:
            self._next_poll = now + self.declaration.poll_interval
            self.write_status()
        self._pause(seconds)

    def _greets(self) -> bool:
        return get_json(self.declaration.address, self.declaration.port, "/lmstudio-greeting") == {"lmstudio": True}

    # Watch

    def _watch(self) -> None:
        while True:
            self._check_declaration()
            self._reconcile()
            if time.monotonic() >= self._next_poll:
                self._poll()
                self._next_poll = time.monotonic() + self.declaration.poll_interval
                self.write_status()
            self._pause(min(DECLARATION_CHECK, self._next_poll - time.monotonic()))

    def _check_declaration(self) -> None:
        stamp = _stamp(self.places.declaration)
        if stamp is None or stamp == self._declaration_stamp:
            return
        self._declaration_stamp = stamp
        try:
            changed = parse_declaration(_bytes_of(self.places.declaration))
        except (DeclarationError, OSError) as error:
            self.declaration_error = str(error)
            log(f"instance.json is invalid, going on with the one before: {error}")
            self.write_status()
            return
        self.declaration_error = None
        if changed.needs_new_start(self.declaration):
            raise ReplacedError
        if changed.generation != self.declaration.generation:
            log(f"new declaration {changed.generation[:12]}")
            self.failures.clear()
        self.declaration = changed
        self.write_status()

    def _poll(self) -> None:
        """Ask the server how it is, and lms for what is loaded when that is due."""
        if not self._greets():
            self._silent += 1
            log(f"no greeting from the server ({self._silent} of {SILENT_POLLS})")
            if self._silent >= SILENT_POLLS:
                raise DaemonLostError(f"the server did not answer {SILENT_POLLS} polls in a row")
            return
        self._silent = 0
        served = loaded_identifiers(self.declaration.address, self.declaration.port)
        changed = served != self._served
        self._served = served
        busy = any(entry.get("queued") or entry.get("status") not in (None, "idle") for entry in self.loaded)
        if changed or busy or time.monotonic() >= self._next_ps:
            self._look_at_loaded()

    def _look_at_loaded(self) -> bool:
        """Refresh what is loaded; return False, keeping the last known, when lms does not tell."""
        answer = self._lms(["ps", "--json"])
        entries = answer.parsed()
        self._next_ps = time.monotonic() + IDLE_PS_INTERVAL
        if entries is None:
            self.blind = answer.said()
            log(f"lms ps: {self.blind}")
            return False
        self.blind = None
        self.loaded = entries
        identifiers = {entry.get("identifier") for entry in entries}
        self.known = {name: known for name, known in self.known.items() if name in identifiers}
        return True

    def _reconcile(self) -> None:
        """Load and unload until the declared models are there; a failed one is tried again later, others go on."""
        now = time.monotonic()
        plan = plan_models(self.declaration.models, self.loaded, self.known)
        waiting = {name for name, failure in self.failures.items() if now < failure.retry_at}
        unload = [name for name in plan.unload if name not in waiting]
        load = [model for model in plan.load if model.identifier not in waiting]
        if not unload and not load:
            return
        self.write_status()
        for identifier in unload:
            self._unload(identifier)
        for model in load:
            if self._entry(model.identifier) is None:
                self._load(model)
            if _stamp(self.places.declaration) != self._declaration_stamp:
                return  # what comes next may no longer be wanted
        self.write_status()
        if self.state() == "ready":
            log(f"ready: {len(self.declaration.models)} model(s) loaded")

    def _unload(self, identifier: str) -> None:
        log(f"unloading {identifier}")
        answer = self._lms(["unload", identifier], self.declaration.load_timeout, refresh=True)
        if not self._look_at_loaded() or self._entry(identifier):
            self._failed(identifier, f"cannot be unloaded: {answer.said()}")
            return
        self.known.pop(identifier, None)
        self.failures.pop(identifier, None)

    def _load(self, model: Model) -> None:
        key, trouble = self._key_of(model)
        if key is None:
            self._failed(model.identifier, trouble)
            return
        log(f"loading {model.identifier} from {model.path}")
        self.loading = model.identifier
        self.write_status()
        began = time.monotonic()
        try:
            answer = self._lms(load_arguments(model, key), self.declaration.load_timeout, refresh=True)
            told = self._look_at_loaded()
        finally:
            self.loading = None
        entry = self._entry(model.identifier) if told else None
        if entry is None:
            waited = f" (after {self.declaration.load_timeout:g} s)" if answer.timed_out else ""
            self._failed(model.identifier, f"load failed{waited}: {answer.said()}")
        elif entry.get("path") != model.path:
            # lms matches names loosely; the next round unloads what is not declared.
            self._failed(model.identifier, f"lms loaded {entry.get('path')} instead of {model.path}")
        else:
            self.known[model.identifier] = Known(model.fingerprint, settings_of(entry))
            self.failures.pop(model.identifier, None)
            text = differences(model, entry)
            log(f"loaded {model.identifier} in {time.monotonic() - began:.1f} s{', but ' + text if text else ''}")
        self.write_status()

    def _key_of(self, model: Model) -> tuple[str | None, str]:
        """Return (exact key, "") of the model file, or (None, why not)."""
        answer = self._lms(["ls", "--json"])
        entries = answer.parsed()
        if entries is None:
            return None, f"lms ls: {answer.said()}"
        for entry in entries:
            if entry.get("path") == model.path and entry.get("deviceIdentifier") is None and entry.get("modelKey"):
                return str(entry["modelKey"]), ""
        return None, f"LM Studio does not list {model.path}; is the file in the models folder?"

    def _failed(self, identifier: str, error: str) -> None:
        before = self.failures.get(identifier)
        attempts = before.attempts + 1 if before else 1
        delay = min(RETRY_MOST, RETRY_FIRST * 2 ** min(attempts - 1, 10))
        self.failures[identifier] = Failure(attempts, error, time.monotonic() + delay)
        log(f"model {identifier}: {error}; next try in {delay:g} s")
        self.write_status()

    # Stop

    def _stop_daemon(self) -> None:
        """End llmster, gently first, and say in status.json how things stand."""
        self.phase = "stopping"
        self.loaded = []
        self.write_status()
        if self.daemon is not None:
            self._end_child(self.daemon)
        self.daemon_pid = self.control_port = None
        self.write_status()

    def _end_child(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.declaration.stop_timeout
        if child.poll() is None:
            child.terminate()
        while child.poll() is None and time.monotonic() < deadline:
            self.wakeups.sleep(min(self.declaration.poll_interval, deadline - time.monotonic()))
            self.write_status()
        if child.poll() is None:
            log(f"llmster did not stop within {self.declaration.stop_timeout:g} s, killing it")
            child.kill()
            child.wait()


def _is_orphan(pid: int, programs: set[str]) -> bool:
    row = process_row(pid)
    if row is None or not programs & set(row[1].split()):
        return False
    parent = process_row(row[0])
    return parent is None or os.path.basename(__file__) not in parent[1]


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


def _bytes_of(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _sha256_of(path: str) -> str:
    return hashlib.sha256(_bytes_of(path)).hexdigest()


def _content(stream: Any) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def main(arguments: list[str]) -> int:
    """Run the instance whose home is the one argument; return the exit code."""
    if len(arguments) != 1:
        print("usage: instance_runner.py <instance home>", file=sys.stderr)
        return EXIT_CONFIG
    places = Places(arguments[0])
    try:
        declaration = parse_declaration(_bytes_of(places.declaration))
    except (DeclarationError, OSError) as error:
        print(f"{places.declaration}: {error}", file=sys.stderr, flush=True)
        return EXIT_CONFIG
    with open(places.lock, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log(f"another runner holds {places.lock}")
            return EXIT_LOST
        log(f"instance {declaration.name}, declaration {declaration.generation[:12]}")
        return Runner(places, declaration, Wakeups()).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
