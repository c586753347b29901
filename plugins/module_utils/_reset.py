# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What this collection has made on a Mac, told from what it has not, and taking the former away.

Ours is what bears a mark of ours. A folder: the lock file that every module puts into the folder it works in. A model
file: its line in the index. A launchd job: a label of ours, and a program below the root folder. All else stays.
"""

from __future__ import annotations

import contextlib
import os
import plistlib
import pwd
import shutil
import signal
import time
from typing import NamedTuple

from ._command import run
from ._files import exclusive, listing, read_bytes, remove_file
from ._launchd import SYSTEM_FOLDER, Domain, Launchctl
from ._model_index import INDEX, SERVER, read_index
from ._names import GUARD_LABEL, INSTANCE_LABEL_PREFIX, LOCK_NAME, TLS_LABEL

LABEL_PREFIX = "lmfleet."
GATEWAY_LABEL = "lmfleet.gateway"
MODEL_CACHE_LABEL = "lmfleet.model-cache"
MODELS = "models"
#: A folder that is being deleted. A run that was killed while it did so leaves one behind.
REMOVED = ".removed-"
#: Folders that a module makes before it puts its lock into them.
FOLDERS = ("llmster", "partial", "instances", "gateway", "queue_guard", "gateway_tls")
FILES = ("instance_runner.py", "instance_runner.pyz", SERVER, LOCK_NAME)

_END_SECONDS = 10.0


class ResetError(Exception):
    """A root folder that must not be touched, or what a Mac refuses; the text says what to do."""


class Job(NamedTuple):
    """A launchd job of ours: `plist` is its file, or "" when there is none and the job is only loaded."""

    label: str
    domain: Domain
    plist: str
    loaded: bool


class Found(NamedTuple):
    """What is there: absolute paths, pids with their commands, and what stays in the root folder."""

    jobs: list[Job]
    processes: dict[int, str]
    folders: list[str]
    files: list[str]
    kept: list[str]

    def lines(self) -> list[str]:
        """Return what goes, one line each."""
        return [
            *(f"launchd job {job.domain.service_target(job.label)}" for job in self.jobs),
            *(job.plist for job in self.jobs if job.plist),
            *(f"process {pid}: {command}" for pid, command in self.processes.items()),
            *(folder + "/" for folder in self.folders),
            *self.files,
        ]


class Entry(NamedTuple):
    """An entry of the root folder: `kind` is folder, file or link; `marked` says that our lock is in the folder."""

    name: str
    kind: str
    marked: bool
    empty: bool


def sort_entries(entries: list[Entry], with_models: bool) -> tuple[list[str], list[str], list[str]]:
    """Return which entries of the root go as whole folders, which as files, and which stay. Pure."""
    folders, files, kept = [], [], []
    for entry in entries:
        begun = entry.empty and entry.name in (*FOLDERS, MODELS)
        if entry.kind == "folder" and (entry.marked or begun or entry.name.startswith(REMOVED)):
            folders.append(entry.name)
        elif entry.kind == "file" and (entry.name in FILES or (entry.name == INDEX and with_models)):
            files.append(entry.name)
        else:
            kept.append(entry.name)
    return folders, files, kept


def is_ours(label: str, plist: object, root: str) -> bool:
    """Tell whether a job with a label of ours belongs to this root folder. Pure.

    An unreadable property list is judged by its name. Jobs that are not of one root (power, memory) are ours as well.
    """
    if not label.startswith(LABEL_PREFIX):
        return False
    words = []
    if isinstance(plist, dict):
        arguments = plist.get("ProgramArguments")
        words = [str(word) for word in (arguments if isinstance(arguments, list) else [])]
        words += [str(plist.get("Program") or ""), str(plist.get("WorkingDirectory") or "")]
    labels = (GATEWAY_LABEL, GUARD_LABEL, TLS_LABEL, MODEL_CACHE_LABEL)
    of_a_root = label in labels or label.startswith(INSTANCE_LABEL_PREFIX)
    return not words or not of_a_root or any(word.startswith(root + "/") for word in words)


def processes_below(root: str, table: str, spared: set[int]) -> dict[int, str]:
    """Return pid to command of the processes that run a program below the root folder. Pure.

    `table` is the output of `ps -axww -o pid= -o command=`.
    """
    found = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) < 2 or not words[0].isdigit() or int(words[0]) in spared:
            continue
        if any(word.startswith(root + "/") for word in words[1:3]):  # a program, or its interpreter and a script
            found[int(words[0])] = " ".join(words[1:])
    return found


class Mac:
    """The transport: one Mac, one user, one root folder. Raises ResetError, LaunchdError and OSError."""

    def __init__(self, root: str, user: str, with_models: bool) -> None:
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            raise ResetError(f"there is no user {user!r} on this Mac") from None
        self.home = account.pw_dir
        self.root = os.path.normpath(self.home + root[1:] if root.startswith("~/") else root)
        self.with_models = with_models
        agents = os.path.join(self.home, "Library", "LaunchAgents")
        owner = (account.pw_uid, account.pw_gid)
        self.domains = [
            Domain("gui", f"gui/{account.pw_uid}", agents, owner, user),
            Domain("system", "system", SYSTEM_FOLDER, (0, 0), user),
        ]

    def refuse_what_is_not_ours(self) -> None:
        """Raise ResetError for a root folder that cannot be one of ours."""
        root = self.root
        if not os.path.isabs(root) or len(root.strip("/").split("/")) < 2 or f"{self.home}/".startswith(f"{root}/"):
            raise ResetError(
                f"{root} cannot be the folder of this collection, so nothing is removed. Correct lmfleet_root."
            )
        if os.path.islink(root) or (os.path.lexists(root) and not os.path.isdir(root)):
            raise ResetError(f"{root} is no folder but a link or a file, which is not followed. Correct lmfleet_root.")

    # Looking

    def look(self) -> Found:
        """Return what is there of ours. Changes nothing."""
        jobs = [job for domain in self.domains for job in self._jobs(domain)]
        folders, files, kept = sort_entries(self._entries(), self.with_models)
        below = [os.path.join(self.root, name) for name in files]
        if self.with_models and MODELS in kept:
            below += self._model_files()
        locks = [os.path.join(domain.folder, LOCK_NAME) for domain in self.domains]
        below += [lock for lock in locks if os.path.isfile(lock)]
        # Those of a job end with it.
        processes = {} if any(job.loaded for job in jobs) else self._processes()
        return Found(jobs, processes, [os.path.join(self.root, name) for name in folders], below, kept)

    def _entries(self) -> list[Entry]:
        entries = []
        for name in listing(self.root):
            path = os.path.join(self.root, name)
            folder = os.path.isdir(path) and not os.path.islink(path)
            kind = "folder" if folder else "link" if os.path.islink(path) else "file"
            marked = folder and os.path.isfile(os.path.join(path, LOCK_NAME))
            entries.append(Entry(name, kind, marked, folder and not os.listdir(path)))
        return entries

    def _model_files(self) -> list[str]:
        """Return the files that the index says we have fetched, as far as they are there."""
        folder = os.path.join(self.root, MODELS)
        index = read_index(os.path.join(self.root, INDEX))
        paths = [os.path.join(folder, *name.split("/")) for name in index]
        inside = os.path.realpath(folder) + os.sep
        return [path for path in paths if os.path.isfile(path) and os.path.realpath(path).startswith(inside)]

    def _jobs(self, domain: Domain) -> list[Job]:
        launchctl = Launchctl(domain)
        labels = {}
        for file in listing(domain.folder):
            label = file[: -len(".plist")]
            path = os.path.join(domain.folder, file)
            if file.endswith(".plist") and is_ours(label, _plist(path), self.root):
                labels[label] = path
        homes = os.path.join(self.root, "instances")
        for name in listing(homes):
            if os.path.isdir(os.path.join(homes, name)) and not name.startswith("."):
                labels.setdefault(INSTANCE_LABEL_PREFIX + name, "")
        for folder, label in (("gateway", GATEWAY_LABEL), ("queue_guard", GUARD_LABEL), ("gateway_tls", TLS_LABEL)):
            if os.path.isdir(os.path.join(self.root, folder)):
                labels.setdefault(label, "")
        jobs = [Job(label, domain, labels[label], launchctl.job(label) is not None) for label in sorted(labels)]
        return [job for job in jobs if job.plist or job.loaded]

    def _processes(self) -> dict[int, str]:
        table = run(["/bin/ps", "-axww", "-o", "pid=", "-o", "command="], timeout=30).out
        return processes_below(self.root, table, {os.getpid(), os.getppid()})

    # Removing

    def remove(self, found: Found, timeout: float, lock_timeout: float) -> list[str]:
        """Take away what was found: jobs first, so that nothing writes any more. Return the processes it had to end."""
        for job in found.jobs:
            if job.domain.kind == "system" and os.geteuid() != 0:
                raise ResetError(f"launchd job {job.label} is in domain system: run this task with become: true")
        with contextlib.ExitStack() as locks:
            for folder in found.folders:
                if os.path.isfile(os.path.join(folder, LOCK_NAME)):
                    locks.enter_context(exclusive(folder, "host_reset", lock_timeout))
            for job in found.jobs:
                if job.loaded:
                    Launchctl(job.domain).bootout(job.label, time.monotonic() + timeout)
                if job.plist:
                    remove_file(job.plist)
            ended = self._end(self._processes())
            for folder in found.folders:
                self._remove_folder(folder)
        for file in found.files:
            remove_file(file)
        if self.with_models:
            self._remove_empty_folders(os.path.join(self.root, MODELS))
        with contextlib.suppress(OSError):  # it stays when something is in it that is not ours
            os.rmdir(self.root)
        return ended

    def _end(self, processes: dict[int, str]) -> list[str]:
        left = dict(processes)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + _END_SECONDS
            while left and time.monotonic() < deadline:
                time.sleep(0.2)
                left = {pid: left[pid] for pid in self._processes() if pid in left}
        return [f"process {pid}: {command}" for pid, command in processes.items()]

    def _remove_folder(self, folder: str) -> None:
        gone = folder
        if not os.path.basename(folder).startswith(REMOVED):
            gone = os.path.join(self.root, f"{REMOVED}{os.path.basename(folder)}-{os.getpid()}")
            os.rename(folder, gone)
        shutil.rmtree(gone)  # deletes links, and does not follow them

    def _remove_empty_folders(self, folder: str) -> None:
        for path, _folders, _files in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)


def _plist(path: str) -> object:
    try:
        return plistlib.loads(read_bytes(path) or b"")
    except Exception:  # a broken one says nothing
        return None
