# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what the registry of a gateway costs, against the real LiteLLM on this machine.

First: how long it takes to register deployments in one call of litellm_deployments, and again when nothing changes,
each against one call of ansible.builtin.uri for each deployment, which cannot know whether anything changes. A gateway
without a database refuses what the latter ask for, so they are cheaper here than in earnest.

Then: the processor time of a request with the plugin and without it, with the same deployments in config.yaml. Both
gateways run beside each other, and are asked in turns, so that a slow moment of this machine hits both.

Exit code: 0 within the limit, 1 beyond it or when the second call has changed something, 2 when there was nothing to
measure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "collections"), str(REPOSITORY / "tests" / "support")]

from gateway_under_test import CACHE, BackendServer, Installation, free_port, module

MOST_OVERHEAD = 1.05
START_TIMEOUT = 180
AT_A_TIME = 4


class Gateway:
    """LiteLLM with one worker, from the virtual environment of an installation."""

    def __init__(self, root: Path, config: dict, registry: Path | None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = (root / "master_key").read_text().strip()
        folder = Path(tempfile.mkdtemp(dir=root))
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        release = root / "current"
        (folder / "lmfleet_registry.py").symlink_to(release / "lmfleet_registry.py")
        # The settings of the release, but for its registry.
        choose = f"LMFLEET_REGISTRY={registry}" if registry else "unset LMFLEET_REGISTRY"
        script = f"set -a; . {release}/gateway.env; {choose}; exec {release}/venv/bin/litellm --config config.yaml"
        environment = {"HOME": str(root), "PATH": "/usr/bin:/bin"}
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            ["sh", "-c", f"{script} --host 127.0.0.1 --port {self.port} --num_workers 1"],
            cwd=folder,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        ready = module("litellm_health", url=self.url, timeout=START_TIMEOUT)
        if ready.get("failed"):
            raise SystemExit(f"bench: {ready['msg']}\n{(folder / 'log').read_text()[-2000:]}")

    def seconds(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, number: int, groups: int) -> None:
        body = json.dumps({"model": f"g{number % groups}", "messages": [{"role": "user", "content": "x"}]}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/v1/chat/completions", body, headers), timeout=60
        ) as reply:
            reply.read()

    def cost(self, requests: int, groups: int) -> float:
        """Return the processor time of a request, in milliseconds."""
        before = self.seconds()
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(lambda number: self.ask(number, groups), range(requests)))
        return (self.seconds() - before) / requests * 1000

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def deployments(backend: BackendServer, count: int, groups: int) -> list[dict]:
    return [
        {"id": f"d{number}", "model_group": f"g{number % groups}", "model": "m", "api_base": backend.api_base}
        for number in range(count)
    ]


def play(folder: Path, tasks: list[dict]) -> tuple[float, bool]:
    """Run tasks in a play of their own; return the seconds it took, and whether they changed something."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "vars": local, "tasks": tasks}])
    )
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections")}
    began = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "play.yml"],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bench: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.monotonic() - began, " changed=0 " not in done.stdout


def register(folder: Path, gateway: Gateway, registry: Path, wanted: list[dict], single: int) -> bool:
    """Print what registering takes; return whether the first call changed something and the second nothing."""
    one_call = [{"lmfleet.mac.litellm_deployments": {"registry": str(registry), "deployments": wanted, "purge": True}}]
    empty, _changed = play(folder, [])
    (first, changed), (second, changed_again) = play(folder, one_call), play(folder, one_call)
    each = {
        "ansible.builtin.uri": {
            "url": f"{gateway.url}/model/new",
            "method": "POST",
            "headers": {"Authorization": f"Bearer {gateway.key}"},
            "body_format": "json",
            "body": {"model_name": "{{ item.model_group }}", "model_info": {"id": "{{ item.id }}"}},
            "status_code": [200, 500],
        },
        "loop": wanted[:single],
    }
    loops = [(play(folder, [each])[0] - empty) / single * len(wanted) for _run in range(2)]
    for title, seconds, loop in zip(("registered in one call", "again"), (first, second), loops, strict=True):
        took = seconds - empty
        print(
            f"{len(wanted)} deployments, {title}: {took:.1f} s; one call of ansible.builtin.uri each: {loop:.1f} s "
            f"({single} measured), {loop / took:.0f} times as long"
        )
    print(f"the first call changed {'something' if changed else 'nothing'}, the second ", end="")
    print("something" if changed_again else "nothing")
    return changed and not changed_again


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deployments", type=int, default=500, help="how many (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=10, help="model groups they belong to (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds for each gateway (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="requests in a round (default: %(default)s)")
    parser.add_argument("--single", type=int, help="calls of uri that are measured (default: all)")
    arguments = parser.parse_args()
    backend = BackendServer("bench")
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    wanted = deployments(backend, arguments.deployments, arguments.groups)
    fill = [sys.executable, str(REPOSITORY / "tests" / "sandbox" / "fill_wheels.py"), "--cache", str(CACHE)]
    subprocess.run(fill, check=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = CACHE / "gateway-{}.{}".format(*sys.version_info[:2])
        Installation(root, folder).configure()
        registry = root / "bench-registry"
        settings = {
            "router_settings": {"routing_strategy": "simple-shuffle", "num_retries": 2},
            "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        }
        with_plugin = {**settings, "litellm_settings": {"callbacks": ["lmfleet_registry.registry"]}}
        listed = [
            {
                "model_name": entry["model_group"],
                "litellm_params": {"model": "openai/m", "api_base": entry["api_base"], "api_key": "none"},
                "model_info": {"id": entry["id"], "mode": "chat"},
            }
            for entry in wanted
        ]
        gateways = []
        try:
            gateways.append(Gateway(root, {"model_list": [], **with_plugin}, registry))
            good = register(folder, gateways[0], registry, wanted, arguments.single or len(wanted))
            gateways.append(Gateway(root, {"model_list": listed, **settings}, None))
            costs = measure(gateways, arguments)
        finally:
            for gateway in gateways:
                gateway.stop()
    plugin, bare = (statistics.median(values) for values in costs)
    ratio = statistics.median([a / b for a, b in zip(*costs, strict=True)])
    print(f"processor time of a request: {plugin:.1f} ms with the plugin, {bare:.1f} ms without; ratio {ratio:.3f}")
    return 0 if good and ratio <= MOST_OVERHEAD else 1


def measure(gateways: list[Gateway], arguments: argparse.Namespace) -> list[list[float]]:
    """Return the costs of each gateway by round; the first round only warms up."""
    costs: list[list[float]] = [[] for _gateway in gateways]
    for number in range(arguments.rounds + 1):
        for gateway, values in zip(gateways, costs, strict=True):
            cost = gateway.cost(arguments.requests, arguments.groups)
            if number:
                values.append(cost)
    return costs


if __name__ == "__main__":
    sys.exit(main())
