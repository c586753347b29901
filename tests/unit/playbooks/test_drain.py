# SPDX-License-Identifier: GPL-3.0-or-later
"""drain.yml and undrain.yml where a gateway has only a part, or is down. They only look: --check."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"


@pytest.fixture
def play(controller, inventory, tmp_path):
    """Return a function that runs a playbook for mac-1. As a gateway, mac-1 has `known`, and mac-2 is down.

    `place` is what the gateway knows of where that is.
    """
    variables, groups = inventory["all"]["vars"], inventory["all"]["children"]
    variables.update(lmfleet_root=str(tmp_path), litellm_master_key="sk-1234567890123456")
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    groups["macs"]["hosts"]["mac-1"].update(here)
    groups["macs"]["hosts"]["mac-2"].update(ansible_host="127.0.0.1", ansible_port=9)
    groups["gateways"]["hosts"]["mac-2"] = None
    (tmp_path / "gateway" / "registry" / "paused").mkdir(parents=True)

    def play(playbook, known, **place):
        entry = {"model_name": "chat", "litellm_params": {"model": "openai/chat"}, "model_info": {"id": known, **place}}
        pauses = {known: {"reason": "dust", "since": 1.0, "until": None}} if playbook == "undrain.yml" else {}
        for name, content in (
            ("deployments.json", {"deployments": [entry], "routing": "round_robin"}),
            ("paused/operator.json", {"paused": pauses}),
        ):
            text = json.dumps({"format": 1, "generation": 1, **content})
            (tmp_path / "gateway" / "registry" / name).write_text(text)
        run = controller(inventory, PLAYBOOKS / playbook, "--check", "--diff", "-e", "target=mac-1")
        output = run.communicate(timeout=60)[0]
        return run.returncode, " ".join(output.split())

    return play


@pytest.mark.parametrize(("playbook", "sign"), [("drain.yml", "+"), ("undrain.yml", "-")])
def test_the_others_are_told_what_they_have_where_a_gateway_is_down(play, inventory, playbook, sign):
    new = {"name": "new", "port": 1250, "models": [{"name": "chat"}]}
    inventory["all"]["vars"]["lmfleet_instances"].append(new)
    code, output = play(playbook, "mac-1-chat-a-chat")
    assert code != 0
    assert "Left out, because no gateway has it yet: mac-1-new-chat" in output, output
    paused = f'{sign} "mac-1-chat-a-chat": {{'
    assert paused in output
    assert "mac-2: Task failed: Failed to connect to the host via ssh" in output
    assert output.index(paused) < output.index("these gateways do with requests for mac-1 stays")


def test_what_no_gateway_has_cannot_be_drained(play):
    code, output = play("drain.yml", "mac-2-chat-a-chat")
    assert code != 0
    assert "No gateway has a deployment of mac-1 yet: mac-1-chat-a-chat. Run site.yml first." in output


@pytest.mark.parametrize(("playbook", "sign"), [("drain.yml", "+"), ("undrain.yml", "-")])
def test_what_a_gateway_still_has_there_of_a_former_declaration_is_meant_too(play, playbook, sign):
    code, output = play(playbook, "mac-1-old-chat", host="mac-1", instance="old")
    assert code != 0, "mac-2 is down"
    assert f'{sign} "mac-1-old-chat": {{' in output, output
    assert "no gateway has it yet: mac-1-chat-a-chat" in output
