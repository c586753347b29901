# SPDX-License-Identifier: GPL-3.0-or-later
"""lms runtime: the engines that came with the archive, and the chosen one."""

from __future__ import annotations

import json
import sys

from llmster_standin import home, options
from llmster_standin.cli_models import say
from llmster_standin.client import CommandError

_ENGINES = (
    ("llama.cpp-mac-arm64-apple-metal-advsimd", "2.27.1", "GGUF"),
    ("mlx-llm-mac-arm64-apple-metal-advsimd", "1.9.0", "MLX"),
)


def _file():
    return home.internal("runtimes.json")


def _state():
    stored = home.read_json(_file())
    return stored if isinstance(stored, dict) else {"removed": [], "selected": [name for name, _v, _f in _ENGINES]}


def _installed():
    removed = _state()["removed"]
    return [engine for engine in _ENGINES if engine[0] not in removed]


def _named(alias):
    bare = alias.split("@")[0]
    found = [engine for engine in _installed() if engine[0] == bare or engine[0].startswith(bare + "-")]
    if len(found) != 1:
        raise CommandError(f'{len(found)} installed runtimes match "{alias}".')
    return found[0]


def ls(arguments):
    """lms runtime ls"""
    options.parse(arguments, {})
    selected = _state()["selected"]
    rows = [("LLM ENGINE", "SELECTED", "MODEL FORMAT")]
    rows += [(f"{name}@{version}", "✓" if name in selected else "", form) for name, version, form in _installed()]
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
    words, _values = options.parse(arguments, {"--latest": None}, positional=1, required=1)
    name, version, format_ = _named(words[0])
    state = _state()
    same_format = [engine[0] for engine in _ENGINES if engine[2] == format_]
    state["selected"] = [other for other in state["selected"] if other not in same_format] + [name]
    home.write_json(_file(), state)
    say(f"Selected {name}@{version}")
    return 0


def remove(arguments):
    """lms runtime remove"""
    words, _values = options.parse(arguments, {"--yes": None}, {"-y": "--yes"}, positional=1, required=1)
    name, version, _format = _named(words[0])
    state = _state()
    state["removed"].append(name)
    home.write_json(_file(), state)
    say(f"Removed {name}@{version}")
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
