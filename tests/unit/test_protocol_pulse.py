"""Pings: plain to stay in touch, padded only when that says something that ordinary traffic does not."""

from __future__ import annotations

import pytest

from protocol.control.link import LinkEstimator
from protocol.control.pulse import (
    ACTIVE_S,
    BUSY_WAIT_S,
    CONFIRM_IVL_S,
    IDLE_WAIT_S,
    LOCAL_PING_IVL_S,
    PING_IVL_S,
    SILENCE_S,
    Pulse,
    patience_s,
    wake_at,
)
from protocol.latency import LinkState


def seen(*messages: tuple[int, float]) -> LinkEstimator:
    """An estimator that knows these messages of (bytes, seconds of round trip), one after the other until 0 s."""
    estimator, now = LinkEstimator(), -sum(round_trip_s for _, round_trip_s in messages)
    for nbytes, round_trip_s in messages:
        now += round_trip_s
        estimator.observe(nbytes=nbytes, round_trip_s=round_trip_s, residence_s=0.0, now=now)
    return estimator


def test_a_link_with_a_round_trip_and_no_bandwidth_is_probed_while_requests_come() -> None:
    pulse, estimator = Pulse(), seen((60, 0.02))
    pulse.requested(now=0.0)
    plain, padded = pulse.paddings(estimator, idle=True, measured=True, now=1.0)
    assert plain == 0 < padded
    assert pulse.next_at == 1.0 + LOCAL_PING_IVL_S


@pytest.mark.parametrize(("idle", "now"), [(False, 1.0), (True, ACTIVE_S)])
def test_nothing_is_probed_behind_other_messages_or_when_no_request_comes(idle: bool, now: float) -> None:
    pulse = Pulse()
    pulse.requested(now=0.0)
    assert pulse.paddings(seen((60, 0.02)), idle=idle, measured=True, now=now) == (0,)
    assert pulse.next_at == now + PING_IVL_S


def test_a_link_that_was_never_measured_is_probed_without_requests() -> None:
    assert len(Pulse().paddings(seen((60, 0.02)), idle=True, measured=False, now=99.0)) == 2


def test_a_probe_that_contradicts_the_estimate_is_followed_by_another_soon() -> None:
    steady = seen((60, 0.02), *[(20_000, 0.04)] * 5)
    for estimator, next_at in ((steady, 9.0), (seen((60, 0.02), *[(20_000, 0.04)] * 5, (20_000, 0.2)), CONFIRM_IVL_S)):
        pulse = Pulse()
        pulse.next_at = 9.0
        pulse.requested(now=0.0)
        pulse.answered(estimator, measured=True, now=0.0)
        assert pulse.next_at == next_at


def test_a_gateway_may_be_silent_for_twice_as_long_as_the_way_to_it_takes() -> None:
    assert patience_s(1e6, None) == SILENCE_S
    assert patience_s(1e6, LinkState(1e5, 0.02)) == pytest.approx(SILENCE_S + 20)


def test_the_loop_wakes_for_whatever_comes_first() -> None:
    assert wake_at(None, None, busy=False, now=5.0) == 5.0 + IDLE_WAIT_S
    assert wake_at(None, None, busy=True, now=5.0) == 5.0 + BUSY_WAIT_S
    assert wake_at(0.0, 5.2, busy=True, now=5.0) == 0.0
    assert wake_at(5.3, 5.2, busy=False, now=5.0) == 5.2
