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
    them. A worker that has ended meanwhile took its counts along, so what its gateway has answered is not known.
options:
  _input:
    description: The results of the first look, one for each gateway, with C(gateway) and C(workers).
    type: list
    elements: dict
    required: true
  after:
    description: Those of the second look. Where a task was skipped there is nothing to know of a gateway.
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
  description:
    - Requests that C(ended) at a deployment, and requests of clients that C(failed), as far as it is known.
    - Names of the gateways of which it is C(unknown), since they could not be asked twice or have restarted in between.
  type: dict
  sample: {ended: 412, failed: 0, unknown: []}
"""


def requests_since(before, after):
    former, latter = _workers(before), _workers(after)
    ended = failed = 0
    unknown = []
    for gateway in sorted(former | latter):
        then, now = former.get(gateway) or [], latter.get(gateway) or []
        if not then or not _identities(then) <= _identities(now):
            unknown.append(gateway)
            continue
        seen = between(then, now)
        ended += seen.of(seen.deployments)["ended"]
        failed += seen.failed_requests
    return {"ended": ended, "failed": failed, "unknown": unknown}


def _workers(results):
    """Return the workers of each gateway that was asked, by its name; none where it has not answered."""
    asked = [result for result in results if not result.get("skipped")]
    return {
        result["gateway"]: [SimpleNamespace(**worker) for worker in result.get("workers") or []] for result in asked
    }


def _identities(workers):
    return {(worker.pid, worker.started_at) for worker in workers}


class FilterModule:
    def filters(self):
        return {"requests_since": requests_since}
