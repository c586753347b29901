# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates that cannot serve are named before anything is changed."""

from __future__ import annotations

import datetime

import pytest
from ansible_collections.lmfleet.mac.plugins.plugin_utils import fleet_schema, tls_settings

from certificates import certificate
from fleet_under_test import REPOSITORY

DEFAULTS = fleet_schema.role_defaults(REPOSITORY / "roles", "gateway_tls")
NOW = datetime.datetime.now(datetime.UTC)
GOOD, OTHER = certificate(), certificate()


def problems(certificate, key, **changes):
    values = {**DEFAULTS, "gateway_tls_certificate": certificate, "gateway_tls_key": key, **changes}
    return list(tls_settings.problems(values, NOW))


def test_a_good_pair_is_no_problem():
    assert problems(*GOOD) == []
    assert problems(GOOD[0] + OTHER[0], GOOD[1]) == [], "a chain follows the server's own"
    assert tls_settings.warning(GOOD[0], NOW) == ""
    assert "ends on" in tls_settings.warning(certificate(ends=3)[0], NOW)


@pytest.mark.parametrize(
    ("pair", "variable", "told"),
    [
        (("", GOOD[1]), "gateway_tls_certificate", "is not set"),
        ((GOOD[0], ""), "gateway_tls_key", "is not set"),
        (("nonsense", GOOD[1]), "gateway_tls_certificate", "no certificate as PEM"),
        ((GOOD[0], "nonsense"), "gateway_tls_key", "no private key as PEM"),
        ((GOOD[0], OTHER[1]), "gateway_tls_key", "does not belong"),
        (certificate(begins=-9, ends=-1), "gateway_tls_certificate", "has expired on"),
        (certificate(begins=2), "gateway_tls_certificate", "is not valid before"),
        (certificate(password=b"x"), "gateway_tls_key", "has a password"),
    ],
)
def test_what_cannot_serve_is_named(pair, variable, told):
    ((named, message),) = problems(*pair)
    assert named == variable
    assert told in message
    assert "BEGIN" not in message


@pytest.mark.parametrize("name", tls_settings.LEAST)
def test_numbers_too_small(name):
    ((named, message),) = problems(*GOOD, **{tls_settings.PREFIX + name: 0})
    assert named == tls_settings.PREFIX + name
    assert "at least 1" in message
