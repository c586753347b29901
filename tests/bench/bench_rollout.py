# SPDX-License-Identifier: GPL-3.0-or-later
"""Change a fleet of six sandbox Macs while sixteen clients ask it, and count what that costs them.

Twelve instances serve two model groups; half of the clients stream. Each round loads every model with other settings,
exchanges the version of LM Studio, moves every port, and removes an instance, which the next round starts again. With
``--kills`` that many runs are killed at random moments, each followed by one that puts things right. Four times a
second a sampler counts, for each model group, the deployments that the gateway may use and that listen.

Exit code: 0 when no request failed, every group kept all deployments but those of one Mac, and no Mac was out for more
than 5 seconds beyond its need: the time that its requests took to end, its instances to restart and its models to load.
1 otherwise, 2 when there was nothing to measure.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "tests" / "sandbox"), str(REPOSITORY / "tests" / "support")]

from lmfleet_sandbox.fleet import pids_of
from lmfleet_sandbox.realm import Realm
from traffic import Traffic

REALM = Realm("bench")
GROUPS = {"pretender": "chat-a", "pretender-b": "chat-b"}
VERSIONS = ("0.0.24-1", "0.0.25-1")
CLIENTS_OF_A_GROUP = 8
SAMPLE_SECONDS = 0.25
MOST_SECONDS_BEYOND = 5.0  # that a Mac may be out, besides what its requests, instances and models take
OWNERS_THAT_STOP = ("rollout", "operator")
GATEWAY_ROOT = "Users/admin/.lmfleet/gateway"


class MeasurementError(Exception):
    """The sandbox or a run failed, so that there is nothing to measure."""


class Fleet:
    """The inventory: what a change changes, and the runs."""

    def __init__(self, folder: Path, macs: int, bake: int) -> None:
        self.folder, self.macs = folder / "inventory", [f"mac-{number}" for number in range(1, macs + 1)]
        self.batch_times = folder / "batch_times"
        self.bake = bake
        self.version, self.length, self.ports, self.without = 0, 4000, 1234, False

    def write(self) -> None:
        shipped = yaml.safe_load((REPOSITORY / "inventory/sandbox/group_vars/all.yml").read_text())["lmfleet_models"]
        model = {**shipped["pretender"], "load": {**shipped["pretender"]["load"], "context_length": self.length}}
        instances = [
            {"name": instance, "port": self.ports + number, "models": [{"name": group}]}
            for number, (group, instance) in enumerate(GROUPS.items())
        ]
        hosts = {name: {"ansible_host": REALM.address_of(number)} for number, name in enumerate(self.macs, start=1)}
        if self.without:
            hosts[self.macs[-1]]["lmfleet_instances"] = instances[:1]
        everyone = {
            "sandbox_state": str(REALM.state),
            "sandbox_mirror": f"http://{REALM.bridge_address}:8080",
            "lmfleet_models": dict.fromkeys(GROUPS, model),
            "lmfleet_canary_bake_seconds": self.bake,
            "lmstudio_version": VERSIONS[self.version],
        }
        gateways = {"hosts": {self.macs[0]: None}}
        files = {
            "hosts.yml": {"all": {"children": {"macs": {"hosts": hosts}, "gateways": gateways}}},
            "group_vars/all.yml": everyone,
            "group_vars/macs.yml": {"lmfleet_instances": instances},
        }
        (self.folder / "group_vars").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.folder / name).write_text(yaml.safe_dump(content))

    def start(self) -> subprocess.Popen:
        self.write()
        inventories = ["-i", REPOSITORY / "inventory" / "sandbox", "-i", self.folder]
        return subprocess.Popen(
            [Path(sys.executable).parent / "ansible-playbook", *inventories, REPOSITORY / "site.yml"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callback_plugins"),
                "ANSIBLE_CALLBACKS_ENABLED": "batch_times",
                "LMFLEET_BENCH_BATCHES": str(self.batch_times),
                "LMFLEET_SANDBOX_CLIENT": REALM.name,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self) -> None:
        process = self.start()
        output = process.communicate()[0]
        if process.returncode:
            raise MeasurementError(f"site.yml failed with {process.returncode}; its end:\n{output[-3000:]}")

    def seconds_beyond(self) -> float:
        """Return for how long a batch was out beyond what it needed, the most of all runs since the last call."""
        batches = [json.loads(line) for line in self.batch_times.read_text().splitlines()]
        self.batch_times.write_text("")
        return max((batch["out"] - batch["drain"] - batch["change"] for batch in batches), default=0.0)

    def kill_a_run(self, seconds: float) -> None:
        process = self.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
        process.kill()
        process.communicate()


class Sampler(threading.Thread):
    """Looks at what serves, again and again: the least of each group, and how long each Mac was out at a time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.least: dict[str, int] = {}
        self.longest: collections.Counter[str] = collections.Counter()
        self.short: set[str] = set()
        self.samples = 0
        self._out_since: dict[str, float] = {}
        self._end = threading.Event()
        self._root = Path(f"/proc/{pids_of(REALM)['mac-1']}/root/{GATEWAY_ROOT}/registry")

    def run(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            self._look()

    def stop(self) -> None:
        self._end.set()
        self.join()

    def _look(self) -> None:
        paused = set().union(*(self._read(f"paused/{owner}.json", "paused", {}) for owner in OWNERS_THAT_STOP))
        known = self._read("deployments.json", "deployments", [])
        groups, macs = collections.defaultdict(list), collections.defaultdict(list)
        for one in known:
            serves = one["model_info"]["id"] not in paused and listens(one["litellm_params"]["api_base"])
            groups[one["model_name"]].append(serves)
            macs[one["model_info"]["host"]].append(serves)
        now = time.monotonic()
        self.samples += 1
        for group, serving in groups.items():
            self.least[group] = min(sum(serving), self.least.get(group, len(serving)))
            if sum(serving) < len(serving) - 1:
                self.short.add(f"{group} had {sum(serving)} of {len(serving)}")
        for mac, serving in macs.items():
            if all(serving):
                self._out_since.pop(mac, None)
            else:
                since = self._out_since.setdefault(mac, now)
                self.longest[mac] = max(self.longest[mac], now - since)

    def _read(self, name: str, key: str, otherwise):
        try:
            return json.loads((self._root / name).read_text())[key]
        except FileNotFoundError:
            return otherwise


def listens(api_base: str) -> bool:
    address = urllib.parse.urlsplit(api_base)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except OSError:
        return False
    return True


def changes(fleet: Fleet):
    """Yield the changes of a round: what each is called, once the fleet is to be so."""
    fleet.length, fleet.without = fleet.length + 64, False
    yield "other settings for every model"
    fleet.version = 1 - fleet.version
    yield "another version of LM Studio"
    fleet.ports += 10
    yield "other ports"
    fleet.without = True
    yield "an instance removed"


def measure(name: str, work, key: str, seconds_beyond=lambda: None) -> bool:
    """Do `work` under load; print and return whether it cost nothing.

    `seconds_beyond` tells for how long a Mac was out beyond its need, None where nobody knows.
    """
    url = f"http://{REALM.address_of(1)}:4000"
    sampler = Sampler()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Traffic(url, key, group, CLIENTS_OF_A_GROUP, pause=0.1)) for group in GROUPS]
        for traffic in clients:
            traffic.wait_for(CLIENTS_OF_A_GROUP)
        sampler.start()
        work()
        sampler.stop()
        for traffic in clients:
            traffic.wait_for(CLIENTS_OF_A_GROUP)
    answers, failed = sum(len(one.answers) for one in clients), [bad for one in clients for bad in one.failed()]
    least = ", ".join(f"{group} {count}" for group, count in sorted(sampler.least.items()))
    beyond = seconds_beyond()
    out = f"{max(sampler.longest.values(), default=0):.0f} s"
    out += "" if beyond is None else f", {beyond:.1f} s beyond its need"
    print(
        f"  {name:32} {time.monotonic() - began:5.0f} s {answers:6d} requests {len(failed):3d} failed"
        f"   least: {least}   a Mac out for at most {out}   {sampler.samples} samples",
        flush=True,
    )
    for one in failed[:5]:
        print(f"    {one.kind} at {one.deployment}: {one.problem}")
    for text in sorted(sampler.short):
        print(f"    less than promised: {text}")
    return not failed and not sampler.short and (beyond or 0) <= MOST_SECONDS_BEYOND


