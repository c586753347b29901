# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of the sandbox."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import fleet, inside
from . import namespaces as ns
from .errors import SandboxError
from .realm import Realm, all_realms


def main() -> int:
    """Run the command line; returns the exit code: 3 without namespaces, 4 without packages, 1 for other errors."""
    # The sbin folders are missing from a plain user's PATH, also after some kinds of sudo.
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    arguments = _parser().parse_args()
    try:
        realm = Realm(arguments.realm)
        return arguments.run(realm, arguments) or 0
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sandbox", description="Sandbox Macs made of Linux namespaces.")
    default = os.environ.get("LMFLEET_SANDBOX_REALM", "demo")
    parser.add_argument("--realm", default=default, help="which set of Macs (default: %(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        # Accepted after the command as well; SUPPRESS keeps the one given before it.
        added.add_argument("--realm", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        added.set_defaults(run=run)
        return added

    up = command("up", _up, "bring up mac-1 to mac-N; those already up stay")
    up.add_argument("count", type=int, metavar="N")
    up.add_argument("--disk", choices=("new", "keep"), default="new", help="disk of a Mac not up yet (default: new)")
    up.add_argument("--knob", action="append", default=[], metavar="KEY=JSON", help="knob of the Macs that are started")
    down = command("down", _down, "end everything and remove the state")
    down.add_argument("--all", action="store_true", help="of every realm")
    status = command("status", _status, "show the Macs and their jobs")
    status.add_argument("--json", action="store_true")
    run = command("exec", _exec, "run a command in a Mac as admin")
    run.add_argument("--root", action="store_true", help="as root")
    run.add_argument("host")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    reboot = command("reboot", _reboot, "shut a Mac down, start it again, wait for ssh")
    reboot.add_argument("host")
    reboot.add_argument("--disk", choices=("new", "keep"), default="keep")
    logs = command("logs", _logs, "show what process 1 of a Mac has written")
    logs.add_argument("host")
    knob = command("knob", _knob, "set knobs of a Mac, or show them")
    knob.add_argument("host")
    knob.add_argument("settings", nargs="*", metavar="KEY=JSON")
    knob.add_argument("--clear", action="store_true", help="forget all knobs first")
    command("check", _check, "say nothing and exit 0 if sandbox Macs can run here, else exit 3")
    return parser


def _knobs(settings: list[str]) -> dict:
    knobs = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        try:
            if not key or not sign:
                raise ValueError
            knobs[key] = json.loads(value)
        except ValueError as error:
            raise SandboxError(f"a knob is KEY=JSON, not {setting!r}") from error
    return knobs


def _say(text: str) -> None:
    print(f"sandbox: {text}", flush=True)


def _up(realm: Realm, arguments) -> None:
    realm.mac(arguments.count)
    fleet.up(realm, arguments.count, arguments.disk == "keep", _knobs(arguments.knob), _say)


def _down(realm: Realm, arguments) -> None:
    for one in all_realms() if arguments.all else [realm]:
        ended = fleet.down(one)
        if ended or not arguments.all:
            _say(f"realm {one.name} is down, {ended} Macs ended")


def _status(realm: Realm, arguments) -> None:
    state = fleet.status(realm)
    if arguments.json:
        print(json.dumps(state, indent=2))
        return
    print(f"realm {state['realm']}, mirror {state['mirror'] or 'not running'}")
    for mac in state["macs"]:
        jobs = mac.get("jobs", [])
        running = sum(job["state"] == "running" for job in jobs)
        gui = "logged in" if any(name.startswith("gui/") for name in mac.get("domains", [])) else "nobody logged in"
        detail = f"pid {mac['pid']}, {running} of {len(jobs)} jobs running, {gui}" if mac["pid"] else ""
        print(f"{mac['name']:8} {mac['address']:14} {mac['state']:5} {detail}".rstrip())


def _exec(realm: Realm, arguments) -> int:
    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    return inside.run(fleet.pid_of(realm.mac_named(arguments.host)), words, arguments.root)


def _reboot(realm: Realm, arguments) -> None:
    fleet.reboot(realm.mac_named(arguments.host), arguments.disk == "keep")
    _say(f"{arguments.host} is up again")


def _logs(realm: Realm, arguments) -> None:
    mac = realm.mac_named(arguments.host)
    launchd_log = mac.folder / "upper/private/var/log/com.apple.xpc.launchd/launchd.log"
    for path in (mac.console_log, launchd_log):
        if path.exists():
            sys.stdout.write(Path(path).read_text(errors="replace"))


def _knob(realm: Realm, arguments) -> None:
    mac = realm.mac_named(arguments.host)
    print(json.dumps(fleet.set_knobs(mac, _knobs(arguments.settings), arguments.clear), indent=2, sort_keys=True))


def _check(_realm: Realm, _arguments) -> None:
    ns.require()
