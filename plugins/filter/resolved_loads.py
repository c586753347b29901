# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Works out the load settings of instances for the Mac that they run on."""

from __future__ import annotations

DOCUMENTATION = r"""
name: resolved_loads
short_description: Work out the load settings of instances for one Mac
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Returns the instances with C(load) of each model as LM Studio takes it.
    C(cpu_threads=performance_cores) becomes a number, and a share for C(gpu) a number too.
  - Fails where a number of cores is wanted and the Mac has none of that kind.
options:
  _input:
    description: Instances, each with C(name) and C(models), as M(lmfleet.mac.fleet_plan) returns them.
    type: list
    elements: dict
    required: true
  performance_cores:
    description: Number of performance cores of the Mac.
    type: int
    required: true
  efficiency_cores:
    description: Number of efficiency cores of the Mac.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: Show how many threads the models of this Mac use
  ansible.builtin.debug:
    msg: "{{ fleet.hosts[inventory_hostname].instances | lmfleet.mac.resolved_loads(8, 4) }}"
"""

RETURN = r"""
_value:
  description: The instances.
  type: list
  elements: dict
"""

from ansible_collections.lmfleet.mac.plugins.plugin_utils import load_settings


def resolved_loads(instances, performance_cores, efficiency_cores):
    return [
        {
            **instance,
            "models": [
                {**model, "load": _resolved(instance, model, performance_cores, efficiency_cores)}
                for model in instance["models"]
            ],
        }
        for instance in instances
    ]


def _resolved(instance, model, performance_cores, efficiency_cores):
    try:
        return load_settings.resolved(model["load"], performance_cores, efficiency_cores)
    except ValueError as error:
        raise ValueError(f"instance {instance['name']}, model {model['name']}: {error}") from None


class FilterModule:
    def filters(self):
        return {"resolved_loads": resolved_loads}
