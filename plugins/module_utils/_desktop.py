# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is of LM Studio on a Mac that is not ours: a desktop app, its home, daemons. Looked at, never touched."""

from __future__ import annotations

import os

from . import _ports
from ._files import listing, read_bytes, read_json
from ._processes import alive

APPS = ("LM Studio.app", "Bionic.app")
#: Where daemons of LM Studio listen, the first that is free: no more than these can run on a Mac.
CONTROL_PORTS = (41343, 52993, 16141, 39414, 22931)

_POINTER = ".lmstudio-home-pointer"
_INFO = os.path.join(".internal", "http-server.json")


def apps(home: str, folders: tuple[str, ...] = ("/Applications",)) -> list[str]:
    """Return the paths of the desktop apps that are installed, for all users or for this one."""
    places = [*folders, os.path.join(home, "Applications")]
    paths = [os.path.join(place, app) for place in places for app in APPS]
    return [path for path in paths if os.path.isdir(path)]


def lmstudio_home(home: str) -> str | None:
    """Return the folder in which LM Studio keeps what is the user's own, None when there is none."""
    pointed = (read_bytes(os.path.join(home, _POINTER)) or b"").decode("utf-8", "replace").strip()
    places = [pointed, os.path.join(home, ".cache", "lm-studio"), os.path.join(home, ".lmstudio")]
    return next((place for place in places if place and os.path.isdir(place)), None)


def foreign_daemons(instances: str) -> list[int]:
    """Return the control ports on which somebody listens, but not the instances with homes below C(instances).

    A port that an outgoing connection holds for a moment does not count: macOS may give 52993 to one.
    """
    taken = [port for port in CONTROL_PORTS if _ports.accepts("127.0.0.1", port)]
    if not taken:
        return []
    names = listing(instances)
    infos = [read_json(os.path.join(instances, name, ".lmstudio", _INFO)) for name in names]
    ours = {info.get("port") for info in infos if isinstance(info, dict) and alive(info.get("pid"))}
    return [port for port in taken if port not in ours]


def problems(found: dict, daemons: int, root: str) -> list[str]:
    """Return why C(daemons) instances below C(root) cannot run beside what was found. Pure."""
    lines = []
    free = len(CONTROL_PORTS) - len(found["foreign_control_ports"])
    if daemons > free:
        ports = ", ".join(map(str, found["foreign_control_ports"]))
        lines.append(
            f"{daemons} instances are declared, and {free} can run: LM Studio has {len(CONTROL_PORTS)} control ports, "
            f"of which other programs hold {ports} (a desktop LM Studio or Bionic, or a llmster started by hand). "
            "End them, or declare fewer instances."
        )
    home = found["home"]
    if home and (root == home or root.startswith(home + os.sep)):
        lines.append(
            f"{root} lies in {home}, the home of this user's own LM Studio. Set lmfleet_root to another folder."
        )
    return lines
