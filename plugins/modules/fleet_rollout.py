#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of this name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_rollout
short_description: Work out in which order the instances of a live fleet are changed
version_added: "0.2.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Puts the instances that need a change into batches, so that every model group keeps enough deployments. One Mac goes
    first, the others follow in batches. What interrupts nothing comes before them, all at once.
  - Runs on the controller and changes nothing.
attributes:
  check_mode:
    description: Whether the task can run in check mode.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  needs:
    description: By host, the list C(instances) of what M(lmfleet.mac.lmstudio_instances) returns in check mode.
    type: dict
    required: true
  deployments:
    description: The deployments as declared, each with C(id), C(model_group), C(host) and C(instance).
    type: list
    elements: dict
    required: true
  registered:
    description:
      - What M(lmfleet.mac.litellm_deployments) returns of each gateway, with C(groups) and C(paused), and its name in
        C(gateway). The task fails where one has failed, and warns where one could not be reached.
    type: list
    elements: dict
    default: []
  unreachable:
    description: Macs that are left out because they cannot be reached. Their deployments count as not serving.
    type: list
    elements: str
    default: []
  batch:
    description: How many Macs are changed at the same time, a number or a share such as V(25%).
    type: str
    default: 25%
  min_capacity:
    description:
      - How many of its deployments each model group keeps, a number or a share. Where it is not set, all but those of
        one Mac, and at least one.
    type: str
  canary:
    description: Whether one Mac is changed by itself first.
    type: bool
    default: true
  allow_downtime:
    description: Whether a model group may be without any deployment for a while. Otherwise the task fails.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Work out the order
  lmfleet.mac.fleet_rollout:
    needs:
      mac-1: [{name: chat-a, action: restart, why: "changed: port", ready: true, tuning: false, interrupted: [smollm2]}]
      mac-2: [{name: chat-a, action: nothing, why: "", ready: true, tuning: false, interrupted: []}]
    deployments:
      - {id: mac-1-chat-a-smollm2, model_group: smollm2, host: mac-1, instance: chat-a}
      - {id: mac-2-chat-a-smollm2, model_group: smollm2, host: mac-2, instance: chat-a}
    registered:
      - groups: {mac-1-chat-a-smollm2: smollm2, mac-2-chat-a-smollm2: smollm2}
        paused: {}
  register: order

- name: Show it
  ansible.builtin.debug:
    msg: "{{ order.table }}"
"""

RETURN = r"""
batches:
  description: The batches in their order.
  returned: success
  type: list
  elements: dict
  contains:
    title:
      description: What happens, in a line.
      type: str
    canary:
      description: Whether it is the one Mac that is changed before the others.
      type: bool
    hosts:
      description: Host to the names of its instances that are changed.
      type: dict
    replaced:
      description: Those of them that had something before, to which they could go back.
      type: dict
    out:
      description: Host to the ids of its deployments that get no requests meanwhile.
      type: dict
    busy:
      description: Host to its instances whose models do not answer meanwhile, with C(name) and C(models).
      type: dict
    paused:
      description: Ids of the deployments that get no requests meanwhile.
      type: list
      elements: str
    removed:
      description: Those of them that are not declared, and so gone afterwards.
      type: list
      elements: str
    left:
      description: Model group to the number of deployments that serve it meanwhile, of those that have less.
      type: dict
  sample:
    - title: "Batch 1 of 1: mac-1 (chat-a restart)"
      canary: false
      hosts: {mac-1: [chat-a]}
      replaced: {mac-1: [chat-a]}
      out: {mac-1: [mac-1-chat-a-smollm2]}
      busy: {mac-1: [{name: chat-a, models: [{identifier: smollm2}]}]}
      paused: [mac-1-chat-a-smollm2]
      removed: []
      left: {smollm2: 1}
table:
  description: The batches as a table, empty when there are none.
  returned: success
  type: str
problems:
  description: Why it cannot be done, one line each.
  returned: failure
  type: list
  elements: str
"""
