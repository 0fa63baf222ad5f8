"""What the link is like, from ordinary traffic alone. Pure: samples in, estimate out.

For one message of n bytes sent while nothing else was in flight:

    transfer = round trip - gateway residence - T0          T0 = smallest round trip of the last seconds
    seconds per byte = transfer / n

A message that was sent behind others waits for them first. The uplink is one queue, so its own transfer begins when it
is sent or when the one before it is through, whichever is later (Lindley): `round trip - residence - T0` after its
sending it was through itself, and the difference is transfer again. So a stream that never lets the link rest is
measured with every frame, and just when it overloads the link that matters most.

The estimate is the median of the last seconds-per-byte samples, weighted by size (small messages measure jitter, not
bandwidth). Seconds per byte is the natural unit: an expected latency needs E[1/B], the harmonic mean of the bandwidth.
Measured on an emulated link this is within 0.6 % from 1 to 20 Mbit/s and -6 % at 100. A step is noticed after three
samples in a row that differ from the estimate by more than a factor in the same direction: older samples are then
dropped, so that a new placement comes within few requests and +-20 % noise never looks like one.

How far samples lie from the estimate (their mean absolute deviation, which outliers move less than a variance) says how
much to believe of it: the median of n of them has about 1.25 / sqrt(n) of one sample's deviation.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from protocol.latency import LinkState

WINDOW = 10  # samples
T0_WINDOW_S = 15.0
FULL_WEIGHT_NBYTES = 20_000  # a sample of this size or more counts fully
MIN_SAMPLE_NBYTES = 512
TRANSFER_FLOOR_S = 1e-4  # below this a difference of two round trips is scheduler noise (0.1 ms)
STEP_FACTOR = 1.6
STEP_SAMPLES = 3
CLEAN_FOR_S = 1.0  # without a clean sample for this long, messages sent behind others count with all that was ahead
PROBE_AFTER_S = 0.4  # without a sample for this long (idle, or everything runs locally) a probe is worth its bytes
PROBE_TRANSFER_S = 0.004  # a probe is sized to take about this long: well above jitter, well below a request
NOISY_TRANSFER_S = 0.0015  # samples that take less than this measure mostly jitter
PROBE_NBYTES = (2_000, 60_000)
OVERDUE_RESIDENCES = 3.0  # the gateway may take so many times its usual time before the link is suspected
MOST_AHEAD = 64  # messages whose answers are remembered, to know what was ahead of a later one
DEVIATIONS_PER_MEAN = 1.2533  # standard deviation over mean absolute deviation, normal distribution
OF_A_MEDIAN = 1.2533  # standard deviation of a median over that of a mean, normal distribution
NOISE_LEARNING_RATE = 0.1
FIRST_PROBE_NBYTES = 8_000
BULK_S = 0.2  # chunks of one payload count together until they took so long: each alone measures the thread that reads


class Sample(NamedTuple):
    seconds_per_byte: float
    weight: float
    at: float


class LinkEstimator:
    """Feed it every round trip; ask it for a `LinkState`. All times are monotonic seconds."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=WINDOW)
        self._round_trips: deque[tuple[float, float]] = deque()  # (at, seconds), increasing in both
        self._queue_s = 0.0
        self._residence_s: float | None = None  # what the gateway usually takes
        self._last_rtt_s = 0.0
        self._answered: deque[tuple[float, int]] = deque(maxlen=MOST_AHEAD)  # (at, nbytes)
        self._through_at = -math.inf  # when the last message was through the uplink
        self._bulk = (0, 0.0)  # bytes and seconds of the chunks that were not yet made a sample
        self._noise: float | None = None  # mean absolute deviation of a sample from the estimate before it, relative

    def observe(
        self,
        *,
        nbytes: int,
        round_trip_s: float,
        residence_s: float,
        queue_s: float = 0.0,
        ahead_nbytes: int = 0,
        now: float,
    ) -> None:
        """One answered message: `nbytes` crossed (both ways), of `round_trip_s` the gateway kept it `residence_s`.

        Behind `ahead_nbytes` of others that were not answered a message had to wait for them. Where it is not known
        when they were through, and nothing better comes, all of that counts as one transfer.
        """
        network_s = max(round_trip_s - residence_s, 0.0)
        # A large message's round trip holds its own transfer: it may lower T0 but never establish it.
        # Behind other messages it holds their transfer, too.
        alone = ahead_nbytes == 0
        if (alone and nbytes < MIN_SAMPLE_NBYTES) or (self._round_trips and network_s < self.rtt_s(now)):
            self._observe_round_trip(network_s, now)
        if residence_s > 0:  # pings have none
            old_s = self._residence_s
            self._residence_s = residence_s if old_s is None else old_s + 0.3 * (residence_s - old_s)
        self._queue_s += 0.3 * (queue_s - self._queue_s)
        if nbytes < MIN_SAMPLE_NBYTES or not self._round_trips:
            return
        sent_at, through_at = now - round_trip_s, now - residence_s - self.rtt_s(now)
        before_at, self._through_at = self._through_at, max(self._through_at, through_at)
        transfer_s = network_s - self.rtt_s(now)
        known = alone or sum(size for at, size in self._answered if at > sent_at) >= ahead_nbytes
        self._answered.append((now, nbytes))
        if known:
            transfer_s = min(transfer_s, through_at - before_at)
        else:
            if self._samples and now - self._samples[-1].at < CLEAN_FOR_S:
                return
            nbytes += ahead_nbytes
        self._sample(nbytes, max(transfer_s, TRANSFER_FLOOR_S), now)

    def observe_chunk(self, *, nbytes: int, round_trip_s: float, now: float) -> None:
        """One acknowledged piece of a payload: `nbytes` were sent with and since the piece before it."""
        if not self._round_trips:
            return
        through_at = now - self.rtt_s(now)
        transfer_s = max(min(round_trip_s - self.rtt_s(now), through_at - self._through_at), 0.0)
        self._through_at = max(self._through_at, through_at)
        self._answered.append((now, nbytes))
        bulk_nbytes, bulk_s = self._bulk[0] + nbytes, self._bulk[1] + transfer_s
        self._bulk = bulk_nbytes, bulk_s
        if bulk_s >= BULK_S:
            self._bulk = (0, 0.0)
            self._sample(bulk_nbytes, bulk_s, now)

    def probe_nbytes(self, now: float) -> int:
        """How large a probe would now be useful; 0 when ordinary traffic says enough."""
        if not self._round_trips:
            return 0  # T0 first: without it a probe's whole round trip would count as transfer, or none of it
        if not self._samples:
            return FIRST_PROBE_NBYTES
        per_byte = self._weighted_median()
        size = int(min(max(PROBE_TRANSFER_S / per_byte, PROBE_NBYTES[0]), PROBE_NBYTES[1]))
        typical = sorted(s.weight for s in self._samples)[len(self._samples) // 2] * FULL_WEIGHT_NBYTES
        noisy = typical * per_byte < NOISY_TRANSFER_S and typical < size / 2
        return size if noisy or now - self._samples[-1].at > PROBE_AFTER_S else 0

    @property
    def wants_confirmation(self) -> bool:
        """The last sample looks like a step, or there is none yet: another one soon would settle it."""
        if not self._samples:
            return True
        ratio = self._samples[-1].seconds_per_byte / self._weighted_median()
        return not 1 / STEP_FACTOR <= ratio <= STEP_FACTOR

    def lost(self) -> None:
        """The link broke: what queued before says nothing about what comes after, and T0 is to be measured anew."""
        self._queue_s = 0.0
        self._through_at = -math.inf
        self._bulk = (0, 0.0)
        self._last_rtt_s = self._round_trips[0][1] if self._round_trips else self._last_rtt_s
        self._round_trips.clear()

    def rtt_s(self, now: float) -> float:
        """T0, the smallest round trip of the last seconds, or of the link before it broke; 0 before any."""
        self._forget_round_trips(now)
        return self._round_trips[0][1] if self._round_trips else self._last_rtt_s

    def estimate(self, now: float, *, sent: tuple[float, int] | None = None) -> LinkState | None:
        """The link as last seen; None before the first usable sample.

        `sent` is when the oldest message without an answer left, and its bytes with all that were ahead of it. While it
        is overdue nothing else is heard, and what is known is a bound: it has taken that long and is not through.
        """
        if not self._samples:
            return None
        per_byte = self._weighted_median()
        if sent is not None and sent[1] >= MIN_SAMPLE_NBYTES and self._residence_s is not None:
            overdue_s = now - sent[0] - self.rtt_s(now) - OVERDUE_RESIDENCES * self._residence_s
            if overdue_s > STEP_FACTOR * sent[1] * per_byte:
                per_byte = overdue_s / sent[1]
        rate, spread, doubt = 1.0 / per_byte, 0.0, None
        if self._noise is not None:
            spread = DEVIATIONS_PER_MEAN * self._noise
            doubt = OF_A_MEDIAN * spread / math.sqrt(len(self._samples))
        return LinkState(rate, self.rtt_s(now), rate, self._queue_s, spread, doubt)

    def _sample(self, nbytes: int, transfer_s: float, now: float) -> None:
        self._learn_noise(transfer_s / nbytes)
        self._samples.append(Sample(transfer_s / nbytes, min(nbytes / FULL_WEIGHT_NBYTES, 1.0), now))
        self._drop_what_a_step_made_old()

    def _learn_noise(self, seconds_per_byte: float) -> None:
        if len(self._samples) < STEP_SAMPLES:
            return
        off = abs(seconds_per_byte / self._weighted_median() - 1.0)
        if off > STEP_FACTOR - 1.0:
            return  # an outlier or a step: neither is noise
        old = self._noise
        self._noise = off if old is None else old + NOISE_LEARNING_RATE * (off - old)

    def _observe_round_trip(self, seconds: float, now: float) -> None:
        # A sliding-window minimum: keep only what could still become the smallest.
        while self._round_trips and self._round_trips[-1][1] >= seconds:
            self._round_trips.pop()
        self._round_trips.append((now, seconds))
        self._forget_round_trips(now)

    def _forget_round_trips(self, now: float) -> None:
        while len(self._round_trips) > 1 and self._round_trips[0][0] < now - T0_WINDOW_S:
            self._round_trips.popleft()

    def _weighted_median(self) -> float:
        ordered = sorted(self._samples)
        half = sum(s.weight for s in ordered) / 2
        seen = 0.0
        for sample in ordered:
            seen += sample.weight
            if seen >= half:
                return sample.seconds_per_byte
        return ordered[-1].seconds_per_byte

    def _drop_what_a_step_made_old(self) -> None:
        if len(self._samples) <= STEP_SAMPLES:
            return
        recent = list(self._samples)[-STEP_SAMPLES:]
        estimate = self._weighted_median()
        slower = all(s.seconds_per_byte > estimate * STEP_FACTOR for s in recent)
        faster = all(s.seconds_per_byte * STEP_FACTOR < estimate for s in recent)
        if slower or faster:
            self._samples.clear()
            self._samples.extend(recent)
