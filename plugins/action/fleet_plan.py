# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the inventory, has it checked and planned, and tells every problem at once. Runs on the controller only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_plan, fleet_schema

COLLECTION = Path(__file__).resolve().parents[2]
ROLES = COLLECTION / "roles"


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset()

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        self.validate_argument_spec({})
        groups = {name: list(task_vars["groups"].get(name, [])) for name in ("macs", "gateways")}
        known_roles = fleet_schema.role_variables(ROLES)
        filled = fleet_schema.filled_variables(COLLECTION / "playbooks")
        hosts, problems = {}, {}
        for name in dict.fromkeys(groups["macs"] + groups["gateways"]):
            hosts[name], found = _read_host(
                name, task_vars["hostvars"][name], known_roles, filled, gateway=name in groups["gateways"]
            )
            for problem in found:
                problems.setdefault(problem, []).append(name)
        plan = fleet_plan.plan_fleet(hosts, groups["macs"], groups["gateways"])
        lines = [
            f"{', '.join(names)}: {variable}: {message}" for (variable, message), names in problems.items()
        ] + plan.problems
        if lines:
            result.update(failed=True, problems=lines, msg=_message(lines))
            return result
        lock_timeout = max(host.variables["lmfleet_lock_timeout"] for host in hosts.values())
        result.update(
            changed=False,
            hosts=plan.hosts,
            deployments=plan.deployments,
            gateways=plan.gateways,
            lock_timeout=lock_timeout,
        )
        return result


def _message(lines: list[str]) -> str:
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{count} in the inventory. Nothing has been changed.", *(f"  - {line}" for line in lines)])


def _read_host(name: str, hostvars: Mapping, known_roles: Mapping, filled: set[str], gateway: bool):
    """Return the host with its validated variables, and a list of (variable, message)."""
    problems = fleet_schema.name_problems(hostvars, known_roles, filled)
    variables = {}
    for variable, option in fleet_schema.shared_options().items():
        try:
            value = _plain(hostvars.get(variable))
        except AnsibleError as error:
            problems.append((variable, f"cannot be evaluated: {error}"))
            value = None
        if value is None:
            if option.get("required") and variable not in hostvars:
                problems.append((variable, f"is not set. It is: {option['description'][0]}"))
            variables[variable] = option.get("default", {} if option["type"] == "dict" else None)
            continue
        variables[variable], found = fleet_schema.validate(value, option, variable)
        problems.extend(found)
    listening = _gateway(hostvars, problems) if gateway else None
    return fleet_plan.Host(name, variables, _plain(hostvars.get("ansible_host")), listening), problems


def _gateway(hostvars: Mapping, problems: list[tuple[str, str]]) -> dict[str, Any] | None:
    """Return where the gateway of a host listens and in which launchd domain it runs.

    Returns None when its port makes no sense.
    """
    defaults = fleet_schema.role_defaults(ROLES, "litellm")
    value = {
        name: _plain(hostvars.get(f"litellm_{name}", defaults[f"litellm_{name}"]))
        for name in ("port", "address", "launchd_domain")
    }
    if not str(value["port"]).isdigit():
        problems.append(("litellm_port", f"must be of type int, not {value['port']!r}."))
        return None
    return {"port": int(value["port"]), "address": value["address"], "domain": value["launchd_domain"]}


def _plain(value: Any) -> Any:
    """Return a value with every template in it evaluated, as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    return value
