# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names this collection puts on a Mac, each in one place."""

from __future__ import annotations

#: Prefix of every launchd label of an instance; what does not start with it is not ours.
INSTANCE_LABEL_PREFIX = "lmfleet.instance."

#: launchd label of the queue guard.
GUARD_LABEL = "lmfleet.queue_guard"

#: launchd label of the server with TLS in front of a gateway.
TLS_LABEL = "lmfleet.gateway_tls"

#: Lock file put into a folder while a module changes what is below it.
LOCK_NAME = ".lmfleet.lock"


def instance_label(name: str) -> str:
    """Return the launchd label of the instance `name`."""
    return INSTANCE_LABEL_PREFIX + name
