# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids of deployments as litellm_deployments takes them."""

from __future__ import annotations

DOCUMENTATION = r"""
name: in_state
short_description: Turn ids of deployments into entries for litellm_deployments
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Gives each id the same state, so that deployments can be changed that are known by their ids only.
options:
  _input:
    description: The ids.
    type: list
    elements: str
    required: true
  state:
    description: The state of all of them.
    type: str
    choices: [present, paused, absent, former]
    required: true
"""

EXAMPLES = r"""
- name: Show the entries
  ansible.builtin.debug:
    msg: "{{ ['mac-1-chat-a-smollm2'] | lmfleet.mac.in_state('paused') }}"
"""

RETURN = r"""
_value:
  description: One entry with C(id) and C(state) for each id.
  type: list
  elements: dict
"""


def in_state(ids, state):
    return [{"id": name, "state": state} for name in ids]


class FilterModule:
    def filters(self):
        return {"in_state": in_state}
