#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: two sandbox Macs become one LLM service that answers a question. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SANDBOX = REPOSITORY / "tests" / "sandbox" / "sandbox"
INVENTORY = "inventory/sandbox"
GATEWAY = "http://10.77.0.11:4000"
MODEL = "smollm2-135m-instruct"
QUESTION = "Why is the sky blue? Answer in two short sentences."
REALM = "demo"
QUESTION_TIMEOUT = 120  # seconds until the gateway must have begun to answer


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="only tell whether the demo can run here")
    arguments.add_argument("--down", action="store_true", help="take the demo's sandbox Macs down")
    options = arguments.parse_args()
    if options.check:
        return check()
    if options.down:
        return sandbox("down")
    return demo()


def check() -> int:
    """Tell in one line why sandbox Macs cannot run here, if so, and what to type on a Mac instead."""
    result = subprocess.run(
        [sys.executable, SANDBOX, "--realm", REALM, "check"], check=False, capture_output=True, text=True
    )
    if result.returncode == 0:
        return 0
    print(f"The demo cannot run here: {(result.stderr or result.stdout).strip()}")
    print("On your own Mac, this does the same with a real LM Studio:")
    print("    make setup && .venv/bin/ansible-playbook -i inventory/localhost site.yml --ask-become-pass")
    return 1


def demo() -> int:
    step("Bringing up two sandbox Macs")
    sandbox("down", quiet=True)
    if sandbox("up", "2"):
        return 1
    step("Running: ansible-playbook -i inventory/sandbox site.yml")
    if playbook().returncode:
        return 1
    step(f"Asking the gateway, streamed: {QUESTION}")
    ask()
    step("Running site.yml again: nothing should change")
    again = playbook(capture=True)
    recap = [line for line in again.stdout.splitlines() if "changed=" in line]
    print("\n".join(recap))
    changed = [line for line in recap if not re.search(r"changed=0\s", line)]
    if again.returncode or changed or not recap:
        print(again.stdout)
        print("The second run was to change nothing, and did.")
        return 1
    print(LOOK_AROUND)
    return 0


def playbook(capture: bool = False) -> subprocess.CompletedProcess:
    command = [REPOSITORY / ".venv" / "bin" / "ansible-playbook", "-i", INVENTORY, "site.yml"]
    # What is left of it after a kill -9 goes with the realm.
    environment = {**os.environ, "LMFLEET_SANDBOX_CLIENT": REALM}
    stdout = subprocess.PIPE if capture else None
    return subprocess.run(command, check=False, cwd=REPOSITORY, env=environment, text=True, stdout=stdout)


def ask() -> None:
    """Ask the real model through the gateway, and print the answer as it comes.

    Raises OSError when the gateway does not answer.
    """
    key = subprocess.run(
        [sys.executable, SANDBOX, "--realm", REALM, "exec", "mac-1", "--", "cat", ".lmfleet/gateway/master_key"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 80,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{GATEWAY}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=QUESTION_TIMEOUT) as response:
        print("    ", end="")
        for line in response:
            if line.startswith(b"data: ") and b"[DONE]" not in line:
                for choice in json.loads(line[6:]).get("choices", []):
                    print(choice["delta"].get("content") or "", end="", flush=True)
        print(f"\n    — answered by deployment {response.headers['x-litellm-model-id']}")


def sandbox(*words: str, quiet: bool = False) -> int:
    return subprocess.run(
        [sys.executable, SANDBOX, "--realm", REALM, *words],
        check=False,
        stdout=subprocess.DEVNULL if quiet else None,
    ).returncode


def step(what: str) -> None:
    print(f"\n[{time.strftime('%H:%M:%S')}] {what}", flush=True)


LOOK_AROUND = f"""
Look around:
    tests/sandbox/sandbox status                                  the sandbox Macs
    tests/sandbox/sandbox exec mac-1 -- launchctl print gui/501   the launchd jobs of one
    tests/sandbox/sandbox reboot mac-2                            it serves again by itself
    curl -H "Authorization: Bearer $(tests/sandbox/sandbox exec mac-1 -- cat .lmfleet/gateway/master_key)" \
{GATEWAY}/v1/models
    .venv/bin/ansible-playbook -i inventory/sandbox site.yml --check --diff
When you are done:
    make demo-down"""


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
