# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a batch of a roll-out."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout_outcome import outcome

DOCUMENTATION = r"""
name: rollout_outcome
short_description: Tell what came of a batch of a roll-out
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Reads from the results of the tasks of a roll-out which Macs were changed, what answers, and what went wrong.
options:
  _input:
    description: A batch, as M(lmfleet.mac.fleet_rollout) returns it.
    type: dict
    required: true
  deployments:
    description: The deployments of the fleet, as M(lmfleet.mac.fleet_plan) returns them.
    type: list
    elements: dict
    required: true
  macs:
    description: Of each Mac of the batch the results C(idle), C(run) and C(health).
    type: dict
    required: true
  gateways:
    description: The results C(held), C(drained), C(told), C(answers) and C(back), one for each gateway in each.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show whether all went well
  ansible.builtin.debug:
    msg: "{{ (batch | lmfleet.mac.rollout_outcome(deployments, macs, gateways)).well }}"
  vars:
    batch: {hosts: {mac-1: [chat-a]}, out: {mac-1: [mac-1-chat-a-m]}, paused: [mac-1-chat-a-m], removed: [], added: []}
    deployments: [{id: mac-1-chat-a-m, host: mac-1, instance: chat-a}]
    macs: {mac-1: {idle: {}, run: {changed: true}, health: {}}}
    gateways: {held: [], drained: [], told: [], answers: [], back: []}
"""

RETURN = r"""
_value:
  description:
    - C(well), whether nothing went wrong. C(in_the_way) and C(behind), lines on gateways; C(untouched) and C(mute), by
      Mac, why it was not changed, or does not answer now. C(gone), C(new), C(asked), C(doubtful) and C(resumed), ids of
      deployments; C(silent), by id, why it does not answer.
  type: dict
  sample: {well: true}
"""


class FilterModule:
    def filters(self):
        return {"rollout_outcome": outcome}
