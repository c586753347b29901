#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module litellm_gateway."""

from __future__ import annotations

DOCUMENTATION = r"""
module: litellm_gateway
short_description: Install and configure a LiteLLM proxy of its own
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Brings the folder of a gateway into its state with one call. It holds virtual environments that are locked by
    hashes, and releases. A release is a folder with all that a start of LiteLLM reads, such as its configuration,
    the plugin that follows the registry, and a file with the environment and the master key that only its user can
    read. The link C(current) names the one in use.
  - Whatever is to be changed becomes a new release. Its configuration is checked by the LiteLLM it is for. Where a
    gateway runs, the release is then tried beside it, on a port of its own. After that the runner starts it on the
    port of the gateway, and ends the former one once all workers of the new one serve. No request fails, also when
    LiteLLM is another version.
  - A release that does not come up is removed again. The former one serves all the time, and the module fails and says
    why.
  - A master key that was changed is accepted at once, and the former one for O(master_key_grace) seconds.
  - Does not start the job of the gateway, and nothing here restarts it. A runner that is another one by now goes on as
    that, in its process and with the servers it has.
  - A run that was killed at any point is repaired by the next one. Where nothing is to be changed, no process is
    started.
attributes:
  check_mode:
    description: Whether the task can run in check mode. The configuration is then not checked by LiteLLM.
    support: full
  diff_mode:
    description: Whether the task returns a diff. Secrets are left out of it.
    support: full
options:
  root:
    description:
      - Folder of the gateway. C(~) is the home of the user that Ansible logs in as.
    type: path
    required: true
  user:
    description:
      - User that the gateway belongs to. It must be the one that Ansible logs in as, and is that one when it is not
        set.
    type: str
  version:
    description:
      - Version of LiteLLM. Releases that were tampered with, or that have known holes, are refused.
    type: str
    required: true
  requirements:
    description:
      - Text of the lock, a requirements file for this platform with exact versions and hashes.
    type: str
    required: true
  uv_requirements:
    description:
      - Text of the lock of C(uv), the installer.
    type: str
    required: true
  python:
    description:
      - Interpreter for the gateway, Python 3.11 to 3.14. When it is not set, C(uv) installs O(python_version) below
        O(root).
    type: path
  python_version:
    description:
      - Exact version of CPython that C(uv) installs. C(uv) knows its checksum.
    type: str
    default: 3.12.16
  environment:
    description:
      - Environment variables for the installation and for the gateway, such as those for a proxy or a mirror, as JSON
        text of a mapping. As text it can be kept out of all logs without hiding every C(1) and C(True) in the result.
    type: json
  service_environment:
    description:
      - Environment variables for the gateway only, as JSON text as well. O(environment) comes before it.
    type: json
  database_url:
    description:
      - Address of a Postgres database, with user and password, as V(postgresql://user:password@host:5432/litellm).
        Where it is set, O(database_requirements) must pin C(prisma), which LiteLLM reaches its database with.
      - LiteLLM gets it as C(DATABASE_URL), in the file that only its user can read.
      - What LiteLLM encrypts in the database, such as the settings of deployments, it reads with the same key only. So
        the first master key is kept for that in C(salt_key), which only its user can read, and O(master_key) may
        change. LiteLLM gets it as C(LITELLM_SALT_KEY), unless O(environment) has one.
    type: str
  database_requirements:
    description:
      - Text of the lock of what LiteLLM needs for a database beyond O(requirements).
    type: str
    default: ""
  service:
    description:
      - How the gateway listens, starts and ends.
    type: dict
    default: {}
    suboptions:
      address:
        description: IP address to listen on.
        type: str
        default: 127.0.0.1
      port:
        description: Port to listen on, 1 to 65535.
        type: int
        default: 4000
      workers:
        description: Number of worker processes. V(0) is half of the performance cores of this Mac, from 1 to 8.
        type: int
        default: 1
      start_timeout:
        description: Seconds until all workers of a new release must serve.
        type: int
        default: 120
      drain_timeout:
        description: Seconds that requests which run when the release is changed get to end.
        type: int
        default: 600
      log_size_mb:
        description: Size of one log file.
        type: int
        default: 10
      log_files:
        description: Number of log files that are kept. With V(1), the only one begins anew when it is full.
        type: int
        default: 5
  config:
    description:
      - Text of C(config.yaml), as a JSON string, which is kept out of all logs. Its diff is shown without secrets.
    type: json
    required: true
  config_source:
    description:
      - Name of the template that O(config) comes from, for messages.
    type: str
    default: config
  plugin:
    description:
      - Text of C(lmfleet_registry.py), the plugin.
    type: str
    required: true
  launcher:
    description:
      - Text of C(run-gateway), the program that starts a release.
    type: str
    required: true
  server:
    description:
      - Text of C(gateway_server.py), which the launcher runs.
    type: str
    required: true
  runner:
    description:
      - Text of C(gateway_runner.py), the program that the launchd job runs.
    type: str
    required: true
  master_key:
    description:
      - The master key, which clients send. When it is empty, one is made once and kept.
    type: str
    default: ""
  master_key_grace:
    description:
      - Seconds for which the former master key is accepted after it was changed. V(0) ends it at once.
    type: int
    default: 300
  redis_url:
    description:
      - Address of a Redis, with its password. The gateway finds it in the environment variable C(LMFLEET_REDIS_URL),
        which only its user can read.
    type: str
    default: ""
  timeout:
    description:
      - Seconds that each step of the installation may take.
    type: int
    default: 1200
"""

