# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends model files of the controller to a Mac that lacks them. Where none is missing the module is called once."""

from __future__ import annotations

import os

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if isinstance(arguments.get("models"), list):
            arguments["models"] = [_with_size(model) for model in arguments["models"]]
        told = self._execute_module(module_args=arguments, task_vars=task_vars)
        to_send = told.get("to_send")
        if not to_send:
            return {**result, **told}
        for file in to_send:
            try:
                self._transfer_file(file["local"], file["to"])
            except (AnsibleError, OSError) as error:
                return {**result, "failed": True, "msg": f"model {file['name']}: cannot be sent: {error}"}
        told = self._execute_module(module_args=arguments, task_vars=task_vars)
        if told.get("to_send"):
            names = ", ".join(file["local"] for file in told["to_send"])
            return {**result, "failed": True, "msg": f"{names}: not whole after it was sent; run again."}
        return {**result, **told}


def _with_size(model):
    """Return the entry of a model with the size of its file on the controller: the Mac cannot know it."""
    local = model.get("local") if isinstance(model, dict) else None
    return {**model, "size": os.path.getsize(local)} if local and os.path.isfile(local) else model
