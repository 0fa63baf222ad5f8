"""A flood is written at its beginning, then once for each interval with a count, and nothing is lost silently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.seeing.flood import BURST, INTERVAL_S, MOST_EVENTS, Flood


def test_a_flood_is_written_at_its_beginning_and_then_once_an_interval_with_a_count() -> None:
    flood = Flood(burst=2, interval_s=10.0)
    answers = [flood.offer("bad_frame", now=i * 0.01) for i in range(500)]
    assert answers == [0, 0] + [None] * 498
    assert flood.offer("bad_frame", now=10.0) == 498
    assert flood.offer("bad_frame", now=20.1) == 0, "what was told is not told again"


def test_a_flood_of_one_event_holds_no_other_back() -> None:
    flood = Flood(burst=1)
    flood.offer("bad_frame", now=0.0)
    assert flood.offer("bad_frame", now=0.1) is None
    assert flood.offer("loaded", now=0.1) == 0


def test_a_flood_that_ends_is_told_when_its_interval_has_passed() -> None:
    flood = Flood(burst=1, interval_s=10.0)
    for i in range(4):
        flood.offer("bad_frame", now=i * 0.1)
    assert flood.overdue(now=9.9) == []
    assert flood.overdue(now=10.0) == [("bad_frame", 3)]
    assert flood.overdue(now=10.0) == []


def test_the_number_of_kinds_is_bounded() -> None:
    flood = Flood()
    for i in range(MOST_EVENTS * 3):
        flood.offer(f"event-{i}", now=0.0)
        flood.overdue(now=0.0)
    assert len(flood._seen) == MOST_EVENTS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 8.0)), max_size=120))
def test_every_event_is_either_written_or_counted(came: list[tuple[str, float]]) -> None:
    flood, now, written, told = Flood(), 0.0, 0, 0
    for key, step in came:
        now += step
        told += sum(count for _, count in flood.overdue(now=now))
        held_back = flood.offer(key, now=now)
        if held_back is not None:
            written, told = written + 1, told + held_back
    told += sum(count for _, count in flood.overdue(now=now + INTERVAL_S))
    assert written + told == len(came)
    assert written <= 3 * BURST * (now / INTERVAL_S + 1)
