"""Who is turned away comes again soon, not together with the others, and more seldom after a while."""

from __future__ import annotations

import itertools
import random

from edge_agent.knocking import KNOCK_S, LONG_S, LONGEST_S, Knocking

ROSTER_S = 1.0  # a gateway looks at its roster so often
BACK_S = 5.0  # what is promised


def _knocks(knocking: Knocking, *, since: float, until: float) -> list[float]:
    at = [since]
    while at[-1] < until:
        at.append(knocking.turned_away(now=at[-1]))
    return at


def test_who_is_let_in_again_is_back_within_five_seconds_whenever_that_was() -> None:
    at = _knocks(Knocking(random.Random(3)), since=1000.0, until=1000.0 + LONG_S)
    pauses = [b - a for a, b in itertools.pairwise(at)][:-1]
    assert max(pauses) + ROSTER_S < BACK_S
    assert min(pauses) >= KNOCK_S[0]


def test_a_fleet_that_is_turned_away_in_one_moment_does_not_come_back_in_one() -> None:
    chance = random.Random(5)
    first = sorted(Knocking(chance).turned_away(now=0.0) for _ in range(1000))
    most = max(sum(a <= b < a + 0.1 for b in first) for a in first)
    assert most < 120, "a tenth of a second sees a fifteenth of them, more or less"


def test_after_five_minutes_it_knocks_more_and_more_seldom_but_never_gives_up() -> None:
    at = _knocks(Knocking(random.Random(7)), since=0.0, until=LONG_S + 600.0)
    late = [b - a for a, b in itertools.pairwise(at) if a > LONG_S + 60.0]
    assert all(LONGEST_S / 2 <= pause <= LONGEST_S for pause in late)
    assert len(late) > 15


def test_whoever_was_let_in_or_has_other_keys_begins_anew() -> None:
    knocking = Knocking(random.Random(9))
    at = _knocks(knocking, since=0.0, until=LONG_S + 200.0)[-1]
    knocking.begin_anew()
    assert knocking.turned_away(now=at) - at <= KNOCK_S[1]
