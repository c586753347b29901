# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The instances of this Mac: their files, their jobs, and waiting for them. I/O around the plan in `_instances`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import plistlib
import shutil
import signal
import time
from typing import NamedTuple

from ._command import run
from ._files import atomic_write, listing, make_directory, owner_for, read_bytes, read_json, remove_file
from ._instances import (
    Decision,
    Evidence,
    Found,
    InstanceError,
    Verdict,
    Wanted,
    decide,
    judge_server,
    judge_status,
    reports,
)
from ._launchd import EX_CONFIG, Domain, Job, Launchctl, LaunchdError, last_words
from ._lmstudio_http import look, url_of
from ._names import INSTANCE_LABEL_PREFIX, instance_label
from ._ports import holders, is_taken, listeners
from ._processes import alive

_HTTP_TIMEOUT = 5.0
#: Seconds a trouble that waiting rarely cures must last before it is reported.
_LASTING = 20.0
#: Starts of the runner seen while waiting after which it counts as one that keeps dying.
_MOST_STARTS = 4
_REMOVED = ".removed-"
#: Seconds to let a job that has just started write its first status.
_SETTLE = 10.0
#: Seconds between two looks at an instance that is not ready, when its runner has nothing new to say.
_POLL = 0.5
#: Seconds between two looks at what its runner says, which cost next to nothing.
_GLANCE = 0.05


