# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses that servers listen on, as a client needs them. Pure."""

from __future__ import annotations

#: Stand for all addresses of a Mac; the loopback one of the same kind reaches a server on them.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def from_here(address: str) -> str:
    """Return the address at which a server that listens on `address` is reached from its own Mac."""
    return EVERYWHERE.get(address, address)


def url_host(address: str) -> str:
    """Return an address as a URL has it: one of IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
