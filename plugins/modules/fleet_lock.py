# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Let only one run at a time work on a fleet
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Takes a lock on the controller for each host of the inventory group C(gateways), or of C(macs) where there is no
    gateway, which are held until the run ends, in whatever way it ends. Another run of the same user with one of these
    hosts, whatever else is in its inventory, waits, and then fails with the holder's name.
  - Runs of other users and from other controllers are kept apart inside each module, by a lock on each Mac, and while
    they change instances by M(lmfleet.mac.rollout_claim).
  - Takes nothing in check mode.
attributes:
  check_mode:
    description: Whether the task can run in check mode.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  timeout:
    description: How many seconds to wait for another run.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Work on the fleet alone
  hosts: macs:gateways
  gather_facts: false
  tasks:
    - name: Wait at most a minute for another run
      lmfleet.mac.fleet_lock:
        timeout: 60
"""

RETURN = r"""
controller:
  description: What tells this user's controller from others, a random text in C(~/.ansible/lmfleet/controller-id).
  returned: success
  type: str
  sample: 0b8e6c0d4e0f4b6c9d9be6a1a3f6f1c2
holder:
  description: Who runs the play, for messages.
  returned: success
  type: str
  sample: anna on laptop
"""
