# SPDX-License-Identifier: GPL-3.0-or-later
"""What the templates of the role queue_guard make of its variables, and what the plan says of bad ones."""

from __future__ import annotations

import json
import plistlib
from pathlib import Path

from queue_guard.settings import read_plan

ROLE = Path(__file__).resolve().parents[3] / "roles" / "queue_guard"
PLAN = {"lmfleet.mac.fleet_plan": None, "run_once": True}


def test_the_daemon_takes_the_settings_as_they_are_rendered(controller, inventory, tmp_path):
    values = {"queue_guard_root": "/R & D/.lmfleet", "queue_guard_user": "admin", "queue_guard_max_queue": 7}
    texts = {
        name: f"{{{{ lookup('ansible.builtin.template', '{ROLE}/templates/{file}') }}}}"
        for name, file in (("settings", "settings.json.j2"), ("plist", "queue_guard.plist.j2"))
    }
    tasks = [
        *({"ansible.builtin.include_vars": str(ROLE / file)} for file in ("defaults/main.yml", "vars/main.yml")),
        {"ansible.builtin.set_fact": values, "run_once": True},
        {
            "ansible.builtin.copy": {"content": "{{ texts | to_json }}", "dest": str(tmp_path / "rendered.json")},
            "vars": {"texts": texts},
            "delegate_to": "localhost",
            "run_once": True,
        },
    ]
    run = controller(inventory, tasks)
    output = run.communicate(timeout=60)[0]
    assert run.returncode == 0, output
    rendered = json.loads((tmp_path / "rendered.json").read_text())
    text = rendered["settings"] if isinstance(rendered["settings"], str) else json.dumps(rendered["settings"])
    (tmp_path / "settings.json").write_text(text)
    plan = read_plan(str(tmp_path / "settings.json"))
    assert plan.registry == "/R & D/.lmfleet/gateway/registry"
    assert (plan.settings.max_queue, plan.settings.max_first_token, plan.ttl) == (7, None, 60)
    job = plistlib.loads(rendered["plist"].encode())
    folder = "/R & D/.lmfleet/queue_guard"
    assert job["ProgramArguments"] == ["/usr/bin/python3", f"{folder}/queue_guard.pyz", folder]
    assert (job["Label"], job["UserName"]) == ("lmfleet.queue_guard", "admin")


def test_settings_that_make_no_sense_are_told_with_all_other_problems(controller, inventory):
    inventory["all"]["vars"].update(queue_guard_ttl=1, queue_guard_root="/x", queue_guard_metrics_port=2244)
    run = controller(inventory, [PLAN])
    output = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    for words in (
        "mac-1: queue_guard_ttl: must be at least 23",
        "mac-1, mac-2: queue_guard_root: is worked out from the lmfleet_ variables",
        "port 2244 is used by the status of instance chat-a (status_port) and the queue guard",
    ):
        assert words in " ".join(output.split()), output
