# SPDX-License-Identifier: GPL-3.0-or-later
"""The subcommands of launchctl, as process 1 answers them.

A handler gets the words of the command line, the uid of the caller and `reply(code, out, err)`, which it calls once:
at once, or when what it waits for has happened.
"""

from __future__ import annotations

import os
import signal

from macos import knobs

from . import texts
from .domains import Domain, Domains
from .errors import (
    IN_PROGRESS,
    INPUT_OUTPUT,
    NO_SUCH_PROCESS,
    NO_SUCH_SERVICE,
    NOT_PERMITTED,
    TEXTS,
    USAGE,
    LaunchdError,
)
from .jobs import Job

# How long bootout waits for the process before it answers 36, in seconds.
BOOTOUT_PATIENCE = 0.1

_FAILURES = {
    "bootstrap": "Bootstrap failed",
    "bootout": "Boot-out failed",
    "kickstart": "Could not kickstart service",
    "kill": "Could not signal service",
    "enable": "Could not enable service",
    "disable": "Could not disable service",
}


class Commands:
    """Answers launchctl."""

    def __init__(self, domains: Domains, timers):
        self._domains = domains
        self._timers = timers
        self._handlers = {
            "bootstrap": self._bootstrap,
            "bootout": self._bootout,
            "print": self._print,
            "print-disabled": self._print_disabled,
            "kickstart": self._kickstart,
            "kill": self._kill,
            "enable": self._enable,
            "disable": self._disable,
            "list": self._list,
            "load": self._legacy,
            "unload": self._legacy,
            "error": self._error,
            "manageruid": self._manager,
            "managerpid": self._manager,
            "managername": self._manager,
        }

    def run(self, words: list[str], uid: int, reply) -> None:
        handler = self._handlers.get(words[0]) if words else None
        if handler is None:
            reply(USAGE, "", f"Unrecognized subcommand: {words[0] if words else ''}\n")
            return
        try:
            handler(words, uid, reply)
        except LaunchdError as error:
            reply(error.code, "", f"{_complaint(words[0], error)}\n")

    # -- targets and rights

    def _split(self, target: str) -> tuple[str, str]:
        """Domain and label of a service target: system/LABEL, gui/UID/LABEL, user/UID/LABEL."""
        parts = target.split("/")
        taken = 1 if parts[0] == "system" else 2
        return "/".join(parts[:taken]), "/".join(parts[taken:])

    def _service(self, target: str) -> Job:
        specifier, label = self._split(target)
        domain = self._domains.find(specifier)
        if not label:
            raise LaunchdError(USAGE, f"Usage: a service target is needed, not {target}")
        if label not in domain.jobs:
            raise LaunchdError(NO_SUCH_SERVICE, f'Could not find service "{label}" in domain for {domain.long_name}')
        return domain.jobs[label]

    @staticmethod
    def _may_change(domain: Domain, uid: int) -> bool:
        return uid == 0 or uid == domain.uid

    def _require_right(self, domain: Domain, uid: int) -> None:
        if not self._may_change(domain, uid):
            raise LaunchdError(NOT_PERMITTED)

    # -- loading and unloading

    def _bootstrap(self, words: list[str], uid: int, reply) -> None:
        if len(words) < 3:
            raise LaunchdError(USAGE, "Usage: launchctl bootstrap <domain-target> [service-path, service-path2, ...]")
        domain = self._domains.find(words[1])
        if not self._may_change(domain, uid) or knobs.read().get("bootstrap_fails"):
            raise LaunchdError(INPUT_OUTPUT)
        failure = None
        for path in words[2:]:
            try:
                if os.path.isdir(path):
                    self._domains.load_folder(domain, path)
                else:
                    self._domains.load_path(domain, path)
            except LaunchdError as error:
                failure = self._on_this_release(error)
        if failure:
            raise failure
        reply(0, "", "")

    @staticmethod
    def _on_this_release(error: LaunchdError) -> LaunchdError:
        """Some releases of macOS answer 37 where others answer 5."""
        code = int(knobs.read().get("bootstrap_busy_code", INPUT_OUTPUT))
        return LaunchdError(code) if error.code == INPUT_OUTPUT else error

    def _bootout(self, words: list[str], uid: int, reply) -> None:
        if len(words) < 2:
            raise LaunchdError(USAGE, "Usage: launchctl bootout <domain-target> [service-path, ...] | <service-target>")
        jobs = [self._job_of_path(words[1], path) for path in words[2:]] or [self._job_to_leave(words[1])]
        for job in jobs:
            self._require_right(job.domain, uid)
        answered = False

        def answer(code: int):
            nonlocal answered
            if not answered:
                answered = True
                reply(code, "", f"Boot-out failed: {code}: {TEXTS[code]}\n" if code else "")

        waiting = set(jobs)

        def gone(job: Job):
            waiting.discard(job)
            if not waiting:
                answer(0)

        for job in jobs:
            if job.leaving:
                answer(IN_PROGRESS)
            else:
                self._domains.unload(job, lambda job=job: gone(job))
        if waiting:
            self._timers.after(BOOTOUT_PATIENCE, lambda: answer(IN_PROGRESS))

    def _job_to_leave(self, target: str) -> Job:
        specifier, label = self._split(target)
        domain = self._domains.find(specifier)
        if not label:
            raise LaunchdError(NOT_PERMITTED, "Not privileged to remove a whole domain of a sandbox Mac.")
        if label not in domain.jobs:
            raise LaunchdError(NO_SUCH_PROCESS)
        return domain.jobs[label]

    def _job_of_path(self, specifier: str, path: str) -> Job:
        """A Mac answers 5, not 3, for a property list that is not loaded."""
        domain = self._domains.find(specifier)
        for job in domain.jobs.values():
            if os.path.realpath(job.path) == os.path.realpath(path):
                return job
        raise LaunchdError(INPUT_OUTPUT)

    # -- starting and signalling

    def _kickstart(self, words: list[str], uid: int, reply) -> None:
        flags = [word for word in words[1:] if word.startswith("-")]
        targets = [word for word in words[1:] if not word.startswith("-")]
        letters = set("".join(flags)) - {"-"}
        if len(targets) != 1 or letters - set("kps"):
            raise LaunchdError(USAGE, "Usage: launchctl kickstart [-k] [-p] [-s] <service-target>")
        job = self._service(targets[0])
        self._require_right(job.domain, uid)
        if job.leaving:
            raise LaunchdError(IN_PROGRESS)

        def started():
            reply(0, f"{job.pid}\n" if "p" in letters else "", "")

        if "k" in letters:
            job.restart(started)
        else:
            job.start()
            started()

    def _kill(self, words: list[str], uid: int, reply) -> None:
        if len(words) != 3:
            raise LaunchdError(USAGE, "Usage: launchctl kill <signame|signum> <service-target>")
        number = _signal_number(words[1])
        job = self._service(words[2])
        self._require_right(job.domain, uid)
        if not job.pid:
            raise LaunchdError(NO_SUCH_PROCESS)
        job.send(number)
        reply(0, "", "")

    # -- overrides

    def _enable(self, words: list[str], uid: int, reply) -> None:
        self._override(words, uid, False)
        reply(0, "", "")

    def _disable(self, words: list[str], uid: int, reply) -> None:
        self._override(words, uid, True)
        reply(0, "", "")

    def _override(self, words: list[str], uid: int, disabled: bool) -> None:
        if len(words) != 2:
            raise LaunchdError(USAGE, f"Usage: launchctl {words[0]} <service-target>")
        specifier, label = self._split(words[1])
        domain = self._domains.find(specifier)
        if not label:
            raise LaunchdError(USAGE, f"Usage: launchctl {words[0]} <service-target>")
        self._require_right(domain, uid)
        domain.overrides.set(label, disabled)

    # -- looking

    def _print(self, words: list[str], _uid: int, reply) -> None:
        if len(words) != 2:
            raise LaunchdError(USAGE, "Usage: launchctl print <domain-target> | <service-target>")
        specifier, label = self._split(words[1])
        if label:
            reply(0, texts.job_text(self._service(words[1])), "")
        else:
            reply(0, texts.domain_text(self._domains.find(specifier)), "")

    def _print_disabled(self, words: list[str], _uid: int, reply) -> None:
        if len(words) != 2:
            raise LaunchdError(USAGE, "Usage: launchctl print-disabled <domain-target>")
        reply(0, texts.disabled_text(self._domains.find(words[1])), "")

    def _list(self, words: list[str], uid: int, reply) -> None:
        domain = self._own_domain(uid)
        if len(words) == 1:
            reply(0, texts.list_text(domain), "")
        elif words[1] in domain.jobs:
            reply(0, texts.list_job_text(domain.jobs[words[1]]), "")
        else:
            place = "port" if domain.uid is not None else "system"
            reply(NO_SUCH_SERVICE, "", f'Could not find service "{words[1]}" in domain for {place}\n')

    def _own_domain(self, uid: int) -> Domain:
        if uid == 0:
            return self._domains.system
        try:
            return self._domains.find(f"gui/{uid}")
        except LaunchdError:
            return self._domains.find(f"user/{uid}")

    def _legacy(self, words: list[str], _uid: int, reply) -> None:
        """load and unload fail and exit with 0, whatever they are given: nothing may rely on them."""
        modern = {"load": "bootstrap", "unload": "bootout"}[words[0]]
        text = f"{words[0].capitalize()} failed: {INPUT_OUTPUT}: {TEXTS[INPUT_OUTPUT]}\n"
        reply(0, "", f"{text}Try running `launchctl {modern}` as root for richer errors.\n")

    def _error(self, words: list[str], _uid: int, reply) -> None:
        if len(words) != 2 or not words[1].isdecimal():
            raise LaunchdError(USAGE, "Usage: launchctl error <code>")
        reply(0, f"{words[1]}: {TEXTS.get(int(words[1]), 'unknown error code')}\n", "")

    def _manager(self, words: list[str], uid: int, reply) -> None:
        domain = self._own_domain(uid)
        names = {"system": "System", "gui": "Aqua", "user": "Background"}
        answers = {"manageruid": uid, "managerpid": 1, "managername": names[domain.kind]}
        reply(0, f"{answers[words[0]]}\n", "")


def _complaint(command: str, error: LaunchdError) -> str:
    """What launchctl says about a failed subcommand."""
    if error.code == USAGE:
        return str(error)
    if command == "print":
        return f"Bad request.\n{error}"
    if error.code == NO_SUCH_SERVICE:
        return str(error)
    return f"{_FAILURES.get(command, command)}: {error.code}: {error}"


def _signal_number(word: str) -> int:
    """A signal by number or by name, with or without SIG. Raises LaunchdError 64."""
    if word.isdecimal():
        return int(word)
    name = word.upper() if word.upper().startswith("SIG") else f"SIG{word.upper()}"
    try:
        return int(signal.Signals[name])
    except KeyError as error:
        raise LaunchdError(USAGE, f"Unknown signal: {word}") from error
