#!/usr/bin/python
# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module lmstudio_instances."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lmstudio_instances
short_description: Run the LM Studio instances of a Mac
version_added: "0.1.0"
author: ["The lmfleet contributors (@lmfleet)"]
description:
  - Makes the instances of one Mac run as declared, each as a launchd job with a home of its own, and waits until each
    serves its models.
  - An instance is left alone when nothing differs. When its models differ it goes on running and loads or unloads just
    those; timeouts and the like it takes up as well. Its address, its port, its programs or its property list restart
    it. It answers the requests it has first, for as long as C(stop_timeout) in its declaration allows.
  - All instances are brought up at the same time, once those that have to stop have stopped, so that they may swap
    ports. What only unloads models comes before that.
  - That they are really several servers is proven, each time, by their homes, daemons, control ports, what C(lms) finds
    and what they have loaded, and after a change by who listens on their ports. If they share anything the module
    fails.
  - A model that is loaded and not declared is told with a warning, or unloaded by the runner if the declaration says
    C(purge). A declared one that was unloaded, or loaded again with other settings, is brought back by the runner.
  - In domain V(gui) run it as the login user, in domain V(system) as root.
attributes:
  check_mode:
    description: Tells the same actions with their reasons, changes nothing and waits for nothing.
    support: full
  diff_mode:
    description: Shows each declaration and property list that changes.
    support: full
options:
  directory:
    description: Folder that holds the homes of the instances.
    type: path
    required: true
  models_directory:
    description: The models folder that all instances share.
    type: path
    required: true
  runner:
    description: The program that runs one instance.
    type: dict
    required: true
    suboptions:
      path:
        description: Where it belongs on the Mac.
        type: path
        required: true
      files:
        description:
          - The Python files it is made of, path within the program to text. C(__main__.py) is what is run.
          - They are put into one archive that Python runs.
        type: dict
        required: true
  domain:
    description: The launchd domain of the jobs. Jobs of the same instances in the other domain are removed.
    type: str
    choices: [gui, system]
    default: gui
  user:
    description: The login user the instances run as. Defaults to the user that runs the module.
    type: str
  instances:
    description: All instances of this Mac.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the instance. Its job is C(lmfleet.instance.<name>), its home C(<directory>/<name>).
        type: str
        required: true
      declaration:
        description: What the runner shall do, as JSON text.
        type: str
        required: true
      plist:
        description: The property list of the job, as XML text.
        type: str
        required: true
  api_tokens:
    description:
      - API tokens of instances whose LM Studio asks for one, instance name to token.
      - They stand in O(instances[].declaration) as well. Given here, Ansible keeps them out of what it shows.
    type: dict
    default: {}
  tunings:
    description:
      - The load defaults of the models, one entry per model and instance, written before a model is loaded. See
        M(lmfleet.mac.lmstudio_tuning) for how they are merged into the files.
      - Left out, the files stay as they are.
    type: list
    elements: dict
    suboptions:
      instance:
        description: Name of the instance.
        type: str
        required: true
      model:
        description: Name of the model, for messages.
        type: str
        required: true
      path:
        description: Place of the model file below the models folder, C(publisher/name/file).
        type: str
        required: true
      content:
        description: The settings as JSON text, in the form of LM Studio's own files.
        type: str
        required: true
      template:
        description: Name of the template that O(tunings[].content) was rendered from, for messages.
        type: str
        default: content
  purge_instances:
    description:
      - Whether instances that are not in the list are stopped and removed, home included. Models stay.
      - Models that are loaded and not declared are another matter, see C(purge) in O(instances[].declaration).
    type: bool
    default: true
  only:
    description:
      - Names of the instances that may be changed, started or removed now. The others stay as they are, whatever is
        declared for them. All may be, when it is not set.
    type: list
    elements: str
  restore:
    description:
      - Whether the instances get their former declarations, property lists and tuning files back when one of them does
        not become ready as declared. The task fails all the same, and tells which went back and whether they serve.
      - That goes for all that this call changes, also those that are ready, so that no Mac is left with half of a
        change, and for a change that a run before this one began and never saw ready, because it was killed.
      - What is new has nothing to go back to and stays. What was removed stays removed.
    type: bool
    default: false
  revert:
    description:
      - Puts back what the instances in O(only) had before the last call with them changed them, whatever is declared
        for them, and waits until they are ready with it. RV(instances[].restored) tells which are.
      - Those that it did not change, or that have gone back already, are left alone, and so are new ones.
    type: bool
    default: false
  timeout:
    description: Seconds an instance may take until it serves all its models.
    type: int
    default: 900
  lock_timeout:
    description: Seconds to wait for another run on the same Mac that is changing instances.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Run one instance in the login session
  lmfleet.mac.lmstudio_instances:
    directory: /Users/admin/.lmfleet/instances
    models_directory: /Users/admin/.lmfleet/models
    runner:
      path: /Users/admin/.lmfleet/instance_runner.pyz
      files: "{{ runner_files }}"
    domain: gui
    instances:
      - name: chat-a
        declaration: "{{ lookup('ansible.builtin.template', 'instance.json.j2') }}"
        plist: "{{ lookup('ansible.builtin.template', 'instance.plist.j2') }}"
    tunings:
      - instance: chat-a
        model: smollm2
        path: lmfleet/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
        content: "{{ {'load': {'fields': fields}} | to_json }}"
  vars:
    runner_files:
      __main__.py: "{{ lookup('ansible.builtin.file', 'runner/__main__.py') }}"
    fields:
      - {key: llm.load.contextLength, value: 4096}

