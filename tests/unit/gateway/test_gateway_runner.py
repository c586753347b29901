# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway runner with a small server in the place of LiteLLM: same socket, same reports."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[3] / "roles" / "litellm" / "files" / "gateway_runner.py"
SERVER = """#!{python}
import json, os, signal, socket, sys, threading, time
listener = socket.socket(fileno=int(os.environ["LMFLEET_SOCKET"]))
ending = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ending.set())
print("{word} says hello", flush=True)
if {exits}:
    sys.exit("no luck")
report = {{"run": os.environ["LMFLEET_RUN"]}}
def serve():
    while True:
        try:
            connection = listener.accept()[0]
        except BlockingIOError:
            if ending.is_set():
                listener.close()
                return
            time.sleep(0.005)
            continue
        connection.setblocking(True)
        connection.recv(65536)
        if {slow}:
            time.sleep({slow})
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: {size}\\r\\nConnection: close\\r\\n\\r\\n{word}")
        connection.close()
listener.setblocking(False)
listener.listen(2048)
thread = threading.Thread(target=serve)
thread.start()
path = os.path.join(os.environ["LMFLEET_REGISTRY"], "applied", str(os.getpid()) + ".json")
while not ending.is_set():
    if {reports}:
        with open(path + ".tmp", "w") as stream:
            json.dump(dict(report, at=time.time()), stream)
        os.replace(path + ".tmp", path)
    for _ in range({lines}):
        print("x" * 99, flush=True)
    ending.wait(0.1)
thread.join()
"""


class Gateway:
    def __init__(self, root):
        self.root, self.process = root, None
        self.port = free_port()
        (root / "registry" / "applied").mkdir(parents=True)
        self.program = root / "gateway_runner.py"
        self.become(RUNNER.read_text())

    def become(self, text):
        """Exchange the program, as the module does."""
        (self.root / "next.py").write_text(text)
        (self.root / "next.py").replace(self.program)

    def release(self, name, port=None, exits=False, reports=True, slow=0, lines=0, workers=1, **settings):
        folder = self.root / "releases" / name
        folder.mkdir(parents=True)
        settings = {"start_timeout": 30, "drain_timeout": 30, "log_bytes": 1 << 20, "log_files": 3, **settings}
        release = {"address": "127.0.0.1", "port": port or self.port, "workers": workers, **settings}
        (folder / "release.json").write_text(json.dumps(release))
        text = SERVER.format(
            python=sys.executable, word=name, size=len(name), exits=exits, reports=reports, slow=slow, lines=lines
        )
        (folder / "run-gateway").write_text(text)
        (folder / "run-gateway").chmod(0o755)
        self.use(name)

    def use(self, name):
        (self.root / "next").symlink_to(f"releases/{name}")
        (self.root / "next").replace(self.root / "current")

    def start(self):
        with (self.root / "said").open("a") as said:
            command = [sys.executable, str(self.program), str(self.root)]
            self.process = subprocess.Popen(command, stdout=said, stderr=said)

    def status(self):
        try:
            return json.loads((self.root / "status.json").read_text())
        except FileNotFoundError:
            return {}

    def wait(self, condition, timeout=30):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{self.status()}\n{self.log()}"
            time.sleep(0.02)

    def wait_for(self, **status):
        self.wait(lambda: all(self.status().get(key) == value for key, value in status.items()))

    def log(self):
        path = self.root / "logs" / "gateway.log"
        return path.read_text() + (self.root / "said").read_text() if path.exists() else ""

    def ask(self, port=None, address="127.0.0.1"):
        connection = http.client.HTTPConnection(address, port or self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().read().decode()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(40)
        for group in self.status().get("groups", []):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@pytest.fixture
def gateway(tmp_path):
    gateway = Gateway(tmp_path / "gateway")
    yield gateway
    gateway.stop()


@pytest.fixture
def running(gateway):
    gateway.release("1")
    gateway.start()
    gateway.wait_for(serving="1")
    return gateway


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def clients(gateway, count=4):
    """Ask all the time; yields what was answered. Any failure ends a client and is raised after the block."""
    answers, stopped, failures = [], threading.Event(), []

    def run():
        try:
            while not stopped.is_set():
                answers.append(gateway.ask())
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _number in range(count)]
    for thread in threads:
        thread.start()
    yield answers
    stopped.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_another_release_takes_over_without_a_failed_request(running):
    with clients(running) as answers:
        for number in (2, 3, 4):
            running.release(str(number))
            running.wait_for(serving=str(number))
            running.wait(lambda number=number: answers[-1] == str(number))
    assert set(answers) == {"1", "2", "3", "4"}


