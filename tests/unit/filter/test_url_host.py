# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses as URLs have them."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.filter.url_host import FilterModule


@pytest.mark.parametrize(
    ("address", "host", "from_here"),
    [
        ("10.0.0.5", "10.0.0.5", "10.0.0.5"),
        ("mac-1.local", "mac-1.local", "mac-1.local"),
        ("fd00::1", "[fd00::1]", "[fd00::1]"),
        ("0.0.0.0", "0.0.0.0", "127.0.0.1"),
        ("::", "[::]", "[::1]"),
    ],
)
def test_an_address(address, host, from_here):
    url_host = FilterModule().filters()["url_host"]
    assert (url_host(address), url_host(address, from_here=True)) == (host, from_here)
