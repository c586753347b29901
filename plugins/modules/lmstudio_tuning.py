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

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import LockTimeoutError
from ..module_utils._tuning import TuningError
from ..module_utils._tuning_files import FILE_OPTIONS, plan_home, write


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; writes unless in check mode."""
    by_home: dict[str, tuple[str, list[dict]]] = {}
    for entry in module.params["files"]:
        by_home.setdefault(entry["home"], (entry["instance"], []))[1].append(entry)
    homes = [plan_home(instance, home, entries) for home, (instance, entries) in by_home.items()]
    changes = [change for home in homes for change in home.changes]
    for home in homes if not module.check_mode else []:
        write(home, module.params["lock_timeout"])
    order = {(entry["instance"], entry["model"]): position for position, entry in enumerate(module.params["files"])}
    changes.sort(key=lambda change: order.get((change.instance, change.model), len(order)))
    return {
        "changed": any(change.changed for change in changes),
        "files": [change.result() for change in changes],
        "diff": [change.diff() for change in changes if change.changed],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {**FILE_OPTIONS, "home": {"type": "path", "required": True}},
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
