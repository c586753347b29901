# SPDX-License-Identifier: GPL-3.0-or-later
"""lms runtime: the engines that came with the archive, and the chosen one."""

from __future__ import annotations

import json
import sys

from llmster_standin import home, options
from llmster_standin.cli_models import say
from llmster_standin.client import CommandError

# The first of a format is selected until another is.
_ENGINES = (
    ("llama.cpp-mac-arm64-apple-metal-advsimd", "2.27.1", "GGUF"),
    ("llama.cpp-mac-arm64-apple-metal-advsimd", "2.26.0", "GGUF"),
    ("mlx-llm-mac-arm64-apple-metal-advsimd", "1.9.0", "MLX"),
)


def _file():
    return home.internal("runtimes.json")


def _state():
    stored = home.read_json(_file())
    return stored if isinstance(stored, dict) else {"removed": [], "selected": {}}


def _full(engine):
    return f"{engine[0]}@{engine[1]}"


def _installed():
    removed = _state()["removed"]
    return [engine for engine in _ENGINES if _full(engine) not in removed]


def _selected():
    """Return {format: name@version}."""
    first = {}
    for engine in _installed():
        first.setdefault(engine[2], _full(engine))
    chosen = {form: full for form, full in _state()["selected"].items() if full not in _state()["removed"]}
    return {**first, **chosen}


def _named(words, latest=False):
    """Return the one installed engine of NAME or NAME@VERSION, both exact. Raises CommandError."""
    found = [engine for engine in _installed() if words in (engine[0], _full(engine))]
    if latest and "@" in words:
        raise CommandError("Cannot specify a version with --latest.")
    if not found:
        raise CommandError(f'No installed runtime matches "{words}".')
    if len(found) > 1 and not latest:
        names = ", ".join(map(_full, found))
        raise CommandError(f'Multiple installed runtimes match "{words}": {names}.')
    return found[0]


def ls(arguments):
    """lms runtime ls"""
    options.parse(arguments, {})
    selected = _selected().values()
    rows = [("LLM ENGINE", "SELECTED", "MODEL FORMAT")]
    rows += [(_full(engine), "✓" if _full(engine) in selected else "", engine[2]) for engine in _installed()]
    for engine, mark, format_ in rows:
        sys.stdout.write(f"{engine:<50} {mark:<8} {format_}\n")
    return 0


def get(arguments):
    """lms runtime get: there is no network, so it fails."""
    options.parse(arguments, {"--list": None, "--yes": None}, {"-l": "--list", "-y": "--yes"}, positional=1)
    say("Error: failed to fetch the list of runtimes: network unreachable.")
    return 1


def select(arguments):
    """lms runtime select"""
    words, values = options.parse(arguments, {"--latest": None}, positional=1, required=1)
    engine = _named(words[0], "--latest" in values)
    state = _state()
    state["selected"][engine[2]] = _full(engine)
    home.write_json(_file(), state)
    say(f"Selected {_full(engine)} for {engine[2]}")
    return 0


def remove(arguments):
    """lms runtime remove"""
    words, _values = options.parse(arguments, {"--yes": None}, {"-y": "--yes"}, positional=1, required=1)
    engine = _named(words[0])
    state = _state()
    state["removed"].append(_full(engine))
    home.write_json(_file(), state)
    say(f"Removed {_full(engine)}")
    return 0


def update(arguments):
    """lms runtime update: there is no network, so it fails."""
    options.parse(arguments, {"--yes": None}, {"-y": "--yes"}, positional=1)
    say("Error: failed to check for runtime updates: network unreachable.")
    return 1


def survey(arguments):
    """lms runtime survey"""
    _words, values = options.parse(arguments, {"--json": None})
    engines = [{"name": name, "version": version, "modelFormat": format_} for name, version, format_ in _installed()]
    if "--json" in values:
        sys.stdout.write(json.dumps({"engines": engines}) + "\n")
        return 0
    for engine in engines:
        sys.stdout.write("{name}@{version}: {modelFormat}\n".format(**engine))
    return 0
