# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_drift
short_description: Tell where a fleet is not as its inventory says
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Reads the results that the tasks of roles have left behind on the hosts of the play. Where the tasks ran in check
    mode, what they would change is what is not as declared, and so is what they could not look at.
  - Runs on the controller, connects to no host and changes nothing but the file O(path).
  - The playbook C(lmfleet.mac.verify) is made with it.
attributes:
  check_mode:
    description: Whether the task can run in check mode. It does the same as otherwise.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  roles:
    description:
      - Roles of this collection whose results are read, as a dictionary from a group of the inventory to the list of
        the roles that its hosts have run.
    type: dict
    required: true
  path:
    description:
      - File on the controller that the report is written to, as JSON. Its folder must exist.
    type: path
"""

EXAMPLES = r"""
- name: Look at every Mac, changing nothing
  hosts: macs
  gather_facts: false
  check_mode: true
  ignore_errors: true
  ignore_unreachable: true
  tasks:
    - name: Check the host
      ansible.builtin.import_role:
        name: lmfleet.mac.mac_host

    - name: Tell what is not as declared
      lmfleet.mac.fleet_drift:
        roles: {macs: [mac_host]}
        path: drift.json
      run_once: true
      register: report
"""

RETURN = r"""
format:
  description: Number of this form of the report. Another one when a field changes its meaning or goes.
  returned: success
  type: int
  sample: 1
checked_at:
  description: When, in UTC.
  returned: success
  type: str
  sample: "2026-11-22T23:50:00Z"
hosts:
  description: The hosts that were looked at, or should have been.
  returned: success
  type: list
  elements: str
as_declared:
  description: Whether nothing was found.
  returned: success
  type: bool
drift:
  description: What is not as declared, by host in the order of the inventory.
  returned: success
  type: list
  elements: dict
  contains:
    host:
      description: Inventory name of the host.
      type: str
    role:
      description: The role that found it.
      type: str
    task:
      description: The task of that role.
      type: str
    what:
      description: What it is about, such as a file, an instance or a deployment.
      type: str
    problem:
      description: What is wrong with it.
      type: str
    diff:
      description: From what is there to what is declared, as a unified diff; empty where it is no text.
      type: str
  sample:
    - {host: mac-2, role: lmstudio_instances, task: Run the instances, what: instance chat-a,
       problem: "its launchd job is not loaded (to do: start)", diff: ""}
paused:
  description: The deployments that somebody keeps from getting requests, oldest first. That is no drift.
  returned: success
  type: list
  elements: dict
  contains:
    gateway:
      description: Inventory name of the gateway.
      type: str
    id:
      description: Id of the deployment.
      type: str
    owner:
      description: Who pauses it, V(operator), V(rollout) or V(guard).
      type: str
    since:
      description: Since when, in UTC.
      type: str
    until:
      description: Until when, in UTC; empty where somebody has to lift it.
      type: str
    reason:
      description: Why.
      type: str
  sample:
    - {gateway: mac-1, id: mac-2-chat-a-smollm2, owner: operator, since: "2026-11-22T20:00:00Z", until: "",
       reason: memory upgrade}
"""
