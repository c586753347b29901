# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the inventory, has it checked and planned, and tells every problem at once. Runs on the controller only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.plugin_utils import (
    fleet_plan,
    fleet_schema,
    guard_settings,
    tls_settings,
)

COLLECTION = Path(__file__).resolve().parents[2]
ROLES = COLLECTION / "roles"


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset()

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        self.validate_argument_spec({})
        groups = {name: list(task_vars["groups"].get(name, [])) for name in ("macs", "gateways")}
        roles = fleet_schema.role_options(ROLES)
        filled = fleet_schema.filled_variables(COLLECTION / "playbooks")
        hosts, problems = {}, {}
        for name in dict.fromkeys(groups["macs"] + groups["gateways"]):
            hosts[name], found = _read_host(
                name, task_vars["hostvars"][name], roles, filled, gateway=name in groups["gateways"]
            )
            for problem in found:
                problems.setdefault(problem, []).append(name)
        plan = fleet_plan.plan_fleet(hosts, groups["macs"], groups["gateways"])
        missing = [] if plan.problems else _missing_files(plan)
        lines = (
            [f"{', '.join(names)}: {variable}: {message}" for (variable, message), names in problems.items()]
            + plan.problems
            + missing
        )
        if lines:
            result.update(failed=True, problems=lines, msg=_message(lines))
            return result
        lock_timeout = max(host.variables["lmfleet_lock_timeout"] for host in hosts.values())
        if plan.warnings:
            result["warnings"] = plan.warnings
        result.update(
            changed=False,
            hosts=plan.hosts,
            deployments=plan.deployments,
            model_groups=plan.model_groups,
            gateways=plan.gateways,
            token_hosts=plan.token_hosts,
            model_cache=plan.model_cache,
            lock_timeout=lock_timeout,
        )
        return result


def _message(lines: list[str]) -> str:
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return "\n".join([f"{count} in the inventory. Nothing has been changed.", *(f"  - {line}" for line in lines)])


def _read_host(name: str, hostvars: Mapping, roles: Mapping, filled: set[str], gateway: bool):
    """Return the host with its validated variables, and a list of (variable, message)."""
    problems = fleet_schema.name_problems(hostvars, roles, filled)
    variables = {}
    for variable, option in fleet_schema.shared_options().items():
        if option.get("required") and variable not in hostvars:
            problems.append((variable, f"is not set. It is: {fleet_schema.first_line(option)}"))
        variables[variable] = _evaluate(hostvars, variable, option, problems)
        if variables[variable] is None:
            variables[variable] = option.get("default", {} if option["type"] == "dict" else None)
    # The roles take these as they are. Looked at here, a mistake in one shows before anything is changed.
    options = {variable: option for role in roles.values() for variable, option in role.items()}
    of_roles = {
        variable: _evaluate(hostvars, variable, option, problems)
        for variable, option in options.items()
        if variable in hostvars and variable not in filled
    }
    problems += _archive_problems(of_roles.get("lmstudio_archive"), of_roles.get("lmstudio_checksum"))
    if of_roles.get("litellm_runtime") == "compose":
        problems.append(
            ("litellm_runtime", "compose is for the role litellm in a playbook of your own, not for site.yml.")
        )
    listening = _gateway(of_roles) if gateway else None
    guard = _guard(of_roles, variables, listening, problems) if listening else None
    tls = _tls(of_roles, listening, problems) if listening else None
    limit = of_roles.get("mac_host_gpu_memory_limit_mb")
    has_key = bool(of_roles.get("litellm_master_key"))
    address = _plain(hostvars.get("ansible_host"))
    by_api = gateway and _by_api(of_roles)
    return fleet_plan.Host(name, variables, address, listening, guard, limit or None, has_key, tls, by_api), problems


def _missing_files(plan: fleet_plan.Plan) -> list[str]:
    """Return what is missing on this controller of the model files that it is to send."""
    planned = [*plan.hosts.values(), plan.model_cache]
    files = {file["local"]: file for part in planned for file in part.get("models", []) if "local" in file}
    return [
        f"lmfleet_models.{file['name']}.source: {path}: no such file on this controller."
        for path, file in files.items()
        if not os.path.isfile(path)
    ]


def _archive_problems(archive: str | None, checksum: str | None) -> list[tuple[str, str]]:
    """Return what is missing on this controller of an archive that would be sent to the Macs."""
    needed = [archive, *([] if checksum else [f"{archive}.sha512"])] if archive else []
    return [
        ("lmstudio_archive", f"{path}: no such file on this controller.")
        for path in needed
        if not os.path.isabs(path) or not os.path.isfile(path)
    ]


def _evaluate(hostvars: Mapping, variable: str, option: Mapping, problems: list[tuple[str, str]]) -> Any:
    """Return the validated value of a variable, None where it has none or cannot be evaluated."""
    try:
        value = _plain(hostvars.get(variable))
    except AnsibleError as error:
        problems.append((variable, f"cannot be evaluated: {error}"))
        return None
    if value is None:
        return None
    checked, found = fleet_schema.validate(value, option, variable)
    problems.extend(found)
    return checked


def _by_api(of_roles: Mapping[str, Any]) -> bool:
    """Return whether a gateway keeps its deployments in a database."""
    return of_roles.get("gateway_deployments_registry") == "api"


def _gateway(of_roles: Mapping[str, Any]) -> dict[str, Any]:
    """Return where the gateway of a host listens and in which launchd domain it runs."""
    set_here = {variable: value for variable, value in of_roles.items() if value is not None}
    value = {**fleet_schema.role_defaults(ROLES, "litellm"), **set_here}
    return {
        "port": value["litellm_port"],
        "address": value["litellm_address"],
        "domain": value["litellm_launchd_domain"],
    }


def _guard(
    of_roles: Mapping[str, Any], variables: Mapping[str, Any], listening: Mapping, problems: list[tuple[str, str]]
) -> dict[str, Any] | None:
    """Return where the queue guard of a gateway listens, None without one: it follows a registry in a folder."""
    if not variables["lmfleet_queue_guard"] or _by_api(of_roles):
        return None
    set_here = {variable: value for variable, value in of_roles.items() if value is not None}
    value = {**fleet_schema.role_defaults(ROLES, "queue_guard"), **set_here}
    problems += guard_settings.problems(value)
    return {
        "port": value["queue_guard_metrics_port"],
        "address": value["queue_guard_metrics_address"],
        "domain": listening["domain"],
    }


def _tls(of_roles: Mapping[str, Any], listening: Mapping, problems: list[tuple[str, str]]) -> dict[str, Any] | None:
    """Return where the server with TLS in front of a gateway listens, None without one."""
    set_here = {variable: value for variable, value in of_roles.items() if value is not None}
    value = {**fleet_schema.role_defaults(ROLES, "gateway_tls"), **set_here}
    if value["gateway_tls_state"] == "absent":
        return None
    now = datetime.now(UTC)
    found = list(tls_settings.problems(value, now))
    problems += found
    return {
        "port": value["gateway_tls_port"],
        "address": value["gateway_tls_address"],
        "domain": listening["domain"],
        "warning": "" if found else tls_settings.warning(value["gateway_tls_certificate"], now),
    }


def _plain(value: Any) -> Any:
    """Return a value with every template in it evaluated, as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    return value