EXAMPLES = r"""
- name: Install and configure the gateway
  lmfleet.mac.litellm_gateway:
    root: ~/.lmfleet/gateway
    version: 1.106.2
    requirements: "{{ lookup('ansible.builtin.file', 'requirements-macos-arm64.txt') }}"
    uv_requirements: "{{ lookup('ansible.builtin.file', 'requirements-uv.txt') }}"
    config: "{{ lookup('ansible.builtin.template', 'config.yaml.j2') | to_json }}"
    environment: "{{ {'HTTPS_PROXY': proxy_with_password} | to_json }}"
    plugin: "{{ lookup('ansible.builtin.file', 'lmfleet_registry.py') }}"
    launcher: "{{ lookup('ansible.builtin.template', 'run-gateway.j2') }}"
    server: "{{ lookup('ansible.builtin.file', 'gateway_server.py') }}"
    runner: "{{ lookup('ansible.builtin.file', 'gateway_runner.py') }}"
    service:
      workers: 4
  register: gateway
"""

RETURN = r"""
root:
  description: Absolute path of the folder.
  returned: success
  type: str
user:
  description: User that the gateway belongs to.
  returned: success
  type: str
home:
  description: Home of that user.
  returned: success
  type: str
venv:
  description: Absolute path of the virtual environment in use.
  returned: success
  type: str
registry:
  description: Absolute path of the registry's folder.
  returned: success
  type: str
master_key_file:
  description: Absolute path of the file with the master key, which only the user can read.
  returned: success
  type: str
release:
  description: Name of the release in use. In check mode the one before.
  returned: success
  type: str
unconfirmed:
  description:
    - Whether no runner says that it serves RV(release), because none runs. C(status.json) in the folder tells what
      becomes of it once the job is started. In check mode V(false).
  returned: success
  type: bool
actions:
  description:
    - What was done, out of C(tools), C(venv), C(database), C(switch), C(remove) and the names of files. C(switch) means
      another release. C(remove), of what is not used any more, is by itself no change.
  returned: success
  type: list
  elements: str
  sample: [config.yaml]
"""

import shutil

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import _gateway_release, _litellm
from ..module_utils._files import LockTimeoutError, exclusive, file_diff, make_directory
from ..module_utils._gateway_host import RELEASE, RUNNER_GRACE, Gateway, GatewayError
from ..module_utils._gateway_trial import TrialError, end_leftovers, trial