class Runner(NamedTuple):
    """The runner program: where it belongs and its bytes."""

    path: str
    content: bytes

    @property
    def version(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Leftover(NamedTuple):
    """A job of ours that shall go: not declared, or in the wrong domain. `with_home`: its home goes as well."""

    name: str
    launchctl: Launchctl
    with_home: bool


class Outcome(NamedTuple):
    """How one instance ended: `error` is "" when it is ready (or, in check mode, when nothing is known against it).

    `restored`: it serves with what it had before.
    """

    name: str
    decision: Decision
    job: Job | None
    status: dict
    ready: bool
    error: str
    restored: bool = False


class InstanceHost:
    """Transport: everything `_instances` needs to know, and carrying out what it decides."""

    def __init__(self, directory: str, models_directory: str, runner: Runner, launchctl: Launchctl) -> None:
        self.directory = os.path.abspath(directory)
        self.models_directory = models_directory
        self.runner = runner
        self.launchctl = launchctl

    def home(self, name: str) -> str:
        return os.path.join(self.directory, name)

    # Looking

    def status(self, name: str) -> tuple[dict, float]:
        """Return status.json ({} when there is none) and its age in seconds."""
        status = read_json(os.path.join(self.home(name), "status.json"))
        if not isinstance(status, dict):
            return {}, 0.0
        # Both are seconds since this Mac started: the clock of a Mac may be set while a runner runs. After a restart of
        # the Mac the status is of a process that is gone, and not believed whatever its age.
        updated = status.get("updated_monotonic")
        return status, max(0.0, time.monotonic() - updated) if isinstance(updated, (int, float)) else 0.0

    def declaration(self, name: str) -> str | None:
        """Return instance.json as text, None when there is none."""
        return _text(read_bytes(os.path.join(self.home(name), "instance.json")))

    def find(self, wanted: Wanted, moved_from: str | None = None, disabled: bool = False, settle: bool = True) -> Found:
        """Return the instance as it is now; `settle` waits a little for the first status of a job that just started."""
        actual = self.launchctl.actual(wanted.service)
        deadline = time.monotonic() + (_SETTLE if settle else 0)
        while True:
            status, age = self.status(wanted.name)
            found = Found(
                self.declaration(wanted.name),
                status,
                age,
                actual,
                self._models_link_right(wanted.name),
                read_bytes(self.runner.path) == self.runner.content,
                moved_from,
                disabled,
            )
            if found.pid() is None or reports(found) or time.monotonic() >= deadline:
                return found
            time.sleep(0.5)

    def evidence(self, pairs: list[tuple[Wanted, dict]], ask_ports: bool) -> list[Evidence]:
        """Return what tells instances apart, of each with its status; `ask_ports` costs a call of lsof."""
        found = listeners() if ask_ports and len(pairs) > 1 else {}
        return [self._evidence_of(wanted, status, found) for wanted, status in pairs]

    def _evidence_of(self, wanted: Wanted, status: dict, found: dict[int, dict[int, str]]) -> Evidence:
        home = self.home(wanted.name)
        pointer = (_text(read_bytes(os.path.join(home, ".lmstudio-home-pointer"))) or "").strip()
        published = read_json(os.path.join(home, ".lmstudio", ".internal", "http-server.json"))
        published = published if isinstance(published, dict) else {}
        loaded = {model["identifier"] for model in status.get("models") or [] if model.get("key")}
        return Evidence(
            wanted.name,
            os.path.realpath(pointer or os.path.join(home, ".lmstudio")),
            status.get("daemon_pid"),
            status.get("control_port"),
            (published.get("pid"), published.get("port")),
            {pid for port in (wanted.port, status.get("control_port")) for pid in found.get(port, {})},
            {model.identifier for model in wanted.models()},
            loaded | set(status.get("unmanaged") or []),
        )

    def decide(self, wanted: Wanted, found: Found) -> Decision:
        return decide(wanted, found, self.launchctl.domain.plist_path(wanted.service.label), self.runner.version)

    def _models_link(self, name: str) -> str:
        return os.path.join(self.home(name), ".lmstudio", "models")

    def _models_link_right(self, name: str) -> bool:
        try:
            return os.readlink(self._models_link(name)) == self.models_directory
        except OSError:
            return False

    def leftovers(self, wanted: list[Wanted]) -> list[Leftover]:
        """Return our instances in this domain that are not declared: those with a job, and homes without one."""
        names = {one.name for one in wanted}
        found = self.jobs_in(self.launchctl.domain)
        homes = {name for name in listing(self.directory) if self.has_home(name)}
        return [Leftover(name, self.launchctl, name in homes) for name in sorted((found | homes) - names)]

    def has_home(self, name: str) -> bool:
        return not name.startswith(".") and os.path.isfile(os.path.join(self.home(name), "instance.json"))

    def jobs_in(self, domain: Domain) -> set[str]:
        """Return the names of our instances that have a plist in a domain: by its label, and by the home it names."""
        names = set()
        for file in listing(domain.folder):
            if file.startswith(INSTANCE_LABEL_PREFIX) and file.endswith(".plist"):
                name = file[len(INSTANCE_LABEL_PREFIX) : -len(".plist")]
                if self._is_ours(os.path.join(domain.folder, file), name):
                    names.add(name)
        return names

    def _is_ours(self, path: str, name: str) -> bool:
        try:
            arguments = plistlib.loads(read_bytes(path) or b"").get("ProgramArguments")
        except Exception:  # a broken plist says nothing; its name is ours
            return True
        return not isinstance(arguments, list) or self.home(name) in arguments

    # Before anything changes

    def require_ports(self, wanted: list[Wanted], decisions: dict[str, Decision], leaving: set[str]) -> None:
        """Raise InstanceError when a port that will be needed is held by somebody who does not give it up now.

        `leaving` are names of instances that are removed.
        """
        starting = [one for one in wanted if decisions[one.name].action in ("start", "restart")]
        giving_up = leaving | {one.name for one in starting}
        statuses = {name: self.status(name)[0] for name in listing(self.directory)} if starting else {}
        troubles = []
        for one in starting:
            ours = {
                name
                for name, status in statuses.items()
                if status.get("port") == one.port and alive(status.get("daemon_pid"))
            }
            staying = sorted(ours - giving_up)
            if (ours and not staying) or not is_taken(one.address, one.port):
                continue
            found = holders(one.port)  # empty for programs of other users
            programs = ", ".join(f"{command} (process {pid})" for pid, command in found.items()) or "another program"
            who = f"instance {staying[0]}, which stays as it is now" if staying else programs
            cure = "Change both at once" if staying else "End that program"
            held = f"instance {one.name}: port {one.port} on {one.address} is held by {who}"
            troubles.append(f"{held}. {cure}, or declare another port.")
        if troubles:
            raise InstanceError(" | ".join(troubles))

    # Changing

    def write_runner(self) -> None:
        if read_bytes(self.runner.path) != self.runner.content:
            make_directory(os.path.dirname(self.runner.path))
            atomic_write(self.runner.path, self.runner.content, 0o755)

    def make_home(self, name: str) -> None:
        """Make the home with its folders and the link to the shared models."""
        make_directory(os.path.join(self.home(name), "logs"))
        link = self._models_link(name)
        make_directory(os.path.dirname(link))
        if self._models_link_right(name):
            return
        if os.path.isdir(link) and not os.path.islink(link):
            try:
                os.rmdir(link)
            except OSError:
                raise InstanceError(
                    f"{link} is a folder with files in it; it must be a link to {self.models_directory}. "
                    "Move what is in there away."
                ) from None
        temporary = f"{link}.{os.getpid()}"
        os.symlink(self.models_directory, temporary)
        owner = owner_for(link)
        if owner:
            os.lchown(temporary, *owner)
        os.replace(temporary, link)

    def stop(self, wanted: Wanted, decision: Decision, deadline: float) -> str:
        """Stop an instance that is to start anew, so that its port and its memory are free; return why it cannot."""
        try:
            if "bootout" in decision.service_actions:
                self.launchctl.bootout(wanted.service.label, deadline)
        except LaunchdError as error:
            return f"instance {wanted.name}: {error}"
        return ""

    def apply(self, wanted: Wanted, decision: Decision, deadline: float) -> None:
        """Carry out a decision other than remove, once what it stops is stopped.

        Files change while the job is not loaded, or are ones it re-reads.
        """
        if decision.action == "nothing":
            return
        self.make_home(wanted.name)
        path = os.path.join(self.home(wanted.name), "instance.json")
        if _text(read_bytes(path)) != wanted.content:
            atomic_write(path, wanted.content, 0o600)
        actions = [action for action in decision.service_actions if action != "bootout"]
        self.launchctl.apply(wanted.service, actions, deadline)

    def remove(self, leftover: Leftover, deadline: float) -> None:
        """Stop an instance; remove its plist and, if it goes too, its home. Models stay: the home links to them.

        Raises InstanceError.
        """
        try:
            self._remove(leftover, deadline)
        except (LaunchdError, OSError) as error:
            raise InstanceError(f"instance {leftover.name} cannot be removed: {error}") from None

    def _remove(self, leftover: Leftover, deadline: float) -> None:
        label = instance_label(leftover.name)
        leftover.launchctl.bootout(label, deadline)
        remove_file(leftover.launchctl.domain.plist_path(label))
        if not leftover.with_home:
            return
        self._end_daemon(leftover.name)
        # What is renamed no longer looks like an instance, however far clean_up() gets.
        gone = os.path.join(self.directory, f"{_REMOVED}{leftover.name}-{os.getpid()}")
        os.rename(self.home(leftover.name), gone)

    def clean_up(self) -> None:
        """Delete the homes that were removed, also those of a run that was killed. Links in them are not followed."""
        for name in listing(self.directory):
            if name.startswith(_REMOVED):
                shutil.rmtree(os.path.join(self.directory, name), ignore_errors=True)

    def _end_daemon(self, name: str) -> None:
        """End the llmster of a removed instance whose runner was killed before.

        The pid in a status file may belong to anyone by now: it must run the program noted there, and no other
        instance may call it its own.
        """
        status, _age = self.status(name)
        pid, program = status.get("daemon_pid"), status.get("llmster")
        others = [self.status(other)[0].get("daemon_pid") for other in listing(self.directory) if other != name]
        if not program or pid in others or not alive(pid):
            return
        if program in run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], timeout=10).out.split():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    # Waiting

    def wait_ready(self, wanted: Wanted, job: Job | None, deadline: float) -> tuple[Verdict, Job | None, dict]:
        """Wait until an instance serves what it declares, or the deadline is over; return how it stands then.

        `job` is the job if it was just looked at, so that an instance that is well costs no more calls. Gives up early
        on a trouble that waiting does not cure.
        """
        lasting_since: float | None = None
        starts: set[int] = set()
        while True:
            if job is None:
                job = self._job(wanted, deadline)
            status, age = self.status(wanted.name)
            verdict = judge_status(wanted, status, age, job)
            if verdict.ready:
                verdict = judge_server(
                    wanted, look(url_of(wanted.address, wanted.port), _HTTP_TIMEOUT, wanted.api_token)
                )
            now = time.monotonic()
            lasting_since = (lasting_since or now) if verdict.lasting else None
            if job.pid is not None:
                starts.add(job.pid)
            hopeless = (
                (lasting_since is not None and now - lasting_since >= _LASTING)
                or len(starts) >= _MOST_STARTS
                or (job.pid is None and job.last_exit == EX_CONFIG)
            )
            if verdict.ready or hopeless or now >= deadline:
                return verdict, job, status
            self._await_news(wanted.name, status)
            job = None

    def _await_news(self, name: str, status: dict) -> None:
        """Wait a little for the runner to say something else: requests wait for what it says."""
        end = time.monotonic() + _POLL
        while time.monotonic() < end and self.status(name)[0] == status:
            time.sleep(_GLANCE)

    def _job(self, wanted: Wanted, deadline: float) -> Job:
        while True:
            job = self.launchctl.job(wanted.service.label)
            if job is not None:
                return job
            if time.monotonic() >= deadline:
                raise InstanceError("its launchd job does not stay loaded")
            # It was still draining when it was looked at, and is gone now.
            self.launchctl.bootstrap(wanted.service.label, deadline)

    def converge(self, wanted: Wanted, found: Found, decision: Decision, deadline: float) -> Outcome:
        """Apply a decision and wait; never raises for what goes wrong with this one instance."""
        job, status = found.service.job, found.status
        try:
            self.apply(wanted, decision, deadline)
            job = job if decision.action == "nothing" else None
            verdict, job, status = self.wait_ready(wanted, job, deadline)
        except Exception as error:  # one thread per instance: every other error shall be reported beside it
            return Outcome(wanted.name, decision, job, status, False, f"instance {wanted.name}: {error}")
        if verdict.ready:
            return Outcome(wanted.name, decision, job, status, True, "")
        where = f"instance {wanted.name} at {wanted.address}:{wanted.port}"
        models = ", ".join(model.identifier for model in wanted.models()) or "no model"
        seen = verdict.seen.rstrip(".")
        error = f"{where}: waited for its server with {models}; {seen}. {last_words(wanted.service.plist)}"
        return Outcome(wanted.name, decision, job, status, False, error)


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "replace")
