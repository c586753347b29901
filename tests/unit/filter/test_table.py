# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.filter.table import table


def test_columns_are_as_wide_as_their_widest_cell():
    assert table([["Mac", "Port"], ["mac-12", 1], ["m", None]]) == "Mac     Port\nmac-12  1\nm"
