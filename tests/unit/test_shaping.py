"""The pure clock of the emulated link: order, rate, delay, backlog, and what a change in mid-queue does to them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shaping import (
    CHUNK_MAX_NBYTES,
    CHUNK_MIN_NBYTES,
    HELD_MAX_NBYTES,
    QUEUE_MIN_NBYTES,
    Shaper,
    bytes_per_s,
)

EPSILON_S = 1e-6  # floats near 10**4 s resolve 1e-12 s; a run of re-timings may add some of them up

gaps_s = st.floats(0, 0.5)
sizes_nbytes = st.integers(0, 20_000)
rates_bytes_per_s = st.floats(1e3, 1e8)
delays_s = st.floats(0, 1)
pushes = st.lists(st.tuples(gaps_s, sizes_nbytes), min_size=1, max_size=40)


def drain(shaper: Shaper) -> list[float]:
    """Pop everything at the very moments the shaper asks for; return one arrival time per chunk."""
    arrivals: list[float] = []
    while (due_s := shaper.next_release()) is not None:
        count = shaper.pop(now=due_s)
        assert count >= 1, "a promised release did not happen"
        arrivals += [due_s] * count
    return arrivals


def test_a_chunk_takes_its_serialisation_time_and_then_the_delay() -> None:
    shaper = Shaper(1000, 0.5)
    assert shaper.push(100, now=10) == pytest.approx(10.6)
    assert shaper.push(100, now=10) == pytest.approx(10.7), "the second waits for the first"
    assert shaper.push(100, now=20) == pytest.approx(20.6), "an idle link has no memory"


def test_nothing_is_due_before_its_time_and_all_of_it_afterwards() -> None:
    shaper = Shaper(1000, 0.5)
    shaper.push(100, now=0)
    shaper.push(100, now=0)
    assert shaper.pop(now=0.59) == 0
    assert shaper.pop(now=0.65) == 1
    assert shaper.pop(now=9) == 1
    assert shaper.next_release() is None
    assert shaper.held_nbytes == 0


def test_the_backlog_is_what_still_waits_for_the_serialiser() -> None:
    shaper = Shaper(1000, 5)
    shaper.push(100, now=0)
    shaper.push(300, now=0)
    assert [shaper.backlog(now) for now in (0, 0.1, 0.25, 0.4, 1)] == [400, 300, 150, 0, 0]
    assert shaper.held_nbytes == 400, "what is on the wire is held, although it no longer waits"


def test_an_end_of_stream_keeps_its_place_behind_the_data() -> None:
    shaper = Shaper(1000, 0.5)
    data_s, end_s = shaper.push(100, now=0), shaper.push(0, now=0)
    assert data_s == end_s
    assert shaper.pop(now=end_s) == 2


def test_a_slower_rate_keeps_what_is_done_and_stretches_the_rest() -> None:
    shaper = Shaper(1000)
    shaper.push(100, now=0)  # done at 0.1
    shaper.push(200, now=0)  # half done at 0.2: 100 bytes are left, 10 s at the new rate
    shaper.push(10, now=0)
    shaper.set_rate(10, now=0.2)
    assert shaper.backlog(0.2) == 110, "no byte appears or vanishes when the rate changes"
    assert drain(shaper) == pytest.approx([0.1, 10.2, 11.2])


def test_a_faster_rate_takes_effect_on_what_is_already_queued() -> None:
    shaper = Shaper(10)
    shaper.push(100, now=0)
    shaper.set_rate(1000, now=5)
    assert drain(shaper) == pytest.approx([5.05])
    assert shaper.push(100, now=5) == pytest.approx(5.15), "and on what comes after it"


def test_a_lifted_limit_frees_the_queue_at_once_but_not_the_wire() -> None:
    shaper = Shaper(10, 0.5)
    shaper.push(100, now=0)
    shaper.set_rate(None, now=2)
    assert shaper.backlog(2) == 0
    assert drain(shaper) == pytest.approx([2.5])


def test_a_limit_put_on_a_free_link_concerns_later_bytes_only() -> None:
    shaper = Shaper(None, 0.5)
    shaper.push(10**6, now=0)
    shaper.set_rate(1000, now=0.1)
    assert shaper.push(100, now=0.1) == pytest.approx(0.7)
    assert drain(shaper) == pytest.approx([0.5, 0.7])


def test_a_new_delay_moves_what_is_on_the_wire_and_keeps_its_order() -> None:
    shaper = Shaper(1000, 1)
    shaper.push(100, now=0)
    shaper.push(100, now=0)
    shaper.set_delay(0.2)
    assert drain(shaper) == pytest.approx([0.3, 0.4])


def test_a_paused_link_promises_nothing_and_goes_on_where_it_was() -> None:
    shaper = Shaper(1000, 0.5)
    shaper.push(100, now=0)
    shaper.pause(now=0.05)
    shaper.pause(now=3)  # twice is once
    assert shaper.next_release() is None
    assert shaper.pop(now=100) == 0
    assert shaper.room_at(50) == math.inf
    assert shaper.backlog(50) == 50
    assert shaper.push(100, now=50) == math.inf
    shaper.resume(now=100.05)
    assert drain(shaper) == pytest.approx([100.6, 100.7]), "healed, the link still serialises: no burst"
    shaper.resume(now=200)  # a link that runs goes on running
    assert shaper.push(100, now=200) == pytest.approx(200.6)


def test_room_opens_when_the_backlog_has_shrunk_to_the_bound() -> None:
    shaper = Shaper(1000)
    assert shaper.queue_nbytes == QUEUE_MIN_NBYTES
    assert shaper.room_at(7) == 7
    shaper.push(QUEUE_MIN_NBYTES + 500, now=7)
    assert shaper.room_at(7) == pytest.approx(7.5)
    assert shaper.backlog(shaper.room_at(7)) == QUEUE_MIN_NBYTES


def test_an_unlimited_link_with_a_delay_holds_a_bounded_amount() -> None:
    shaper = Shaper(None, 1)
    shaper.push(HELD_MAX_NBYTES - 1, now=0)
    assert shaper.room_at(0) == 0
    shaper.push(1, now=0)
    assert shaper.room_at(0) == 1, "room comes with the next arrival"
    assert shaper.room_at(2) == 2, "an arrival that is overdue opens room at once"


@pytest.mark.parametrize(
    ("mbit_per_s", "queue_nbytes", "chunk_nbytes"),
    [(1, QUEUE_MIN_NBYTES, CHUNK_MIN_NBYTES), (100, 1_250_000, 12_500), (10_000, 125_000_000, CHUNK_MAX_NBYTES)],
)
def test_queue_and_chunk_follow_the_rate_within_bounds(mbit_per_s: float, queue_nbytes: int, chunk_nbytes: int) -> None:
    shaper = Shaper(bytes_per_s(mbit_per_s))
    assert shaper.queue_nbytes == queue_nbytes
    assert shaper.chunk_nbytes == chunk_nbytes


def test_an_unlimited_link_moves_the_largest_chunks() -> None:
    assert bytes_per_s(None) is None
    assert Shaper().rate_bytes_per_s is None
    assert Shaper().chunk_nbytes == CHUNK_MAX_NBYTES
    assert Shaper().queue_nbytes == HELD_MAX_NBYTES


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_a_rate_that_is_none_is_refused_with_the_remedy(rate: float) -> None:
    with pytest.raises(ValueError, match="use None for unlimited"):
        Shaper(rate)
    shaper = Shaper(1000)
    with pytest.raises(ValueError, match="positive and finite"):
        shaper.set_rate(rate, now=0)
    assert shaper.rate_bytes_per_s == 1000


@pytest.mark.parametrize("delay_s", [-1e-9, math.inf, math.nan])
def test_a_delay_that_cannot_be_is_refused(delay_s: float) -> None:
    with pytest.raises(ValueError, match="not negative"):
        Shaper(None, delay_s)
    shaper = Shaper(None, 0.25)
    with pytest.raises(ValueError, match="finite"):
        shaper.set_delay(delay_s)
    assert shaper.delay_s == 0.25


@given(pushes, rates_bytes_per_s, delays_s)
def test_order_is_kept_and_no_byte_beats_the_rate_or_the_delay(
    steps: list[tuple[float, int]], rate: float, delay_s: float
) -> None:
    shaper, now = Shaper(rate, delay_s), 1e4
    pushed_s, promised_s = [], []
    for gap_s, nbytes in steps:
        now += gap_s
        pushed_s.append(now)
        promised_s.append(shaper.push(nbytes, now=now))
    assert drain(shaper) == promised_s
    assert promised_s == sorted(promised_s)
    for first in range(len(steps)):  # however one cuts the history, no stretch of it is faster than the link
        nbytes = 0
        for last in range(first, len(steps)):
            nbytes += steps[last][1]
            assert promised_s[last] >= pushed_s[first] + nbytes / rate + delay_s - EPSILON_S


@given(pushes, rates_bytes_per_s, delays_s)
def test_every_byte_waits_or_travels_or_has_arrived(
    steps: list[tuple[float, int]], rate: float, delay_s: float
) -> None:
    shaper, now, pushed_nbytes, arrived = Shaper(rate, delay_s), 1e4, 0, 0
    for gap_s, nbytes in steps:
        now += gap_s
        arrived += shaper.pop(now=now)
        before_nbytes = shaper.backlog(now)
        shaper.push(nbytes, now=now)
        pushed_nbytes += nbytes
        assert before_nbytes + nbytes - 1 <= shaper.backlog(now) <= before_nbytes + nbytes + 1
        assert shaper.backlog(now) <= shaper.held_nbytes + 1
        assert shaper.held_nbytes == pushed_nbytes - sum(size for _, size in steps[:arrived])
    assert len(drain(shaper)) + arrived == len(steps)
    assert shaper.held_nbytes == 0


@given(
    st.lists(st.tuples(gaps_s, st.integers(1, 20_000), st.none() | rates_bytes_per_s), min_size=1, max_size=30),
    rates_bytes_per_s,
)
def test_over_any_rate_changes_no_more_bytes_pass_than_the_rates_allow(
    steps: list[tuple[float, int, float | None]], rate: float
) -> None:
    shaper, now = Shaper(rate), 1e4
    current: float | None = rate
    for gap_s, nbytes, new_rate in steps:
        shaper.push(nbytes, now=now)
        waiting_nbytes = shaper.backlog(now)
        now += gap_s
        passed_nbytes = waiting_nbytes - shaper.backlog(now)
        credit_nbytes = math.inf if current is None else gap_s * current
        assert passed_nbytes <= credit_nbytes + 1
        assert passed_nbytes >= min(waiting_nbytes, credit_nbytes) - 1, "a link with work to do does not idle"
        shaper.set_rate(new_rate, now=now)
        current = new_rate
    arrivals = drain(shaper)
    assert len(arrivals) == len(steps)
    assert arrivals == sorted(arrivals)
