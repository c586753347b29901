# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has become of requests between two looks at the gateways."""

from __future__ import annotations

from types import SimpleNamespace

from ansible_collections.lmfleet.mac.plugins.module_utils._outcomes import between

DOCUMENTATION = r"""
name: requests_since
short_description: Count the requests of gateways between two looks at them
version_added: "0.2.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Takes what M(lmfleet.mac.litellm_health) has returned of some gateways at two times, and counts the requests between
    them. What a worker had counted that has ended meanwhile is not known.
options:
  _input:
    description: The results of the first look, one for each gateway, with C(gateway) and C(workers).
    type: list
    elements: dict
    required: true
  after:
    description: Those of the second look. A gateway that is missing in one of them does not count.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Show how many requests have failed
  ansible.builtin.debug:
    msg: "{{ (before | lmfleet.mac.requests_since(after)).failed }}"
  vars:
    before: [{gateway: mac-1, workers: [{pid: 7, started_at: 1.0, outcomes: {failed_requests: 2, deployments: {}}}]}]
    after: [{gateway: mac-1, workers: [{pid: 7, started_at: 1.0, outcomes: {failed_requests: 3, deployments: {}}}]}]
"""

RETURN = r"""
_value:
  description: Requests that C(ended) at a deployment, and requests of clients that C(failed).
  type: dict
  sample: {ended: 412, failed: 0}
"""


def requests_since(before, after):
    former = {result.get("gateway"): _workers(result) for result in before if "workers" in result}
    ended = failed = 0
    for result in after:
        if "workers" in result and result.get("gateway") in former:
            seen = between(former[result["gateway"]], _workers(result))
            ended += seen.of(seen.deployments)["ended"]
            failed += seen.failed_requests
    return {"ended": ended, "failed": failed}


def _workers(result):
    return [SimpleNamespace(**worker) for worker in result["workers"]]


class FilterModule:
    def filters(self):
        return {"requests_since": requests_since}