#: Of which nothing is shown.
SECRET = ("client_keys.json", "salt_key", "master_key")
#: Another run may be installing.
LOCK_TIMEOUT = 900


def plan(gateway: Gateway, texts: dict) -> list[str]:
    """Return what must be done, in order."""
    actions = []
    if not gateway.complete(gateway.venv):
        actions += ([] if gateway.complete(gateway.tools) else ["tools"]) + ["venv"]
    if gateway.database and not gateway.complete(gateway.database):
        actions += [name for name in ("tools",) if name not in actions and not gateway.complete(gateway.tools)]
        actions.append("database")
    different = [name for name in texts if gateway.text(name) != texts[name]]
    actions += different
    status = gateway.status()
    if status and status.program not in (None, _litellm.fingerprint(texts["gateway_runner.py"])):
        actions += [name for name in ("gateway_runner.py",) if name not in actions]
    refused = bool(status and status.refused and status.refused["release"] == gateway.current())
    if refused or gateway.current_venv() != gateway.venv or set(different) & set(RELEASE):
        actions.append("switch")
    return actions


def carry_out(gateway: Gateway, texts: dict, actions: list[str]) -> None:
    """Do what was planned; raises GatewayError, and OSError for what the file system refuses."""
    if "tools" in actions:
        gateway.build(gateway.tools, "uv", gateway.install_tools)
    if "venv" in actions:
        gateway.build(gateway.venv, "LiteLLM " + gateway.params["version"], gateway.install_gateway)
    if "database" in actions:
        gateway.build(gateway.database, "Prisma", gateway.install_database_client)
    if "gateway_runner.py" in actions:
        gateway.exchange_runner(texts["gateway_runner.py"])
    if "switch" in actions:
        release(gateway, texts)
    # In this order: the one is made of what the other has been.
    for name in ("salt_key", "master_key"):
        if name in actions:
            gateway.write(name, texts[name])
    if "client_keys.json" in actions:
        # The time of grace begins now, however long the installation and the trial took.
        key = texts["master_key"].strip()
        gateway.write("client_keys.json", gateway.client_keys(key, gateway.params["master_key_grace"]))


def release(gateway: Gateway, texts: dict) -> None:
    """Make a release of what is wanted and have it served; the one before stays when that fails."""
    before, keys_before = gateway.current(), gateway.content("client_keys.json")
    key = texts["master_key"].strip()
    name = _gateway_release.next_name(gateway.releases())
    folder = gateway.path("releases", name)
    try:
        gateway.prepare(name, texts)
        status = gateway.status(RUNNER_GRACE)
        if status and status.serving:
            # To find out costs memory for a while, but no client a request.
            try:
                trial(folder, gateway.root, key, gateway.params["service"]["start_timeout"], bool(gateway.database))
            except TrialError as error:
                reason = f"on trial beside the one in use, {error}"
                raise GatewayError(_trouble(gateway, reason, texts["config.yaml"])) from None
        # From here on the servers in use take the new key as well: clients may have it before the switch is over.
        gateway.write("client_keys.json", gateway.client_keys(key, None))
        gateway.switch(name)
        # Without a runner nobody serves anything; the job is started with this release.
        reason = gateway.wait(lambda status: _gateway_release.outcome(status, name), "serve it") if status else ""
        if reason:
            raise GatewayError(_trouble(gateway, reason, texts["config.yaml"]))
        gateway.handed_over(before, name)
    except BaseException:
        if gateway.current() == name:
            gateway.switch(before)
        if keys_before is not None:
            gateway.write("client_keys.json", keys_before)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _trouble(gateway: Gateway, reason: str, config: str) -> str:
    version, source = gateway.params["version"], gateway.params["config_source"]
    named = _litellm.lines_named(reason, config)
    place = f" Of the config, which {source} renders to, it names: {named}." if named else ""
    return f"the new release (LiteLLM {version}) is no good, and the one before still serves: {reason}.{place}"


