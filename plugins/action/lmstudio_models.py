# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls the module only where something may have to be done, and sends a Mac the files of the controller it lacks."""

from __future__ import annotations

import contextlib
import os

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.lmfleet.mac.plugins.module_utils._model_files import ModelError, checked_models, settled
from ansible_collections.lmfleet.mac.plugins.module_utils._model_index import FETCHING
from ansible_collections.lmfleet.mac.plugins.plugin_utils import progress

display = Display()

#: Options that want more than a look at what was verified before.
_MORE = ("index", "partial", "prune", "read_all", "server")


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        found = arguments.pop("found", None) or {}
        if isinstance(arguments.get("models"), list):
            arguments["models"] = [_with_size(model) for model in arguments["models"]]
        known = self._known(found, arguments)
        if known:
            return {**result, **known}
        with self._progress(arguments, task_vars):
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

    def _progress(self, arguments: dict, task_vars: dict) -> contextlib.AbstractContextManager:
        """Return what says, while the module runs, how far a download is."""
        directory = str(arguments.get("directory"))
        try:
            interval = int(arguments.get("progress_interval", 30))
        except (TypeError, ValueError):
            interval = 0  # the module tells what is wrong
        if self._task.check_mode or interval <= 0 or not directory.startswith("/"):
            return contextlib.nullcontext()
        partial = arguments.get("partial") or os.path.join(os.path.dirname(os.path.abspath(directory)), "partial")
        host = task_vars["inventory_hostname"]
        return progress.told(
            lambda command: self._low_level_execute_command(command, sudoable=False),
            lambda text: display.display(f"{host}: {text}"),
            os.path.join(partial, FETCHING),
            interval,
        )

    @staticmethod
    def _known(found: dict, arguments: dict) -> dict | None:
        """Return the result of the module if `found` shows that it would change nothing."""
        if any(arguments.get(name) for name in _MORE):
            return None
        try:
            return settled(found, arguments["directory"], checked_models(arguments["models"]))
        except (ModelError, KeyError, TypeError, AttributeError):
            return None  # the module tells what is wrong


def _with_size(model):
    """Return the entry of a model with the size of its file on the controller: the Mac cannot know it."""
    local = model.get("local") if isinstance(model, dict) else None
    return {**model, "size": os.path.getsize(local)} if local and os.path.isfile(local) else model
