# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Renders templates once per item, so that a module gets the texts of a whole host in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rendered
short_description: Render templates once for each item of a list
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - For each item, renders one or more templates with the item as a variable, and returns a dictionary with the texts
    and with those keys of the item that were asked for.
  - Made for modules that take the texts of a whole host in one call.
options:
  _terms:
    description: Lists of items. Each item is a dictionary.
    type: list
    elements: raw
    required: true
  templates:
    description: Templates to render. Key of the result to file, looked for where a role and a playbook keep templates.
    type: dict
    required: true
  item_name:
    description: Name of the variable that holds the item in the templates.
    type: str
    default: item
  keep:
    description: Keys of the item that the result has as well.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show the greeting for each host
  ansible.builtin.debug:
    msg: >-
      {{ query('lmfleet.mac.rendered', macs, templates={'text': 'greeting.txt.j2'}, item_name='mac', keep=['name']) }}
  vars:
    macs:
      - {name: mac-1, owner: Ada}
      - {name: mac-2, owner: Grace}
"""

RETURN = r"""
_raw:
  description: For each item the kept keys, and per entry of O(templates) the rendered text.
  type: list
  elements: dict
"""

from pathlib import Path

from ansible.plugins.lookup import LookupBase
from ansible.template import trust_as_template


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        item_name, keep = self.get_option("item_name"), self.get_option("keep")
        sources = {
            key: Path(self.find_file_in_search_path(variables, "templates", file))
            for key, file in self.get_option("templates").items()
        }
        # Not the template lookup of Ansible: it copies all variables of the host, deeply, for each text.
        texts = {key: trust_as_template(source.read_text(encoding="utf-8")) for key, source in sources.items()}
        results = []
        for item in (item for term in terms for item in (term if isinstance(term, list) else [term])):
            result = {key: item[key] for key in keep}
            for key, text in texts.items():
                templar = self._templar.copy_with_new_env(
                    available_variables={**variables, item_name: item}, searchpath=[str(sources[key].parent)]
                )
                result[key] = templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True})
            results.append(result)
        return results