def diff_of(gateway: Gateway, texts: dict, actions: list[str]) -> list[dict]:
    """Return the diff of what was planned, without secrets. To be called before it is done."""
    entries = []
    for name in (name for name in texts if name in actions):
        before, after = gateway.text(name), texts[name]
        if name == "gateway.env":
            before, after = _litellm.environment_diff(before, after)
        elif name in SECRET:
            before, after = (None if before is None else "(hidden)\n"), "(hidden, new)\n"
        elif name == "config.yaml":
            before, after = _litellm.without_secrets(before), _litellm.without_secrets(after)
        entries.append(file_diff(gateway.place(name), before, after))
    before = gateway.current_venv()
    if before != gateway.venv:
        after = f"{gateway.venv} (LiteLLM {gateway.params['version']})\n"
        entries.append(file_diff(gateway.path("current", "venv"), before and before + "\n", after))
    return entries


def converge(module: AnsibleModule, gateway: Gateway) -> dict:
    """Plan and, unless in check mode, do it; return the result."""
    texts = gateway.wanted()
    actions = plan(gateway, texts)
    result = {
        "root": gateway.root,
        "user": gateway.account.pw_name,
        "home": gateway.account.pw_dir,
        "venv": gateway.path(gateway.venv),
        "registry": gateway.path("registry"),
        "master_key_file": gateway.path("master_key"),
        "actions": actions,
        "diff": diff_of(gateway, texts, actions),
    }
    status = gateway.status()
    if "gateway_runner.py" in actions and status and status.program is None:
        module.warn("The gateway's runner cannot go on as another one yet: its job restarts, once. Requests then fail.")
    # What a former run had to leave to its last requests is removed when they have ended: no change of this one.
    changed = bool(actions)
    if not module.check_mode:
        carry_out(gateway, texts, actions)
        actions += ["remove"] * bool(gateway.tidy())
    status, name = gateway.status(), gateway.current()
    unconfirmed = not module.check_mode and not (status and status.serving == name)
    return {"changed": changed, "release": name, "unconfirmed": unconfirmed, **result}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "user": {"type": "str"},
            "version": {"type": "str", "required": True},
            "requirements": {"type": "str", "required": True},
            "uv_requirements": {"type": "str", "required": True},
            "python": {"type": "path"},
            "python_version": {"type": "str", "default": "3.12.16"},
            "environment": {"type": "json", "no_log": True},
            "service_environment": {"type": "json", "no_log": True},
            "database_url": {"type": "str", "no_log": True},
            "database_requirements": {"type": "str", "default": ""},
            "service": {
                "type": "dict",
                "default": {},
                "apply_defaults": True,
                "options": {
                    "address": {"type": "str", "default": "127.0.0.1"},
                    "port": {"type": "int", "default": 4000},
                    "workers": {"type": "int", "default": 1},
                    "start_timeout": {"type": "int", "default": 120},
                    "drain_timeout": {"type": "int", "default": 600},
                    "log_size_mb": {"type": "int", "default": 10},
                    "log_files": {"type": "int", "default": 5},
                },
            },
            "config": {"type": "json", "required": True, "no_log": True},
            "config_source": {"type": "str", "default": "config"},
            "plugin": {"type": "str", "required": True},
            "launcher": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "runner": {"type": "str", "required": True},
            "master_key": {"type": "str", "default": "", "no_log": True},
            "master_key_grace": {"type": "int", "default": 300, "no_log": False},
            "redis_url": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "int", "default": 1200},
        },
        supports_check_mode=True,
    )
    try:
        gateway = Gateway(module.params)
        module.no_log_values.update(gateway.secret_values())
        gateway.refuse_what_cannot_be()
        if module.check_mode:
            result = converge(module, gateway)
        else:
            make_directory(gateway.root)
            make_directory(gateway.path("logs"))
            make_directory(gateway.path("releases"), 0o700)
            with exclusive(gateway.root, "litellm_gateway", LOCK_TIMEOUT):
                end_leftovers(gateway.root)
                result = converge(module, gateway)
    except (GatewayError, LockTimeoutError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{module.params['root']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
