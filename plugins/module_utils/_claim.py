# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The claim of a controller on a fleet, while it rolls out: a small file on each gateway."""

from __future__ import annotations

import time

from ._files import read_json


class ClaimedError(Exception):
    """Another controller has the claim; the text says which, and how to go on."""


def current(path: str, now: float) -> dict:
    """Return the claim that holds at `now` (seconds since the epoch), {} when there is none or it cannot be read."""
    claim = read_json(path)
    if not isinstance(claim, dict) or not all(isinstance(claim.get(key), str) for key in ("controller", "holder")):
        return {}
    times = [claim.get(key) for key in ("since", "until")]
    if not all(isinstance(value, (int, float)) for value in times):
        return {}
    return claim if claim["until"] > now else {}


def refuse_others(claim: dict, controller: str) -> None:
    """Raise ClaimedError when `claim`, as current() returns it, is not that of `controller`."""
    if not claim or claim["controller"] == controller:
        return
    since, until = (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(claim[key])) for key in ("since", "until"))
    raise ClaimedError(
        f"{claim['holder']} has been changing this fleet since {since}, and may until {until}, by the clock of "
        "this host. Run again when that run has ended. When you know that it is dead, go on at once with "
        "-e lmfleet_take_over=true."
    )
