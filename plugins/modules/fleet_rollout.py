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
    first, the others follow in batches. What interrupts nothing comes before them, all at once, unless it may need the
    port or the memory that another instance of its Mac gives up.
  - A deployment serves when a gateway has it, nobody but the guard pauses it, and its instance has its model loaded.
    One that no gateway has yet, or that is down, is expected to serve after the batch of its instance.
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
    description:
      - By host, the list C(instances) of what M(lmfleet.mac.lmstudio_instances) returns in check mode. A Mac that is
        not in it takes no part, and what the gateways know of it is believed.
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
  silent:
    description: Ids of deployments that are known not to answer, such as those of Macs that take no part.
    type: list
    elements: str
    default: []
  next_batch:
    description:
      - One of the RV(batches) that the task has returned before, and that is about to be taken out. The task then plans
        nothing and returns, in RV(problems), which model groups would be left with too little. O(registered),
        O(unreachable) and O(silent) are to be as they are now, the other options as before.
    type: dict
  batch:
    description: How many Macs are changed at the same time, a number or a share such as V(25%).
    type: str
    default: 25%
  min_capacity:
    description:
      - How many of its deployments each model group keeps, a number, or a share that is rounded up. V(0) promises
        nothing. Where it is not set, all but those of one Mac, and at least one.
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
      mac-1:
        - {name: chat-a, action: restart, why: "changed: port", ready: false, tuning: false, interrupted: [smollm2],
           pid: 812, models: [{identifier: smollm2, key: smollm2-135m-instruct}]}
      mac-2:
        - {name: chat-a, action: nothing, why: "", ready: true, tuning: false, interrupted: [],
           pid: 815, models: [{identifier: smollm2, key: smollm2-135m-instruct}]}
    deployments:
      - {id: mac-1-chat-a-smollm2, model_group: smollm2, host: mac-1, instance: chat-a}
      - {id: mac-2-chat-a-smollm2, model_group: smollm2, host: mac-2, instance: chat-a}
    registered:
      - gateway: mac-1
        groups: {mac-1-chat-a-smollm2: smollm2, mac-2-chat-a-smollm2: smollm2}
        paused: {}
  register: order

- name: Show it
  ansible.builtin.debug:
    msg: "{{ order.table }}"

- name: See that the first batch can still be missed
  lmfleet.mac.fleet_rollout:
    needs: "{{ needs }}"
    deployments: "{{ deployments }}"
    registered: "{{ asked_again.results }}"
    next_batch: "{{ order.batches[0] }}"
  register: now
  failed_when: now is failed or now.problems | length > 0
"""

RETURN = r"""
batches:
  description: The batches in their order, none when something cannot be done.
  returned: always, but for O(next_batch)
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
    added:
      description: Ids of the declared deployments of its instances that no gateway has yet, sorted.
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
      added: []
      left: {smollm2: 1}
table:
  description: The batches as a table, empty when there are none. What cannot be done is in it as V(refused).
  returned: always, but for O(next_batch)
  type: str
problems:
  description: Why it cannot be done, one line each. Without O(next_batch) the task fails when there are any.
  returned: always
  type: list
  elements: str
"""
