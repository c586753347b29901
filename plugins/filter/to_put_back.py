# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What gets back what it had, when a roll-out stops."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.plugin_utils.rollout_outcome import to_put_back

DOCUMENTATION = r"""
name: to_put_back
short_description: Choose what gets back what it had, when a roll-out stops
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Chooses the parts of a roll-out that are undone, the last one first. They look like its batches.
options:
  _input:
    description: The batches so far.
    type: list
    elements: dict
    required: true
  deployments:
    description: The deployments of the fleet, as M(lmfleet.mac.fleet_plan) returns them.
    type: list
    elements: dict
    required: true
  outcome:
    description: What came of the last one, as P(lmfleet.mac.rollout_outcome#filter) tells.
    type: dict
    required: true
  whole:
    description: Whether all batches are undone.
    type: bool
    required: true
  worse:
    description: Whether the last batch does worse than the rest of the fleet.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: Show what would be undone
  ansible.builtin.debug:
    msg: "{{ [] | lmfleet.mac.to_put_back([], {'mute': {}, 'untouched': {}}, whole=false, worse=false) }}"
"""

RETURN = r"""
_value:
  description: The parts.
  type: list
  elements: dict
  sample: []
"""


class FilterModule:
    def filters(self):
        return {"to_put_back": to_put_back}
