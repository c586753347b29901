# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what a run of ``site.yml`` costs that has nothing to change, on ten sandbox Macs.

The yardsticks are ``ansible macs -m ping`` on the same Macs, the least that asking every host can cost, and site.yml
without roll-outs, which sets up all instances at once. All are run in turn, so that a slow moment of this machine hits
each, and the medians are compared. Modules and ssh sessions are counted in a run of their own, so that counting costs
the measured ones nothing.

Exit code: 0 within the limits, 1 beyond them, 2 when there was nothing to measure.
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
REALM = "bench"
HOSTS = 10
ROUNDS = 5
MOST_PINGS = 6.0
MOST_FOR_ROLLOUTS = 1.1
MOST_MODULES = 8
INVENTORY = ["-i", REPOSITORY / "inventory" / "sandbox", "-i", HERE / "inventory"]
PING = [BIN / "ansible", *INVENTORY, "macs", "-m", "ansible.builtin.ping"]
PLAYBOOKS = REPOSITORY / "playbooks"
SITE = [BIN / "ansible-playbook", *INVENTORY, PLAYBOOKS / "site.yml"]
# Marks what works on the realm, so that its end ends that too; not the command that ends it.
CLIENT = {"LMFLEET_SANDBOX_CLIENT": REALM}


class MeasurementError(Exception):
    """The sandbox or a run failed, so that there is nothing to measure."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each kind (default: %(default)s)")
    rounds = parser.parse_args().rounds
    try:
        sandbox("down")
        sandbox("up", str(HOSTS))
        return report(*measure(rounds))
    except MeasurementError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        sandbox("down")


def measure(rounds: int) -> tuple[dict[str, list[float]], collections.Counter]:
    """Return the seconds of each run by kind, and the number of calls by (host, kind)."""
    progress("first run of site.yml")
    run(SITE, **CLIENT)
    progress("second run, which counts modules and ssh sessions")
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls"
        output = run(
            SITE,
            ANSIBLE_CALLBACK_PLUGINS=str(HERE / "callback_plugins"),
            ANSIBLE_CALLBACKS_ENABLED="count_calls",
            LMFLEET_BENCH_CALLS=str(calls),
            **CLIENT,
        )
        counted = collections.Counter((line.split()[1], line.split()[0]) for line in calls.read_text().splitlines())
    if changed := [line for line in output.splitlines() if "changed=" in line and "changed=0" not in line]:
        raise MeasurementError("the second run was to change nothing:\n" + "\n".join(changed))

    seconds = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        plain = [*SITE[:-1], without_rollouts(Path(folder))]
        for number in range(1, rounds + 1):
            for kind, command in (("ping", PING), ("site.yml", SITE), ("without roll-outs", plain)):
                progress(f"round {number}: {kind}")
                started = time.monotonic()
                run(command, **CLIENT)
                seconds[kind].append(time.monotonic() - started)
    return seconds, counted


def without_rollouts(folder: Path) -> Path:
    """Write a site.yml into the folder that sets up the instances where the shipped one looks what they need.

    Raises:
        MeasurementError: the shipped one has no such tasks.
    """
    for name in ("tasks", "templates", "vars"):
        (folder / name).symlink_to(PLAYBOOKS / name)
    plays = yaml.safe_load((PLAYBOOKS / "site.yml").read_text())
    for tasks in (play["tasks"] for play in plays):
        for number, task in enumerate(tasks[:-1]):
            if "roll_out.yml" in tasks[number + 1].get("ansible.builtin.include_tasks", ""):
                tasks[number : number + 2] = [{key: task[key] for key in ("name", "ansible.builtin.import_role")}]
                path = folder / "site.yml"
                path.write_text(yaml.safe_dump(plays))
                return path
    raise MeasurementError("site.yml has no roll-out to leave out")


def report(seconds: dict[str, list[float]], counted: collections.Counter) -> int:
    """Print the table and return the exit code."""
    ping, site, plain = (statistics.median(seconds[kind]) for kind in ("ping", "site.yml", "without roll-outs"))
    ratio, more = site / ping, site / plain
    hosts = sorted({host for host, _ in counted}, key=lambda address: [int(part) for part in address.split(".")])
    # The gateway is one of the Macs and does the work of both.
    modules = max(counted[host, "module"] for host in hosts)
    print(f"\nAn unchanged run on {HOSTS} sandbox Macs, {os.cpu_count()} cores, median of {len(seconds['ping'])}:\n")
    print(f"  ansible macs -m ping        {ping:6.1f} s")
    print(f"  ansible-playbook site.yml   {site:6.1f} s   = {ratio:.1f} x ping     (limit {MOST_PINGS:g})")
    print(f"  without roll-outs           {plain:6.1f} s   x {more:.2f} with them   (limit {MOST_FOR_ROLLOUTS})")
    print(f"  modules run on a Mac        {modules:6d}     at most           (limit {MOST_MODULES})\n")
    print("  Mac          modules  ssh sessions")
    for host in hosts:
        print(f"  {host:12} {counted[host, 'module']:7d}  {counted[host, 'session']:12d}")
    within = ratio <= MOST_PINGS and more <= MOST_FOR_ROLLOUTS and modules <= MOST_MODULES
    print(f"\n{'Within' if within else 'BEYOND'} the limits.")
    return 0 if within else 1


def sandbox(*words: str) -> None:
    progress(f"sandbox {' '.join(words)}")
    run([sys.executable, REPOSITORY / "tests" / "sandbox" / "sandbox", "--realm", REALM, *words])


def run(command: list, **environment: str) -> str:
    """Run ``command`` in the repository and return its output.

    Raises:
        MeasurementError: the command failed.
    """
    answer = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if answer.returncode:
        name = Path(command[0]).name
        raise MeasurementError(
            f"{name} failed with {answer.returncode}; the end of its output:\n{answer.stdout[-3000:]}"
        )
    return answer.stdout


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
