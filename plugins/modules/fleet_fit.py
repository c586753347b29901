# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_fit
short_description: Check that each Mac has the memory for what it is to serve
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Compares the plan of M(lmfleet.mac.fleet_plan) with what M(lmfleet.mac.mac_host_check) has told of each Mac of the
    play, in its variable C(mac_host_checked). Runs once, on the controller, connects to no host and changes nothing.
  - Where models cannot fit, fails with a table of who wants what on which Mac, and where each number comes from;
    with C(lmfleet_memory_policy=warn) the table is a warning.
  - A Mac on which nothing of it changes is left in peace. What is not known is a warning, and not counted.
attributes:
  check_mode:
    description: Whether the task can run in check mode.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  hosts:
    description: What each host is to run, as M(lmfleet.mac.fleet_plan) returns it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Check the inventory and the Macs
  hosts: macs:gateways
  gather_facts: false
  tasks:
    - name: Plan the fleet
      lmfleet.mac.fleet_plan:
      run_once: true
      register: fleet

    - name: Ask each Mac what it is
      lmfleet.mac.mac_host_check:
        memory: "{{ fleet.hosts[inventory_hostname].memory.wanted | default(omit, true) }}"
      register: mac_host_checked

    - name: See that every Mac can run what it is to
      lmfleet.mac.fleet_fit:
        hosts: "{{ fleet.hosts }}"
"""

RETURN = r"""
hosts:
  description: The memory plan of each Mac, by inventory name. Sizes are in MiB.
  returned: always
  type: dict
  contains:
    gpu_mb:
      description: What its models take of the GPU's memory.
      type: int
    total_mb:
      description: What they take of the memory in all.
      type: int
    room:
      description: What they may take of both, and where the first comes from.
      type: dict
    claims:
      description: What each loaded copy takes.
      type: list
      elements: dict
    fits:
      description: Whether it fits, as far as it is known.
      type: bool
problems:
  description: What cannot be, one text for each Mac.
  returned: failure
  type: list
  elements: str
"""
