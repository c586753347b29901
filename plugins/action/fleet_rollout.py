# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns what each Mac needs into batches that leave every model group enough. Runs on the controller only."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.filter.table import table
from ansible_collections.lmfleet.mac.plugins.plugin_utils import rollout

OPTIONS = {
    "needs": {"type": "dict", "required": True},
    "deployments": {"type": "list", "elements": "dict", "required": True},
    "registered": {"type": "list", "elements": "dict", "default": []},
    "unreachable": {"type": "list", "elements": "str", "default": []},
    "silent": {"type": "list", "elements": "str", "default": []},
    "next_batch": {"type": "dict"},
    "batch": {"type": "str", "default": "25%"},
    "min_capacity": {"type": "str"},
    "canary": {"type": "bool", "default": True},
    "allow_downtime": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(OPTIONS)

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _checked, arguments = self.validate_argument_spec(OPTIONS)
        needs = {host: entries or [] for host, entries in arguments["needs"].items()}
        policy = rollout.Policy(
            arguments["batch"], arguments["min_capacity"], arguments["canary"], arguments["allow_downtime"]
        )
        gateways = arguments["registered"]
        unanswered = [gateway for gateway in gateways if "groups" not in gateway and not gateway.get("skipped")]
        broken = [gateway for gateway in unanswered if not gateway.get("unreachable")]
        if broken:
            told = " | ".join(f"{gateway.get('gateway')}: {gateway.get('msg')}" for gateway in broken)
            now = "Nothing has been paused." if arguments["next_batch"] else "No instance has been changed."
            result.update(failed=True, msg=f"It is not known what each gateway routes to. {now} {told}")
            return result
        for gateway in unanswered:
            self._display.warning(
                f"gateway {gateway.get('gateway')} cannot be reached: if it still serves, it goes on sending requests "
                "to instances while they are changed."
            )
        answered = [gateway for gateway in gateways if "groups" in gateway]
        known = (needs, arguments["deployments"], answered, policy, arguments["unreachable"], arguments["silent"])
        try:
            if arguments["next_batch"]:
                result.update(changed=False, problems=rollout.shortage(arguments["next_batch"], *known))
                return result
            planned = rollout.from_results(*known)
        except ValueError as error:
            result.update(failed=True, msg=f"lmfleet_batch or lmfleet_min_capacity: {error}. Nothing has been changed.")
            return result
        rows = planned.pop("rows")
        result.update(changed=False, table=table(rows) if rows else "", **planned)
        if planned["problems"]:
            lines = "\n".join(f"  - {problem}" for problem in planned["problems"])
            message = "The instances cannot be changed one after the other. None has been changed."
            result.update(failed=True, msg=f"{message}\n{lines}\n\n{result['table']}")
        return result
