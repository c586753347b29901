# SPDX-License-Identifier: GPL-3.0-or-later
"""lms get and lms import."""

from __future__ import annotations

import os
import shutil
import sys

from llmster_standin import home, options
from llmster_standin.cli_models import say
from llmster_standin.client import CommandError


def get(arguments):
    """lms get: there is no network, so it fails."""
    flags = {"--mlx": None, "--gguf": None, "--yes": None, "--select": None}
    options.parse(arguments, flags, {"-y": "--yes"}, positional=1)
    say("Error: failed to search for models: network unreachable.")
    return 1


def import_(arguments):
    """lms import: without -c, -l or -L it moves the file, and asks on the terminal first."""
    flags = {"--yes": None, "--user-repo": options.text, "--dry-run": None}
    flags.update({"--copy": None, "--symbolic-link": None, "--hard-link": None})
    short = {"-y": "--yes", "-c": "--copy", "-l": "--symbolic-link", "-L": "--hard-link"}
    words, values = options.parse(arguments, flags, short, positional=1, required=1)
    source = os.path.abspath(words[0])
    if not os.path.isfile(source):
        raise CommandError(f"File does not exist: {source}")
    ways = [flag for flag in ("--copy", "--symbolic-link", "--hard-link") if flag in values]
    if len(ways) > 1:
        raise CommandError("Only one of --copy, --hard-link and --symbolic-link can be given.")
    if not ways and not _may_move():
        return 1
    repository = values.get("--user-repo") or "imported-models/uncategorized"
    if len(repository.split("/")) != 2 or not all(repository.split("/")):
        raise CommandError("--user-repo must be PUBLISHER/MODEL.")
    target = os.path.join(home.models_folder(), repository, os.path.basename(source))
    if os.path.lexists(target):
        raise CommandError(f"Target file already exists: {target}")
    way = ways[0][2:] if ways else "move"
    if "--dry-run" in values:
        say(f"Would {way} {source} to {target}")
        return 0
    os.makedirs(os.path.dirname(target), exist_ok=True)
    act = {"copy": shutil.copyfile, "symbolic-link": os.symlink, "hard-link": os.link, "move": shutil.move}
    act[way](source, target)
    say(f"File imported to {target}")
    return 0


def _may_move():
    if not sys.stdin.isatty():
        say("Error: moving the file needs a confirmation, and there is no terminal.")
        return False
    sys.stderr.write("? The file will be moved into the models folder. Continue? (y/N) ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
