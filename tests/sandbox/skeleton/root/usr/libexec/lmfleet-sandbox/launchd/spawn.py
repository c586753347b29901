# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the process of a job. What cannot be set up ends it with 78, as launchd reports it."""

from __future__ import annotations

import grp
import os
import pwd
import resource
import signal
import stat

EX_CONFIG = 78
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
# A Mac gives its jobs 256 open files unless they ask for more.
DEFAULT_OPEN_FILES = 256

_LIMITS = {
    "CPU": resource.RLIMIT_CPU,
    "Core": resource.RLIMIT_CORE,
    "Data": resource.RLIMIT_DATA,
    "FileSize": resource.RLIMIT_FSIZE,
    "MemoryLock": resource.RLIMIT_MEMLOCK,
    "NumberOfFiles": resource.RLIMIT_NOFILE,
    "NumberOfProcesses": resource.RLIMIT_NPROC,
    "ResidentSetSize": resource.RLIMIT_RSS,
    "Stack": resource.RLIMIT_STACK,
}


def environment(spec: dict, domain_uid: int | None) -> dict[str, str]:
    """What launchd gives a job: little. HOME and the like only for a user's agents, so daemons must set their own."""
    result = {"PATH": PATH, "XPC_SERVICE_NAME": spec["Label"], "XPC_FLAGS": "0x0"}
    if domain_uid is not None:
        user = pwd.getpwuid(domain_uid)
        result.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name, SHELL=user.pw_shell)
    result.update(spec.get("EnvironmentVariables", {}))
    return result


def program_of(spec: dict) -> str:
    return spec.get("Program") or spec["ProgramArguments"][0]


def start(spec: dict, domain_uid: int | None) -> int:
    """Start the job and return its process id. `domain_uid`: the user of a gui or user domain, None for system."""
    pid = os.fork()
    if pid == 0:
        try:
            _become(spec, domain_uid)
            _execute(spec, environment(spec, domain_uid))
        except BaseException:
            # Nothing of this process may run on: it is a copy of process 1.
            os._exit(EX_CONFIG)
    return pid


def _become(spec: dict, domain_uid: int | None) -> None:
    os.setsid()
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(_umask(spec.get("Umask", 0o022)))
    _set_limits(spec)
    if "Nice" in spec:
        os.setpriority(os.PRIO_PROCESS, 0, int(spec["Nice"]))
    _set_user(spec, domain_uid)
    os.chdir(spec.get("WorkingDirectory", "/"))
    # Opened as the user of the job: a log it may not write is a job that does not start.
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    _redirect(0, spec.get("StandardInPath"), os.O_RDONLY)
    _redirect(1, spec.get("StandardOutPath"), appending)
    _redirect(2, spec.get("StandardErrorPath"), appending)


def _umask(value: int | str) -> int:
    """launchd reads a string as octal (or what its prefix says) and a number as it is."""
    if isinstance(value, str):
        return int(value, 0 if value.startswith("0x") else 8)
    return value


def _set_limits(spec: dict) -> None:
    wanted = {"NumberOfFiles": DEFAULT_OPEN_FILES, **spec.get("SoftResourceLimits", {})}
    hard = spec.get("HardResourceLimits", {})
    for name, number in _LIMITS.items():
        soft_now, hard_now = resource.getrlimit(number)
        new_hard = min(int(hard[name]), hard_now) if name in hard and hard_now != -1 else int(hard.get(name, hard_now))
        new_soft = int(wanted.get(name, soft_now))
        if new_hard != -1:
            new_soft = min(new_soft, new_hard) if new_soft != -1 else new_hard
        if (new_soft, new_hard) != (soft_now, hard_now):
            resource.setrlimit(number, (new_soft, new_hard))


def _set_user(spec: dict, domain_uid: int | None) -> None:
    if domain_uid is not None:
        user = pwd.getpwuid(domain_uid)
    elif "UserName" in spec:
        user = pwd.getpwnam(spec["UserName"])
    else:
        user = None
    group = grp.getgrnam(spec["GroupName"]).gr_gid if "GroupName" in spec else user.pw_gid if user else None
    if user:
        os.initgroups(user.pw_name, group)
    if group is not None:
        os.setgid(group)
    if user:
        os.setuid(user.pw_uid)


def _redirect(descriptor: int, path: str | None, flags: int) -> None:
    opened = os.open(path or os.devnull, flags if path else os.O_RDWR, 0o644)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    os.set_inheritable(descriptor, True)


def _execute(spec: dict, variables: dict[str, str]) -> None:
    program = program_of(spec)
    arguments = spec.get("ProgramArguments") or [program]
    if "/" in program:
        os.execve(program, arguments, variables)
    for folder in PATH.split(":"):
        candidate = os.path.join(folder, program)
        if os.path.isfile(candidate) and os.stat(candidate).st_mode & stat.S_IXUSR:
            os.execve(candidate, arguments, variables)
    raise FileNotFoundError(program)
