#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what a host is, and refuses one that cannot serve."""

from __future__ import annotations

DOCUMENTATION = r"""
module: mac_host_check
short_description: Check that a host is a Mac that can serve models
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Reads processor, macOS version, memory, free disk, cores, login user, screen session and listening ports
    in one call, changes nothing, and fails with every reason at once where the host cannot serve.
attributes:
  check_mode:
    description: Whether the module can run in check mode.
    support: full
  diff_mode:
    description: Whether the module returns a diff.
    support: none
options:
  min_macos_version:
    description: Oldest macOS that is accepted.
    type: str
    default: "14.0"
  min_memory_mb:
    description: Least memory in megabytes.
    type: int
    default: 8192
  min_free_disk_mb:
    description: Least free space in megabytes on the volume of O(disk_path).
    type: int
    default: 10240
  disk_path:
    description: Folder whose volume must have room. It need not exist yet. The home of the user when it is not set.
    type: str
  llmster_directory:
    description:
      - Folder with the installs of LM Studio, to tell which versions are there. C(~) is the home of O(user). With it an
        install that is as it should be needs no further look.
    type: str
  daemons:
    description:
      - How many daemons of LM Studio are to run, with homes in the folder C(instances) beside O(llmster_directory).
        Refused where other programs leave fewer control ports than that.
    type: int
    default: 0
  controller_time:
    description:
      - What the clock of the controller says, in seconds since 1970. A clock of this host that is more than two minutes
        off is warned of. Certificates then count as invalid, and logs mislead.
    type: float
  user:
    description: Login user who owns what is installed. The one who connects when it is not set, also under sudo.
    type: str
  domains:
    description: The launchd domains that will be used.
    type: list
    elements: str
    choices: [gui, system]
    default: []
  ports:
    description: Ports that will be listened on.
      One that is in use must belong to the launchd job that is named with it.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: The port.
        type: int
        required: true
      address:
        description: Address that will be listened on.
        type: str
        default: 127.0.0.1
      label:
        description: Label of the launchd job that may have the port already.
        type: str
        required: true
      domain:
        description: Domain of that job.
        type: str
        choices: [gui, system]
        required: true
      use:
        description: What the port is for, to be named in messages.
        type: str
        required: true
      status:
        description: The C(status.json) in which the job tells its pid and the ports that it serves.
          V(~) is the home of the user. Where it agrees with launchd, nothing else has to be asked.
        type: str
  memory:
    description: What is wanted of this Mac's memory. Read are the heads of the model files, measured values,
      and, where something is to change on a running instance, what LM Studio estimates.
    type: dict
    suboptions:
      root:
        description: Folder of the collection on the Mac. V(~) is the home of the user.
        type: str
        required: true
      files:
        description: Paths of the models below C(models) in that folder, each a GGUF file or the folder of an MLX model.
        type: list
        elements: str
        required: true
      settings:
        description: Names of the load settings that memory depends on.
        type: list
        elements: str
        required: true
      instances:
        description: The instances.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description: Name of the instance.
            type: str
            required: true
          models:
            description: What it is to load, each with C(identifier), C(path) and C(load).
            type: list
            elements: dict
            required: true
  settings:
    description:
      - How the Mac is to be set, as M(lmfleet.mac.mac_host_settings) takes it, to tell whether anything differs.
    type: dict
    suboptions:
      power:
        description: Settings of C(pmset).
        type: dict
      gpu_memory_limit_mb:
        description: Memory in megabytes that the GPU may use. It is refused where it is out of bounds.
        type: int
      boot_plist:
        description: The launch daemon that sets the limit at each boot.
        type: str
"""

EXAMPLES = r"""
- name: Refuse a host that cannot serve
  lmfleet.mac.mac_host_check:
    min_memory_mb: 16384
    domains: [gui]
    ports:
      - port: 1234
        label: lmfleet.instance.chat-a
        domain: gui
        use: instance chat-a
  register: mac
"""

RETURN = r"""
facts:
  description: What the host is.
  returned: always
  type: dict
  contains:
    system:
      description: Kernel name, C(Darwin) on a Mac.
      type: str
    machine:
      description: Processor type, C(arm64) on Apple silicon.
      type: str
    macos_version:
      description: Version of macOS.
      type: str
    chip:
      description: Name of the chip.
      type: str
    memory_mb:
      description: Memory in megabytes.
      type: int
    performance_cores:
      description: Number of performance cores.
      type: int
    efficiency_cores:
      description: Number of efficiency cores.
      type: int
    disk_path:
      description: The folder that free disk was asked for.
      type: str
    free_disk_mb:
      description: Free space in megabytes.
      type: int
    gui_session:
      description: Whether the user is logged in at the screen. False also where nobody asked.
      type: bool
    user:
      description: Login user with name, uid, gid and home.
      type: dict
    lmstudio:
      description: The C(versions) of LM Studio on disk, C(leftovers) of installs that were cut off, and the C(selected)
        one with version, sha512, home, llmster and lms, and C(models), the verified files in the folder C(models)
        beside O(llmster_directory). Empty without O(llmster_directory).
      type: dict
    gateway_tls:
      description: Whether the folder of M(lmfleet.mac.gateway_tls) is beside O(llmster_directory).
      type: bool
    desktop:
      description: With O(llmster_directory), LM Studio that is not of this collection. C(apps), the desktop apps,
        C(home) of the user's own LM Studio or null, and C(foreign_control_ports), on which other daemons listen.
      type: dict
    memory:
      description:
        - "With O(memory): C(wired_limit_mb) as the Mac is set, C(files) with size and figures by path,
          C(measured) values, C(settled), which tells that nothing of it changes, C(estimates) of LM Studio by
          instance and identifier, and C(problem) with the measured values."
      type: dict
    settings:
      description: With O(settings), what M(lmfleet.mac.mac_host_settings) would set, one line each.
      type: list
      elements: str
    listeners:
      description: Wanted ports that another program holds, each with port, address, use and process.
      type: list
      elements: dict
problems:
  description: Why the host cannot serve, one line each.
  returned: failure
  type: list
  elements: str
"""

