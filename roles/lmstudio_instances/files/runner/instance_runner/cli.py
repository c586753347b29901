# SPDX-License-Identifier: GPL-3.0-or-later
"""The program. Exit codes: 0 stopped, or the declaration changed in a way that needs a new start; 1 the daemon died or
went silent (launchd starts it again); 78 the declaration is invalid.
"""

from __future__ import annotations

import fcntl
import hashlib
import sys

from .declaration import parse_declaration
from .errors import DeclarationError
from .files import Places, bytes_of
from .logs import append_only, log
from .processes import Wakeups
from .runner import EXIT_LOST, Runner

EXIT_CONFIG = 78


def main(argv: list[str]) -> int:
    """Run the instance whose home is the one argument; return the exit code."""
    if len(argv) != 2:
        print("usage: instance_runner.pyz <instance home>", file=sys.stderr)
        return EXIT_CONFIG
    places = Places(argv[1])
    for descriptor in (1, 2):
        append_only(descriptor)
    try:
        declaration = parse_declaration(bytes_of(places.declaration))
    except (DeclarationError, OSError) as error:
        print(f"{places.declaration}: {error}", file=sys.stderr, flush=True)
        return EXIT_CONFIG
    with open(places.lock, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log(f"another runner holds {places.lock}")
            return EXIT_LOST
        log(f"instance {declaration.name}, declaration {declaration.generation[:12]}")
        version = hashlib.sha256(bytes_of(argv[0])).hexdigest()
        return Runner(places, declaration, Wakeups(), version).run()
