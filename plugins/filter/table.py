# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets rows in columns, for people to read."""

from __future__ import annotations

DOCUMENTATION = r"""
name: table
short_description: Set rows in columns
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Turns rows into lines of text in which each column is as wide as its widest cell.
options:
  _input:
    description: Rows, the first of them the headings. Each row is a list of cells.
    type: list
    elements: list
    required: true
"""

EXAMPLES = r"""
- name: Show ports
  ansible.builtin.debug:
    msg: "{{ [['Instance', 'Port'], ['chat-a', 1234]] | lmfleet.mac.table }}"
"""

RETURN = r"""
_value:
  description: The lines, joined by line feeds.
  type: str
"""


def table(rows):
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


class FilterModule:
    def filters(self):
        return {"table": table}
