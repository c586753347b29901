# SPDX-License-Identifier: GPL-3.0-or-later
"""What a container must not run is told by the tag of its image and by the declared version."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.filter.litellm_image_problem import litellm_image_problem

DIGEST = "@sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (":v1.107.0", "litellm_compose_image: LiteLLM 1.107.0 was published by an attacker"),
        (":main-v1.82.7-stable", "litellm_compose_image: LiteLLM 1.82.7 was published by an attacker"),
        (":1.82.8", "litellm_compose_image: LiteLLM 1.82.8 was published by an attacker"),
        (":v1.83.9-nightly", "litellm_compose_image: LiteLLM 1.83.9 has known security holes"),
        (":v1.106.2", ""),
        (":main-stable", ""),
        ("", ""),
    ],
)
def test_a_tag_with_a_version_is_judged(tag, message):
    for name in ("ghcr.io/berriai/litellm", "10.82.7.1:5000/litellm", "litellm"):
        found = litellm_image_problem(name + tag + DIGEST, "1.106.2")
        assert found.startswith(message)
        assert bool(found) == bool(message)


def test_so_is_the_declared_version():
    assert litellm_image_problem("litellm" + DIGEST, "1.107.0").startswith("litellm_version: LiteLLM 1.107.0 was")
    assert "not an exact version" in litellm_image_problem("litellm" + DIGEST, "latest")