def rounds(fleet: Fleet, number: int, kills: int) -> bool:
    """Do everything; return whether it cost nothing."""
    progress("first run of site.yml")
    fleet.batch_times.write_text("")
    fleet.run()
    key = Path(f"/proc/{pids_of(REALM)['mac-1']}/root/{GATEWAY_ROOT}/master_key").read_text().strip()
    good = True
    for count in range(1, number + 1):
        print(f"Round {count} of {number}", flush=True)
        for name in changes(fleet):
            good &= measure(name, fleet.run, key, fleet.seconds_beyond)
    chance = random.Random(20261123)
    for count in range(1, kills + 1):
        fleet.ports += 10
        fleet.length += 64
        after = chance.uniform(2, 60)

        def killed_and_repaired(after: float = after) -> None:
            fleet.kill_a_run(after)
            fleet.run()

        good &= measure(f"kill {count} of {kills}, after {after:.0f} s", killed_and_repaired, key)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="rounds of four changes (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="runs to kill after that (default: %(default)s)")
    parser.add_argument("--macs", type=int, default=6, help="Macs of the fleet (default: %(default)s)")
    parser.add_argument("--bake", type=int, default=5, help="lmfleet_canary_bake_seconds (default: %(default)s)")
    wanted = parser.parse_args()
    try:
        sandbox("down")
        sandbox("up", str(wanted.macs))
        with tempfile.TemporaryDirectory() as folder:
            good = rounds(Fleet(Path(folder), wanted.macs, wanted.bake), wanted.rounds, wanted.kills)
        print("Nothing failed, nothing was missing, no Mac was out for long." if good else "NOT as promised.")
        return 0 if good else 1
    except MeasurementError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        sandbox("down")


def sandbox(*words: str) -> None:
    progress(f"sandbox {' '.join(words)}")
    command = [sys.executable, REPOSITORY / "tests" / "sandbox" / "sandbox", "--realm", REALM.name, *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MeasurementError(f"sandbox {' '.join(words)}: {answer.stdout}{answer.stderr}")


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
