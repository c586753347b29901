# SPDX-License-Identifier: GPL-3.0-or-later
"""The real LiteLLM with one uvicorn worker, and configurations that it refuses."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.gateway, pytest.mark.slow, pytest.mark.timeout(600)]

# With the default cooldown a backend that failed in one test would be out of the next ones.
VARIABLES = {"litellm_workers": 1, "litellm_server": "uvicorn", "litellm_router_settings": {"cooldown_time": 1}}


@pytest.fixture(scope="module")
def gateway(start):
    return start(**VARIABLES)


def test_one_worker_takes_turns_exactly(gateway, backends):
    gateway.declare([backend.deployment() for backend in backends], workers=1)
    counts = gateway.ask_many(42, at_a_time=4)
    assert sorted(counts.values()) == [10, 10, 11, 11]
    gateway.pause("operator", "mac-b")
    assert "mac-b" not in gateway.ask_many(40, at_a_time=4)
    gateway.pause("operator")
    assert sorted(gateway.ask_many(40, at_a_time=4).values()) == [10, 10, 10, 10]


def test_a_lower_order_goes_first_and_the_next_takes_over(gateway, backends):
    near, far = backends[0].deployment(order=1), backends[1].deployment(order=2)
    gateway.declare([near, far])
    assert gateway.ask_many(10) == {"mac-a": 10}
    backends[0].failing = True
    assert gateway.ask_many(10, at_a_time=1) == {"mac-b": 10}


def test_shuffle_uses_all(gateway, backends):
    first, *others = [backend.deployment(model_group="shuffled") for backend in backends]
    gateway.declare([{**first, "weight": 2}, *others], routing="shuffle")
    assert len(gateway.ask_many(60, model="shuffled")) == 4
    gateway.declare(routing="round_robin")


def test_an_unchanged_gateway_is_left_alone(gateway, installation):
    output = installation.configure(litellm_port=gateway.port, **VARIABLES)
    assert "changed=0" in output


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"litellm_config_template": "broken.yaml.j2"}, "is not a YAML mapping: line 2"),
        ({"litellm_router_settings": {"alowed_fails": 1}}, "no router setting alowed_fails (line "),
        (
            {"litellm_settings": {"callbacks": ["no_such_plugin.x"]}},
            "Could not import x from no_such_plugin (line 7: - no_such_plugin.x)",
        ),
    ],
)
def test_a_refused_config_does_not_replace_the_one_in_use(installation, variables, message):
    (installation.workplace / "broken.yaml.j2").write_text("model_list: []\n router_settings: {}\n")
    before = (installation.root / "current" / "config.yaml").read_text()
    code, output = installation.play(**{**VARIABLES, **variables})
    assert code != 0
    assert message in output
    assert (installation.root / "current" / "config.yaml").read_text() == before
