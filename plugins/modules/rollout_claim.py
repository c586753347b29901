#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module rollout_claim."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_claim
short_description: Let only one controller at a time roll out changes
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Notes on a gateway which controller changes the fleet. A run on another one is refused until the claim is given up,
    or until it lapses, because the run that has it was killed.
  - The controller that has the claim may take it again at any time. M(lmfleet.mac.fleet_lock) keeps its own runs apart.
attributes:
  check_mode:
    description: Refuses as it would, and writes nothing.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  path:
    description: File that holds the claim. Where its folder is missing no gateway is set up, and nothing is claimed.
    type: path
    required: true
  controller:
    description: What tells this user's controller from others, as M(lmfleet.mac.fleet_lock) returns it.
    type: str
    required: true
  holder:
    description: Who has the claim, for the message to others.
    type: str
    required: true
  state:
    description: V(present) takes or prolongs the claim, V(absent) gives it up. A claim of another controller stays.
    type: str
    choices: [present, absent]
    default: present
  seconds:
    description: How long the claim holds unless it is taken again.
    type: int
    default: 900
  take_over:
    description: Take the claim of another controller, whose run is known to be dead.
    type: bool
    default: false
  lock_timeout:
    description: Seconds to wait for another run on the same host that looks at the claim.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Keep other controllers from changing the fleet for the next ten minutes
  lmfleet.mac.rollout_claim:
    path: /Users/admin/.lmfleet/gateway/rollout.json
    controller: 0b8e6c0d4e0f4b6c9d9be6a1a3f6f1c2
    holder: anna on laptop
    seconds: 600

- name: Give the claim up
  lmfleet.mac.rollout_claim:
    path: /Users/admin/.lmfleet/gateway/rollout.json
    controller: 0b8e6c0d4e0f4b6c9d9be6a1a3f6f1c2
    holder: anna on laptop
    state: absent
"""

RETURN = r"""
holder:
  description: Who has the claim now, empty when nobody has.
  returned: success
  type: str
  sample: anna on laptop
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._claim import ClaimedError, current, refuse_others
from ..module_utils._files import LockTimeoutError, atomic_write, canonical_json, exclusive, remove_file


def ensure(params: dict, check_mode: bool, now: float) -> dict:
    """Return the result. Raises ClaimedError, OSError for what the file system refuses."""
    path, claim = params["path"], current(params["path"], now)
    own = claim.get("controller") == params["controller"]
    if params["state"] == "absent":
        gone = own and os.path.lexists(path)
        if gone and not check_mode:
            remove_file(path)
        return {"changed": gone, "holder": "" if own else claim.get("holder", "")}
    if not params["take_over"]:
        refuse_others(claim, params["controller"])
    wanted = {
        "controller": params["controller"],
        "holder": params["holder"],
        "since": claim["since"] if own else now,
        "until": now + params["seconds"],
    }
    if not check_mode:
        atomic_write(path, canonical_json(wanted), 0o600)
    return {"changed": True, "holder": params["holder"]}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "controller": {"type": "str", "required": True},
            "holder": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "seconds": {"type": "int", "default": 900},
            "take_over": {"type": "bool", "default": False},
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    folder = os.path.dirname(module.params["path"])
    if not os.path.isdir(folder):
        module.exit_json(changed=False, holder="")
    try:
        with exclusive(folder, "rollout_claim", module.params["lock_timeout"]):
            result = ensure(module.params, module.check_mode, time.time())
    except (ClaimedError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
