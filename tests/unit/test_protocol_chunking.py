"""When a payload goes in chunks and how many, and what their acknowledgements say of the link."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from protocol import wire
from protocol.control import chunking
from protocol.control.link import LinkEstimator
from protocol.latency import LinkState

MOST = wire.PART_NBYTES


def link_of(mbit_per_s: float, rtt_s: float = 0.02) -> LinkState:
    return LinkState(uplink_bytes_per_s=mbit_per_s * 1e6 / 8, rtt_s=rtt_s)


@pytest.mark.parametrize(
    ("mbit_per_s", "nbytes", "chunk_nbytes"),
    [
        (100, 1_600_000, 0),  # 0.13 s: it is gone before anything could wait
        (5, 1_600_000, 18 * 1024),
        (5, 150_000, 0),
        (1, 1_600_000, wire.MIN_CHUNK_NBYTES),  # 3,750 bytes take 30 ms: that would be mostly headers
        (0.1, 10_000, wire.MIN_CHUNK_NBYTES),
        (0.1, 4_000, 0),  # one chunk is no better than one message
        (1000, 2 * 10**8, wire.PART_NBYTES),  # never larger than a part
    ],
)
def test_what_would_keep_the_link_busy_for_long_goes_in_pieces_of_a_moment(
    mbit_per_s: float, nbytes: int, chunk_nbytes: int
) -> None:
    assert chunking.chunk_nbytes(nbytes, link_of(mbit_per_s), most_nbytes=MOST) == chunk_nbytes


def test_a_gateway_that_takes_no_chunks_or_smaller_ones_is_sent_what_it_takes() -> None:
    assert chunking.chunk_nbytes(10**8, link_of(5), most_nbytes=0) == 0
    assert chunking.chunk_nbytes(10**8, link_of(50), most_nbytes=8192) == 8192
    assert chunking.chunk_nbytes(10**8, link_of(50), most_nbytes=1000) == 0, "smaller than any chunk may be"


def test_a_link_that_was_never_measured_is_not_believed_to_be_slow() -> None:
    assert chunking.chunk_nbytes(10**8, None, most_nbytes=MOST) == 0


@given(st.floats(0.05, 2000.0), st.integers(0, wire.MAX_PAYLOAD_NBYTES), st.integers(0, MOST), st.floats(0.0, 1.0))
def test_chunks_are_always_such_as_a_gateway_takes_and_the_window_holds_some(
    mbit_per_s: float, nbytes: int, most_nbytes: int, rtt_s: float
) -> None:
    link = link_of(mbit_per_s, rtt_s)
    size = chunking.chunk_nbytes(nbytes, link, most_nbytes=most_nbytes)
    if size:
        assert wire.MIN_CHUNK_NBYTES <= size <= most_nbytes
        assert size < nbytes
        assert chunking.window_nbytes(size, link) >= 2 * size


def test_the_window_is_a_few_chunks_and_what_the_link_holds_on_its_way() -> None:
    assert chunking.window_nbytes(10_000, None) == 30_000
    assert chunking.window_nbytes(10_000, link_of(8, rtt_s=0.1)) == pytest.approx(30_000 + 100_000)


# ---- what acknowledgements say --------------------------------------------------------------------------------------


def uploaded(estimator: LinkEstimator, *, rate: float, rtt_s: float, chunks: int, late: random.Random | None) -> float:
    """Chunks of 4,096 bytes, three at a time; `late` delays some acknowledgements as a busy thread does."""
    now, through, sent = 10.0, 10.0, [10.0] * 3
    estimator.observe(nbytes=100, round_trip_s=rtt_s, residence_s=0.0, now=now)
    read = now
    for _ in range(chunks):
        at = sent.pop(0)
        through = max(through, at) + 4096 / rate
        arrives = through + rtt_s
        read = max(read, arrives + (late.choice([0.0, 0.0, 0.0, 0.08]) if late else 0.0))
        estimator.observe_chunk(nbytes=4096, round_trip_s=read - at, now=read)
        sent.append(read)
    return read


@pytest.mark.parametrize("rtt_s", [0.002, 0.05, 0.3])
@pytest.mark.parametrize("mbit_per_s", [0.25, 1.0, 5.0])
def test_acknowledged_chunks_measure_the_link_also_where_it_rests_in_between(mbit_per_s: float, rtt_s: float) -> None:
    estimator, rate = LinkEstimator(), mbit_per_s * 1e6 / 8
    now = uploaded(estimator, rate=rate, rtt_s=rtt_s, chunks=300, late=None)
    estimate = estimator.estimate(now)
    assert estimate is not None
    assert estimate.uplink_bytes_per_s == pytest.approx(rate, rel=0.02)


def test_a_thread_that_reads_acknowledgements_late_now_and_then_does_not_move_the_estimate_much() -> None:
    estimator, rate = LinkEstimator(), 125_000.0
    now = uploaded(estimator, rate=rate, rtt_s=0.02, chunks=300, late=random.Random(1))
    estimate = estimator.estimate(now)
    assert estimate is not None
    assert 0.5 * rate < estimate.uplink_bytes_per_s < 1.3 * rate


def test_chunks_say_nothing_before_a_round_trip_is_known() -> None:
    estimator = LinkEstimator()
    for number in range(50):
        estimator.observe_chunk(nbytes=4096, round_trip_s=0.1, now=float(number))
    assert estimator.estimate(60.0) is None


def test_what_is_sent_behind_chunks_is_known_to_have_waited_for_them() -> None:
    estimator, rate = LinkEstimator(), 125_000.0
    now = uploaded(estimator, rate=rate, rtt_s=0.02, chunks=100, late=None)
    ahead = 3 * 4096
    for _ in range(3):
        now += 4096 / rate
        estimator.observe_chunk(nbytes=4096, round_trip_s=0.1, now=now)
    now += 20_000 / rate
    sent_s = 0.02 + (ahead + 20_000) / rate
    estimator.observe(nbytes=20_000, round_trip_s=sent_s, residence_s=0.0, ahead_nbytes=ahead, now=now)
    estimate = estimator.estimate(now)
    assert estimate is not None
    assert estimate.uplink_bytes_per_s == pytest.approx(rate, rel=0.02)
