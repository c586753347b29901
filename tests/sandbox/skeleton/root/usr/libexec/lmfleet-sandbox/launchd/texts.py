# SPDX-License-Identifier: GPL-3.0-or-later
"""What `launchctl print` and `launchctl list` show. Only the lines that scripts read are made to match a Mac's."""

from __future__ import annotations

import signal

from . import keepalive, spawn
from .domains import Domain
from .errors import SYSEXITS
from .jobs import Job

_SIGNALS = {
    signal.SIGHUP: "Hangup",
    signal.SIGINT: "Interrupt",
    signal.SIGKILL: "Killed",
    signal.SIGSEGV: "Segmentation fault",
    signal.SIGTERM: "Terminated",
    signal.SIGABRT: "Abort trap",
    signal.SIGBUS: "Bus error",
}


def last_exit(job: Job) -> str:
    """The line about the previous run: its exit code or, in its place, the signal that ended it."""
    if job.exit_signal is not None:
        name = _SIGNALS.get(job.exit_signal) or signal.strsignal(job.exit_signal)
        return f"last terminating signal = {name}: {job.exit_signal}"
    if job.exit_code is None:
        return "last exit code = (never exited)"
    annotation = SYSEXITS.get(job.exit_code)
    return f"last exit code = {job.exit_code}{f': {annotation}' if annotation else ''}"


def _block(name: str, lines: list[str]) -> list[str]:
    return [f"{name} = {{", *(f"\t{line}" if line else "" for line in lines), "}"]


def _properties(job: Job) -> str:
    names = ["keepalive"] * bool(job.spec.get("KeepAlive")) + ["runatload"] * keepalive.at_load(job.spec)
    return " | ".join(names)


def job_text(job: Job) -> str:
    """`launchctl print DOMAIN/LABEL`."""
    spec = job.spec
    program = spawn.program_of(spec)
    lines = [
        f"active count = {1 if job.pid else 0}",
        f"path = {job.path}",
        f"type = {'LaunchDaemon' if job.domain.uid is None else 'LaunchAgent'}",
        f"state = {job.state}",
        "",
        f"program = {program}",
        *_block("arguments", spec.get("ProgramArguments") or [program]),
        "",
    ]
    named = (
        ("working directory", "WorkingDirectory"),
        ("stdout path", "StandardOutPath"),
        ("stderr path", "StandardErrorPath"),
    )
    lines += [f"{title} = {spec[key]}" for title, key in named if key in spec]
    variables = {"XPC_SERVICE_NAME": job.label, **spec.get("EnvironmentVariables", {})}
    lines += _block("default environment", [f"PATH => {spawn.PATH}"])
    lines += ["", *_block("environment", [f"{name} => {value}" for name, value in variables.items()]), ""]
    lines.append(f"domain = {job.domain.name}")
    if "UserName" in spec and job.domain.uid is None:
        lines.append(f"username = {spec['UserName']}")
    lines += [f"minimum runtime = {job.throttle:g}", f"exit timeout = {job.exit_timeout:g}", f"runs = {job.runs}"]
    if job.pid:
        lines.append(f"pid = {job.pid}")
    lines += [last_exit(job), "", f"properties = {_properties(job)}"]
    return "\n".join(_block(f"{job.domain.name}/{job.label}", lines)) + "\n"


def status_number(job: Job) -> int:
    """The Status column: the exit code, or minus the signal."""
    return -job.exit_signal if job.exit_signal else job.exit_code or 0


def domain_text(domain: Domain) -> str:
    """`launchctl print DOMAIN`."""
    services = [f"{job.pid or 0:8} {status_number(job) or '-':>6} \t{job.label}" for job in _sorted(domain)]
    lines = [
        f"type = {'login' if domain.kind == 'gui' else domain.kind}",
        f"active count = {len(domain.jobs)}",
        f"service count = {len(domain.jobs)}",
        *_block("services", services),
        *disabled_lines(domain),
    ]
    return "\n".join(_block(domain.name, lines)) + "\n"


def disabled_lines(domain: Domain) -> list[str]:
    entries = domain.overrides.items()
    shown = [f'"{label}" => {"disabled" if disabled else "enabled"}' for label, disabled in entries]
    return _block("disabled services", shown)


def disabled_text(domain: Domain) -> str:
    """`launchctl print-disabled DOMAIN`."""
    return "\n".join(f"\t{line}" for line in disabled_lines(domain)) + "\n"


def list_text(domain: Domain) -> str:
    """`launchctl list`."""
    lines = [f"{job.pid or '-'}\t{status_number(job)}\t{job.label}" for job in _sorted(domain)]
    return "\n".join(["PID\tStatus\tLabel", *lines]) + "\n"


def list_job_text(job: Job) -> str:
    """`launchctl list LABEL`."""
    lines = [f'"Label" = "{job.label}";', f'"LastExitStatus" = {status_number(job)};']
    if job.pid:
        lines.append(f'"PID" = {job.pid};')
    lines.append(f'"Program" = "{spawn.program_of(job.spec)}";')
    return "\n".join(["{", *(f"\t{line}" for line in lines), "};"]) + "\n"


def _sorted(domain: Domain) -> list[Job]:
    return [domain.jobs[label] for label in sorted(domain.jobs)]