- name: Put back what an instance had before its last change
  lmfleet.mac.lmstudio_instances:
    directory: /Users/admin/.lmfleet/instances
    models_directory: /Users/admin/.lmfleet/models
    runner:
      path: /Users/admin/.lmfleet/instance_runner.pyz
      files: "{{ runner_files }}"
    instances:
      - name: chat-a
        declaration: "{{ lookup('ansible.builtin.template', 'instance.json.j2') }}"
        plist: "{{ lookup('ansible.builtin.template', 'instance.plist.j2') }}"
    only: [chat-a]
    revert: true

- name: Remove all instances
  lmfleet.mac.lmstudio_instances:
    directory: /Users/admin/.lmfleet/instances
    models_directory: /Users/admin/.lmfleet/models
    runner:
      path: /Users/admin/.lmfleet/instance_runner.pyz
      files: {__main__.py: ""}
    instances: []
"""

RETURN = r"""
instances:
  description: The instances in the order given, then those that were removed.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the instance.
      type: str
      returned: always
    action:
      description:
        - V(nothing), V(live) (its models changed while it runs), V(restart), V(start) or V(remove).
      type: str
      returned: always
    interrupted:
      description: Identifiers of the models that answer now, and do not while that is done.
      type: list
      elements: str
      returned: always
    tuning:
      description: Whether any of its tuning files changes.
      type: bool
      returned: always
    restored:
      description: Whether it got back what it had before, for O(restore) or O(revert), and serves with it.
      type: bool
      returned: always
    why:
      description: The reason for the action, empty for V(nothing).
      type: str
      returned: always
    pid:
      description: Process of the runner, null when it has none.
      type: int
      returned: always
    daemon_pid:
      description: Process of llmster.
      type: int
      returned: always
    control_port:
      description: The port C(lms) reaches this daemon at.
      type: int
      returned: always
    address:
      description: Address the server listens on.
      type: str
      returned: always
    port:
      description: Port the server listens on.
      type: int
      returned: always
    ready:
      description: Whether it serves all declared models. In check mode, whether it said so when last seen.
      type: bool
      returned: always
    models:
      description: The models as in the runner's status, with identifier, key, status, queued, parallel and more.
      type: list
      elements: dict
      returned: always
    unmanaged:
      description: Identifiers of models that somebody else loaded there.
      type: list
      elements: str
      returned: always
    drift:
      description: The same in words, with file and time to live.
      type: list
      elements: str
      returned: always
    runtimes:
      description: The declared inference runtimes that are selected, name to version.
      type: dict
      returned: always
  sample:
    - {name: chat-a, action: nothing, why: "", pid: 812, daemon_pid: 815, control_port: 41343, address: 127.0.0.1,
       port: 1234, ready: true, models: [], unmanaged: [], drift: [], runtimes: {}}
