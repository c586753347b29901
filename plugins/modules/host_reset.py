#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_reset."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_reset
short_description: Remove from a Mac what this collection has made there
version_added: "0.2.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Stops and removes the launchd jobs of this collection in both domains, and removes what it has put into its root
    folder, LM Studio versions, instances and gateway.
  - Only what bears a mark of this collection goes. Files of others in the root folder, other launchd jobs, and a
    desktop LM Studio stay as they are. Symbolic links are not followed.
  - It makes no difference how far an installation has got. A run that was killed is completed by the next one.
  - Settings of the Mac itself, such as those for power, stay as they are.
  - Run it as root, where jobs of the domain V(system) or files of root may be there.
attributes:
  check_mode:
    description: Tells what would be removed, and removes nothing.
    support: full
  diff_mode:
    description: Shows the list of what is removed.
    support: full
options:
  root:
    description: The root folder. C(~) is the home of O(user).
    type: str
    default: ~/.lmfleet
  user:
    description: The login user that the collection was installed for. The one who connects, also under sudo.
    type: str
  models:
    description:
      - Whether model files that were fetched are removed as well. They are big, and a new installation takes them up
        again.
    type: bool
    default: false
  timeout:
    description: Seconds that each job may take to stop.
    type: int
    default: 120
  lock_timeout:
    description: Seconds to wait for another run on the same Mac.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Remove everything but the models
  become: true
  lmfleet.mac.host_reset:
"""

RETURN = r"""
removed:
  description: What is removed, or in check mode would be, one line each. Jobs, processes, folders and files.
  returned: success
  type: list
  elements: str
  sample: [launchd job gui/501/lmfleet.instance.chat-a, /Users/admin/.lmfleet/instances/]
kept:
  description: Names in the root folder that stay.
  returned: success
  type: list
  elements: str
  sample: [models, models.json]
root:
  description: Absolute path of the root folder.
  returned: success
  type: str
  sample: /Users/admin/.lmfleet
"""

import getpass
import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import LockTimeoutError, file_diff
from ..module_utils._launchd import LaunchdError
from ..module_utils._reset import Mac, ResetError


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; removes unless in check mode."""
    params = module.params
    user = params["user"] or os.environ.get("SUDO_USER") or getpass.getuser()
    mac = Mac(params["root"], user, params["models"])
    mac.refuse_what_is_not_ours()
    found = mac.look()
    removed = found.lines()
    if removed and not module.check_mode:
        ended = mac.remove(found, params["timeout"], params["lock_timeout"])
        removed += [line for line in ended if line not in removed]
    return {
        "changed": bool(removed),
        "root": mac.root,
        "removed": removed,
        "kept": found.kept,
        "diff": [file_diff(mac.root, "\n".join(removed) + "\n", None)] if removed else [],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "str", "default": "~/.lmfleet"},
            "user": {"type": "str"},
            "models": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 120},
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (ResetError, LaunchdError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
