# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a process that a file names is there."""

from __future__ import annotations

import os


def alive(pid: object, of_this_user: bool = False) -> bool:
    """Tell whether there is a process with a number that somebody has written down, whatever that is.

    With `of_this_user` one that belongs to somebody else does not count: the number has been given away since.
    """
    if not isinstance(pid, int) or pid <= 1:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not of_this_user
    except (ProcessLookupError, OverflowError):
        return False
    return True
