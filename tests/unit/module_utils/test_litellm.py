# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway as it stands in its folder: what of its config and its environment is shown."""

from __future__ import annotations

import pytest
from ansible_collections.lmfleet.mac.plugins.module_utils import _litellm

CONFIG = """\
# Made by Ansible. The master_key: see the vault.
model_list:
- model_name: chat
  litellm_params:
    api_base: http://mac-1:1234/v1
    api_key: s3cret-a
    extra_headers: {x-trace: "1", Authorization: s3cret-b,
      other: s3cret-c}
    weight: 3
litellm_settings:
  callbacks: [lmfleet_registry.registry]
  vertex_credentials: |
    -----BEGIN PRIVATE KEY-----
    s3cret-d

    s3cret-e
  drop_params: true
  client_passwords:
  - s3cret-f
  - name: s3cret-g
  num_retries: 2
  ALERT_AUTH: >-
      s3cret-h
  anything: |
    -----BEGIN CERTIFICATE-----
    s3cret-i
  cache: false
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  "api key" : 's3cret-j
     s3cret-k'
  alerting: [slack]
  alerts_to:
  - https://hooks.example.net/services/T0000/B0000/s3cret-l
  - redis://me:s3cret-m@redis.example.net:6379/0
  said: Bearer s3cret-n
  also: sk-s3cret-o
environment_variables:
  ANY: s3cret-p
router_settings:
  {"redis_password":"s3cret-q", "x": 1}
"""


def test_secrets_are_hidden_wherever_they_stand_and_the_rest_is_not():
    shown = _litellm.without_secrets(CONFIG)
    assert "s3cret" not in shown
    assert shown.splitlines() == [
        "# Made by Ansible. The master_key: (hidden)",
        "model_list:",
        "- model_name: chat",
        "  litellm_params:",
        "    api_base: http://mac-1:1234/v1",
        "    api_key: (hidden)",
        '    extra_headers: {x-trace: "1", Authorization: (hidden)',
        "    weight: 3",
        "litellm_settings:",
        "  callbacks: [lmfleet_registry.registry]",
        "  vertex_credentials: (hidden)",
        "  drop_params: true",
        "  client_passwords: (hidden)",
        "  num_retries: 2",
        "  ALERT_AUTH: (hidden)",
        "  anything: |",
        "    (hidden)",
        "  cache: false",
        "general_settings:",
        "  master_key: os.environ/LITELLM_MASTER_KEY",
        '  "api key" : (hidden)',
        "  alerting: [slack]",
        "  alerts_to:",
        "  - https://hooks.example.net/(hidden)",
        "  - redis://(hidden)@redis.example.net:6379/0",
        "  said: Bearer (hidden)",
        "  also: sk-(hidden)",
        "environment_variables: (hidden)",
        "router_settings:",
        '  {"redis_password": (hidden)',
    ]


@pytest.mark.parametrize(
    ("variables", "secret"),
    [
        ({"HTTPS_PROXY": "http://me:geheim@proxy:8080"}, {"geheim"}),
        ({"LITELLM_SALT_KEY": "geheim"}, {"geheim"}),
        ({"NO_DOCS": "True", "HTTP_PROXY": "http://proxy:8080", "GSS_AUTH": "1"}, set()),
    ],
)
def test_what_no_message_may_tell(variables, secret):
    assert _litellm.secret_values(variables) == secret


@pytest.mark.parametrize(
    ("reason", "found"),
    [
        ("Item 'chat' is not a dictionary.", "chat (line 3: - model_name: chat)"),
        (
            "no 'vertex_credentials' and no `weight`",
            "vertex_credentials (line 12: vertex_credentials: (hidden)), weight",
        ),
        ("it speaks of 's3cret-d'", "s3cret-d (line 14: (hidden))"),
        ("'nothing' of router_settings", "router_settings (line 40: router_settings:)"),
        ("boom", ""),
    ],
)
def test_what_a_reason_names_is_found_in_the_config_without_its_secrets(reason, found):
    assert _litellm.lines_named(reason, CONFIG).startswith(found)
    assert bool(_litellm.lines_named(reason, CONFIG)) == bool(found)
