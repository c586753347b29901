# SPDX-License-Identifier: GPL-3.0-or-later
"""Which deployments the guard pauses: the rules one by one, then fleets that behave at random."""

from __future__ import annotations

import random

import pytest

from queue_guard.decision import Decision, Deployment, Memory, Seen, Settings, decide, queue_limit

SETTINGS = Settings(pause_after=2, resume_after=2, min_pause=10)


class Rounds:
    """A group of deployments that is polled every five seconds."""

    def __init__(self, count=4, settings=SETTINGS, **more):
        self.deployments = [Deployment(f"d{number}", "g", 2, **more) for number in range(count)]
        self.settings = settings
        self.memories = {}
        self.now = 0.0

    def poll(self, times=1, **seen):
        """Each deployment is idle unless `seen` says otherwise; return the decisions as (action, id)."""
        made = []
        for _ in range(times):
            looked = {one.id: seen.get(one.id, Seen(queued=0, trial=0.1, usual_trial=0.1)) for one in self.deployments}
            self.memories, decisions = decide(
                self.deployments,
                {name: look for name, look in looked.items() if look is not None},
                self.memories,
                self.settings,
                self.now,
            )
            made += [(decision.action, decision.id) for decision in decisions]
            self.now += 5
        return made

    def paused(self):
        return sorted(name for name, memory in self.memories.items() if memory.since is not None)


LONG = Seen(queued=9)
SLOW = Seen(queued=0, trial=1.0, usual_trial=0.1)


def test_a_queue_is_too_long_above_four_times_parallel_or_what_is_set():
    assert queue_limit(Deployment("d", "g", 3), Settings()) == 12
    assert queue_limit(Deployment("d", "g", 3), Settings(max_queue=5)) == 5
    rounds = Rounds()
    assert rounds.poll(9, d0=Seen(queued=8)) == [] and rounds.poll(2, d0=Seen(queued=9)) == [("pause", "d0")]


def test_one_bad_poll_is_not_enough_and_a_good_one_in_between_starts_again():
    rounds = Rounds()
    assert rounds.poll(d0=LONG) + rounds.poll() + rounds.poll(d0=LONG) == []
    assert rounds.poll(d0=LONG) == [("pause", "d0")]


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Seen(queued=9), "queue 9 is above 8 (parallel 2)"),
        (Seen(trouble="no route"), "no route"),
        (Seen(), "it does not tell its queue"),
        (Seen(queued=1, first_token=7.04), "first token after 7.0 s is later than 5 s"),
    ],
)
def test_the_reason_has_the_figures(seen, reason):
    rounds = Rounds(settings=SETTINGS._replace(max_first_token=5.0))
    rounds.poll(2, d1=seen)
    assert rounds.memories["d1"].reason == reason


def test_it_returns_after_good_polls_and_no_sooner_than_the_shortest_pause():
    rounds = Rounds()
    rounds.poll(2, d0=LONG)
    assert rounds.poll() == [] and rounds.poll() == [("resume", "d0")]
    longer = Rounds(settings=SETTINGS._replace(min_pause=30))
    longer.poll(2, d0=LONG)
    assert longer.poll(5) == [] and longer.poll() == [("resume", "d0")]


@pytest.mark.parametrize(
    "seen",
    [
        Seen(queued=3, trial=0.1, usual_trial=0.1),  # between the marks
        Seen(queued=0),  # no trial
        SLOW,
        Seen(queued=0, trial=0.1, usual_trial=0.1, trouble="HTTP 500"),
    ],
)
def test_it_does_not_return_before_all_is_well(seen):
    rounds = Rounds()
    rounds.poll(2, d0=LONG)
    assert rounds.poll(50, d0=seen) == [] and rounds.paused() == ["d0"]
    assert rounds.poll(2) == [("resume", "d0")]


def test_a_deployment_that_was_never_tried_before_returns_on_any_trial():
    rounds = Rounds()
    rounds.poll(2, d0=LONG)
    assert rounds.poll(2, d0=Seen(queued=0, trial=9.0)) == [("resume", "d0")]


def test_no_more_than_the_share_and_the_worst_first():
    rounds = Rounds(5)
    bad = {"d0": Seen(queued=9), "d1": Seen(queued=30), "d2": Seen(trouble="gone"), "d3": Seen(queued=20)}
    assert rounds.poll(2, **bad) == [("pause", "d2"), ("pause", "d1"), ("keep", "d3"), ("keep", "d0")]
    assert rounds.poll(20, **bad) == []
    most = Rounds(5, SETTINGS._replace(max_paused_share=1.0))
    assert len(most.poll(2, **bad)) == 4 and most.paused() == ["d0", "d1", "d2", "d3"]