def test_who_is_being_answered_gets_the_answer_to_its_end(gateway):
    gateway.release("1", slow=2)
    gateway.start()
    gateway.wait_for(serving="1")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(gateway.ask()))
    thread.start()
    time.sleep(0.3)
    gateway.release("2")
    gateway.wait_for(serving="2")
    assert gateway.status()["ending"] == ["1"]
    assert answers == []
    thread.join()
    assert answers == ["1"]
    gateway.wait(lambda: len(gateway.status()["groups"]) == 1)


def test_who_never_ends_is_ended_after_the_drain_timeout(gateway):
    gateway.release("1", slow=600, drain_timeout=1)
    gateway.start()
    gateway.wait_for(serving="1")
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        gateway.release("2")
        gateway.wait_for(serving="2")
        gateway.wait(lambda: len(gateway.status()["groups"]) == 1)
        assert gateway.ask() == "2"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"exits": True}, "exit code 1: 2 says hello | no luck"),
        ({"reports": False, "start_timeout": 1}, "0 of 1 workers reported within 1 s: 2 says hello"),
        ({"workers": 2, "start_timeout": 1}, "1 of 2 workers reported"),
    ],
)
def test_a_release_that_does_not_come_up_is_refused_and_the_former_one_serves(running, settings, reason):
    running.release("2", **settings)
    running.wait(lambda: running.status()["refused"])
    assert reason in running.status()["refused"]["reason"]
    assert running.status()["serving"] == "1"
    # Not even by chance does the refused one answer once it is ended.
    assert {running.ask() for _number in range(20)} == {"1"}
    assert len(running.status()["groups"]) == 1
    running.use("1")
    running.wait_for(refused=None)
    running.release("3")
    running.wait_for(serving="3")


def test_a_broken_release_is_refused(running):
    (running.root / "releases" / "2").mkdir()
    running.use("2")
    running.wait(lambda: running.status()["refused"])
    assert "release.json cannot be used" in running.status()["refused"]["reason"]
    assert running.ask() == "1"


def test_another_port_is_opened_and_the_former_one_closed(running):
    other = free_port()
    running.release("2", port=other)
    running.wait_for(serving="2")
    assert running.ask(other) == "2"
    running.wait(lambda: len(running.status()["groups"]) == 1)
    with pytest.raises(ConnectionRefusedError):
        running.ask()


def test_another_address_with_the_same_port_takes_over_without_a_failed_request(running):
    with clients(running) as answers:
        for number, address in ((2, "0.0.0.0"), (3, "127.0.0.1"), (4, "::"), (5, "127.0.0.1")):
            running.release(str(number), address=address)
            running.wait_for(serving=str(number))
            running.wait(lambda number=number: answers[-1] == str(number))
            running.wait(lambda: len(running.status()["groups"]) == 1)
            # Only who listens on all addresses is reached at this one.
            with contextlib.nullcontext() if ":" in address or address == "0.0.0.0" else pytest.raises(OSError):
                running.ask(address="127.0.0.2")


def test_on_another_address_nothing_is_taken_before_there_is_somebody_who_answers(gateway):
    gateway.release("1", address="0.0.0.0")
    gateway.start()
    gateway.wait_for(serving="1")
    with clients(gateway) as answers:
        gateway.release("2", address="127.0.0.1", exits=True)
        gateway.wait(lambda: gateway.status()["refused"])
    assert set(answers) == {"1"}


@pytest.mark.parametrize("address", ["localhost", "127.1"])
def test_an_address_in_other_words_is_the_same_for_the_next_release(gateway, address):
    for number in ("1", "2"):
        gateway.release(number, address=address)
        if number == "1":
            gateway.start()
        gateway.wait_for(serving=number, refused=None)


def test_a_port_that_somebody_has_is_named(running):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        running.release("2", port=port)
        running.wait(lambda: running.status()["refused"])
    assert f"cannot listen on 127.0.0.1 port {port}" in running.status()["refused"]["reason"]
    assert running.ask() == "1"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"port": 70000}, "cannot listen on 127.0.0.1 port 70000: bind(): port must be 0-65535"),
        ({"port": -1}, "cannot listen on 127.0.0.1 port -1"),
        ({"address": "1\0"}, "cannot listen on 1"),
        ({"address": "x" * 300}, "cannot listen on xxx"),
        ({"drain_timeout": float("inf")}, "OverflowError"),
        ({"log_files": float("inf")}, "OverflowError"),
    ],
)
def test_settings_that_nothing_can_be_made_of_are_refused_and_do_not_end_the_runner(running, settings, reason):
    running.release("2", **settings)
    running.wait(lambda: running.status()["refused"] or running.process.poll() is not None)
    assert running.process.poll() is None, running.log()
    assert reason in running.status()["refused"]["reason"]
    assert running.ask() == "1"
    running.release("3")
    running.wait_for(serving="3", refused=None)


