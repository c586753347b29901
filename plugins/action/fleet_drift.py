# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the roles' tasks left behind on every host of a play, and tells what is not as declared."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_drift

ROLES = Path(__file__).resolve().parents[2] / "roles"
FORMAT = 1


class ActionModule(ActionBase):
    BYPASS_HOST_LOOP = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"roles", "path"})

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _checked, arguments = self.validate_argument_spec(
            {"roles": {"type": "dict", "required": True}, "path": {"type": "path"}}
        )
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        drift, paused = [], []
        hosts = list(task_vars["ansible_play_hosts_all"])
        for host in hosts:
            roles = [
                role for group, names in arguments["roles"].items() if host in groups.get(group, []) for role in names
            ]
            checks = [check for role in roles for check in _checks(role)]
            results = {check.variable: hostvars[host].get(check.variable) for check in checks}
            drift += fleet_drift.drift_of_host(host, checks, results)
            paused += fleet_drift.pauses(host, results.values())
        report = {
            "format": FORMAT,
            "checked_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "hosts": hosts,
            "as_declared": not drift,
            "drift": drift,
            "paused": paused,
        }
        result.update(changed=False, **report)
        if arguments["path"]:
            try:
                _write(Path(arguments["path"]), report)
            except OSError as error:
                result.update(
                    failed=True, msg=f"The report cannot be written to {arguments['path']}: {error.strerror}."
                )
        return result


def _checks(role: str) -> list[fleet_drift.Check]:
    files = sorted((ROLES / role / "tasks").glob("*.yml"), key=lambda file: (file.name != "main.yml", file.name))
    return fleet_drift.checks_of(role, [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files])


def _write(path: Path, report: dict[str, Any]) -> None:
    """Write the report whole: who reads it meanwhile sees the one before."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(report, stream, indent=2)
            stream.write("\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
