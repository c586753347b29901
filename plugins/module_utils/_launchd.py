# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""launchd jobs: the transport over launchctl, and the pure plan of what one job needs.

The rule that makes a killed run harmless: a plist on disk is only written while its job is not loaded. So a loaded
job always runs what its file says, and a job that is not loaded is simply bootstrapped by the next run.
"""

from __future__ import annotations

import os
import plistlib
import pwd
import re
import stat
import time
from typing import Callable, NamedTuple
from xml.parsers.expat import ExpatError

from ._command import Result, run
from ._files import atomic_write, make_directory, read_bytes, remove_file

SYSTEM_FOLDER = "/Library/LaunchDaemons"
PLIST_MODE = 0o644

# Exit codes of launchctl that have a meaning of their own.
BUSY = (5, 37)
STILL_STOPPING = 36
NO_SUCH_PROCESS = 3
UNKNOWN_SERVICE = 113
DISABLED = 119
BAD_OWNERSHIP = 122
NO_SUCH_DOMAIN = 125
EX_CONFIG = 78

#: Seconds one call of launchctl may take.
CALL_TIMEOUT = 30.0
#: Seconds after which launchd that says busy, with no job of that label to be seen, is believed to refuse.
REFUSAL_SECONDS = 15.0


class LaunchdError(Exception):
    """A job that cannot be brought into its state; the text names the job and the next step."""


class Domain(NamedTuple):
    """Where jobs live: `target` as launchctl spells it, `folder` of the plists, `owner` (uid, gid) they must have."""

    kind: str
    target: str
    folder: str
    owner: tuple[int, int]
    user: str

    def plist_path(self, label: str) -> str:
        return os.path.join(self.folder, f"{label}.plist")

    def service_target(self, label: str) -> str:
        return f"{self.target}/{label}"


class Service(NamedTuple):
    """A job as wanted. `state` is started, stopped or absent; `plist` is None only for absent."""

    label: str
    state: str
    plist: dict | None
    content: bytes = b""

    def runs_by_itself(self) -> bool:
        """Tell whether launchd starts the program without being asked."""
        return bool(self.plist and (self.plist.get("RunAtLoad") or self.plist.get("KeepAlive")))


class Job(NamedTuple):
    """What `launchctl print` says of a loaded job; a field it does not show is None."""

    state: str | None
    pid: int | None
    last_exit: int | None
    path: str | None


class Actual(NamedTuple):
    """A job as found: `plist` on disk in canonical form (None: no file), whether owner and mode are right, the job.

    A job may be `disabled` and run: launchd then does not start it at the next login or boot.
    """

    plist: str | None
    ownership_right: bool
    job: Job | None
    disabled: bool = False


class Outcome(NamedTuple):
    """What was (or in check mode would be) done to one job."""

    label: str
    state: str
    pid: int | None
    actions: list[str]
    before: str | None
    after: str | None


def domain_for(kind: str, user: str) -> Domain:
    """Return the Domain of `kind` (gui, user or system) for the login user `user`.

    Raises LaunchdError when the user is unknown or this process may not change jobs there.
    """
    try:
        record = pwd.getpwnam(user)
    except KeyError:
        raise LaunchdError(f"there is no user {user!r} on this Mac") from None
    if kind == "system":
        if os.geteuid() != 0:
            raise LaunchdError("launchd domain system needs root: run this task with become: true")
        return Domain("system", "system", SYSTEM_FOLDER, (0, 0), user)
    if os.geteuid() not in (0, record.pw_uid):
        raise LaunchdError(f"launchd domain {kind} of {user} can be changed by {user} or root only")
    folder = os.path.join(record.pw_dir, "Library", "LaunchAgents")
    return Domain(kind, f"{kind}/{record.pw_uid}", folder, (record.pw_uid, record.pw_gid), user)


def parse_plist(label: str, text: str) -> dict:
    """Return the parsed XML property list `text` of the job `label`.

    Raises LaunchdError naming the job and, where known, the line: not XML, not a property list, another Label inside,
    nothing to run.
    """
    try:
        plist = plistlib.loads(text.strip().encode("utf-8"), fmt=plistlib.FMT_XML)
    except ExpatError as error:
        # The text was stripped, so lines above the first character are added again.
        skipped = text[: len(text) - len(text.lstrip())].count("\n")
        raise LaunchdError(
            f"plist of {label}: line {error.lineno + skipped}, column {error.offset + 1}: not valid XML ({error})"
        ) from None
    except Exception as error:  # plistlib lets ValueError, TypeError, AttributeError and more escape
        raise LaunchdError(f"plist of {label}: not a property list ({error})") from None
    if not isinstance(plist, dict):
        raise LaunchdError(f"plist of {label}: the top level must be a dict")
    if plist.get("Label") != label:
        line = _line_of(text, "<key>Label</key>")
        raise LaunchdError(f"plist of {label}: line {line}: its Label is {plist.get('Label')!r}, it must be {label!r}")
    if not plist.get("ProgramArguments") and not plist.get("Program"):
        raise LaunchdError(f"plist of {label}: neither ProgramArguments nor Program says what to run")
    return plist


def _line_of(text: str, part: str) -> int:
    position = text.find(part)
    return text.count("\n", 0, position) + 1 if position >= 0 else 1


def canonical(plist: dict) -> str:
    """Return a plist as XML text in one fixed form, for comparison and diff: comments and order do not count."""
    return plistlib.dumps(plist, fmt=plistlib.FMT_XML, sort_keys=True).decode("utf-8")


def canonical_file(path: str) -> str | None:
    """Return the plist file `path` in canonical form, None when absent; a broken one as its plain text."""
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return canonical(plistlib.loads(content))
    except Exception:  # whatever is wrong with it, it differs from what we want
        return content.decode("utf-8", "replace")


def plan(wanted: Service, path: str, actual: Actual) -> list[str]:
    """Return what the job needs, in this order: bootout, remove, write, fix_ownership, enable, bootstrap. Pure.

    `path` is where the plist belongs; a job loaded from another file counts as changed.
    """
    loaded = actual.job is not None
    if wanted.state == "absent" or wanted.plist is None:
        return (["bootout"] if loaded else []) + (["remove"] if actual.plist is not None else [])
    actions = []
    differs = actual.plist != canonical(wanted.plist)
    elsewhere = loaded and actual.job.path not in (None, path)
    if loaded and (differs or elsewhere or wanted.state == "stopped"):
        actions.append("bootout")
        loaded = False
    if differs:
        actions.append("write")
    elif not actual.ownership_right:
        actions.append("fix_ownership")
    if wanted.state == "started":
        actions += [*(["enable"] if actual.disabled else []), *([] if loaded else ["bootstrap"])]
    return actions


_SHOWN = ("state", "pid", "last exit code", "path")


def parse_print(text: str) -> Job:
    """Return the Job in the output of `launchctl print DOMAIN/LABEL`; only four of its fields can be relied on."""
    shown: dict[str, str] = {}
    depth = 0
    for line in text.splitlines():
        key, equals, value = line.strip().partition(" = ")
        if value.endswith("{"):
            depth += 1
        elif line.strip() == "}":
            depth -= 1
        elif equals and depth == 1 and key in _SHOWN:  # nested blocks use the same names for other things
            shown.setdefault(key, value)
    return Job(shown.get("state"), _number(shown.get("pid")), _number(shown.get("last exit code")), shown.get("path"))


def parse_disabled(text: str) -> set[str]:
    """Return the labels that `launchctl print-disabled` shows as disabled, on older releases of macOS as true."""
    return set(re.findall(r'"([^"]+)" => (?:disabled|true)\b', text))


def _number(text: str | None) -> int | None:
    match = re.match(r"-?\d+", text or "")
    return int(match.group()) if match else None


class Launchctl:
    """Transport: the jobs of one domain. Every method raises LaunchdError; deadlines are values of `clock`."""

    def __init__(
        self,
        domain: Domain,
        runner: Callable[..., Result] = run,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.domain = domain
        self.clock = clock
        self.sleep = sleep
        self._runner = runner

    def _call(self, *arguments: str) -> Result:
        return self._runner(["/bin/launchctl", *arguments], timeout=CALL_TIMEOUT)

    def _error(self, label: str, text: str) -> LaunchdError:
        return LaunchdError(f"launchd job {self.domain.service_target(label)}: {text}")

    def job(self, label: str) -> Job | None:
        """Return the loaded job, None when it is not loaded (or its domain does not exist)."""
        result = self._call("print", self.domain.service_target(label))
        if result.rc == 0:
            return parse_print(result.out)
        if result.rc in (UNKNOWN_SERVICE, NO_SUCH_DOMAIN):
            return None
        raise self._error(label, f"launchctl print failed ({result.rc}): {result.said()}")

    def disabled(self) -> set[str]:
        """Return the labels of this domain that were disabled: such a job is not started at the next login or boot."""
        return parse_disabled(self._call("print-disabled", self.domain.target).out)

    def require_domain(self) -> None:
        """Raise LaunchdError when the domain does not exist, naming both cures. Changes nothing."""
        result = self._call("print", self.domain.target)
        if result.rc == NO_SUCH_DOMAIN or (result.rc == UNKNOWN_SERVICE and "domain" in result.said().lower()):
            raise LaunchdError(self._no_session())

    def _no_session(self) -> str:
        return (
            f"launchd domain {self.domain.target} does not exist: {self.domain.user} is not logged in at the screen of "
            f"this Mac. Either log in as {self.domain.user} there (and turn on automatic login, so that it holds after "
            "a reboot), or set lmfleet_launchd_domain: system, which needs nobody logged in."
        )

    def actual(self, service: Service) -> Actual:
        """Return the job as it is now."""
        path = self.domain.plist_path(service.label)
        return Actual(canonical_file(path), self._ownership_right(path), self.job(service.label))

    def _ownership_right(self, path: str) -> bool:
        try:
            info = os.lstat(path)
        except OSError:
            return False
        owner = (info.st_uid, info.st_gid)
        right = owner == self.domain.owner if self.domain.kind == "system" else owner[0] == self.domain.owner[0]
        return right and stat.S_ISREG(info.st_mode) and stat.S_IMODE(info.st_mode) == PLIST_MODE

    def apply(self, service: Service, actions: list[str], deadline: float) -> None:
        """Carry out the actions of `plan` in their order."""
        steps = {
            "bootout": lambda: self.bootout(service.label, deadline),
            "remove": lambda: remove_file(self.domain.plist_path(service.label)),
            "write": lambda: self.write(service),
            "fix_ownership": lambda: self.fix_ownership(service.label),
            "enable": lambda: self.enable(service.label),
            "bootstrap": lambda: self.bootstrap(service.label, deadline),
        }
        for action in actions:
            steps[action]()

    def write(self, service: Service) -> None:
        """Write the plist with the owner and mode launchd insists on."""
        owner = self.domain.owner if os.geteuid() == 0 else None
        make_directory(self.domain.folder, owner=owner)
        atomic_write(self.domain.plist_path(service.label), service.content, PLIST_MODE, owner)

    def fix_ownership(self, label: str) -> None:
        """Give the plist the owner and mode launchd insists on, its content untouched."""
        path = self.domain.plist_path(label)
        try:
            if os.geteuid() == 0:
                os.chown(path, *self.domain.owner)
            os.chmod(path, PLIST_MODE)
        except OSError as error:
            raise self._error(label, f"cannot set owner and mode of {path}: {error.strerror}") from None

    def enable(self, label: str) -> None:
        """Undo a `launchctl disable`; a loaded job goes on running."""
        result = self._call("enable", self.domain.service_target(label))
        if result.rc != 0:
            raise self._error(label, f"launchctl enable failed ({result.rc}): {result.said()}")

    def bootout(self, label: str, deadline: float) -> None:
        """Unload the job and wait until it is gone: bootout returns while the program is still stopping."""
        result = self._call("bootout", self.domain.service_target(label))
        if result.rc in (NO_SUCH_PROCESS, UNKNOWN_SERVICE):
            return
        if result.rc not in (0, STILL_STOPPING, None):
            raise self._error(label, f"launchctl bootout failed ({result.rc}): {result.said()}")
        while True:
            job = self.job(label)
            if job is None:
                return
            if self.clock() >= deadline:
                raise self._error(
                    label, f"did not stop in time; last seen: state {job.state}, process {job.pid}. Run again to retry."
                )
            self.sleep(0.2)

    def bootstrap(self, label: str, deadline: float) -> None:
        """Load the job from its plist; waits while an earlier one of that label is draining."""
        path = self.domain.plist_path(label)
        cured = set()
        alone_since = None
        while True:
            result = self._call("bootstrap", self.domain.target, path)
            if result.rc == 0:
                return
            if result.rc == NO_SUCH_DOMAIN:
                raise self._error(label, self._no_session())
            if result.rc == DISABLED and DISABLED not in cured:
                cured.add(DISABLED)
                self._call("enable", self.domain.service_target(label))
                continue
            if result.rc == BAD_OWNERSHIP and BAD_OWNERSHIP not in cured:
                cured.add(BAD_OWNERSHIP)
                self.fix_ownership(label)
                continue
            if result.rc not in BUSY:
                raise self._error(label, f"launchctl bootstrap failed ({result.rc}): {result.said()}")
            # What drains can still be seen. Without it, launchd means the plist.
            now = self.clock()
            alone_since = None if self.job(label) else (now if alone_since is None else alone_since)
            if now >= deadline or (alone_since is not None and now - alone_since >= REFUSAL_SECONDS):
                raise self._error(
                    label,
                    f"launchctl bootstrap kept answering {result.rc} ({result.said()}). Either an earlier job of that "
                    f"label does not end, or launchd refuses the plist: try `plutil -lint {path}` on the Mac.",
                )
            self.sleep(0.5)

    def wait_running(self, service: Service, deadline: float) -> Job | None:
        """Wait until a job that starts by itself has a process, or has ended well if it may end; return the job.

        A job that vanished meanwhile (it was still draining when looked at) is bootstrapped again.
        """
        while True:
            job = self.job(service.label)
            if job is None:
                self.bootstrap(service.label, deadline)
                continue
            if not service.runs_by_itself() or job.pid is not None:
                return job
            may_end = service.plist.get("KeepAlive") is not True
            if may_end and job.last_exit == 0:
                return job
            if job.last_exit == EX_CONFIG:
                raise self._error(service.label, why_ex_config(service.plist))
            if self.clock() >= deadline:
                seen = f"state {job.state}, last exit code {job.last_exit}"
                raise self._error(service.label, f"has no process; last seen: {seen}. {last_words(service.plist)}")
            self.sleep(0.3)


def why_ex_config(plist: dict) -> str:
    """Return why launchd shows exit code 78 for a job: it could not be started as its plist says."""
    arguments = plist.get("ProgramArguments") or []
    program = plist.get("Program") or (arguments[0] if arguments else "")
    folder = plist.get("WorkingDirectory")
    if program.startswith("/") and not os.access(program, os.X_OK):
        return f"cannot be started (exit code 78): its program {program} does not exist or is not executable"
    if folder and not os.path.isdir(folder):
        return f"cannot be started (exit code 78): its working directory {folder} does not exist"
    return f"ended with exit code 78 (bad configuration): program {program}, working directory {folder}. " + last_words(
        plist
    )


def last_words(plist: dict, lines: int = 5) -> str:
    """Return the last lines a job wrote to its log files, for an error message."""
    for key in ("StandardErrorPath", "StandardOutPath"):
        path = plist.get(key)
        text = tail(path, lines) if path else ""
        if text:
            return f"Last lines of {path}: {text}"
    return "It has logged nothing."


def tail(path: str, lines: int) -> str:
    """Return the last `lines` lines of a text file joined by " | ", "" when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 4096))
            content = stream.read()
    except OSError:
        return ""
    return " | ".join(content.decode("utf-8", "replace").splitlines()[-lines:])


def converge(launchctl: Launchctl, services: list[Service], check_mode: bool, timeout: float) -> list[Outcome]:
    """Bring `services` of one domain into their states and return an Outcome each, in the order given.

    Looks at all of them before it changes the first. `timeout` is seconds per job. In check mode the same plan is
    returned and nothing is changed. Raises LaunchdError.
    """
    plans = []
    disabled = launchctl.disabled() if any(service.state == "started" for service in services) else set()
    for service in services:
        actual = launchctl.actual(service)._replace(disabled=service.label in disabled)
        plans.append((service, actual, plan(service, launchctl.domain.plist_path(service.label), actual)))
    if any("bootstrap" in actions for _service, _actual, actions in plans):
        launchctl.require_domain()
    outcomes = []
    for service, actual, actions in plans:
        job = actual.job
        if not check_mode:
            deadline = launchctl.clock() + timeout
            launchctl.apply(service, actions, deadline)
            job = launchctl.wait_running(service, deadline) if service.state == "started" else None
        after = None if service.state == "absent" else canonical(service.plist)
        outcomes.append(Outcome(service.label, service.state, job.pid if job else None, actions, actual.plist, after))
    return outcomes
