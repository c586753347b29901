# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""LM Studio's programs and files: what they are called with, and what they leave on disk."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from ._command import Result, run
from ._files import read_json
from ._ports import accepts
from ._processes import alive


class Install(NamedTuple):
    """A bootstrapped install: `home` is its HOME, the others absolute paths of programs."""

    home: str
    llmster: str
    lms: str


def environment(home: str) -> dict[str, str]:
    """Return the environment in which a program of LM Studio works with `home` and no other instance.

    HOME alone is not enough: with a stale http-server.json `lms` attaches to any daemon it finds on this Mac.
    """
    return {
        **os.environ,
        "HOME": home,
        "LMS_API_SERVER_INFO_PATH": os.path.join(home, ".lmstudio", ".internal", "http-server.json"),
    }


def call(argv: list[str], home: str, timeout: float, **extra: str) -> Result:
    """Run a program of LM Studio for `home` for at most `timeout` seconds; `extra` are more environment variables.

    The exit code of `lms` says nothing: judge by what it prints.
    """
    return run(argv, timeout, env={**environment(home), **extra}, cwd=home)


def own_lms(home: str) -> str | None:
    """Return the lms of the version that the instance at `home` runs; another one may wait for its daemon for ever."""
    declaration = read_json(os.path.join(home, "instance.json"))
    lms = declaration.get("lms") if isinstance(declaration, dict) else None
    return lms if isinstance(lms, str) and lms else None


def daemon_is_there(home: str) -> bool:
    """Tell whether the instance at `home` has a daemon: it runs, and somebody answers at its control port."""
    info = read_json(os.path.join(home, ".lmstudio", ".internal", "http-server.json"))
    pid, port = (info.get("pid"), info.get("port")) if isinstance(info, dict) else (None, None)
    return alive(pid) and isinstance(port, int) and accepts("127.0.0.1", port)


def find_install(home: str) -> Install | None:
    """Return the install that `llmster bootstrap` recorded below `home`, None when it is not complete.

    The path of llmster is versioned, so it is read from where bootstrap writes it and never guessed.
    """
    location = read_json(os.path.join(home, ".lmstudio", ".internal", "llmster-install-location.json"))
    llmster = location.get("path") if isinstance(location, dict) else None
    lms = os.path.join(home, ".lmstudio", "bin", "lms")
    if not isinstance(llmster, str) or not all(os.access(program, os.X_OK) for program in (llmster, lms)):
        return None
    return Install(home, llmster, lms)


def printed_version(version: str) -> str:
    """Return how `llmster --version` prints the version an archive is named by: 0.0.25-1 becomes 0.0.25+1."""
    return version.replace("-", "+", 1)


def prints_version(text: str, version: str) -> bool:
    """Tell whether the output of `llmster --version` names exactly `version`."""
    return printed_version(version) in re.split(r"[\s,;()]+", text.strip().replace("-", "+"))


def tuning_path(home: str, model_path: str) -> str:
    """Return the file with the load defaults of one model file ("publisher/name/file") of the instance at `home`."""
    folder = os.path.join(home, ".lmstudio", ".internal", "user-concrete-model-default-config")
    return os.path.join(folder, *model_path.split("/")) + ".json"
