# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compares what the plan gives each Mac with what the Mac has told of itself. Runs on the controller only."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.filter.table import table
from ansible_collections.lmfleet.mac.plugins.plugin_utils import load_settings, memory_plan


class ActionModule(ActionBase):
    BYPASS_HOST_LOOP = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"hosts"})

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _checked, arguments = self.validate_argument_spec({"hosts": {"type": "dict", "required": True}})
        verdicts, unsettled, problems, warnings = {}, {}, [], []
        for host in task_vars["ansible_play_hosts"]:
            planned = arguments["hosts"].get(host)
            if not planned or not planned["instances"]:
                continue
            facts = task_vars["hostvars"][host]["mac_host_checked"]["facts"]
            problems += [f"{host}: {problem}" for problem in _thread_problems(planned, facts)]
            verdicts[host] = _verdict(planned, facts)
            if facts["memory"]["problem"]:
                warnings.append(f"{host}: {facts['memory']['problem']}")
            if _needs_a_word(planned["memory"], facts["memory"], verdicts[host]):
                lines = table(memory_plan.rows(verdicts[host]))
                text = f"{memory_plan.summary(host, verdicts[host])}\n{lines}\n{memory_plan.CURES}\n"
                (problems if planned["memory"]["policy"] == "refuse" else warnings).append(text)
            if not facts["memory"]["settled"]:
                unsettled[host] = verdicts[host]
        warnings += memory_plan.unknowns(unsettled)
        if warnings:
            result["warnings"] = warnings
        result.update(changed=False, hosts={host: _told(verdict) for host, verdict in verdicts.items()})
        if problems:
            result.update(failed=True, problems=problems, msg=_message(problems))
        return result


def _thread_problems(planned, facts):
    """Return a line for each model whose threads are those of cores that the Mac does not tell of."""
    lines = []
    for instance in planned["instances"]:
        for model in instance["models"]:
            try:
                load_settings.resolved(model["load"], facts["performance_cores"], facts["efficiency_cores"])
            except ValueError as error:
                lines.append(f"instance {instance['name']}, model {model['name']}: {error}")
    return dict.fromkeys(lines)


def _verdict(planned, facts):
    wanted, found = planned["memory"], facts["memory"]
    room = memory_plan.room(facts["memory_mb"], wanted["gpu_limit_mb"], found["wired_limit_mb"], wanted["reserve_mb"])
    claims = [
        claim
        for instance in planned["instances"]
        for model in instance["models"]
        for claim in memory_plan.claims_of(instance["name"], model, wanted["declared"], found)
    ]
    return memory_plan.Verdict(room, tuple(claims))


def _needs_a_word(wanted, found, verdict):
    """Return whether the Mac cannot hold it. One that holds it already is left in peace, unless its limit changes."""
    limit_changes = wanted["gpu_limit_mb"] not in (None, found["wired_limit_mb"])
    return not verdict.fits and (limit_changes or not found["settled"])


def _told(verdict):
    return {
        "gpu_mb": verdict.gpu_mb,
        "total_mb": verdict.total_mb,
        "room": verdict.room._asdict(),
        "claims": [claim._asdict() for claim in verdict.claims],
        "fits": verdict.fits,
    }


def _message(problems):
    return "\n".join(["Not every Mac can run what it is to. Nothing has been changed.", "", *problems])
