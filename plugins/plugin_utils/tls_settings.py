# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes no sense in the settings of the server with TLS, and whether its certificate is good. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

try:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
except ImportError:
    x509 = None  # ansible-core brings it along; only the import test of ansible-test goes without

PREFIX = "gateway_tls_"
#: The smallest value that makes sense.
LEAST = {"port": 1, "max_body_mb": 1, "read_timeout": 1, "start_timeout": 1}
#: A certificate that ends sooner is told.
NOTICE = timedelta(days=14)


def problems(values: Mapping[str, Any], now: datetime) -> Iterator[tuple[str, str]]:
    """Yield (variable, message); `values` are the variables of the role with its defaults."""
    for name, least in LEAST.items():
        if values[PREFIX + name] < least:
            yield PREFIX + name, f"must be at least {least}, not {values[PREFIX + name]}."
    missing = [name for name in ("gateway_tls_certificate", "gateway_tls_key") if not values[name]]
    for name in missing:
        yield name, "is not set, and gateway_tls_state is present. Give it as PEM text."
    if not missing:
        yield from _pair_problems(values["gateway_tls_certificate"], values["gateway_tls_key"], now)


def warning(certificate: str, now: datetime) -> str:
    """Return a notice of a certificate that ends soon, "" for any other; `certificate` has no problems."""
    end = x509.load_pem_x509_certificates(certificate.encode())[0].not_valid_after_utc
    return f"the certificate of gateway_tls ends on {end:%Y-%m-%d}" if end - now < NOTICE else ""


def _pair_problems(certificate: str, key: str, now: datetime) -> Iterator[tuple[str, str]]:
    try:
        first = x509.load_pem_x509_certificates(certificate.encode())[0]
    except ValueError:
        yield "gateway_tls_certificate", "is no certificate as PEM text."
        return
    if first.not_valid_after_utc <= now:
        yield "gateway_tls_certificate", f"has expired on {first.not_valid_after_utc:%Y-%m-%d}."
    if first.not_valid_before_utc > now:
        yield "gateway_tls_certificate", f"is not valid before {first.not_valid_before_utc:%Y-%m-%d}."
    try:
        private = load_pem_private_key(key.encode(), None)
    except TypeError:
        yield (
            "gateway_tls_key",
            "has a password, which nobody could give when nginx starts. Take it off, and put the key into a vault.",
        )
        return
    except ValueError:
        yield "gateway_tls_key", "is no private key as PEM text."
        return
    ours, theirs = (
        one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for one in (private.public_key(), first.public_key())
    )
    if ours != theirs:
        yield "gateway_tls_key", "does not belong to the first certificate of gateway_tls_certificate."
