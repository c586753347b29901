# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps two runs on one controller from working on the same fleet at the same time."""

from __future__ import annotations

import getpass
import socket
import time

from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_lock


class ActionModule(ActionBase):
    BYPASS_HOST_LOOP = True
    _requires_connection = False
    _VALID_ARGS = frozenset({"timeout"})

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _checked, arguments = self.validate_argument_spec({"timeout": {"type": "int", "default": 30}})
        user, controller = getpass.getuser(), socket.gethostname()
        try:
            controller_id = fleet_lock.controller_id()
        except OSError as error:
            result.update(failed=True, msg=f"This controller cannot be told from others: {error}.")
            return result
        result.update(changed=False, controller=controller_id, holder=f"{user} on {controller}")
        if self._task.check_mode:
            return result
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        members = groups.get("gateways") or groups.get("macs") or []
        paths = fleet_lock.lock_files(str(hostvars[host].get("ansible_host", host)) for host in members)
        run_pid = fleet_lock.run_pid()
        holder = {
            "user": user,
            "controller": controller,
            "pid": str(run_pid),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        try:
            other = fleet_lock.take(paths, run_pid, arguments["timeout"], holder)
        except (OSError, RuntimeError) as error:
            names = ", ".join(str(path) for path in paths)
            result.update(
                failed=True, msg=f"The lock of this fleet cannot be taken: {error}. Check the permissions of {names}."
            )
            return result
        if other:
            result.update(
                failed=True,
                msg=f"Another run works on this fleet: {other['user']} on {other['controller']}, "
                f"process {other['pid']}, since {other['since']}. "
                f"Waited {arguments['timeout']} s for it (lmfleet_lock_timeout). Nothing has been changed. "
                "Run again when it has ended.",
            )
        return result
