# SPDX-License-Identifier: GPL-3.0-or-later
"""The task fleet_plan in a real play: it reads the inventory of all hosts and tells every problem in one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FILLED = Path(__file__).resolve().parents[3] / "playbooks" / "vars" / "fleet.yml"
PLAN = {"lmfleet.mac.fleet_plan": None, "run_once": True, "register": "fleet"}


def test_every_host_gets_the_plan(controller, inventory):
    show = {
        "ansible.builtin.debug": {
            "msg": "{{ inventory_hostname }} serves {{ fleet.hosts[inventory_hostname].instances[0].api_base }}"
        }
    }
    run = controller(inventory, [PLAN, show])
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0, output
    assert "mac-1 serves http://127.0.0.1:1244/v1" in output
    assert "mac-2 serves http://10.0.0.2:1244/v1" in output


def test_templates_in_the_inventory_are_evaluated(controller, inventory):
    inventory["all"]["vars"].update(
        first_port=1300, lmfleet_instances=[{"name": "a", "port": "{{ first_port + 1 }}", "models": [{"name": "chat"}]}]
    )
    show = {"ansible.builtin.debug": {"msg": "port {{ fleet.hosts['mac-2'].instances[0].port }}"}}
    output = controller(inventory, [PLAN, show]).communicate(timeout=60)[0]
    assert "port 1301" in output


def test_all_problems_come_in_one_message(controller, inventory):
    variables = inventory["all"]["vars"]
    variables["lmfleet_instnaces"] = []
    variables["litellm_adress"] = 4000
    variables["lmstudio_models"] = []
    variables["litellm_port"] = "many"
    variables["litellm_runtime"] = "compose"
    variables["lmfleet_bind_address"] = "{{ nowhere }}"
    del variables["lmfleet_models"]["chat"]["source"]["sha256"]
    inventory["all"]["children"]["gateways"] = {"hosts": {}}
    run = controller(inventory, [PLAN])
    output = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    for words in (
        "8 problems in the inventory. Nothing has been changed.",
        "mac-1, mac-2: lmfleet_instnaces: no such variable. Did you mean lmfleet_instances?",
        "mac-1, mac-2: litellm_adress: no such variable. Did you mean litellm_address?",
        "mac-1, mac-2: lmstudio_models: is worked out from the lmfleet_ variables and cannot be set.",
        "mac-1, mac-2: litellm_port: must be of type int, not 'many'.",
        "litellm_runtime: compose is for the role litellm in a playbook of your own, not for site.yml.",
        "lmfleet_models.chat: source.sha256 is missing.",
        "lmfleet_bind_address: cannot be evaluated",
        "the group gateways is empty",
    ):
        assert words in output, output


def test_what_does_not_go_with_a_database_is_told(controller, inventory):
    variables = inventory["all"]["vars"]
    variables["lmfleet_models"]["chat"]["gateway"] = {"fallbacks": ["other"]}
    variables["lmfleet_models"]["other"] = variables["lmfleet_models"]["chat"] | {"gateway": {}}
    variables["lmfleet_instances"][0]["models"].append({"name": "other"})
    variables.update(gateway_deployments_registry="api", lmfleet_local_first=True, litellm_master_key="sk-1")
    inventory["all"]["children"]["gateways"]["hosts"]["mac-2"] = None
    output = controller(inventory, [PLAN]).communicate(timeout=60)[0]
    for words in (
        "3 problems in the inventory. Nothing has been changed.",
        "mac-1: lmfleet_local_first: mac-1, mac-2 keep their deployments in a database",
        "lmfleet_models.chat: gateway.fallbacks: mac-1, mac-2 keep their deployments in a database",
    ):
        assert words in output, output


def test_a_model_file_that_the_controller_lacks_is_told(controller, inventory, tmp_path):
    file = tmp_path / "own.gguf"
    inventory["all"]["vars"]["lmfleet_models"]["chat"]["source"] = {"path": str(file), "sha256": "a" * 64}
    output = controller(inventory, [PLAN]).communicate(timeout=60)[0]
    assert f"lmfleet_models.chat.source: {file}: no such file on this controller." in output
    assert "1 problem in the inventory" in output


def test_doubts_come_as_one_warning_and_stop_nothing(controller, inventory):
    inventory["all"]["vars"]["lmfleet_models"]["chat"]["load"] = {"draft_mtp": True, "parallel": 2}
    run = controller(inventory, [PLAN])
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0, output
    text = " ".join(output.split())
    assert text.count("model chat on mac-1/chat-a, mac-2/chat-a: speculative decoding with load.parallel 2") == 1
    assert "[WARNING]" in output


class Vaulted(str):
    """A text that an inventory has as !vault."""


yaml.SafeDumper.add_representer(Vaulted, lambda dumper, text: dumper.represent_scalar("!vault", str(text), style="|"))


@pytest.fixture
def vaulted(tmp_path, monkeypatch):
    """Return a function that encrypts a text, for a controller that has the password."""
    (tmp_path / "password").write_text("open sesame")
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    # Not in this process: with Ansible's own vault in it, modules under test no longer return their warnings.
    command = [Path(sys.executable).parent / "ansible-vault", "encrypt", "--output", "-"]

    def vaulted(text):
        return Vaulted(subprocess.run(command, input=text, check=True, text=True, capture_output=True).stdout)

    return vaulted


def test_secrets_from_a_vault_reach_the_roles_and_are_not_in_the_plan(controller, inventory, vaulted):
    inventory["all"]["vars"]["litellm_master_key"] = vaulted("sk-from-a-vault")
    inventory["all"]["children"]["gateways"]["hosts"]["mac-2"] = None  # several need a key
    inventory["all"]["children"]["macs"]["hosts"]["mac-2"]["lmfleet_api_tokens"] = {"chat-a": vaulted("sk-lm-vaulted")}
    looked_at = {"ansible.builtin.set_fact": {"__lmstudio_instances_run": {"instances": []}}}
    tasks = [
        PLAN,
        {"ansible.builtin.include_vars": str(FILLED)},
        {**looked_at, "when": "inventory_hostname == 'mac-2'"},
        {
            "ansible.builtin.assert": {
                "that": [
                    "'sk-lm-vaulted' not in fleet | string",
                    "fleet.token_hosts == ['mac-2']",
                    # What takes no part in a run stays at the gateways as it is.
                    "gateway_deployments_keep_hosts == ['mac-1']",
                    "gateway_deployments_list | map(attribute='host') == ['mac-2']",
                    "gateway_deployments_list | map(attribute='api_key', default='') == ['sk-lm-vaulted']",
                    "hostvars['mac-2'].lmstudio_instances_api_tokens == {'chat-a': 'sk-lm-vaulted'}",
                    "hostvars['mac-1'].lmstudio_instances_api_tokens == {}",
                    "litellm_master_key == 'sk-from-a-vault'",
                ]
            }
        },
    ]
    run = controller(inventory, tasks)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0, output


def test_a_wrong_secret_from_a_vault_is_not_shown(controller, inventory, vaulted):
    inventory["all"]["vars"]["lmfleet_api_tokens"] = {"chat-a": vaulted("with blanks"), "b": vaulted("sk-lm-vaulted")}
    output = controller(inventory, [PLAN]).communicate(timeout=60)[0]
    assert "4 problems" in output
    assert "mac-1: lmfleet_api_tokens (chat-a): a token has at least 8" in output
    assert "mac-2: lmfleet_api_tokens (b): there is no such instance here" in output
    assert "with blanks" not in output
    assert "sk-lm-vaulted" not in output
