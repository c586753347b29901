#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module queue_guard."""

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_guard
short_description: Run the queue guard of a gateway as a launchd job, or remove it
version_added: "0.2.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Writes the program and its settings, runs it as a launchd job, and waits until it has looked at all instances.
  - A guard that is there as declared is only asked whether it looks. One whose program, settings or job differ, or that
    no longer looks, is started anew. Its pauses go on meanwhile.
  - Files change while the job is stopped, so that a run that was killed is completed by the next one.
attributes:
  check_mode:
    description: Tells what would be changed, and changes nothing.
    support: full
  diff_mode:
    description: Shows settings and property list as they change, and the version of the program.
    support: full
options:
  state:
    description: V(absent) stops the guard and removes its job, its folder and its pauses.
    type: str
    choices: [present, absent]
    default: present
  directory:
    description: Folder of the guard.
    type: path
    required: true
  registry:
    description: The gateway's registry, a folder.
    type: path
    required: true
  files:
    description: Files of the program, path in its archive to text. Required for O(state=present).
    type: dict
  settings:
    description: The content of C(settings.json). Required for O(state=present).
    type: str
  settings_source:
    description: Where O(settings) come from, to be named in messages.
    type: str
    default: settings
  plist:
    description: Property list of the job C(lmfleet.queue_guard). Required for O(state=present).
    type: str
  domain:
    description: Domain of the job. V(system) needs root.
    type: str
    choices: [gui, system]
    default: system
  user:
    description: The login user. The one who connects, when it is not set.
    type: str
  timeout:
    description: Seconds to stop, to start and to look at the instances for the first time.
    type: int
    default: 60
  lock_timeout:
    description: Seconds to wait for another run on the same Mac.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Remove the queue guard
  become: true
  lmfleet.mac.queue_guard:
    state: absent
    directory: /Users/admin/.lmfleet/queue_guard
    registry: /Users/admin/.lmfleet/gateway/registry
    user: admin
"""

RETURN = r"""
root:
  description: Folder of the guard.
  returned: success
  type: str
  sample: /Users/admin/.lmfleet/queue_guard
actions:
  description: What was done, or in check mode would be.
  returned: success
  type: list
  elements: str
  sample: [bootout, write settings.json, bootstrap]
guard:
  description: What the guard said last, null when it did not answer or is absent.
  returned: success
  type: dict
  contains:
    deployments:
      description: How many deployments it knows.
      type: int
    known:
      description: Of how many the queue is known.
      type: int
    paused:
      description: How many it pauses.
      type: int
    age:
      description: Seconds since it looked.
      type: float
  sample: {deployments: 8, known: 8, paused: 0, age: 2.1}
problem:
  description: Why a guard that runs as declared is not right.
  returned: in check mode, when there is something
  type: str
"""

import getpass

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import LockTimeoutError
from ..module_utils._launchd import Launchctl, LaunchdError, domain_for
from ..module_utils._queue_guard import Guard, GuardError, parse_wanted


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module."""
    params = module.params
    launchctl = Launchctl(domain_for(params["domain"], params["user"] or getpass.getuser()))
    wanted = parse_wanted(params) if params["state"] == "present" else None
    guard = Guard(params["directory"], params["registry"], launchctl, wanted)
    if module.check_mode:
        plan = guard.plan()
        problem = guard.trouble(guard.told(), plan) if wanted else ""
    else:
        plan = guard.converge(params["timeout"], params["lock_timeout"])
        problem = ""
    result = {
        "changed": bool(plan.actions),
        "root": guard.folder,
        "actions": plan.actions,
        "guard": guard.last,
        "diff": plan.diff,
    }
    return {**result, "problem": problem} if problem else result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "directory": {"type": "path", "required": True},
            "registry": {"type": "path", "required": True},
            "files": {"type": "dict"},
            "settings": {"type": "str"},
            "settings_source": {"type": "str", "default": "settings"},
            "plist": {"type": "str"},
            "domain": {"type": "str", "choices": ["gui", "system"], "default": "system"},
            "user": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            "lock_timeout": {"type": "int", "default": 120},
        },
        required_if=[("state", "present", ("files", "settings", "plist"))],
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (GuardError, LaunchdError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
