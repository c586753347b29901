#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module lmstudio_tuning."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lmstudio_tuning
short_description: Set the load defaults of models per LM Studio instance
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Merges settings into the per-model files from which LM Studio takes the defaults of every load.
  - Settings that were never managed here stay as they are. A setting that was managed and is no longer given is
    removed, also when its model is no longer in the list for an instance that is.
  - Files are compared by meaning. Loading the model anew is not done here.
attributes:
  check_mode:
    description: Tells which files would change without writing.
    support: full
  diff_mode:
    description: Shows each file that changes, in a canonical form.
    support: full
options:
  files:
    description: The settings, one entry per model and instance.
    type: list
    elements: dict
    required: true
    suboptions:
      instance:
        description: Name of the instance, for messages.
        type: str
        required: true
      model:
        description: Name of the model, for messages.
        type: str
        required: true
      home:
        description: Home of the instance.
        type: path
        required: true
      path:
        description: Place of the model file below the models folder, C(publisher/name/file).
        type: str
        required: true
      content:
        description: The settings as JSON text, in the form of LM Studio's own files.
        type: str
        required: true
      template:
        description: Name of the template that O(files[].content) was rendered from, for messages.
        type: str
        default: content
  lock_timeout:
    description: Seconds to wait for another run on the same Mac that is writing settings.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Set context and parallel requests of a model
  lmfleet.mac.lmstudio_tuning:
    files:
      - instance: chat-a
        model: smollm2
        home: /Users/admin/.lmfleet/instances/chat-a
        path: lmfleet/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        content: "{{ {'load': {'fields': fields}} | to_json }}"
  vars:
    fields:
      - {key: llm.load.contextLength, value: 4096}
      - {key: llm.load.numParallelSessions, value: 4}
"""

RETURN = r"""
files:
  description: The files in the order given, then those of models that are no longer served.
  returned: success
  type: list
  elements: dict
  contains:
    instance:
      description: Name of the instance.
      type: str
      returned: always
    model:
      description: Name of the model, empty when it is no longer served.
      type: str
      returned: always
    file:
      description: Absolute path of the file.
      type: str
      returned: always
    changed:
      description: Whether the file was changed.
      type: bool
      returned: always
  sample: [{instance: chat-a, model: smollm2, file: /Users/admin/x.gguf.json, changed: false}]
"""

import os
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import (
    LockTimeoutError,
    atomic_write,
    canonical_json,
    exclusive,
    file_diff,
    make_directory,
    read_bytes,
    read_json,
    remove_file,
)
from ..module_utils._lms import tuning_path
from ..module_utils._tuning import TuningError, managed_keys, merge, parse_tuning

#: In the home of an instance: which keys of which model file were set here, {path: {section: [key]}}.
_MEMORY = "managed_tuning.json"


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


class Home(NamedTuple):
    """One instance: what was managed before, what is managed now, and the changes from one to the other."""

    path: str
    before: dict
    after: dict
    changes: list[Change]


def plan_home(instance: str, home: str, entries: list[dict]) -> Home:
    """Return what the files of one instance need; reads only. Raises TuningError."""
    stored = read_json(os.path.join(home, _MEMORY))
    before = stored if isinstance(stored, dict) else {}
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


def apply(home: Home) -> None:
    """Write what `home` needs. What is managed is noted before it is written: a killed run leaves no orphaned key."""
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


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; writes unless in check mode."""
    by_home: dict[str, tuple[str, list[dict]]] = {}
    for entry in module.params["files"]:
        by_home.setdefault(entry["home"], (entry["instance"], []))[1].append(entry)
    homes = [plan_home(instance, home, entries) for home, (instance, entries) in by_home.items()]
    changes = [change for home in homes for change in home.changes]
    for home in homes if not module.check_mode else []:
        if home.before != home.after or any(change.changed for change in home.changes):
            make_directory(home.path)
            with exclusive(home.path, "lmstudio_tuning", module.params["lock_timeout"]):
                apply(home)
    order = {(entry["instance"], entry["model"]): position for position, entry in enumerate(module.params["files"])}
    changes.sort(key=lambda change: order.get((change.instance, change.model), len(order)))
    return {
        "changed": any(change.changed for change in changes),
        "files": [
            {"instance": change.instance, "model": change.model, "file": change.file, "changed": change.changed}
            for change in changes
        ],
        "diff": [file_diff(change.file, change.before, change.after) for change in changes if change.changed],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "instance": {"type": "str", "required": True},
                    "model": {"type": "str", "required": True},
                    "home": {"type": "path", "required": True},
                    "path": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                    "template": {"type": "str", "default": "content"},
                },
            },
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (TuningError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
