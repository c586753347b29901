# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what the queue guard does for clients: four backends, one of which becomes slow, with the guard and without.

Two gateways (the real LiteLLM with the plugin) with four backends each run beside each other and get the same steady
load, so that a slow moment of this machine hits both. One backend of each becomes slow at the same time, and recovers.
Backends have slots and a queue, as LM Studio has. The gateways know no limit of requests in flight (parallel_limit).

With --flapping: backends become slow at random, for so many seconds; each slowdown may cost one pause at most.

With --poll: what a guard costs that watches many instances, in processor time and memory.

Exit code: 0 within the limits, 1 beyond them, 2 when there was nothing to measure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "roles" / "queue_guard" / "files" / "guard"
sys.path[:0] = [str(REPOSITORY / "collections"), str(REPOSITORY / "tests" / "support"), str(Path(__file__).parent)]

SLOTS = 2
SECONDS = 1.0  # that an answer takes
FIRST = 0.1  # part of it until the first token
LEAST_GAIN = 3.0
MOST_RETURN = 30.0
MOST_CORE = 0.05
MOST_MEMORY = 50.0


class Backend:
    """Answers chats in streams, SLOTS at a time, and tells how many requests it has."""

    def __init__(self, name: str) -> None:
        self.name, self.slow, self.queued, self.asked = name, 1.0, 0, 0

    async def start(self) -> None:
        self._slots = asyncio.Semaphore(SLOTS)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def deployment(self) -> dict:
        info = {"host": self.name, "instance": "chat", "parallel": SLOTS, "status_url": f"{self.url}/status"}
        return {"id": self.name, "model_group": "chat", "model": "m", "api_base": f"{self.url}/v1", **info}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith("GET"):
                    self.asked += 1
                    model = {"identifier": "m", "loaded": True, "queued": self.queued, "parallel": SLOTS}
                    _whole(writer, {"format": 1, "instance": "chat", "age": 0.1, "models": [model]})
                else:
                    await self._chat(writer, json.loads(body))
                await writer.drain()
        writer.close()

    async def _chat(self, writer: asyncio.StreamWriter, asked: dict) -> None:
        self.queued += 1
        try:
            async with self._slots:
                await asyncio.sleep(SECONDS * FIRST * self.slow)
                if not asked.get("stream"):  # the guard's own request wants one token
                    message = {"role": "assistant", "content": "x"}
                    _whole(writer, _completion("chat.completion", {"message": message}))
                    return
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                _event(writer, json.dumps(_completion("chat.completion.chunk", {"delta": {"content": "x"}})))
                await writer.drain()
                await asyncio.sleep(SECONDS * (1 - FIRST) * self.slow)
                _event(writer, "[DONE]")
                writer.write(b"0\r\n\r\n")
        finally:
            self.queued -= 1


def _whole(writer: asyncio.StreamWriter, content: dict) -> None:
    body = json.dumps(content).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def _event(writer: asyncio.StreamWriter, text: str) -> None:
    data = f"data: {text}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _completion(kind: str, choice: dict) -> dict:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choices = [{"index": 0, "finish_reason": None, **choice}]
    return {"id": "1", "object": kind, "created": 1, "model": "m", "choices": choices, "usage": usage}