def test_the_last_one_is_never_paused():
    alone = Rounds(1, SETTINGS._replace(max_paused_share=1.0))
    assert alone.poll(9, d0=LONG) == [("keep", "")] and alone.paused() == []
    two = Rounds(2, SETTINGS._replace(max_paused_share=1.0))
    assert two.poll(9, d0=LONG) == [("pause", "d0")]
    assert two.poll(9, d0=Seen(trouble="gone"), d1=LONG) == [("keep", "")] and two.paused() == ["d0"]


def test_all_slow_pauses_none_says_so_once_and_takes_back_what_can_help():
    rounds = Rounds(3)
    every = {f"d{number}": LONG for number in range(3)}
    assert rounds.poll(5, **every) == [("keep", "")] and rounds.paused() == []
    rounds = Rounds(3)
    rounds.poll(2, d0=LONG)
    assert rounds.poll(5, **{**every, "d0": SLOW}) == [("keep", ""), ("resume", "d0")]
    assert rounds.poll(20, d0=SLOW, d1=LONG, d2=LONG) == [], "more than may be paused are bad: still crowded"
    assert rounds.poll(d1=LONG) == [("pause", "d1")], "one is bad again, the others are well"
    rounds = Rounds(3)
    rounds.poll(2, d0=Seen(trouble="gone"))
    assert rounds.poll(9, **{**every, "d0": Seen(trouble="gone")}) == [("keep", "")] and rounds.paused() == ["d0"]


def test_what_another_owner_pauses_neither_counts_nor_is_paused():
    rounds = Rounds(3)
    rounds.deployments[2] = rounds.deployments[2]._replace(elsewhere=True)
    assert rounds.poll(3, d0=LONG, d2=LONG) == [("pause", "d0")]
    # Now the operator pauses the only other one as well: the guard's must serve again at once.
    rounds.deployments[1] = rounds.deployments[1]._replace(elsewhere=True)
    assert rounds.poll(d0=LONG) == [("resume", "d0")]


def test_what_was_not_asked_stays_as_it_is():
    rounds = Rounds()
    rounds.poll(d0=LONG)
    assert rounds.poll(20, d0=None) == [] and rounds.poll(d0=LONG) == [("pause", "d0")]
    assert rounds.poll(20, d0=None) == [] and rounds.paused() == ["d0"]


def test_groups_are_apart_and_what_is_gone_is_forgotten():
    deployments = [Deployment(f"{group}{number}", group, 1) for group in "ab" for number in range(2)]
    seen = {one.id: Seen(queued=9 if one.id == "a0" else 0) for one in deployments}
    memories, _ = decide(deployments, seen, {"old": Memory(since=1.0)}, SETTINGS, 0.0)
    memories, decisions = decide(deployments, seen, memories, SETTINGS, 5.0)
    assert decisions == [Decision("pause", "a0", "a", "queue 9 is above 4 (parallel 1)")]
    assert set(memories) == {one.id for one in deployments}


@pytest.mark.parametrize("seed", range(20))
def test_random_slowdowns_one_pause_each_and_never_a_group_without_a_deployment(seed):
    """Ten minutes of a queue model: arrivals go round robin to what is not paused; a slow machine serves a tenth."""
    dice = random.Random(seed)
    count, step, service = 4, 0.5, 4.0  # requests a second one machine serves
    rounds = Rounds(count)
    queues = [0.0] * count
    slow_until = [0.0] * count
    slowdowns, pauses, next_at, turn, arriving = 0, 0, 20.0, 0, 0.0
    for tick in range(int(600 / step)):
        now = tick * step
        if now >= next_at and all(end <= now for end in slow_until):
            slow_until[dice.randrange(count)] = now + dice.uniform(20, 60)
            slowdowns += 1
            next_at = now + dice.uniform(60, 120)
        arriving += 0.65 * count * service * step
        active = [number for number in range(count) if f"d{number}" not in rounds.paused()]
        while arriving >= 1:
            queues[active[turn % len(active)]] += 1
            arriving, turn = arriving - 1, turn + 1
        speeds = [service / 10 if end > now else service for end in slow_until]
        queues = [max(0.0, queue - speed * step) for queue, speed in zip(queues, speeds, strict=True)]
        if tick % 10 == 0:
            seen = {
                f"d{number}": Seen(
                    queued=int(queues[number]), trial=(1 + queues[number]) / speeds[number], usual_trial=1 / service
                )
                for number in range(count)
            }
            pauses += sum(action == "pause" for action, _ in rounds.poll(**seen))
            assert len(rounds.paused()) < count
    assert slowdowns >= 4 and 1 <= pauses <= slowdowns
