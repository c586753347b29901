# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a container with LiteLLM."""

from __future__ import annotations

from ansible_collections.lmfleet.mac.plugins.module_utils._litellm import image_problem, release_problem

DOCUMENTATION = r"""
name: litellm_image_problem
short_description: Tell why a container with LiteLLM must not run
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Finds releases of LiteLLM that were tampered with or have known holes, by the same rule as
    M(lmfleet.mac.litellm_gateway).
  - Goes by the version in the tag of the image, where it has one, and by O(version). A digest says nothing of what is
    in an image.
options:
  _input:
    description: The image, as C(litellm_compose_image).
    type: str
    required: true
  version:
    description: The version that is declared, as C(litellm_version).
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Refuse a bad release
  ansible.builtin.assert:
    that: litellm_compose_image | lmfleet.mac.litellm_image_problem(litellm_version) == ''
"""

RETURN = r"""
_value:
  description: What speaks against it, with the variable to change; empty when nothing does.
  type: str
"""


def litellm_image_problem(image, version):
    found = {"litellm_compose_image": image_problem(image), "litellm_version": release_problem(str(version))}
    return " ".join(f"{variable}: {problem}" for variable, problem in found.items() if problem)


class FilterModule:
    def filters(self):
        return {"litellm_image_problem": litellm_image_problem}