class Guard:
    """The daemon, as launchd would run it."""

    def __init__(self, folder: Path, registry: Path, interval: float) -> None:
        from gateway_under_test import free_port

        self.folder, self.port = folder, free_port()
        folder.mkdir()
        plan = {"registry": str(registry), "interval": interval, "ttl": 60, "log_bytes": 1 << 20, "log_files": 1}
        plan.update(metrics_address="127.0.0.1", metrics_port=self.port, settings={}, limits={})
        (folder / "settings.json").write_text(json.dumps(plan))
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder)])

    def cost(self) -> tuple[float, float]:
        """Return the processor time in seconds and the memory in MB it has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(
            re.search(r"VmRSS:\s+(\d+)", status)[1]
        ) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Side:
    """A gateway with its backends, and what its clients and its backends saw."""

    def __init__(self, title: str, backends: list[Backend]) -> None:
        self.title, self.backends = title, backends
        self.answers: list[tuple[float, float | None, str]] = []  # asked at, seconds to the first token, deployment
        self.queues: list[tuple[float, list[int]]] = []
        self.paused: list[tuple[float, set]] = []

    @functools.cached_property
    def key(self) -> str:
        return self.gateway.key

    def ask(self, at: float) -> None:
        began = time.monotonic()
        body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "stream": True}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.gateway.url}/v1/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                reply.readline()
                first = time.monotonic() - began
                whole = b"[DONE]" in reply.read()
                self.answers.append((at, first if whole else None, reply.headers["x-litellm-model-id"]))
        except OSError as error:
            self.answers.append((at, None, str(error)))

    def look(self, at: float) -> None:
        self.queues.append((at, [backend.queued for backend in self.backends]))
        try:
            document = json.loads((self.gateway.root / "registry" / "paused" / "guard.json").read_text())
        except OSError:
            document = {"paused": {}}
        self.paused.append((at, set(document["paused"])))

    def failed(self) -> int:
        return sum(first is None for _at, first, _name in self.answers)

    def first_tokens(self, since: float, until: float) -> list[float]:
        return [first for at, first, _name in self.answers if first is not None and since <= at < until]


def in_background() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class Slowdown(NamedTuple):
    """A backend, by its number, that is slow for a while; times are seconds since the load began."""

    backend: int
    since: float
    until: float


def compare(arguments: argparse.Namespace) -> int:
    slow = Slowdown(0, arguments.before, arguments.before + arguments.slow)
    sides = [Side(title, [Backend(f"mac-{n}") for n in range(1, 5)]) for title in ("with the guard", "without")]
    decisions = measure(arguments, sides, [slow], slow.until + arguments.after)
    return judge(arguments, sides, decisions, slow.since, slow.until)


def flap(arguments: argparse.Namespace) -> int:
    """Slow down backends at random, at most two of the four at a time."""
    chance = random.Random(arguments.seed)
    slowdowns, free = [], [chance.uniform(10, 40), chance.uniform(40, 80)]
    while min(free) < arguments.flapping:
        turn = free.index(min(free))
        until = free[turn] + chance.uniform(10, 60)
        # A backend of its own half, so that two slowdowns never are one.
        slowdowns.append(Slowdown(2 * turn + chance.randrange(2), free[turn], until))
        free[turn] = until + chance.uniform(30, 90)
    side = Side("with the guard", [Backend(f"mac-{number}") for number in range(1, 5)])
    measure(arguments, [side], slowdowns, arguments.flapping + arguments.after)
    return judge_flapping(arguments, side, slowdowns)


def judge_flapping(arguments: argparse.Namespace, side: Side, slowdowns: list[Slowdown]) -> int:
    pauses: dict[Slowdown | None, int] = {}
    before: set[str] = set()
    for at, paused in side.paused:
        for name in sorted(paused - before):
            own = [one for one in slowdowns if side.backends[one.backend].name == name and one.since <= at]
            pauses[own[-1] if own else None] = pauses.get(own[-1] if own else None, 0) + 1
        before = paused
    most, all_pauses = max(len(paused) for _at, paused in side.paused), sum(pauses.values())
    print(
        f"{arguments.flapping:g} s, seed {arguments.seed}: {len(slowdowns)} slowdowns, {all_pauses} pauses, at most "
        f"{max(pauses.values(), default=0)} for one slowdown, {pauses.get(None, 0)} without any; at most {most} of 4 "
        f"paused at a time; {len(side.answers)} requests, {side.failed()} failed"
    )
    right = pauses and None not in pauses and max(pauses.values()) == 1 and most < 4 and not side.failed()
    return 0 if right else 1


def measure(arguments: argparse.Namespace, sides: list[Side], slowdowns: list[Slowdown], end: float) -> list[dict]:
    """Load the sides, of which the first has a guard, for `end` seconds; return the guard's decisions."""
    from gateway_under_test import CACHE

    fill = [sys.executable, str(REPOSITORY / "tests" / "sandbox" / "fill_wheels.py"), "--cache", str(CACHE)]
    subprocess.run(fill, check=True)
    loop = in_background()
    rate = 4 * SLOTS / SECONDS * arguments.load
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as ending:
        for number, side in enumerate(sides):
            for backend in side.backends:
                asyncio.run_coroutine_threadsafe(backend.start(), loop).result()
            side.gateway = start_gateway(Path(temporary) / str(number), side.backends)
            ending.callback(side.gateway.stop)
        guard = Guard(Path(temporary) / "guard", sides[0].gateway.root / "registry", arguments.interval)
        ending.callback(guard.stop)
        time.sleep(3 * arguments.interval)
        for client in drive(sides, rate, slowdowns, end):
            client.join(300)
        return [json.loads(line) for line in (guard.folder / "guard.log").read_text().splitlines()]


