"""The link estimator on synthetic traffic: accuracy, steps, noise, and silence."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from protocol.control.link import LinkEstimator
from protocol.control.planner import Candidate, Planner
from protocol.latency import PlacementCost

RATES_MBIT = (1, 2, 5, 10, 20, 50, 100)


@dataclass
class Traffic:
    """A link and the requests on it. Time passes only here."""

    mbit_per_s: float
    rtt_s: float = 0.02
    jitter_s: float = 0.0  # one-sided, on every round trip
    noise: float = 0.0  # +- share of the bandwidth, drawn for every message
    seed: int = 1
    now: float = 100.0
    estimator: LinkEstimator = field(default_factory=LinkEstimator)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def exchange(self, nbytes: int, *, alone: bool = True, residence_s: float = 0.005, queue_s: float = 0.0) -> None:
        rate = self.mbit_per_s * 1e6 / 8 * self.chance.uniform(1 - self.noise, 1 + self.noise)
        ahead = 0 if alone else nbytes  # as much again was sent just before and has to pass first
        took = self.rtt_s + (ahead + nbytes) / rate + residence_s + self.chance.uniform(0, self.jitter_s)
        self.now += took + 0.01
        self.estimator.observe(
            nbytes=nbytes,
            round_trip_s=took,
            residence_s=residence_s,
            queue_s=queue_s,
            ahead_nbytes=ahead,
            now=self.now,
        )

    def run(self, requests: int, nbytes: int = 100_000) -> None:
        """Requests with a ping now and then, as the agent sends them."""
        for i in range(requests):
            if i % 5 == 0:
                self.exchange(20, residence_s=0.0)
            self.exchange(nbytes)

    def measured_mbit(self) -> float:
        state = self.estimator.estimate(self.now)
        assert state is not None
        return state.uplink_bytes_per_s * 8 / 1e6


@pytest.mark.parametrize("mbit_per_s", RATES_MBIT)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_estimate_is_within_five_per_cent_with_jitter(mbit_per_s: float, seed: int) -> None:
    traffic = Traffic(mbit_per_s, jitter_s=0.0004, seed=seed)
    traffic.run(30)
    assert traffic.measured_mbit() == pytest.approx(mbit_per_s, rel=0.05)


@pytest.mark.parametrize("mbit_per_s", RATES_MBIT)
def test_small_messages_among_large_ones_do_not_spoil_the_estimate(mbit_per_s: float) -> None:
    traffic = Traffic(mbit_per_s, jitter_s=0.0004)
    for _ in range(20):
        traffic.exchange(20, residence_s=0.0)
        traffic.exchange(1_000)
        traffic.exchange(100_000)
    assert traffic.measured_mbit() == pytest.approx(mbit_per_s, rel=0.05)


def test_before_the_first_sample_nothing_is_claimed() -> None:
    estimator = LinkEstimator()
    assert estimator.estimate(0.0) is None
    assert estimator.rtt_s(0.0) == 0.0
    estimator.observe(nbytes=20, round_trip_s=0.03, residence_s=0.0, now=1.0)
    assert estimator.estimate(1.0) is None, "a tiny message measures jitter, not bandwidth"
    assert estimator.rtt_s(1.0) == pytest.approx(0.03)


@pytest.mark.parametrize(("before", "after"), [(50, 5), (5, 50), (10, 5), (10, 20), (100, 1), (1, 100)])
def test_a_step_is_noticed_within_ten_samples(before: float, after: float) -> None:
    traffic = Traffic(before, jitter_s=0.0004)
    traffic.run(20)
    traffic.mbit_per_s = after
    samples = 0
    while traffic.measured_mbit() != pytest.approx(after, rel=0.1):
        traffic.exchange(100_000)
        samples += 1
        assert samples < 10, f"still {traffic.measured_mbit():.1f} after {samples} samples at {after} Mbit/s"


@pytest.mark.parametrize(("before", "after"), [(50, 5), (5, 50), (100, 1)])
def test_a_large_step_is_noticed_after_three_samples(before: float, after: float) -> None:
    traffic = Traffic(before)
    traffic.run(20)
    traffic.mbit_per_s = after
    for _ in range(3):
        traffic.exchange(100_000)
    assert traffic.measured_mbit() == pytest.approx(after, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_twenty_per_cent_never_looks_like_a_step(seed: int) -> None:
    traffic = Traffic(10, noise=0.2, seed=seed)
    traffic.run(10)
    for _ in range(200):
        traffic.run(1)
        assert traffic.measured_mbit() == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_twenty_per_cent_does_not_flap_the_planner_around_a_breakpoint(seed: int) -> None:
    # Both placements cost the same at 10 Mbit/s: 0.12 s against 0.02 s of round trip and 100 ms of transfer.
    planner = Planner(
        [Candidate("edge-only", PlacementCost(edge_s=0.120)), Candidate("full-cloud", PlacementCost(up_nbytes=125_000))]
    )
    traffic = Traffic(10, noise=0.2, seed=seed)
    traffic.run(10)
    switches, last = 0, None
    for _ in range(200):
        traffic.run(1)
        decision = planner.decide(traffic.estimator.estimate(traffic.now), {})
        assert decision is not None
        switches += last is not None and decision.id != last
        last = decision.id
    assert switches <= 8, f"{switches} switches in 200 requests"


def test_one_outlier_does_not_move_the_estimate() -> None:
    traffic = Traffic(10)
    traffic.run(20)
    traffic.rtt_s = 2.0
    traffic.exchange(100_000)
    traffic.rtt_s = 0.02
    assert traffic.measured_mbit() == pytest.approx(10, rel=0.05)


def test_messages_that_shared_the_link_count_with_all_that_was_ahead_once_nothing_better_comes() -> None:
    traffic = Traffic(10)
    traffic.run(10)
    traffic.exchange(100_000, alone=False)
    assert traffic.measured_mbit() == pytest.approx(10, rel=0.05)
    traffic.mbit_per_s = 1
    for _ in range(20):
        traffic.exchange(100_000, alone=False)
    assert traffic.measured_mbit() == pytest.approx(1, rel=0.05)


def test_a_round_trip_behind_other_messages_is_no_round_trip_of_the_link() -> None:
    traffic = Traffic(10)
    traffic.exchange(20, residence_s=0.0)
    before = traffic.estimator.rtt_s(traffic.now)
    for _ in range(50):
        traffic.now += 1.0
        traffic.estimator.observe(nbytes=20, round_trip_s=3.0, residence_s=0.0, ahead_nbytes=100_000, now=traffic.now)
    assert traffic.estimator.rtt_s(traffic.now) == before


def test_the_gateways_own_time_is_not_charged_to_the_link() -> None:
    traffic = Traffic(10)
    for residence_s in (0.001, 0.5, 0.02, 3.0) * 5:
        traffic.exchange(20, residence_s=0.0)
        traffic.exchange(100_000, residence_s=residence_s)
    assert traffic.measured_mbit() == pytest.approx(10, rel=0.05)


def test_the_round_trip_is_the_smallest_of_the_last_seconds() -> None:
    estimator = LinkEstimator()
    for at, seconds in ((0.0, 0.010), (5.0, 0.030), (10.0, 0.020)):
        estimator.observe(nbytes=20, round_trip_s=seconds, residence_s=0.0, now=at)
    assert estimator.rtt_s(10.0) == pytest.approx(0.010)
    assert estimator.rtt_s(20.0) == pytest.approx(0.020), "an old minimum must be forgotten: routes change"


def test_a_longer_round_trip_does_not_stay_mistaken_for_a_slower_link() -> None:
    """After a change of route the smallest old round trip must not colour the bandwidth for ever."""
    traffic = Traffic(10, rtt_s=0.01)
    traffic.run(20)
    traffic.rtt_s = 0.08
    while traffic.now < 100.0 + 60.0:
        traffic.exchange(20, residence_s=0.0)
        traffic.exchange(100_000)
    assert traffic.measured_mbit() == pytest.approx(10, rel=0.05)


def test_the_reported_queue_is_followed_and_forgotten_with_the_link() -> None:
    traffic = Traffic(10)
    traffic.exchange(20, residence_s=0.0)
    for _ in range(20):
        traffic.exchange(100_000, queue_s=0.04)
    state = traffic.estimator.estimate(traffic.now)
    assert state is not None
    assert state.queue_s == pytest.approx(0.04, rel=0.05)
    traffic.estimator.lost()
    after = traffic.estimator.estimate(traffic.now)
    assert after is not None
    assert (after.queue_s, after.rtt_s) == (0.0, state.rtt_s)  # the best guess until it is measured anew
    assert after.uplink_bytes_per_s == state.uplink_bytes_per_s


@pytest.mark.parametrize("mbit_per_s", RATES_MBIT)
def test_a_link_that_only_carries_pings_keeps_its_estimate(mbit_per_s: float) -> None:
    """A ping every second, sooner to confirm a step, padded when a probe is asked for: all that an idle agent sends."""
    traffic = Traffic(mbit_per_s, jitter_s=0.0002)
    traffic.run(10)
    worst = 0.0
    for _ in range(120):
        pause_s = 0.05 if traffic.estimator.wants_confirmation else 1.0
        traffic.now += pause_s
        traffic.exchange(20 + traffic.estimator.probe_nbytes(traffic.now), residence_s=0.0)
        worst = max(worst, abs(traffic.measured_mbit() / mbit_per_s - 1))
    assert worst < 0.25, f"{worst:.0%} off"


def test_a_probe_is_asked_for_when_nothing_was_measured_or_nothing_recently() -> None:
    traffic = Traffic(10)
    assert traffic.estimator.probe_nbytes(traffic.now) == 0, "T0 first: a small ping"
    traffic.exchange(20, residence_s=0.0)
    assert traffic.estimator.probe_nbytes(traffic.now) > 0
    traffic.run(10)
    assert traffic.estimator.probe_nbytes(traffic.now) == 0
    assert traffic.estimator.probe_nbytes(traffic.now + 2.0) > 0


@pytest.mark.parametrize("mbit_per_s", RATES_MBIT)
def test_a_probe_fits_into_a_ping_and_does_not_block_the_link(mbit_per_s: float) -> None:
    traffic = Traffic(mbit_per_s)
    traffic.run(10)
    probe = traffic.estimator.probe_nbytes(traffic.now + 2.0)
    assert 0 < probe <= 65_536
    assert probe / (mbit_per_s * 1e6 / 8) <= 0.017


def test_a_message_that_returned_faster_than_the_gateway_claims_gives_a_finite_estimate() -> None:
    estimator = LinkEstimator()
    estimator.observe(nbytes=20, round_trip_s=0.01, residence_s=0.0, now=0.0)
    for now in range(5):
        estimator.observe(nbytes=50_000, round_trip_s=0.01, residence_s=5.0, now=float(now))
    state = estimator.estimate(5.0)
    assert state is not None
    assert 0 < state.uplink_bytes_per_s < float("inf")


def pipelined(estimator: LinkEstimator, mbit_per_s: float, *, frames: int, gap_s: float, at: float = 0.0) -> float:
    """Frames of 50 kB every `gap_s` through one uplink, one after the other; returns when the last was answered."""
    free_at, transfer_s, answers = at, 50_000 * 8 / (mbit_per_s * 1e6), []
    for i in range(frames):
        sent_at = at + i * gap_s
        free_at = max(free_at, sent_at) + transfer_s
        answers.append((sent_at, free_at + 0.02 + 0.015))
    for i, (sent_at, answered_at) in enumerate(answers):
        ahead = sum(50_000 for _, other in answers[:i] if other > sent_at)
        estimator.observe(
            nbytes=50_000, round_trip_s=answered_at - sent_at, residence_s=0.015, ahead_nbytes=ahead, now=answered_at
        )
    return answers[-1][1]


@pytest.mark.parametrize("mbit_per_s", [1.0, 4.0, 20.0])
def test_a_stream_that_never_lets_the_link_rest_is_measured_with_every_frame(mbit_per_s: float) -> None:
    estimator = LinkEstimator()
    estimator.observe(nbytes=60, round_trip_s=0.02, residence_s=0.0, now=0.0)
    now = pipelined(estimator, 100.0, frames=10, gap_s=0.05)
    now = pipelined(estimator, mbit_per_s, frames=6, gap_s=0.05, at=now)
    seen = estimator.estimate(now)
    assert seen is not None
    assert seen.uplink_bytes_per_s * 8 / 1e6 == pytest.approx(mbit_per_s, rel=0.02)


def test_how_sure_an_estimate_is_follows_its_noise() -> None:
    doubts = []
    for noise in (0.0, 0.05, 0.2):
        traffic = Traffic(10, noise=noise, seed=4)
        traffic.run(60)
        seen = traffic.estimator.estimate(traffic.now)
        assert seen is not None
        assert seen.doubt is not None
        doubts.append((seen.spread, seen.doubt))
    assert doubts[0] == pytest.approx((0.0, 0.0), abs=1e-6)
    # Evenly distributed rates within +-noise: 1/rate has a relative standard deviation of about noise / sqrt(3).
    assert doubts[1][0] == pytest.approx(0.05 / 3**0.5, rel=0.5)
    assert doubts[2][0] == pytest.approx(0.2 / 3**0.5, rel=0.5)
    assert doubts[2][1] == pytest.approx(doubts[2][0] * 1.25 / 10**0.5, rel=0.01)


def answered_often(mbit_per_s: float, residence_s: float) -> Traffic:
    traffic = Traffic(mbit_per_s)
    for _ in range(20):
        traffic.exchange(20, residence_s=0.0)
        traffic.exchange(100_000, residence_s=residence_s)
    return traffic


def test_an_answer_that_is_overdue_bounds_the_rate_from_above() -> None:
    traffic = answered_often(10, residence_s=0.05)
    usual, now = traffic.estimator.estimate(traffic.now), traffic.now
    assert usual is not None
    at = [traffic.estimator.estimate(now + after_s, sent=(now, 100_000)) for after_s in (0.0, 0.25, 1.0, 3.0)]
    assert at[:2] == [usual, usual], "80 ms of transfer, 20 of the round trip and 50 at the gateway are no wonder"
    for after_s, seen in zip((1.0, 3.0), at[2:], strict=True):
        assert seen is not None
        assert 100_000 / after_s < seen.uplink_bytes_per_s < usual.uplink_bytes_per_s / 2
    assert traffic.estimator.estimate(now + 3.0) == usual, "once it is answered only its sample counts"


def test_before_anything_is_known_of_the_gateways_own_time_no_answer_is_overdue() -> None:
    traffic = answered_often(10, residence_s=0.0)
    usual = traffic.estimator.estimate(traffic.now)
    assert usual is not None
    assert traffic.estimator.estimate(traffic.now + 9.0, sent=(traffic.now, 100_000)) == usual
