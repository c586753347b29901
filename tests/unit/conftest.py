# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs real playbooks that touch no host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def controller(tmp_path):
    """Return a function that starts ansible-playbook with an inventory and tasks, or a playbook, as a Popen."""

    def start(inventory, tasks, *arguments):
        (tmp_path / "ansible.cfg").write_text("")
        (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
        play = {"hosts": "macs:gateways", "gather_facts": False, "tasks": tasks}
        if isinstance(tasks, Path):
            play = {"import_playbook": str(tasks)}
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "HOME": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            str(tmp_path / "inventory.yml"),
            str(tmp_path / "play.yml"),
            *arguments,
        ]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            start_new_session=True,  # so that a test can kill it with its workers
        )

    return start


@pytest.fixture
def inventory():
    """A sound fleet of two Macs, the first of them also the gateway."""
    model = {"source": {"url": "http://files/chat.gguf", "sha256": "a" * 64}}
    return {
        "all": {
            "vars": {
                "lmfleet_models": {"chat": model},
                "lmfleet_instances": [{"name": "chat-a", "port": 1244, "models": [{"name": "chat"}]}],
            },
            "children": {
                "macs": {"hosts": {"mac-1": {"ansible_host": "10.0.0.1"}, "mac-2": {"ansible_host": "10.0.0.2"}}},
                "gateways": {"hosts": {"mac-1": None}},
            },
        }
    }