def start_gateway(folder: Path, backends: list[Backend]) -> Any:
    """Return a gateway with one worker; its software is installed once, in the cache."""
    from gateway_under_test import CACHE, Gateway, Installation, free_port

    installed = CACHE / "gateway-{}.{}".format(*sys.version_info[:2])
    root, play = folder / "gateway", folder / "play"
    for path in (root, play):
        path.mkdir(parents=True)
    Installation(installed, play).configure()
    for venv in [path for path in installed.iterdir() if re.fullmatch(r"(venv|tools)-\w+", path.name)]:
        (root / venv.name).symlink_to(venv)
    installation, port = Installation(root, play), free_port()
    installation.configure(litellm_port=port, litellm_workers=1)
    gateway = Gateway(installation, port)
    gateway.wait()
    gateway.declare([backend.deployment() for backend in backends])
    return gateway


def drive(sides: list[Side], rate: float, slowdowns: list[Slowdown], end: float) -> list[threading.Thread]:
    """Ask all sides at the same times; return the threads of the clients."""
    began, clients, looked = time.monotonic(), [], 0.0
    for number in range(int(end * rate)):
        at = number / rate
        time.sleep(max(0.0, began + at - time.monotonic()))
        slow = {one.backend for one in slowdowns if one.since <= at < one.until}
        for side in sides:
            for index, backend in enumerate(side.backends):
                backend.slow = 10.0 if index in slow else 1.0
            clients.append(threading.Thread(target=side.ask, args=[at], daemon=True))
            clients[-1].start()
            if at >= looked:
                side.look(at)
        looked = max(looked, at - at % 0.5 + 0.5)
    return clients


def judge(
    arguments: argparse.Namespace, sides: list[Side], decisions: list[dict], slow_from: float, slow_until: float
) -> int:
    tails = []
    for side in sides:
        seconds = side.first_tokens(slow_from, slow_until)
        if len(seconds) < 20:
            print("bench: too few answers", [answer for answer in side.answers if answer[1] is None][:3])
            return 2
        tails.append(statistics.quantiles(seconds, n=20)[18])
        print(
            f"{side.title}: {len(side.answers)} requests, {side.failed()} failed; while one is slow, first token after "
            f"{statistics.median(seconds):.2f} s (median), {tails[-1]:.2f} s (p95)"
        )
    failed = sum(side.failed() for side in sides)
    pauses = [line for line in decisions if line.get("decision") == "pause"]
    back = [at for at, paused in sides[0].paused if at >= slow_until and not paused]
    returned = back[0] - slow_until if back else float("inf")
    print(f"p95 is {tails[1] / tails[0]:.1f} times as good; {len(pauses)} pause(s); it is back after {returned:.0f} s")
    if arguments.plot:
        plot(arguments.plot, sides, slow_from, slow_until)
    right = tails[1] / tails[0] >= LEAST_GAIN and not failed and len(pauses) == 1 and returned <= MOST_RETURN
    return 0 if right else 1


