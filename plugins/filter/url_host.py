# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses as URLs have them."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.module_utils import _addresses

DOCUMENTATION = r"""
name: url_host
short_description: Write an address as a URL has it
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Puts an IPv6 address into brackets. Other addresses and names stay as they are.
options:
  _input:
    description: An address or a name.
    type: str
    required: true
  from_here:
    description: Whether V(0.0.0.0) and V(::), on which a server listens, become the address that its own Mac reaches.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show where the gateway is
  ansible.builtin.debug:
    msg: "http://{{ '::' | lmfleet.mac.url_host(from_here=true) }}:4000"
"""

RETURN = r"""
_value:
  description: The address.
  type: str
  sample: "[::1]"
"""


def url_host(address, from_here=False):
    return _addresses.url_host(_addresses.from_here(address) if from_here else address)


class FilterModule:
    def filters(self):
        return {"url_host": url_host}
