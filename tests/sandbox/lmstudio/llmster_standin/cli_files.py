# SPDX-License-Identifier: GPL-3.0-or-later
"""lms get and lms import."""

from __future__ import annotations

import os
import re
import shutil
import sys

from llmster_standin import home, options
from llmster_standin.cli_models import say
from llmster_standin.client import Client, CommandError, find_daemon
from llmster_standin.websocket import ClosedError

_KEBAB = {"owner": re.compile(r"[a-z0-9]+(-[a-z0-9]+)*"), "name": re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")}


def get(arguments):
    """lms get: OWNER/NAME is that model of the catalogue; any other word is searched for, and -y takes the first."""
    flags = {"--mlx": None, "--gguf": None, "--yes": None, "--select": None}
    words, values = options.parse(arguments, flags, {"-y": "--yes"}, positional=1)
    name, mark, quantization = (words[0] if words else "").partition("@")
    if "@" in quantization:
        raise CommandError("You cannot have more than 2 @'s in the model name argument.")
    if name.startswith("https://"):
        raise CommandError("Error: failed to search for models: network unreachable.")
    client = Client(find_daemon(), "repository")
    if name.count("/") == 1:
        owner, name = name.lower().split("/")
        for kind, part in (("owner", owner), ("name", name)):
            if not _KEBAB[kind].fullmatch(part):
                raise CommandError(f"Invalid artifact {kind}: {part}")
    else:
        owner, name = _searched(client, name, values)
    if "--yes" not in values or "--select" in values:
        raise CommandError("Continue? needs a terminal (or -y).")
    formats = [name for flag, name in (("--mlx", "safetensors"), ("--gguf", "gguf")) if flag in values]
    plan = {"owner": owner, "name": name, "formats": formats, "quantization": quantization if mark else None}
    sys.stdout.write("\x1b[?25l")
    try:
        for message in client.stream("downloadArtifact", plan):
            if message["type"] == "progress":
                sys.stdout.write("\r{} {} bytes\x1b[0K\n".format(message["file"], message["bytes"]))
                sys.stdout.flush()
            elif message["type"] == "success" and message["files"]:
                say("Download completed.")
    except ClosedError:
        raise CommandError("The connection to LM Studio was lost.") from None
    finally:
        sys.stdout.write("\x1b[?25h")
    return 0


def _searched(client, name, values):
    if name:
        say(f"Searching staff picks with the term {name}")
    found = client.call("fuzzyFindStaffPicks", searchTerm=name)
    if not found:
        raise CommandError("No staff picks found with the specified search criteria.")
    exact = [pick for pick in found if name.lower() in (pick, pick.split("/")[1])]
    if not exact and "--yes" not in values:
        raise CommandError("Choosing a model needs a terminal (or -y).")
    if not exact:
        say("Multiple staff picks found. Automatically selecting the first one due to --yes.")
    return (exact or found)[0].split("/")


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