def test_a_server_that_dies_is_started_again_and_clients_wait_for_it(running):
    group = running.status()["groups"][0]
    os.killpg(group, signal.SIGKILL)
    assert running.ask() == "1"
    running.wait(lambda: running.status()["groups"] not in ([group], []))
    assert "it is started again" in running.log()


def another(slow_check=0.0):
    """Return the text of another program, which takes its time to say that it can be one, and its fingerprint."""
    first = "import sys\n"
    assert first in RUNNER.read_text()
    wait = f"{first}import time as clock\nclock.sleep({slow_check} * ('--check' in sys.argv))\n"
    text = RUNNER.read_text().replace(first, wait, 1)
    return text, hashlib.sha256(text.encode()).hexdigest()[:32]


def test_another_program_goes_on_with_the_same_servers_without_a_failed_request(gateway):
    """In the same process, with one that serves, and one that has a request in hand from before."""
    gateway.release("1", slow=3)
    gateway.start()
    gateway.wait_for(serving="1")
    slow = []
    thread = threading.Thread(target=lambda: slow.append(gateway.ask()))
    thread.start()
    time.sleep(0.3)
    gateway.release("2")
    gateway.wait_for(serving="2")
    before = gateway.status()
    assert before["ending"] == ["1"]
    text, program = another()
    with clients(gateway) as answers:
        gateway.become(text)
        gateway.wait_for(program=program)
        after = gateway.status()
        assert {**after, "at": 0, "program": ""} == {**before, "at": 0, "program": ""}
        gateway.release("3")
        gateway.wait_for(serving="3")
        gateway.wait(lambda: answers[-1] == "3")
    thread.join()
    assert slow == ["1"]
    gateway.wait(lambda: len(gateway.status()["groups"]) == 1)
    assert set(answers) == {"2", "3"}


def test_what_it_has_inherited_is_started_again_when_it_dies_and_ends_with_it(running):
    text, program = another()
    running.become(text)
    running.wait_for(program=program)
    [group] = running.status()["groups"]
    os.killpg(group, signal.SIGKILL)
    assert running.ask() == "1"
    running.become(RUNNER.read_text())
    running.wait(lambda: running.status()["program"] != program)
    [group] = running.status()["groups"]
    running.process.terminate()
    assert running.process.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module\n", "exit code 1: "),
        ("", "exit code 0: it said nothing"),
        ("print('something else')\n", "exit code 0: something else"),
    ],
)
def test_a_program_that_cannot_be_one_is_refused_and_the_one_there_is_goes_on(running, text, reason):
    good = running.status()["program"]
    running.become(text)
    running.wait(lambda: running.status()["refused_program"])
    refused = running.status()
    assert (refused["program"], refused["pid"]) == (good, running.process.pid)
    assert reason in refused["refused_program"]["reason"]
    assert running.ask() == "1"
    running.become(RUNNER.read_text())
    running.wait_for(refused_program=None)
    assert running.status()["program"] == good


