# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saves a call where nothing is to be done, and sends the archive from the controller to a Mac that needs it."""

from __future__ import annotations

import os

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.lmfleet.mac.plugins.module_utils._download import (
    DownloadError,
    is_digest,
    parse_checksum,
    text_of,
)
from ansible_collections.lmfleet.mac.plugins.module_utils._versions import settled

_PREFIX = "sha512:"


class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        found = arguments.pop("found", None) or {}
        source = arguments.pop("src", None)
        if source:
            try:
                source = self._find_needle("files", source)
                arguments["checksum"] = self._digest(source, arguments.get("checksum"))
            except (AnsibleError, DownloadError, OSError) as error:
                return {**result, "failed": True, "msg": f"src: {error}"}
        known = self._known(found, arguments)
        if known:
            return {**result, **known}
        if source and not arguments.get("url"):
            return {**result, **self._install(source, arguments, task_vars)}
        if source:
            arguments["src"] = source  # the module tells what is wrong with both
        return {**result, **self._execute_module(module_args=arguments, task_vars=task_vars)}

    @staticmethod
    def _known(found: dict, arguments: dict) -> dict | None:
        """Return the result of the module if `found` shows that it would change nothing."""
        digits = str(arguments.get("checksum") or "").removeprefix(_PREFIX)
        digest = digits.lower() if is_digest(digits, 128) else None
        selected = settled(found, str(arguments.get("version")), digest, int(arguments.get("keep_versions") or 2))
        if selected is None:
            return None
        told = {key: selected[key] for key in ("version", "home", "llmster", "lms")}
        return {"changed": False, "installed": False, "versions": found["versions"], "removed": [], **told}

    @staticmethod
    def _digest(source: str, checksum: str | None) -> str:
        """Return the checksum as digits, from the file that it names on the controller if it names one."""
        place = checksum.removeprefix(_PREFIX) if checksum else f"{source}.sha512"
        if "/" not in place:
            return checksum
        return _PREFIX + parse_checksum(text_of(os.path.abspath(place)), os.path.basename(source), "sha512")

    def _install(self, source: str, arguments: dict, task_vars: dict) -> dict:
        name = os.path.basename(source)
        checking = self._task.check_mode
        # In check mode the module needs no archive: it tells whether this Mac has to install.
        self._task.check_mode = True
        try:
            found = self._execute_module(module_args={**arguments, "url": f"/{name}"}, task_vars=task_vars)
        finally:
            self._task.check_mode = checking
        if checking or not found.get("changed") or found.get("failed"):
            return found
        archive = f"/{name}"
        if found["installed"]:
            self._make_tmp_path()
            archive = self._connection._shell.join_path(self._connection._shell.tmpdir, name)
            self._transfer_file(source, archive)
        return self._execute_module(module_args={**arguments, "url": archive}, task_vars=task_vars)
