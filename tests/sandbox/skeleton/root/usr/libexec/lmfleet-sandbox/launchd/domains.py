# SPDX-License-Identifier: GPL-3.0-or-later
"""The domains: system, gui/<uid> while that user is logged in at the screen, user/<uid> while it has any process."""

from __future__ import annotations

import glob
import os
import pwd

from . import plists
from .errors import BAD_OWNERSHIP, DISABLED, INPUT_OUTPUT, NO_SUCH_DOMAIN, USAGE, LaunchdError
from .jobs import Job
from .overrides import Overrides

SYSTEM_FOLDERS = ("/System/Library/LaunchDaemons", "/Library/LaunchDaemons")
AGENT_FOLDERS = ("/Library/LaunchAgents", "{home}/Library/LaunchAgents")


class Domain:
    """A set of loaded jobs. `uid` is None for the system domain."""

    def __init__(self, kind: str, uid: int | None, overrides: Overrides):
        self.kind = kind
        self.uid = uid
        self.overrides = overrides
        self.jobs: dict[str, Job] = {}
        self.closing = False

    @property
    def name(self) -> str:
        return self.kind if self.uid is None else f"{self.kind}/{self.uid}"

    @property
    def long_name(self) -> str:
        """How launchd speaks of it in its messages."""
        return "system" if self.uid is None else f"user {self.kind}: {self.uid}".replace("user user:", "uid:")


class Domains:
    """All domains of this Mac, and loading and unloading of jobs in them."""

    def __init__(self, timers, watch, log):
        self._timers = timers
        self._watch = watch
        self._log = log
        self._overrides: dict[int | None, Overrides] = {}
        self._domains: dict[str, Domain] = {}
        self.system = self._make("system", None)

    def all(self) -> list[Domain]:
        return list(self._domains.values())

    def find(self, specifier: str) -> Domain:
        """The domain called `specifier`. Raises LaunchdError 125 when it does not exist now, 64 for nonsense."""
        kind, _slash, number = specifier.partition("/")
        if kind == "system" and not number:
            return self.system
        if kind not in ("gui", "user") or not number.isdecimal():
            raise LaunchdError(USAGE, f"Unrecognized target specifier: {specifier}")
        if kind == "user" and specifier not in self._domains and _has_a_process(int(number)):
            self._make("user", int(number))
        domain = self._domains.get(specifier)
        if domain is None or domain.closing:
            raise LaunchdError(NO_SUCH_DOMAIN)
        return domain

    def load_path(self, domain: Domain, path: str) -> Job:
        """Load the job in a property list. Raises LaunchdError as `launchctl bootstrap` answers."""
        owner = 0 if domain.uid is None else domain.uid
        spec = plists.read(path, owner)
        label = spec["Label"]
        if label in domain.jobs:
            raise LaunchdError(INPUT_OUTPUT)
        if domain.overrides.is_disabled(label, bool(spec.get("Disabled"))):
            raise LaunchdError(DISABLED)
        for key in plists.unknown_keys(spec):
            self._log(f"{domain.name}/{label}: key {key} is not known to this stand-in and has no effect")
        job = Job(spec, path, domain, self._timers, self._watch, self._log)
        domain.jobs[label] = job
        job.loaded()
        return job

    def unload(self, job: Job, gone) -> None:
        """Stop a job; when its process has ended it is forgotten and `gone()` called."""

        def forget():
            if job.domain.jobs.get(job.label) is job:
                del job.domain.jobs[job.label]
            gone()

        job.stop_for_good(forget)

    def load_folder(self, domain: Domain, folder: str) -> None:
        """Load every property list of a folder; what launchd would refuse is logged and skipped."""
        for path in sorted(glob.glob(os.path.join(folder, "*.plist"))):
            try:
                self.load_path(domain, path)
            except LaunchdError as error:
                ending = ": check its owner and mode" if error.code == BAD_OWNERSHIP else ""
                self._log(f"{path}: not loaded: {error.code}: {error}{ending}")

    def boot(self) -> None:
        for folder in SYSTEM_FOLDERS:
            self.load_folder(self.system, folder)

    def log_in(self, uid: int) -> None:
        """The user logs in at the screen: gui/<uid> comes to be and its agents start."""
        if f"gui/{uid}" in self._domains:
            return
        domain = self._make("gui", uid)
        for folder in AGENT_FOLDERS:
            self.load_folder(domain, folder.format(home=pwd.getpwuid(uid).pw_dir))

    def log_out(self, uid: int, done) -> None:
        """The user logs out: the agents end, gui/<uid> ceases to be, then `done()` is called."""
        domain = self._domains.get(f"gui/{uid}")
        if domain is None:
            done()
            return
        domain.closing = True

        def close():
            self._domains.pop(domain.name, None)
            done()

        self._unload_all([domain], close)

    def shut_down(self, done) -> None:
        """Stop every job of every domain, then call `done()`."""
        for domain in self.all():
            domain.closing = True
        self._unload_all(self.all(), done)

    def _unload_all(self, domains: list[Domain], done) -> None:
        jobs = [job for domain in domains for job in list(domain.jobs.values())]
        remaining = len(jobs)
        if not jobs:
            done()
            return

        def one_less():
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                done()

        for job in jobs:
            self.unload(job, one_less)

    def _make(self, kind: str, uid: int | None) -> Domain:
        overrides = self._overrides.setdefault(uid, Overrides(uid))
        domain = Domain(kind, uid, overrides)
        self._domains[domain.name] = domain
        return domain


def _has_a_process(uid: int) -> bool:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if os.stat(f"/proc/{entry}").st_uid == uid:
                    return True
            except OSError:
                continue
    return False