@pytest.mark.parametrize(("number", "lives"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_a_signal_that_comes_while_another_program_is_looked_at_is_followed(running, number, lives):
    text, program = another(slow_check=1.5)
    running.become(text)
    [group] = running.status()["groups"]
    time.sleep(1)
    running.process.send_signal(number)
    if lives:
        running.wait_for(program=program)
        assert running.status()["groups"] != [group], "the server has started anew"
        running.wait(lambda: "going on as another program" in running.log())
    else:
        assert running.process.wait(30) == 0
        assert running.status()["program"] != program


def test_the_bounds_of_the_logs_and_of_the_last_requests_hold_for_another_program(gateway):
    gateway.release("1", slow=600, drain_timeout=4, lines=50, log_bytes=10_000, log_files=8)
    gateway.start()
    gateway.wait_for(serving="1")
    logs = gateway.root / "logs"
    gateway.wait((logs / "gateway.log.7").exists)
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        time.sleep(0.2)
        gateway.release("2", lines=50, log_bytes=10_000, log_files=8)
        gateway.wait_for(serving="2")
        text, program = another()
        gateway.become(text)
        gateway.wait_for(program=program)
        assert gateway.status()["ending"] == ["1"]
        gateway.wait(lambda: not gateway.status()["ending"], timeout=10)
    inode = (logs / "gateway.log.7").stat().st_ino
    gateway.wait(lambda: (logs / "gateway.log.7").stat().st_ino != inode)
    assert {path.name for path in logs.iterdir()} == {"gateway.log", *(f"gateway.log.{n}" for n in range(1, 8))}


def test_a_server_that_cannot_be_taken_over_is_ended_and_started_again(running):
    [group] = running.status()["groups"]
    text, _program = another()
    running.become(text.replace('read_release(root, told["release"])', 'read_release(root, "none")'))
    running.wait(lambda: "ending a server that cannot be taken over" in running.log())
    running.wait(lambda: running.status()["groups"] not in ([group], []))
    assert running.ask() == "1"
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_hangup_starts_the_server_anew(running):
    group = running.status()["groups"]
    with clients(running):
        running.process.send_signal(signal.SIGHUP)
        running.wait(lambda: len(running.status()["groups"]) == 1 and running.status()["groups"] != group)


def test_a_hangup_that_fails_leaves_the_server_that_is_started_again_after_a_crash(running):
    program = running.root / "releases" / "1" / "run-gateway"
    good = program.read_text()
    program.write_text("#!/bin/sh\nexit 3\n")
    running.process.send_signal(signal.SIGHUP)
    running.wait(lambda: "release 1 is not served: it ended with exit code 3" in running.log())
    program.write_text(good)
    group = running.status()["groups"]
    assert (running.status()["serving"], running.status()["refused"]) == ("1", None)
    os.killpg(group[0], signal.SIGKILL)
    running.wait(lambda: running.status()["groups"] not in (group, []))
    assert running.ask() == "1"
    assert running.process.poll() is None


def test_what_served_last_is_served_when_the_wanted_one_does_not_come_up(running):
    running.process.kill()
    running.process.wait()
    running.release("2", exits=True)
    running.start()
    running.wait(lambda: running.status()["pid"] == running.process.pid and running.status()["serving"] == "1")
    assert running.status()["refused"]["release"] == "2"
    assert running.ask() == "1"


def test_a_killed_runner_leaves_nothing_that_holds_the_port(running):
    running.process.kill()
    running.process.wait()
    running.start()
    running.wait(lambda: running.status()["pid"] == running.process.pid and running.status()["serving"])
    assert "a server that a former runner left" in running.log()
    assert running.ask() == "1"


def test_with_nothing_to_serve_it_ends(gateway):
    gateway.release("1", exits=True)
    gateway.start()
    assert gateway.process.wait(30) == 1
    assert "no luck" in gateway.log()


def test_without_a_release_it_ends_as_misconfigured(gateway):
    gateway.start()
    assert gateway.process.wait(30) == 78


def test_it_ends_with_all_it_started(running):
    group = running.status()["groups"][0]
    running.process.terminate()
    assert running.process.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_the_logs_stay_within_their_bounds(gateway):
    gateway.release("1", lines=50, log_bytes=10_000, log_files=3)
    gateway.start()
    logs = gateway.root / "logs"
    gateway.wait((logs / "gateway.log.2").exists)
    inode = (logs / "gateway.log.2").stat().st_ino
    gateway.wait(lambda: (logs / "gateway.log.2").stat().st_ino != inode)
    assert {path.name for path in logs.iterdir()} == {"gateway.log", "gateway.log.1", "gateway.log.2"}
    assert all(path.stat().st_size <= 10_000 for path in logs.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in logs.iterdir())


@pytest.mark.parametrize("files", [1, 0])
def test_a_log_without_former_parts_begins_anew(gateway, files):
    gateway.release("1", lines=50, log_bytes=10_000, log_files=files)
    gateway.start()
    logs = gateway.root / "logs"
    gateway.wait((logs / "gateway.log").exists)
    (logs / "gateway.log.1").write_text("of a time with more of them")
    gateway.wait(lambda: not (logs / "gateway.log.1").exists())
    for _look in range(20):
        assert [(path.name, path.stat().st_size <= 10_000) for path in logs.iterdir()] == [("gateway.log", True)]
        time.sleep(0.05)


def test_two_of_its_lines_tell_what_happens(running):
    assert re.search(r"gateway runner: release 1 serves 127\.0\.0\.1:\d+", running.log())
