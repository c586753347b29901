#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module gateway_tls."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_tls
short_description: Run nginx with TLS in front of a gateway as a launchd job, or remove it
version_added: "0.2.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Writes configuration, certificate and key, has nginx check them before they replace those that serve, and waits
    until clients see the certificate and the gateway behind it.
  - Where nginx runs already, it takes up new files without an interrupted request. Only another property list is a new
    start.
attributes:
  check_mode:
    description: Tells what would be changed, and changes nothing. What nginx would say of the files is not known then.
    support: full
  diff_mode:
    description: Shows configuration and property list as they change, and of certificate and key only that they do.
    support: full
options:
  state:
    description: V(absent) stops nginx and removes its job and O(directory), with certificate and key.
    type: str
    choices: [present, absent]
    default: present
  directory:
    description: Folder of C(nginx.conf), and of C(server.pem), which holds certificate and key. nginx is started in it.
    type: path
    required: true
  nginx:
    description: The program. Required for O(state=present).
    type: path
  config:
    description: Content of C(nginx.conf). Required for O(state=present).
    type: str
  config_source:
    description: Where O(config) comes from, to be named in messages.
    type: str
    default: config
  certificate:
    description: Certificate with its chain as PEM text, the server's own first. Required for O(state=present).
    type: str
  key:
    description: Its private key as PEM text. Required for O(state=present).
    type: str
  address:
    description: IP address that O(config) has nginx listen on.
    type: str
    default: 0.0.0.0
  port:
    description: Port that O(config) has nginx listen on. Required for O(state=present).
    type: int
  plist:
    description: Property list of the job C(lmfleet.gateway_tls). Required for O(state=present).
    type: str
  domain:
    description: Domain of the job. V(system) needs root.
    type: str
    choices: [gui, system]
    default: system
  user:
    description: The login user. The one who connects, when it is not set.
    type: str
  timeout:
    description: Seconds to wait until it serves.
    type: int
    default: 60
  lock_timeout:
    description: Seconds to wait for another run on the same Mac.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Remove the server with TLS
  become: true
  lmfleet.mac.gateway_tls:
    state: absent
    directory: /Users/admin/.lmfleet/gateway_tls
    user: admin
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be.
  returned: success
  type: list
  elements: str
  sample: [write server.pem, reload]
problem:
  description: Why one that runs as declared does not serve.
  returned: in check mode, when there is something
  type: str
"""

import getpass

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import LockTimeoutError
from ..module_utils._gateway_tls import Front, TlsError, parse_wanted
from ..module_utils._launchd import Launchctl, LaunchdError, domain_for


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module."""
    params = module.params
    launchctl = Launchctl(domain_for(params["domain"], params["user"] or getpass.getuser()))
    front = Front(params["directory"], launchctl, parse_wanted(params) if params["state"] == "present" else None)
    planned = front.plan() if module.check_mode else front.converge(params["timeout"], params["lock_timeout"])
    result = {"changed": bool(planned.actions), "actions": planned.actions, "diff": planned.diff}
    problem = front.trouble() if module.check_mode and front.wanted and not planned.actions else ""
    return {**result, "problem": problem} if problem else result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "directory": {"type": "path", "required": True},
            "nginx": {"type": "path"},
            "config": {"type": "str"},
            "config_source": {"type": "str", "default": "config"},
            "certificate": {"type": "str"},
            "key": {"type": "str", "no_log": True},
            "address": {"type": "str", "default": "0.0.0.0"},
            "port": {"type": "int"},
            "plist": {"type": "str"},
            "domain": {"type": "str", "choices": ["gui", "system"], "default": "system"},
            "user": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            "lock_timeout": {"type": "int", "default": 120},
        },
        required_if=[("state", "present", ("nginx", "config", "certificate", "key", "port", "plist"))],
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (TlsError, LaunchdError, LockTimeoutError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
