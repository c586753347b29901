#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module mac_host_settings."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mac_host_settings
short_description: Set the power settings of a Mac and the memory its GPU may use
version_added: "0.2.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Sets with C(pmset) and C(sysctl) what differs, and nothing else, and reads it back.
  - What a C(sysctl) sets is gone after a reboot, so a launch daemon sets the limit of the GPU again at each boot.
  - Needs root where something differs.
attributes:
  check_mode:
    description: Tells what would be set, and sets nothing.
    support: full
  diff_mode:
    description: Shows the values before and after.
    support: full
options:
  power:
    description:
      - Settings of C(pmset), for all power sources. What is not named stays as it is. One that this Mac does not have
        is left out, and named in RV(unsupported).
    type: dict
    suboptions:
      autorestart:
        description: Start again after a power failure (1) or not (0).
        type: int
      disksleep:
        description: Minutes until disks sleep, 0 for never.
        type: int
      displaysleep:
        description: Minutes until the display sleeps, 0 for never.
        type: int
      hibernatemode:
        description: How memory is kept while the Mac sleeps.
        type: int
      lowpowermode:
        description: Save energy at the cost of speed (1) or not (0).
        type: int
      networkoversleep:
        description: Offer shared network services while asleep (1) or not (0).
        type: int
      powernap:
        description: Power Nap (1) or not (0).
        type: int
      sleep:
        description: Minutes until the Mac sleeps, 0 for never.
        type: int
      standby:
        description: Hibernate after a while of sleep (1) or not (0).
        type: int
      tcpkeepalive:
        description: Keep TCP connections while asleep (1) or not (0).
        type: int
      ttyskeepawake:
        description: Stay awake while somebody is logged in remotely (1) or not (0).
        type: int
      womp:
        description: Wake when asked to over the network (1) or not (0).
        type: int
  gpu_memory_limit_mb:
    description:
      - Memory in megabytes that the GPU may use, C(iogpu.wired_limit_mb). At least 1024, and 2048 less than the Mac
        has.
      - Where it is not set, a limit that this module has set before goes back to macOS's own; any other stays.
    type: int
  boot_plist:
    description: The launch daemon that sets the limit at each boot, label C(lmfleet.gpu-memory-limit), as XML.
      Required with O(gpu_memory_limit_mb).
    type: str
"""

EXAMPLES = r"""
- name: Never sleep, and start again after a power failure
  become: true
  lmfleet.mac.mac_host_settings:
    power:
      sleep: 0
      autorestart: 1
"""

RETURN = r"""
changes:
  description: What is set, or in check mode would be, one line each.
  returned: success
  type: list
  elements: str
  sample: [pmset sleep 0, sysctl iogpu.wired_limit_mb=49152]
unsupported:
  description: Names of power settings that this Mac does not have.
  returned: success
  type: list
  elements: str
  sample: [autorestart]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _host_settings
from ..module_utils._launchd import LaunchdError


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; changes the Mac unless in check mode."""
    wanted = _host_settings.wanted_from(module.params)
    problem = _host_settings.limit_problem(wanted.limit_mb, _host_settings.read_memory())
    if problem:
        raise _host_settings.SettingsError(problem + " Nothing has been changed.")
    actual = _host_settings.look(wanted, _host_settings.read_limit())
    changes = _host_settings.plan(wanted, actual)
    if not changes.empty and not module.check_mode:
        if os.geteuid() != 0:
            raise _host_settings.SettingsError(
                "changing settings of the Mac needs root: run this task with become: true. To leave them as they are, "
                "set mac_host_power: {} and no mac_host_gpu_memory_limit_mb. Nothing has been changed."
            )
        _host_settings.apply(changes, wanted)
    return {
        "changed": not changes.empty,
        "changes": _host_settings.lines(changes),
        "unsupported": changes.unsupported,
        "diff": _host_settings.diff(changes, actual),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=_host_settings.SPEC,
        required_by={"gpu_memory_limit_mb": "boot_plist"},
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (_host_settings.SettingsError, LaunchdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
