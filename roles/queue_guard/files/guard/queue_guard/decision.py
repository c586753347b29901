# SPDX-License-Identifier: GPL-3.0-or-later
"""Which deployments to pause and which to take back. Pure: no clock, no files, no network.

A deployment is *bad* in a poll when its queue is above its limit, its first token comes too late, or its instance
cannot be asked or answers nonsense. It is *good* when its queue is at or below the lower mark and nothing else is
wrong. In between it is neither, which keeps things as they are: that gap, and a shortest pause, prevent flapping.

A paused deployment gets no requests, so that its queue soon is short, however slow it still is. So it returns only
when a request that the guard itself has sent it (the *trial*) was answered about as fast as it used to be.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Settings(NamedTuple):
    """Times in seconds. Queues count waiting and running requests, as LM Studio does."""

    max_queue: int | None = None  # None: max_queue_factor x parallel
    max_queue_factor: float = 4.0
    resume_queue_factor: float = 1.0
    max_first_token: float | None = None
    pause_after: int = 2  # bad polls in a row
    resume_after: int = 2  # good polls in a row
    min_pause: float = 10.0
    max_paused_share: float = 0.5
    slow_factor: float = 3.0  # a trial may take this many times what it took before the trouble


class Deployment(NamedTuple):
    """What the registry says of one deployment. `elsewhere`: another owner pauses it."""

    id: str
    group: str
    parallel: int
    elsewhere: bool = False


class Seen(NamedTuple):
    """What one poll found out. `trouble`: why nothing is known, or "".

    `queued` counts requests, `first_token` is the latest time to the first token in seconds (None: none lately),
    `trial` the seconds the last trial took (None: none since the last poll), `usual_trial` what one used to take.
    `trying`: a trial is under way.
    """

    trouble: str = ""
    queued: int | None = None
    first_token: float | None = None
    trial: float | None = None
    usual_trial: float | None = None
    trying: bool = False


class Memory(NamedTuple):
    """What the guard knows of one deployment from earlier polls. `since`: when it was paused, None when it is not."""

    bad: int = 0
    good: int = 0
    since: float | None = None
    reason: str = ""
    crowded: int = 0  # polls since the whole group was bad; 0 when it is not crowded


class Decision(NamedTuple):
    """One thing done, or deliberately not done: `action` is pause, resume or keep."""

    action: str
    id: str
    group: str
    reason: str


def queue_limit(deployment: Deployment, settings: Settings) -> int:
    """Return the longest queue that is still right, in requests."""
    if settings.max_queue is not None:
        return settings.max_queue
    return math.ceil(settings.max_queue_factor * deployment.parallel)


def what_is_wrong(deployment: Deployment, seen: Seen, settings: Settings) -> str:
    """Return why this poll is bad, with the figures, or ""."""
    if seen.trouble or seen.queued is None:
        return seen.trouble or "it does not tell its queue"
    limit = queue_limit(deployment, settings)
    if seen.queued > limit:
        return f"queue {seen.queued} is above {limit} (parallel {deployment.parallel})"
    if settings.max_first_token and seen.first_token is not None and seen.first_token > settings.max_first_token:
        return f"first token after {seen.first_token:.1f} s is later than {settings.max_first_token:g} s"
    return ""


def is_good(deployment: Deployment, seen: Seen, memory: Memory, settings: Settings) -> bool:
    """Tell whether this poll speaks for the deployment; for a paused one a trial must have gone well."""
    if what_is_wrong(deployment, seen, settings):
        return False
    mark = min(math.ceil(settings.resume_queue_factor * deployment.parallel), queue_limit(deployment, settings))
    if seen.queued is None or seen.queued > mark:
        return False
    if memory.since is None:
        return True
    if seen.trial is None:
        return False
    return seen.usual_trial is None or seen.trial <= settings.slow_factor * seen.usual_trial


def decide(
    deployments: list[Deployment],
    seen: dict[str, Seen],
    memories: dict[str, Memory],
    settings: Settings,
    now: float,
) -> tuple[dict[str, Memory], list[Decision]]:
    """Return the new memory of each deployment and what was decided. `now` is any clock that never jumps, in seconds.

    A deployment without an entry in `seen` was not asked in this poll: nothing changes for it.
    """
    after: dict[str, Memory] = {}
    for one in deployments:
        after[one.id] = _remember(one, seen.get(one.id), memories.get(one.id, Memory()), settings)
    decisions: list[Decision] = []
    for group in sorted({one.group for one in deployments}):
        members = [one for one in deployments if one.group == group]
        decisions += _decide_group(group, members, seen, after, settings, now)
    return after, decisions


def _remember(deployment: Deployment, seen: Seen | None, memory: Memory, settings: Settings) -> Memory:
    if seen is None:
        return memory
    if what_is_wrong(deployment, seen, settings):
        return memory._replace(bad=memory.bad + 1, good=0)
    if memory.since is not None and seen.trying:
        return memory._replace(bad=0)
    good = memory.good + 1 if is_good(deployment, seen, memory, settings) else 0
    return memory._replace(bad=0, good=good)


def _decide_group(
    group: str,
    members: list[Deployment],
    seen: dict[str, Seen],
    after: dict[str, Memory],
    settings: Settings,
    now: float,
) -> list[Decision]:
    decisions = []
    # What another owner pauses serves nobody: neither a pause nor its end changes anything there.
    served = [one for one in members if not one.elsewhere]
    for one in members:
        memory = after[one.id]
        if memory.since is None:
            continue
        rested = now - memory.since >= settings.min_pause
        if rested and memory.good >= settings.resume_after:
            after[one.id] = memory._replace(since=None, reason="", bad=0)
            decisions.append(Decision("resume", one.id, group, _why_back(seen.get(one.id), settings)))

    paused = [one for one in served if after[one.id].since is not None]
    most = max(min(math.floor(settings.max_paused_share * len(served)), len(served) - 1), 0)
    # Others have left the group or were paused by somebody else: the least bad ones of ours have to serve again.
    paused.sort(key=lambda one: _weight(one, seen.get(one.id)), reverse=True)
    for one in paused[most:]:
        after[one.id] = after[one.id]._replace(since=None, reason="", bad=0)
        decisions.append(Decision("resume", one.id, group, f"at most {most} of {len(served)} may be paused"))
    paused = paused[:most]
    active = [one for one in served if after[one.id].since is None]
    bad = [one for one in active if after[one.id].bad >= settings.pause_after]
    crowded = max((after[one.id].crowded for one in served), default=0)
    if (active and len(bad) == len(active)) or (crowded and len(bad) > most):
        return decisions + _all_are_slow(group, served, after, settings, now, crowded + 1)
    for one in served:
        after[one.id] = after[one.id]._replace(crowded=0)

    room = most - len(paused)
    bad.sort(key=lambda one: _weight(one, seen.get(one.id)), reverse=True)
    for one in bad[:room]:
        reason = what_is_wrong(one, seen[one.id], settings) if one.id in seen else after[one.id].reason
        after[one.id] = after[one.id]._replace(since=now, reason=reason, good=0)
        decisions.append(Decision("pause", one.id, group, reason))
    for one in bad[room:]:
        if after[one.id].bad == settings.pause_after:
            share = f"{settings.max_paused_share:.0%} of {len(served)} deployments may be paused"
            decisions.append(Decision("keep", one.id, group, f"it is bad, but at most {share}"))
    return decisions


def _all_are_slow(
    group: str, served: list[Deployment], after: dict[str, Memory], settings: Settings, now: float, crowded: int
) -> list[Decision]:
    """Pausing would only move the load: nothing is paused, and what is paused comes back to share it."""
    decisions = []
    if crowded == 1:
        decisions.append(Decision("keep", "", group, f"all of {len(served)} deployments are bad: none is paused"))
    for one in served:
        memory = after[one.id] = after[one.id]._replace(crowded=crowded)
        rested = memory.since is not None and now - memory.since >= settings.min_pause
        # One that cannot be asked would share nothing.
        if rested and memory.bad == 0 and crowded >= settings.resume_after:
            after[one.id] = memory._replace(since=None, reason="")
            decisions.append(Decision("resume", one.id, group, "all others are bad as well"))
    return decisions


def _weight(deployment: Deployment, seen: Seen | None) -> float:
    """Return how bad it is: what cannot be asked comes first, then the longest queue for its size."""
    if seen is None or seen.trouble or seen.queued is None:
        return math.inf
    return seen.queued / max(deployment.parallel, 1)


def _why_back(seen: Seen | None, settings: Settings) -> str:
    if seen is None or seen.trial is None:
        return f"{settings.resume_after} good polls"
    usual = "" if seen.usual_trial is None else f" (usual {seen.usual_trial:.2f} s)"
    return f"queue {seen.queued}, a trial took {seen.trial:.2f} s{usual}"
