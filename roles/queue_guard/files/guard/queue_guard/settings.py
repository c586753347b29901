# SPDX-License-Identifier: GPL-3.0-or-later
"""The content of settings.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .decision import Settings
from .files import RegistryError, read_json
from .watching import Limits


class Plan(NamedTuple):
    """settings.json; times in seconds, sizes in bytes."""

    registry: str
    interval: float
    ttl: float
    metrics_address: str
    metrics_port: int
    log_bytes: int
    log_files: int
    settings: Settings
    limits: Limits


def read_plan(path: str) -> Plan:
    """Return the settings. Raises ValueError that says what is wrong."""
    try:
        data = read_json(path)
    except RegistryError as error:
        raise ValueError(str(error)) from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: absent, or not a JSON object")
    try:
        plan = Plan(**{**data, "settings": Settings(**data["settings"]), "limits": Limits(**data["limits"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for problem in problems(plan):
        raise ValueError(f"{path}: {problem}")
    return plan


def problems(plan: Plan) -> Iterator[str]:
    """Yield what makes no sense."""
    settings, limits = plan.settings, plan.limits
    # The longest that one look may take: a status, then the patience with a trial.
    round_seconds = plan.interval + 2 * limits.timeout + limits.jitter
    if plan.interval <= 0 or limits.timeout <= 0 or limits.trial_timeout <= 0 or limits.trial_interval <= 0:
        yield "interval, timeout, trial_timeout and trial_interval must be above 0"
    elif plan.ttl < 2 * round_seconds:
        yield f"ttl must be at least {2 * round_seconds:g} s, twice what a look may take, not {plan.ttl:g}"
    if settings.pause_after < 1 or settings.resume_after < 1:
        yield "pause_after and resume_after must be at least 1"
    if not 0 <= settings.max_paused_share <= 1:
        yield f"max_paused_share must be from 0 to 1, not {settings.max_paused_share:g}"
    if settings.max_queue is not None and settings.max_queue < 1:
        yield f"max_queue must be at least 1, not {settings.max_queue}"
    if min(settings.max_queue_factor, settings.resume_queue_factor, settings.min_pause) < 0 or settings.slow_factor < 1:
        yield "max_queue_factor, resume_queue_factor and min_pause must not be below 0, slow_factor not below 1"
    if not 1 <= plan.metrics_port <= 65535:
        yield f"metrics_port must be from 1 to 65535, not {plan.metrics_port}"
