# SPDX-License-Identifier: GPL-3.0-or-later
"""API tokens: with the knob api_tokens, a list, every request to the server must carry one of them.

The real LM Studio is told so, and makes tokens, in its desktop app only. Whether the greeting needs one is not known,
so here it does.
"""

from __future__ import annotations

from llmster_standin import knobs

_MISSING = (
    "An LM Studio API token is required to make requests to this server, but none was provided using the Authorization "
    "header using the 'Bearer' scheme (i.e., 'Authorization: Bearer $LM_API_TOKEN'). Learn more at: "
    "https://lmstudio.ai/docs/developer/core/authentication."
)


def _token(headers):
    scheme, _blank, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def allowed(headers):
    """Return whether a request with these headers is answered."""
    tokens = knobs.get("api_tokens")
    return not tokens or _token(headers) in tokens


def refusal(headers):
    """Return the body that such a request gets."""
    message = "Invalid LM Studio API token." if _token(headers) else _MISSING
    return {"error": {"type": "invalid_request", "code": "invalid_api_key", "message": message}}
