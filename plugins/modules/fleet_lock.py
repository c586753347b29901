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
  - Takes a lock on the controller that belongs to the hosts of the inventory groups C(macs) and C(gateways)
    and is held until the run ends, in whatever way it ends.
    Another run from the same controller waits, and then fails with the holder's name.
  - Runs from different controllers are kept apart inside each module, by a lock on each Mac, and while they change
    instances by M(lmfleet.mac.rollout_claim).
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
  description: What tells this controller from others.
  returned: always
  type: str
  sample: laptop-2a5c
holder:
  description: Who runs the play, for messages.
  returned: always
  type: str
  sample: anna on laptop
"""