import os
import pwd
import time

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import (
    _command,
    _desktop,
    _files,
    _host_settings,
    _launchd,
    _mac,
    _memory_facts,
    _model_index,
    _ports,
    _versions,
)
from ..module_utils._launchd import LaunchdError

_COMMAND_TIMEOUT = 30  # seconds


def main():
    module = AnsibleModule(
        argument_spec={
            "min_macos_version": {"type": "str", "default": "14.0"},
            "min_memory_mb": {"type": "int", "default": 8192},
            "min_free_disk_mb": {"type": "int", "default": 10240},
            "disk_path": {"type": "str"},
            "llmster_directory": {"type": "str"},
            "daemons": {"type": "int", "default": 0},
            "controller_time": {"type": "float"},
            "user": {"type": "str"},
            "domains": {"type": "list", "elements": "str", "choices": ["gui", "system"], "default": []},
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "port": {"type": "int", "required": True},
                    "address": {"type": "str", "default": "127.0.0.1"},
                    "label": {"type": "str", "required": True},
                    "domain": {"type": "str", "choices": ["gui", "system"], "required": True},
                    "use": {"type": "str", "required": True},
                    "status": {"type": "str"},
                },
            },
            "settings": {"type": "dict", "options": {**_host_settings.SPEC, "power": {"type": "dict"}}},
            "memory": {
                "type": "dict",
                "options": {
                    "root": {"type": "str", "required": True},
                    "files": {"type": "list", "elements": "str", "required": True},
                    "settings": {"type": "list", "elements": "str", "required": True},
                    "instances": {
                        "type": "list",
                        "elements": "dict",
                        "required": True,
                        "options": {
                            "name": {"type": "str", "required": True},
                            "models": {"type": "list", "elements": "dict", "required": True},
                        },
                    },
                },
            },
        },
        supports_check_mode=True,
    )
    try:
        facts = _facts(module)
    except LaunchdError as error:
        module.fail_json(msg=f"{error}. Nothing has been changed.")
    wanted = {
        "macos_version": module.params["min_macos_version"],
        "memory_mb": module.params["min_memory_mb"],
        "free_disk_mb": module.params["min_free_disk_mb"],
        "domains": module.params["domains"],
    }
    problems = _mac.problems(facts, wanted)
    if "desktop" in facts:
        root = os.path.dirname(_below_home(module.params["llmster_directory"], facts["user"]))
        problems += _desktop.problems(facts["desktop"], module.params["daemons"], root)
    limit = (module.params["settings"] or {}).get("gpu_memory_limit_mb")
    problems += [problem for problem in [_host_settings.limit_problem(limit, facts["memory_mb"])] if problem]
    if problems:
        lines = "\n".join("  - " + problem for problem in problems)
        module.fail_json(
            msg="This host cannot serve. Nothing has been changed.\n" + lines, facts=facts, problems=problems
        )
    offset = _mac.clock_warning(time.time(), module.params["controller_time"])
    if offset:
        module.warn(offset)
    module.exit_json(changed=False, facts=facts)