tunings:
  description: The tuning files of the instances, when O(tunings) is given.
  returned: success
  type: list
  elements: dict
  contains:
    instance:
      description: Name of the instance.
      type: str
      returned: always
    model:
      description: Name of the model, empty when it is no longer served.
      type: str
      returned: always
    file:
      description: Absolute path of the file.
      type: str
      returned: always
    changed:
      description: Whether the file was changed.
      type: bool
      returned: always
  sample: [{instance: chat-a, model: smollm2, file: /Users/admin/x.gguf.json, changed: false}]
"""

import contextlib
import getpass
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ansible.module_utils.basic import AnsibleModule

from ..module_utils._files import LockTimeoutError, exclusive, file_diff, make_directory
from ..module_utils._former import Former, finish, forget, recall, remember, unfinished
from ..module_utils._instance_host import InstanceHost, Leftover, Outcome, Runner
from ..module_utils._instances import (
    Decision,
    Found,
    InstanceError,
    Wanted,
    check_together,
    indistinct,
    interrupted,
    only_gives,
    parse_wanted,
    served,
    shown,
)
from ..module_utils._launchd import SYSTEM_FOLDER, Domain, Launchctl, LaunchdError, canonical, domain_for
from ..module_utils._tuning import TuningError
from ..module_utils._tuning_files import FILE_OPTIONS, Change, Home, plan_home, write
from ..module_utils._zipapp import build


class Plan(NamedTuple):
    """Everything a run will do: what to take away first, then each instance with what was found and decided.

    `changing` are those that may be changed, `parting` has the models of what goes.
    """

    moved: list[Leftover]
    departed: list[Leftover]
    wanted: list[Wanted]
    changing: list[Wanted]
    found: dict[str, Found]
    decisions: dict[str, Decision]
    tunings: list[Home]
    parting: dict[str, list[str]]

    def changes_anything(self) -> bool:
        return (
            bool(self.moved or self.departed)
            or any(one.action != "nothing" for one in self.decisions.values())
            or any(change.changed for change in self.tuning_files())
        )

    def tuning_files(self) -> list[Change]:
        return [change for home in self.tunings for change in home.changes]


def in_parallel(function, items: list) -> list:
    """Return function(item) of each item, all at the same time."""
    if not items:
        return []
    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        return list(pool.map(function, items))


def other_domain(kind: str, user: str) -> Domain:
    """Return the domain the instances do not belong in, whether or not this process may change jobs there."""
    if kind == "gui" and os.geteuid() != 0:
        return Domain("system", "system", SYSTEM_FOLDER, (0, 0), user)
    return domain_for("system" if kind == "gui" else "gui", user)


def moved_jobs(host: InstanceHost, wanted: list[Wanted], purge: bool, user: str) -> list[Leftover]:
    """Return our jobs in the other domain. Raises InstanceError when there are some that need root."""
    other = other_domain(host.launchctl.domain.kind, user)
    declared = {one.name for one in wanted}
    names = sorted(name for name in host.jobs_in(other) if purge or name in declared)
    if names and other.kind == "system" and os.geteuid() != 0:
        raise InstanceError(
            f"instances {', '.join(names)} run in launchd domain system, and this task may not remove them there. Run "
            "it once with become: true, or set lmfleet_launchd_domain: system again."
        )
    return [Leftover(name, Launchctl(other), name not in declared and host.has_home(name)) for name in names]


def former_ones(host: InstanceHost, wanted: list[Wanted], params: dict) -> dict[str, Former]:
    """Return what is to be put back, by name. Raises InstanceError when it cannot be used."""
    if not params["revert"]:
        return {}
    kept = {one.name: recall(one.name, host.home(one.name)) for one in wanted if one.name in (params["only"] or [])}
    return {name: former for name, former in kept.items() if former}


def plan_tunings(host: InstanceHost, wanted: list[Wanted], files: list[dict] | None) -> list[Home]:
    """Return what the tuning files of each instance need. Raises InstanceError, TuningError."""
    if files is None:
        return []
    strangers = sorted({file["instance"] for file in files} - {one.name for one in wanted})
    if strangers:
        raise InstanceError(f"tunings: there is no instance {', '.join(strangers)} in the list of instances")
    return [
        plan_home(one.name, host.home(one.name), [file for file in files if file["instance"] == one.name])
        for one in wanted
    ]


def make_plan(host: InstanceHost, wanted: list[Wanted], params: dict, user: str) -> Plan:
    """Look at everything and decide; raise an error for what would go wrong halfway."""
    former = former_ones(host, wanted, params)
    names = former if params["revert"] else params["only"]

    def may_change(name: str) -> bool:
        return names is None or name in names

    wanted = [former[one.name].wanted if one.name in former else one for one in wanted]
    changing = [one for one in wanted if may_change(one.name)]
    purge = params["purge_instances"] and not params["revert"]
    if params["revert"]:
        tunings = [one.tunings for one in former.values()]
    else:
        tunings = [home for home in plan_tunings(host, wanted, params["tunings"]) if may_change(home.instance)]
    moved = [one for one in moved_jobs(host, wanted, purge, user) if may_change(one.name)]
    gone = {one.name for one in moved}
    departed = [one for one in host.leftovers(wanted) if one.name not in gone] if purge else []
    departed = [one for one in departed if may_change(one.name)]
    from_domain = {one.name: one.launchctl.domain.kind for one in moved}
    disabled = host.launchctl.disabled() if wanted else set()
    found = dict(
        zip(
            [one.name for one in wanted],
            in_parallel(lambda one: host.find(one, from_domain.get(one.name), one.service.label in disabled), wanted),
        )
    )
    decisions = {one.name: Decision("nothing", "", []) for one in wanted}
    decisions.update({one.name: host.decide(one, found[one.name]) for one in changing})
    if any(one.action in ("start", "restart") for one in decisions.values()):
        host.launchctl.require_domain()
    host.require_ports(wanted, decisions, {one.name for one in (*moved, *departed)})
    parting = {one.name: sorted(served(host.declaration(one.name))) for one in (*moved, *departed)}
    return Plan(moved, departed, wanted, changing, found, decisions, tunings, parting)


def carry_out(host: InstanceHost, plan: Plan, params: dict) -> tuple[list[Outcome], list[str]]:
    """Do what was planned, first what goes, which frees ports and memory; return how it went, as `settled` does."""
    deadline = time.monotonic() + params["timeout"]
    in_parallel(lambda one: host.remove(one, deadline), plan.moved)
    in_parallel(lambda one: host.remove(one, deadline), plan.departed)
    if plan.changing:
        host.write_runner()
    if not params["revert"]:
        keep_former(host, plan)
    for home in plan.tunings:
        with naming(home.instance):
            write(home, params["lock_timeout"])
    done = {one.name: one for one in converge(host, plan.changing, plan.found, plan.decisions, deadline)}
    result = settled(host, plan, [done.get(outcome.name, outcome) for outcome in preview(plan)], params)
    host.clean_up()  # takes its time, which nobody has to wait for
    return result


@contextlib.contextmanager
def naming(instance: str) -> Iterator[None]:
    """Name the instance in what goes wrong with its files: a full disk does not say whose they are."""
    try:
        yield
    except (LockTimeoutError, OSError) as error:
        raise InstanceError(f"instance {instance}: {error}") from None


def keep_former(host: InstanceHost, plan: Plan) -> None:
    """Keep what the instances that serve have, before it changes; the others have nothing to go back to."""
    tunings = {home.instance: home for home in plan.tunings}
    for one in plan.changing:
        home, found = host.home(one.name), plan.found[one.name]
        begins = plan.decisions[one.name].action in ("live", "restart") and served(found.declaration)
        with naming(one.name):
            if begins or unfinished(home):
                remember(home, found, tunings.get(one.name))
            else:
                forget(home)


def converge(
    host: InstanceHost,
    wanted: list[Wanted],
    found: dict[str, Found],
    decisions: dict[str, Decision],
    deadline: float,
) -> list[Outcome]:
    """Carry out decisions and wait: all at once, but what gives up memory or a port before what may need it."""

    def done(one: Wanted) -> Outcome:
        return host.converge(one, found[one.name], decisions[one.name], deadline)

    giving = [one for one in wanted if only_gives(one, found[one.name], decisions[one.name])]
    outcomes = in_parallel(done, giving)
    others = [one for one in wanted if one not in giving]
    errors = in_parallel(lambda one: host.stop(one, decisions[one.name], deadline), others)
    for one, error in zip(others, errors):
        if error:
            now = found[one.name]
            outcomes.append(Outcome(one.name, decisions[one.name], now.service.job, now.status, False, error))
    return outcomes + in_parallel(done, [one for one, error in zip(others, errors) if not error])


def settled(host: InstanceHost, plan: Plan, outcomes: list[Outcome], params: dict) -> tuple[list[Outcome], list[str]]:
    """Put back what has to go back, and note what is finished; return the outcomes, and what instances share."""
    shared = mixed_up(host, plan, outcomes, ask_ports=plan.changes_anything())
    changing = {one.name for one in plan.changing}
    if params["revert"]:
        outcomes = [one._replace(restored=one.ready and one.name in changing) for one in outcomes]
    elif params["restore"] and (shared or any(one.error for one in outcomes)):
        outcomes = put_back(host, plan, outcomes, params)
    for outcome in outcomes:
        with naming(outcome.name):
            if outcome.restored:
                forget(host.home(outcome.name))
            elif outcome.name in changing and outcome.ready and not outcome.error:
                finish(host.home(outcome.name))
    return outcomes, shared


def mixed_up(host: InstanceHost, plan: Plan, outcomes: list[Outcome], ask_ports: bool) -> list[str]:
    """Return in words what instances share that must be their own."""
    running = [(one, outcome.status) for one, outcome in zip(plan.wanted, outcomes) if outcome.ready]
    return indistinct(host.evidence(running, ask_ports))


def put_back(host: InstanceHost, plan: Plan, outcomes: list[Outcome], params: dict) -> list[Outcome]:
    """Give all instances whose change is unfinished what they had; return the outcomes with what came of that."""
    former: dict[str, Wanted] = {}
    found: dict[str, Found] = {}
    decisions: dict[str, Decision] = {}
    errors: dict[str, str] = {}
    for name in [one.name for one in plan.changing if unfinished(host.home(one.name))]:
        try:
            wanted, tunings = recall(name, host.home(name))
            now = host.find(wanted, settle=False)
            decision = host.decide(wanted, now)
            if decision.action != "nothing" or tunings.differs():
                write(tunings, params["lock_timeout"])
                former[name], found[name], decisions[name] = wanted, now, decision
        except (InstanceError, LaunchdError, LockTimeoutError, OSError) as error:
            errors[name] = str(error)
    deadline = time.monotonic() + params["timeout"]
    again = {one.name: one for one in converge(host, list(former.values()), found, decisions, deadline)}
    return [gone_back(one, again.get(one.name), errors.get(one.name)) for one in outcomes]


def gone_back(outcome: Outcome, again: Outcome | None, error: str | None) -> Outcome:
    """Return how an instance stands; `again` is how it went with what it had, `error` why it could not have it back."""
    if not again and not error:
        return outcome
    before = outcome.error or f"instance {outcome.name}: it became ready, but the change of this Mac failed."
    if not again:
        return outcome._replace(error=f"{before} Its former declaration could not be put back: {error}")
    told = "and serves" if again.ready else f"and does not serve either: {again.error}"
    return again._replace(
        decision=outcome.decision,
        ready=False,
        restored=again.ready,
        error=f"{before} It has its former declaration back, {told}.",
    )


def preview(plan: Plan) -> list[Outcome]:
    """Return what a run would start from, for check mode."""
    outcomes = []
    for one in plan.wanted:
        found, decision = plan.found[one.name], plan.decisions[one.name]
        ready = decision.action == "nothing" and found.status.get("state") == "ready"
        outcomes.append(Outcome(one.name, decision, found.service.job, found.status, ready, ""))
    return outcomes


def result_of(plan: Plan, wanted: Wanted, outcome: Outcome) -> dict:
    """Return what the module tells of one instance."""
    status = outcome.status
    stopped = interrupted(wanted, plan.found[wanted.name], plan.decisions[wanted.name])
    tuning = any(change.changed for change in plan.tuning_files() if change.instance == wanted.name)
    return {
        "name": wanted.name,
        "action": outcome.decision.action,
        "interrupted": stopped,
        "tuning": tuning,
        "restored": outcome.restored,
        "why": outcome.decision.why,
        "pid": outcome.job.pid if outcome.job else None,
        "daemon_pid": status.get("daemon_pid"),
        "control_port": status.get("control_port"),
        "address": wanted.address,
        "port": wanted.port,
        "ready": outcome.ready,
        "models": status.get("models") or [],
        "unmanaged": status.get("unmanaged") or [],
        "drift": status.get("drift") or [],
        "runtimes": status.get("runtimes") or {},
    }


def removed(leftover: Leftover, models: list[str]) -> dict:
    """Return what the module tells of an instance that is removed."""
    nothing = dict.fromkeys(("pid", "daemon_pid", "control_port", "address", "port"))
    why = "it is not declared"
    return {
        "name": leftover.name,
        "action": "remove",
        "interrupted": models,
        "tuning": False,
        "restored": False,
        "why": why,
        **nothing,
        "ready": False,
        "models": [],
        "unmanaged": [],
        "drift": [],
        "runtimes": {},
    }


def diffs(host: InstanceHost, plan: Plan) -> list[dict]:
    """Return a diff of each file that changes."""
    entries = []
    for one in plan.wanted:
        found = plan.found[one.name]
        pairs = [
            (os.path.join(host.home(one.name), "instance.json"), *shown(found.declaration, one.content)),
            (
                host.launchctl.domain.plist_path(one.service.label),
                found.service.plist,
                canonical(one.service.plist),
            ),
        ]
        entries += [file_diff(*pair) for pair in pairs if pair[1] != pair[2]]
    entries += [change.diff() for change in plan.tuning_files() if change.changed]
    if not all(found.runner_right for found in plan.found.values()):
        entries.append(file_diff(host.runner.path, "another version, or none\n", f"version {host.runner.version}\n"))
    for leftover in plan.departed:
        entries.append(file_diff(host.home(leftover.name), "an instance\n", None))
    return entries


def runner_of(params: dict) -> Runner:
    """Return the runner that shall run. Raises InstanceError."""
    try:
        return Runner(params["path"], build(params["files"]))
    except ValueError as error:
        raise InstanceError(f"runner {params['path']}: {error}") from None


def ensure(module: AnsibleModule) -> dict:
    """Return the results of the module; `msg` is there when an instance is not ready."""
    params = module.params
    user = params["user"] or getpass.getuser()
    wanted = [parse_wanted(entry) for entry in params["instances"]]
    check_together(wanted)
    launchctl = Launchctl(domain_for(params["domain"], user))
    runner = runner_of(params["runner"])
    host = InstanceHost(params["directory"], params["models_directory"], runner, launchctl)
    if module.check_mode:
        plan = make_plan(host, wanted, params, user)
        outcomes = preview(plan)
        shared = mixed_up(host, plan, outcomes, ask_ports=False)
    else:
        make_directory(host.directory)
        with exclusive(host.directory, "lmstudio_instances", params["lock_timeout"]):
            plan = make_plan(host, wanted, params, user)
            outcomes, shared = carry_out(host, plan, params)
    wanted = plan.wanted
    departed = [*plan.departed, *(one for one in plan.moved if one.name not in plan.decisions)]
    result = {
        "changed": plan.changes_anything(),
        "instances": [
            *(result_of(plan, one, outcome) for one, outcome in zip(wanted, outcomes)),
            *(removed(leftover, plan.parting[leftover.name]) for leftover in departed),
        ],
        "diff": diffs(host, plan),
        "tunings": [change.result() for change in plan.tuning_files()],
    }
    errors = [*(outcome.error for outcome in outcomes if outcome.error), *shared]
    for one, outcome in zip(wanted, outcomes):
        for drift in outcome.status.get("drift") or []:
            module.warn(f"instance {one.name}: {drift}. To have such models unloaded: lmstudio_instances_purge: true")
    return {**result, "msg": " || ".join(errors)} if errors else result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "models_directory": {"type": "path", "required": True},
            "runner": {
                "type": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "files": {"type": "dict", "required": True},
                },
            },
            "domain": {"type": "str", "choices": ["gui", "system"], "default": "gui"},
            "user": {"type": "str"},
            "instances": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "declaration": {"type": "str", "required": True},
                    "plist": {"type": "str", "required": True},
                },
            },
            "api_tokens": {"type": "dict", "default": {}, "no_log": True},
            "tunings": {"type": "list", "elements": "dict", "options": FILE_OPTIONS},
            "purge_instances": {"type": "bool", "default": True},
            "only": {"type": "list", "elements": "str"},
            "restore": {"type": "bool", "default": False},
            "revert": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 900},
            "lock_timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    try:
        result = ensure(module)
    except (InstanceError, LaunchdError, LockTimeoutError, TuningError, OSError) as error:
        module.fail_json(msg=str(error))
    if "msg" in result:
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
