# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a pylock.toml into a short hash-locked requirements file: the wheels of one platform only.

    lock_to_requirements.py PYLOCK (macos-arm64 | linux-x86_64 | all) [BASE]

Holds the hashes of every wheel that one of the supported Pythons can install there ("all": every wheel there is), and
names neither an index nor a host, so it installs from any mirror. Leaves out what the requirements file BASE has.
Needs the package "packaging".
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
# Up to the newest releases there may be: a system takes the wheels of all the older ones.
PLATFORMS = {
    "macos-arm64": list(mac_platforms((30, 0), "arm64")),
    "linux-x86_64": [f"manylinux_2_{minor}_x86_64" for minor in range(5, 60)]
    + ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64"],
}
MARKERS = {
    "macos-arm64": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "platform_machine": "arm64",
        "os_name": "posix",
    },
    "linux-x86_64": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    },
}


def tags_of(platform: str) -> set[Tag]:
    """Return the wheel tags that the supported Pythons take on `platform`."""
    platforms = PLATFORMS[platform]
    tags: set[Tag] = set()
    for version in PYTHONS:
        tags.update(cpython_tags(version, platforms=platforms))
        tags.update(compatible_tags(version, f"cp{version[0]}{version[1]}", platforms))
    return tags


def condition(package: dict, platform: str) -> str | None:
    """Return what stands behind the version: "" when every Python needs the package, None when none does."""
    if "marker" not in package or platform == "all":
        return ""
    marker = Marker(package["marker"])
    answers = {
        marker.evaluate(
            {
                **MARKERS[platform],
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
                "python_version": f"{major}.{minor}",
                "python_full_version": f"{major}.{minor}.{patch}",
            }
        )
        for major, minor in PYTHONS
        for patch in (0, 99)
    }
    if len(answers) > 1:
        return f" ; {marker}"
    return "" if answers.pop() else None


def hashes(package: dict, tags: set[Tag] | None) -> list[str]:
    """Return the sha256 of the wheels that fit, sorted; raises SystemExit when there is none."""
    found = [
        wheel["hashes"]["sha256"]
        for wheel in package.get("wheels", ())
        if tags is None or tags & parse_wheel_filename(wheel.get("name") or wheel["url"].rsplit("/", 1)[-1])[3]
    ]
    if not found:
        raise SystemExit(f"{package['name']} {package['version']}: no wheel for this platform")
    return sorted(found)


def main(lock: str, platform: str, base: str | None = None) -> None:
    tags = None if platform == "all" else tags_of(platform)
    there = re.findall(r"^([\w.-]+)==", Path(base).read_text(encoding="utf-8"), re.M) if base else []
    for package in tomllib.loads(Path(lock).read_text(encoding="utf-8"))["packages"]:
        if package["name"] in there:
            continue
        if (behind := condition(package, platform)) is not None:
            lines = [
                f"{package['name']}=={package['version']}{behind}",
                *(f"    --hash=sha256:{value}" for value in hashes(package, tags)),
            ]
            print(" \\\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