def _facts(module):
    uname = os.uname()
    user = _user(module)
    facts = {
        "system": uname.sysname,
        "machine": uname.machine,
        "macos_version": "",
        "chip": "",
        "memory_mb": 0,
        "performance_cores": 0,
        "efficiency_cores": 0,
        "disk_path": module.params["disk_path"] or user["home"],
        "user": user,
        "gui_session": False,
        "listeners": [],
        "lmstudio": {},
        "gateway_tls": False,
    }
    facts["free_disk_mb"] = _free_disk_mb(facts["disk_path"])
    if uname.sysname != "Darwin":
        return facts
    facts.update(_sysctl())
    if module.params["llmster_directory"]:
        llmster = _below_home(module.params["llmster_directory"], user)
        root = os.path.dirname(llmster)
        facts["gateway_tls"] = os.path.isdir(os.path.join(root, "gateway_tls"))
        facts["lmstudio"] = {**_versions.standing(llmster), "models": _model_index.standing(root, user["name"])}
        facts["desktop"] = {
            "apps": _desktop.apps(user["home"]),
            "home": _desktop.lmstudio_home(user["home"]),
            "foreign_control_ports": _desktop.foreign_daemons(os.path.join(root, "instances")),
        }
    wired_limit_mb = facts.pop("wired_limit_mb")
    if module.params["memory"]:
        facts["memory"] = _memory_facts.gather(module.params["memory"], user, wired_limit_mb)
    if module.params["settings"]:
        declared = _host_settings.wanted_from(module.params["settings"])
        found = _host_settings.look(declared, wired_limit_mb)
        facts["settings"] = _host_settings.lines(_host_settings.plan(declared, found))
    taken = [wanted for wanted in module.params["ports"] if _ports.is_taken(wanted["address"], wanted["port"])]
    domains = {wanted["label"]: wanted["domain"] for wanted in taken}
    jobs = {label: _launchctl(domain, user).job(label) for label, domain in domains.items()}
    if "gui" in module.params["domains"]:
        facts["gui_session"] = _has_gui_session(module, user, jobs)
    facts["listeners"] = _foreign_listeners(taken, user, jobs)
    return facts


def _user(module):
    name = module.params["user"] or os.environ.get("SUDO_USER")
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
    except KeyError:
        module.fail_json(msg=f"There is no user {name} on this host. Nothing has been changed.")
    return {"name": entry.pw_name, "uid": entry.pw_uid, "gid": entry.pw_gid, "home": entry.pw_dir}


def _below_home(path, user):
    return path.replace("~", user["home"], 1)


def _free_disk_mb(path):
    while not os.path.exists(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize // (1024 * 1024)


def _sysctl():
    names = {
        "macos_version": "kern.osproductversion",
        "memory_mb": "hw.memsize",
        "performance_cores": "hw.perflevel0.physicalcpu",
        "efficiency_cores": "hw.perflevel1.physicalcpu",
        "wired_limit_mb": "iogpu.wired_limit_mb",
        "chip": "machdep.cpu.brand_string",
    }
    values = {}
    for line in _output(["/usr/sbin/sysctl", *names.values()]).splitlines():
        name, separator, value = line.partition(": ")
        if separator:
            values[name.strip()] = value.strip()
    facts = {key: values.get(name, "") for key, name in names.items()}
    for key in ("memory_mb", "performance_cores", "efficiency_cores", "wired_limit_mb"):
        facts[key] = int(facts[key]) if facts[key].isdigit() else 0
    facts["memory_mb"] //= 1024 * 1024
    return facts


def _has_gui_session(module, user, jobs):
    # A job that is loaded there shows that the domain exists.
    if any(wanted["domain"] == "gui" and jobs.get(wanted["label"]) for wanted in module.params["ports"]):
        return True
    return _command.run(["/bin/launchctl", "print", f"gui/{user['uid']}"], _COMMAND_TIMEOUT).rc == 0


def _foreign_listeners(taken, user, jobs):
    """Return those of the ports in use that something else has than their own launchd job."""
    unclear = [wanted for wanted in taken if not _says_so_itself(wanted, jobs[wanted["label"]], user)]
    if not unclear:
        return []
    listeners = _ports.listeners()
    parent_of = _mac.parents(_output(["/bin/ps", "-axo", "pid=,ppid="]))
    # An instance that is to be removed, or to get another port, still listens: the run will end it.
    runners = _mac.instance_runners(_output(["/bin/ps", "-axwwo", "pid=,command="]), user["home"])
    foreign = []
    for wanted in unclear:
        job = jobs[wanted["label"]]
        processes = listeners.get(wanted["port"], {})
        if job and job.pid and any(_mac.descends_from(pid, job.pid, parent_of) for pid in processes):
            continue
        ends = [any(_mac.descends_from(pid, runner, parent_of) for runner in runners) for pid in processes]
        if wanted["status"] and ends and all(ends):
            continue
        names = ", ".join(f"{command} (pid {pid})" for pid, command in processes.items())
        foreign.append({**{key: wanted[key] for key in ("port", "address", "use")}, "process": names or None})
    return foreign


def _says_so_itself(wanted, job, user):
    """Return whether the process that launchd runs reports, and has checked, that the port is its own."""
    if not wanted["status"] or not job or not job.pid:
        return False
    status = _files.read_json(wanted["status"].replace("~", user["home"], 1))
    if not isinstance(status, dict) or status.get("state") != "ready" or status.get("pid") != job.pid:
        return False
    own = [(status.get("address"), status.get("port")), (status.get("status_address"), status.get("status_port"))]
    return (wanted["address"], wanted["port"]) in own


def _launchctl(kind, user):
    """Return a launchctl that is asked only: asking needs no rights, so the domain is not checked for them."""
    target = f"gui/{user['uid']}" if kind == "gui" else "system"
    return _launchd.Launchctl(_launchd.Domain(kind, target, "", (user["uid"], user["gid"]), user["name"]))


def _output(command):
    """Return what a command prints. One that fails gives what it printed: sysctl does so for one unknown name."""
    return _command.run(command, timeout=_COMMAND_TIMEOUT).out


if __name__ == "__main__":
    main()
