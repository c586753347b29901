# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tuning files of an instance: what each needs, and writing them. I/O around the merge in `_tuning`."""

from __future__ import annotations

import os
from typing import NamedTuple

from ._files import (
    atomic_write,
    canonical_json,
    exclusive,
    file_diff,
    make_directory,
    read_bytes,
    read_json,
    remove_file,
)
from ._lms import tuning_path
from ._tuning import TuningError, managed_keys, merge, parse_tuning

#: In the home of an instance: which keys of which model file were set here, {path: {section: [key]}}.
_MEMORY = "managed_tuning.json"


#: Options that describe one tuning file, shared by the modules that write them.
FILE_OPTIONS = {
    "instance": {"type": "str", "required": True},
    "model": {"type": "str", "required": True},
    "path": {"type": "str", "required": True},
    "content": {"type": "str", "required": True},
    "template": {"type": "str", "default": "content"},
}


class Change(NamedTuple):
    """One tuning file: canonical texts as found and as wanted, None for an absent file."""

    instance: str
    model: str
    file: str
    before: str | None
    after: str | None

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def diff(self) -> dict:
        return file_diff(self.file, self.before, self.after)

    def result(self) -> dict:
        """What a module tells of it."""
        return {"instance": self.instance, "model": self.model, "file": self.file, "changed": self.changed}


class Home(NamedTuple):
    """One instance: what was managed before, what is managed now, and the changes from one to the other."""

    path: str
    before: dict
    after: dict
    changes: list[Change]

    @property
    def instance(self) -> str:
        return os.path.basename(self.path)

    def differs(self) -> bool:
        return self.before != self.after or any(change.changed for change in self.changes)


def managed(home: str) -> dict:
    """Return which keys of which model file were set here, {path: {section: [key]}}."""
    stored = read_json(os.path.join(home, _MEMORY))
    return stored if isinstance(stored, dict) else {}


def plan_home(instance: str, home: str, entries: list[dict]) -> Home:
    """Return what the files of one instance need; reads only. Raises TuningError."""
    before = managed(home)
    after = {}
    changes = []
    for entry in entries:
        path = entry["path"]
        if path in after:
            raise TuningError(f"instance {instance}: {path} is listed twice")
        wanted = parse_tuning(
            entry["content"], f"template {entry['template']}, instance {instance}, model {entry['model']}"
        )
        after[path] = managed_keys(wanted)
        changes.append(_change(instance, entry["model"], home, path, wanted, before.get(path, {})))
    for path in before:
        if path not in after:
            changes.append(_change(instance, "", home, path, None, before[path]))
    return Home(home, before, after, changes)


def _change(instance: str, model: str, home: str, path: str, wanted: dict | None, managed_before: dict) -> Change:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise TuningError(f"instance {instance}, model {model}: path {path!r} must be publisher/name/file")
    file = tuning_path(home, path)
    content = read_bytes(file)
    found = read_json(file)
    before = None
    if content is not None:
        before = canonical_json(found) if found is not None else content.decode("utf-8", "replace")
    merged = merge(found if isinstance(found, dict) else None, wanted, managed_before)
    return Change(instance, model, file, before, None if merged is None else canonical_json(merged))


def write(home: Home, lock_timeout: float) -> None:
    """Write what `home` needs, alone in it. Raises LockTimeoutError after `lock_timeout` seconds, OSError."""
    if home.differs():
        make_directory(home.path)
        with exclusive(home.path, "lmstudio_tuning", lock_timeout):
            _apply(home)


def _apply(home: Home) -> None:
    """What is managed is noted before it is written: a killed run leaves no orphaned key."""
    memory = os.path.join(home.path, _MEMORY)
    if home.before != home.after:
        atomic_write(memory, canonical_json(_union(home.before, home.after)))
    for change in home.changes:
        if not change.changed:
            continue
        if change.after is None:
            remove_file(change.file)
        else:
            make_directory(os.path.dirname(change.file))
            atomic_write(change.file, change.after)
    if _union(home.before, home.after) != home.after:
        atomic_write(memory, canonical_json(home.after))


def _union(before: dict, after: dict) -> dict:
    result = {}
    for path in {**before, **after}:
        old, new = before.get(path, {}), after.get(path, {})
        result[path] = {section: sorted({*old.get(section, []), *new.get(section, [])}) for section in {**old, **new}}
    return result
