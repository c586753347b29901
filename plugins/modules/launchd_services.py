#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module launchd_services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: launchd_services
short_description: Keep launchd jobs as their property lists say
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Brings a list of launchd jobs of one Mac into their states with one call.
  - Property lists are compared by meaning with the files on disk; a job is unloaded and loaded again only when its
    property list changed. C(launchctl load) and C(launchctl unload) are never used.
  - A job that was disabled with C(launchctl disable) is enabled, without a restart if it runs.
  - A run that was killed at any point is repaired by the next one.
attributes:
  check_mode:
    description: Tells the same actions without changing anything.
    support: full
  diff_mode:
    description: Shows each property list that changes, in a canonical form.
    support: full
options:
  services:
    description: The jobs, handled in this order.
    type: list
    elements: dict
    required: true
    suboptions:
      label:
        description: The label of the job; the property list is C(<label>.plist).
        type: str
        required: true
      domain:
        description:
          - V(gui) is the login session at the screen of O(user), V(user) any session of that user, V(system) the Mac
            itself, which starts jobs at boot with nobody logged in and needs root.
        type: str
        choices: [gui, user, system]
        default: gui
      plist:
        description: The property list as XML text. Required unless the job shall be absent.
        type: str
      state:
        description:
          - V(started) loads the job, V(stopped) keeps the file but not the job (launchd loads it again at the next
            login or boot), V(absent) removes both.
        type: str
        choices: [started, stopped, absent]
        default: started
  user:
    description: The login user of the domains V(gui) and V(user). Defaults to the user that runs the module.
    type: str
  timeout:
    description: Seconds one job may take to stop and to start.
    type: int
    default: 60
  lock_timeout:
    description: Seconds to wait for another run on the same Mac that is changing jobs.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Keep the agent running
  lmfleet.mac.launchd_services:
    services:
      - label: org.example.agent
        domain: gui
        plist: "{{ lookup('ansible.builtin.template', 'agent.plist.j2') }}"

- name: Remove a daemon that is no longer wanted
  become: true
  lmfleet.mac.launchd_services:
    services:
      - label: org.example.old
        domain: system
        state: absent
"""

RETURN = r"""
services:
  description: The jobs in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    label:
      description: The label of the job.
      type: str
      returned: always
    state:
      description: The state asked for.
      type: str
      returned: always
    pid:
      description: Process of the job, null when it has none.
      type: int
      returned: always
    changed:
      description: Whether anything was done to this job.
      type: bool
      returned: always
    actions:
      description: What was done, out of bootout, remove, write, fix_ownership, enable and bootstrap.
      type: list
      elements: str
      returned: always
  sample: [{label: org.example.agent, state: started, pid: 4711, changed: true, actions: [write, bootstrap]}]
"""

import contextlib
import getpass
import re

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import LockTimeoutError, exclusive, file_diff, make_directory
from ..module_utils._launchd import Launchctl, LaunchdError, Outcome, Service, converge, domain_for, parse_plist

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def wanted_services(entries: list[dict]) -> dict[str, list[Service]]:
    """Return the services by domain. Raises LaunchdError for a bad label, a label given twice, or a bad plist."""
    by_domain: dict[str, list[Service]] = {}
    seen = set()
    for entry in entries:
        label = entry["label"]
        if not _LABEL.fullmatch(label):
            raise LaunchdError(f"{label!r} is not a launchd label: letters, digits, '.', '_' and '-' only")
        if (entry["domain"], label) in seen:
            raise LaunchdError(f"launchd job {label} is listed twice for domain {entry['domain']}")
        seen.add((entry["domain"], label))
        if entry["state"] == "absent":
            service = Service(label, "absent", None)
        elif not entry["plist"]:
            raise LaunchdError(f"launchd job {label}: plist is required for state {entry['state']}")
        else:
            text = entry["plist"].strip() + "\n"
            service = Service(label, entry["state"], parse_plist(label, entry["plist"]), text.encode("utf-8"))
        by_domain.setdefault(entry["domain"], []).append(service)
    return by_domain


def converge_all(module: AnsibleModule) -> list[tuple[Outcome, str]]:
    """Converge domain by domain and return each Outcome with the path of its plist."""
    user = module.params["user"] or getpass.getuser()
    by_domain = wanted_services(module.params["services"])
    domains = {kind: domain_for(kind, user) for kind in by_domain}
    outcomes = []
    with contextlib.ExitStack() as locks:
        for kind, services in by_domain.items():
            domain = domains[kind]
            if not module.check_mode:
                make_directory(domain.folder)
                locks.enter_context(exclusive(domain.folder, "launchd_services", module.params["lock_timeout"]))
            for outcome in converge(Launchctl(domain), services, module.check_mode, module.params["timeout"]):
                outcomes.append((outcome, domain.plist_path(outcome.label)))
    order = [entry["label"] for entry in module.params["services"]]
    return sorted(outcomes, key=lambda pair: order.index(pair[0].label))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "services": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "label": {"type": "str", "required": True},
                    "domain": {"type": "str", "choices": ["gui", "user", "system"], "default": "gui"},
                    "plist": {"type": "str"},
                    "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
                },
            },
            "user": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        outcomes = converge_all(module)
    except (LaunchdError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    services = [
        {
            "label": outcome.label,
            "state": outcome.state,
            "pid": outcome.pid,
            "changed": bool(outcome.actions),
            "actions": outcome.actions,
        }
        for outcome, _path in outcomes
    ]
    diff = [
        file_diff(path, outcome.before, outcome.after) for outcome, path in outcomes if outcome.before != outcome.after
    ]
    module.exit_json(changed=any(service["changed"] for service in services), services=services, diff=diff)


if __name__ == "__main__":
    main()
