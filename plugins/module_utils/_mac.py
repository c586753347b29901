# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is, and whether it can serve. The judgement is pure; facts come in as a dictionary."""

from __future__ import annotations

#: Seconds that the clock of a host may differ from the controller's, the way of the question included.
CLOCK_TOLERANCE = 120


def version_tuple(text):
    """Return "15.5" as (15, 5); what is not a number ends it, so "" is ()."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def problems(facts, wanted):
    """Return one line for each reason why the host cannot serve, [] when it can.

    C(facts): system, machine, macos_version, memory_mb, free_disk_mb, gui_session,
    listeners (list of dicts with port, address, use, process or None).
    C(wanted): macos_version, memory_mb, free_disk_mb, domains (list of gui, system).
    """
    if facts["system"] != "Darwin":
        return [
            f"it runs {facts['system']} on {facts['machine']}. "
            "Only Macs with Apple silicon can serve: take it out of the groups macs and gateways."
        ]
    if facts["machine"] != "arm64":
        return [
            f"it is a Mac with a processor of type {facts['machine']}. "
            "LM Studio needs Apple silicon (arm64): take it out of the groups."
        ]
    found = []
    if version_tuple(facts["macos_version"]) < version_tuple(wanted["macos_version"]):
        found.append(
            "macOS {} is older than {}. Update it, or lower mac_host_min_macos_version.".format(
                facts["macos_version"] or "(unknown)", wanted["macos_version"]
            )
        )
    if facts["memory_mb"] < wanted["memory_mb"]:
        found.append(f"{facts['memory_mb']} MB of memory are less than {wanted['memory_mb']} (mac_host_min_memory_mb).")
    if facts["free_disk_mb"] < wanted["free_disk_mb"]:
        found.append(
            f"{facts['free_disk_mb']} MB of free disk at {facts['disk_path']} are less than {wanted['free_disk_mb']} "
            "(mac_host_min_free_disk_mb). Make room."
        )
    if "gui" in wanted["domains"] and not facts["gui_session"]:
        found.append(
            f"user {facts['user']['name']} has no session at the screen, which launch agents need. "
            "Log that user in there (automatic login does it at each boot), "
            "or set lmfleet_launchd_domain: system to run as launch daemons."
        )
    for listener in facts["listeners"]:
        process = listener["process"] or "another user's program"
        found.append(
            f"port {listener['port']}, wanted for {listener['use']}, is taken by {process}. "
            "End that program, or declare another port."
        )
    return found


def clock_warning(here, controller):
    """Return a line when the clock of this host is off by more than two minutes, None when not. In seconds; pure."""
    if controller is None or abs(here - controller) <= CLOCK_TOLERANCE:
        return None
    direction = "ahead of" if here > controller else "behind"
    return (
        f"the clock of this host is {abs(here - controller):.0f} s {direction} the controller's. Downloads may fail "
        "with certificates that are not valid yet, or no more. Set it: sudo sntp -sS time.apple.com"
    )


def parents(text):
    """Return {pid: parent pid} from the output of C(ps -axo pid=,ppid=)."""
    pairs = (line.split() for line in text.splitlines())
    return {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit()}


def instance_runners(text, home):
    """Return the pids of the instance runners of a user, from the output of C(ps -axwwo pid=,command=)."""
    lines = (line.strip().partition(" ") for line in text.splitlines())
    return {int(pid) for pid, _space, command in lines if "/instance_runner.pyz " in command and home in command}


def descends_from(pid, ancestor, parent_of):
    """Return whether C(pid) is C(ancestor) or was started by it, however far down."""
    seen = set()
    while pid and pid not in seen:
        if pid == ancestor:
            return True
        seen.add(pid)
        pid = parent_of.get(pid)
    return False
