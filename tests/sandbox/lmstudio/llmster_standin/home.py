# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the daemon and the CLI keep their files."""

from __future__ import annotations

import json
import os

CONTROL_PORTS = (41343, 52993, 16141, 39414, 22931)
JIT_TTL_MS = 3_600_000


def user_home():
    """Return $HOME; both programs honour it over the password database."""
    return os.environ.get("HOME") or os.path.expanduser("~")


def instance_name():
    """Return the name by which test knobs address this daemon: the last part of $HOME."""
    return os.path.basename(os.path.normpath(user_home()))


def lmstudio_home():
    """Return the LM Studio home and write the pointer file when there is none.

    Order: contents of ~/.lmstudio-home-pointer, an existing ~/.cache/lm-studio, ~/.lmstudio.
    """
    home = user_home()
    pointer = os.path.join(home, ".lmstudio-home-pointer")
    try:
        with open(pointer, encoding="utf-8") as file:
            pointed = file.read().strip()
        if pointed:
            return pointed
    except OSError:
        pass
    old_place = os.path.join(home, ".cache", "lm-studio")
    chosen = old_place if os.path.isdir(old_place) else os.path.join(home, ".lmstudio")
    try:
        with open(pointer, "w", encoding="utf-8") as file:
            file.write(chosen)
    except OSError:
        pass
    return chosen


def internal(*parts):
    """Return a path below <LM Studio home>/.internal."""
    return os.path.join(lmstudio_home(), ".internal", *parts)


def models_folder():
    """Return the models folder: settings.json may move it, the default is <LM Studio home>/models."""
    settings = read_json(os.path.join(lmstudio_home(), "settings.json"))
    folder = settings.get("downloadsFolder") if isinstance(settings, dict) else None
    return folder or os.path.join(lmstudio_home(), "models")


def read_json(path):
    """Return the parsed file, or None when it is missing or not JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_json(path, value):
    """Write a JSON file whole, so that no reader sees half of it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
    os.replace(temporary, path)


def server_config():
    """Return http-server-config.json merged over the defaults (JIT loading is on by default)."""
    defaults = {
        "autoStartOnLaunch": False,
        "port": 1234,
        "networkInterface": "127.0.0.1",
        "cors": False,
        "justInTimeModelLoading": True,
        "logIncomingTokens": False,
        "fileLoggingMode": "succinct",
    }
    stored = read_json(internal("http-server-config.json"))
    if isinstance(stored, dict):
        defaults.update(stored)
    return defaults


def save_server_config(**changes):
    """Store changed keys of http-server-config.json and keep all others."""
    config = server_config()
    config.update(changes)
    write_json(internal("http-server-config.json"), config)