def plot(path: Path, sides: list[Side], slow_from: float, slow_until: float) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(9, 9), sharex=True, layout="constrained")
    for axis, side in zip(axes, sides, strict=False):
        times = [at for at, _queues in side.queues]
        for number, backend in enumerate(side.backends):
            axis.plot(times, [queues[number] for _at, queues in side.queues], label=backend.name)
        axis.set(title=f"Requests at each backend, {side.title}", ylabel="waiting or running")
        axis.fill_between(
            times, 0, 1, where=[bool(paused) for _at, paused in side.paused], step="post", alpha=0.2, color="tab:red",
            transform=axis.get_xaxis_transform(), label="mac-1 paused by the guard" if side is sides[0] else None,
        )  # fmt: skip
        axis.legend(loc="upper right" if side is sides[0] else "upper left")
    for side, colour in zip(sides, ("tab:blue", "tab:orange"), strict=True):
        known = [(at, first) for at, first, _name in side.answers if first is not None]
        axes[2].scatter(*zip(*known, strict=True), s=6, color=colour, label=side.title)
    axes[2].set(title="First token", ylabel="seconds (log)", xlabel="seconds", yscale="log")
    axes[2].legend(loc="center right")
    for axis in axes:
        for at in (slow_from, slow_until):
            axis.axvline(at, color="grey", linestyle=":")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"plot: {path}")


def poll(arguments: argparse.Namespace) -> int:
    """Measure a guard that watches many instances, all of them idle."""
    loop = in_background()
    backends = [Backend(f"mac-{number}") for number in range(arguments.poll)]
    for backend in backends:
        asyncio.run_coroutine_threadsafe(backend.start(), loop).result()
    from gateway_under_test import module

    with tempfile.TemporaryDirectory() as temporary:
        registry = Path(temporary) / "registry"
        wanted = [backend.deployment() for backend in backends]
        done = module("litellm_deployments", registry=str(registry), deployments=wanted, timeout=0)
        assert not done.get("failed"), done
        guard = Guard(Path(temporary) / "guard", registry, 5.0)
        try:
            time.sleep(15)  # the first looks also try each deployment
            (before, _memory), began, asked = guard.cost(), time.monotonic(), sum(one.asked for one in backends)
            time.sleep(arguments.seconds)
            (after, memory), seconds = guard.cost(), time.monotonic() - began
        finally:
            guard.stop()
        looks = (sum(one.asked for one in backends) - asked) / len(backends)
    core = (after - before) / seconds
    print(f"{len(backends)} instances every 5 s: {core:.1%} of a core, {memory:.0f} MB, {looks:.0f} looks each")
    return 0 if looks >= seconds / 5 - 2 and core <= MOST_CORE and memory <= MOST_MEMORY else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity (default: %(default)s)")
    parser.add_argument("--before", type=float, default=10, help="seconds before (default: %(default)s)")
    parser.add_argument("--slow", type=float, default=60, help="seconds that one is slow (default: %(default)s)")
    parser.add_argument("--after", type=float, default=45, help="seconds after it (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=1, help="seconds between two looks (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot")
    parser.add_argument("--flapping", type=float, help="seconds of random slowdowns, instead of one")
    parser.add_argument("--seed", type=int, default=1, help="of the slowdowns (default: %(default)s)")
    parser.add_argument("--poll", type=int, help="measure the cost of watching so many instances instead")
    parser.add_argument("--seconds", type=float, default=30, help="how long to measure that (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.poll:
        return poll(arguments)
    return flap(arguments) if arguments.flapping else compare(arguments)


if __name__ == "__main__":
    sys.exit(main())
