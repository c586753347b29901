# SPDX-License-Identifier: GPL-3.0-or-later
"""The knobs of a sandbox Mac and the machine that follows from them."""

from __future__ import annotations

import json
import os
import plistlib

FOLDER = "/private/var/db/lmfleet-sandbox"
KNOBS = FOLDER + "/knobs.json"
GIB = 1024**3

DEFAULTS = {
    "gui_session": True,
    "memory_gb": 64,
    "performance_cores": 8,
    "efficiency_cores": 4,
    "macos_version": "15.5",
    "machine": "arm64",
    "model": "Mac14,13",
    "chip": "Apple M2 Max",
}


def read() -> dict:
    """All knobs, defaults filled in. A file that is not a JSON object counts as empty."""
    knobs = dict(DEFAULTS)
    try:
        with open(KNOBS, encoding="utf-8") as file:
            knobs.update(json.load(file))
    except (OSError, ValueError, TypeError):
        pass
    return knobs


def darwin_release(macos_version: str) -> str:
    """The kernel's release for a macOS version: 15.5 has 24.5.0, 26.1 has 25.1.0."""
    major, _dot, rest = macos_version.partition(".")
    number = int(major)
    darwin = number - 1 if number >= 26 else number + 9
    return f"{darwin}.{rest.partition('.')[0] or '0'}.0"


def build_version(macos_version: str) -> str:
    """A build name of the shape Apple uses; not a real one."""
    kernel, minor, _zero = darwin_release(macos_version).split(".")
    return f"{kernel}{chr(ord('A') + min(int(minor), 25))}74"


def publish(knobs: dict) -> None:
    """Write what the uname override and readers of SystemVersion.plist see."""
    version = str(knobs["macos_version"])
    release = darwin_release(version)
    kernel = f"Darwin Kernel Version {release}: sandbox; root:xnu/RELEASE_{str(knobs['machine']).upper()}"
    replace(FOLDER + "/uname", f"Darwin\n{release}\n{kernel}\n{knobs['machine']}\n".encode())
    names = {"ProductName": "macOS", "ProductVersion": version, "ProductBuildVersion": build_version(version)}
    replace(FOLDER + "/SystemVersion.plist", plistlib.dumps(names))


def replace(path: str, content: bytes) -> None:
    """Write a world-readable file whole or not at all."""
    making = path + ".making"
    with open(making, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)
    os.replace(making, path)
