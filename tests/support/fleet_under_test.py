# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet of two sandbox Macs, and what a person would do with it."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SANDBOX = REPOSITORY / "tests" / "sandbox" / "sandbox"
ANSIBLE_PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
# Each process of pytest-xdist has a realm of its own; tools/test.sh takes them down by these names.
NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REALM, NETWORK = f"e2e-{NUMBER}", f"10.77.{8 + NUMBER}"
STATE = f"/var/tmp/lmfleet-sandbox/{REALM}"
ALL_AT_ONCE = {"lmfleet_min_capacity": "0", "lmfleet_batch": "100%", "lmfleet_canary": False}
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


class Run:
    """A finished ansible-playbook."""

    def __init__(self, process: subprocess.Popen, output: str):
        self.code = process.returncode
        self.output = output
        self.changed = {match[1]: int(match[3]) for match in RECAP.finditer(output)}

    def succeeded(self) -> Run:
        assert self.code == 0, self.output
        return self

    def said(self, *words: str) -> Run:
        """Assert that the output has the words; the line breaks of a long message do not count."""
        text = " ".join(self.output.split())
        for word in words:
            assert word in text, f"{word!r} not in:\n{self.output}"
        return self


class Fleet:
    """The inventory of two sandbox Macs, and commands for them."""

    def __init__(self, folder: Path):
        self.folder = folder
        shipped = REPOSITORY / "inventory" / "sandbox"
        self.hosts = yaml.safe_load((shipped / "hosts.yml").read_text())
        for number, host in enumerate(self.hosts["all"]["children"]["macs"]["hosts"].values(), start=11):
            host["ansible_host"] = f"{NETWORK}.{number}"
        self.variables = {
            group: yaml.safe_load((shipped / "group_vars" / f"{group}.yml").read_text())
            for group in ("all", "macs", "gateways")
        }
        # Most tests change all at once. How that costs no request is in test_rollout.py.
        self.variables["all"].update(ALL_AT_ONCE)
        self.variables["all"].update(sandbox_state=STATE, sandbox_mirror=f"http://{NETWORK}.1:8080")
        # One worker unless a test needs more: each takes seconds of a whole core to start.
        self.variables["gateways"].update(queue_guard_interval=1, queue_guard_ttl=15, litellm_workers=1)
        chat = {"name": "pretender"}
        self.variables["macs"]["lmfleet_instances"] = [
            {"name": "chat-a", "port": 1234, "models": [chat]},
            {"name": "chat-b", "port": 1235, "models": [chat, {"name": "pretender-embed"}]},
        ]
        # The real model on one of them: it takes a whole core.
        real = copy.deepcopy(self.variables["macs"]["lmfleet_instances"])
        real[0]["models"].append({"name": "smollm2-135m-instruct"})
        self.hosts["all"]["children"]["macs"]["hosts"]["mac-1"]["lmfleet_instances"] = real

    def copy(self, folder: Path) -> Fleet:
        other = copy.copy(self)
        other.folder = folder
        other.hosts, other.variables = copy.deepcopy(self.hosts), copy.deepcopy(self.variables)
        return other

    def start(self, *arguments: str, playbook: str = "site.yml", **environment: str) -> subprocess.Popen:
        (self.folder / "group_vars").mkdir(parents=True, exist_ok=True)
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(self.hosts))
        for group, variables in self.variables.items():
            (self.folder / "group_vars" / f"{group}.yml").write_text(yaml.safe_dump(variables))
        # Not the folder: an inventory of another test inside it would be read as well.
        command = [str(ANSIBLE_PLAYBOOK), "-i", str(self.folder / "hosts.yml"), playbook, *arguments]
        variables = {**os.environ, "ANSIBLE_NOCOLOR": "1", "LMFLEET_SANDBOX_CLIENT": REALM, **environment}
        return subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that a test can kill it with its workers
        )

    def play(self, *arguments: str, playbook: str = "site.yml", **environment: str) -> Run:
        process = self.start(*arguments, playbook=playbook, **environment)
        return Run(process, process.communicate()[0])

    def kill(self, process: subprocess.Popen) -> None:
        """End a run with kill -9. Its workers have sessions of their own, and hang about until the realm goes."""
        process.kill()
        process.communicate()

    def sandbox(self, *words: str) -> str:
        result = subprocess.run(
            [sys.executable, SANDBOX, "--realm", REALM, *words], check=False, capture_output=True, text=True
        )
        assert result.returncode == 0, f"sandbox {' '.join(words)}: {result.stdout}{result.stderr}"
        return result.stdout

    def on(self, host: str, command: str, root: bool = False) -> str:
        """Run a command on a Mac. It takes a quarter of a second of a core: to wait for a file, read it."""
        words = ["exec", *(["--root"] if root else []), host, "--", *shlex.split(command)]
        return self.sandbox(*words)

    def read(self, host: str, path: str) -> str:
        """Return a file of a user from the disk of a Mac. Raises FileNotFoundError."""
        return Path(f"{STATE}/hosts/{host}/upper{path}").read_text()

    def master_key(self) -> str:
        return self.read("mac-1", "/Users/admin/.lmfleet/gateway/master_key").strip()

    def plug(self, host: str, state: str) -> None:
        """Pull the network cable of a Mac (down), or put it back (up). Who stands at the Mac notices nothing."""
        name = f"lmf{NETWORK.split('.')[2]}-{host.removeprefix('mac-')}"
        subprocess.run(["ip", "link", "set", name, state], check=True)

    def files(self, host: str) -> str:
        """Return the folders and, with times, the files that the collection could have touched on a Mac."""
        # Ansible's own folder, logs, and a file of Debian's sudo come and go.
        passing = "-not -path '*/.ansible*' -not -path '*/logs*' -not -name '.sudo_*'"
        find = f"find /Users/admin /Library/LaunchDaemons {passing}"
        return self.on(host, f"{find} ( -type d -print -o -not -type d -ls )", root=True)

    def status(self, host: str, instance: str) -> dict:
        return json.loads(self.read(host, f"/Users/admin/.lmfleet/instances/{instance}/status.json"))

    def paused_by_guard(self) -> dict:
        """Return the pauses of the queue guard that hold."""
        try:
            text = self.read("mac-1", "/Users/admin/.lmfleet/gateway/registry/paused/guard.json")
        except FileNotFoundError:
            return {}
        return {name: pause for name, pause in json.loads(text)["paused"].items() if pause["until"] > time.time()}

    def daemons(self) -> dict[str, int]:
        """Return the pid of each instance's daemon and of the gateway."""
        pids = {
            f"{host}/{instance}": self.status(host, instance)["daemon_pid"]
            for host in ("mac-1", "mac-2")
            for instance in ("chat-a", "chat-b")
        }
        job = self.on("mac-1", "launchctl print system/lmfleet.gateway")
        return {**pids, "gateway": int(re.search(r"\bpid = (\d+)", job)[1])}

    def wait_until_ready(self, host: str, instance: str, not_pid: int | None = None, timeout: float = 90) -> dict:
        deadline, status = time.monotonic() + timeout, None
        while time.monotonic() < deadline:
            try:
                status = self.status(host, instance)
            except (FileNotFoundError, ValueError):
                status = None
            if status and status["state"] == "ready" and status["daemon_pid"] != not_pid:
                return status
            time.sleep(0.5)
        raise AssertionError(f"{host}/{instance} was not ready within {timeout} s; last seen: {status}")

    def ask(self, path: str, body: dict, timeout: float = 60) -> urllib.request.http.client.HTTPResponse:
        """Send a request to the gateway. The caller reads and closes the response; HTTPError for any but 200."""
        return self.ask_gateway("mac-1", self.master_key(), path, body, timeout)

    def ask_gateway(
        self, host: str, key: str, path: str, body: dict, timeout: float = 60
    ) -> urllib.request.http.client.HTTPResponse:
        """Send a request with a key to the gateway of a Mac, as ask does."""
        request = urllib.request.Request(
            f"{gateway_url(host)}{path}",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=timeout)


def gateway_url(host: str) -> str:
    return f"http://{NETWORK}.{10 + int(host.removeprefix('mac-'))}:4000"


def chat(model: str, words: str = "Say hello.", **options) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 4, **options}
