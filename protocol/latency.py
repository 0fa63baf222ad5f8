"""The one latency formula, for the offline solver and the online planner alike. Pure: numbers in, numbers out.

For one placement, with x = 1 / uplink (seconds per byte) and r = uplink / downlink:

    latency(x) = edge + encode + rtt + decode + queue + tail  +  (up_nbytes + r * down_nbytes) * x
                 `------------- intercept -----------------'     `---------- slope ----------'

a straight line in x. The best placement for *every* bandwidth is therefore the lower envelope of a few lines
(shown for layer cuts by Eisner and Severance 1976; for networks by Neurosurgeon and DADS at a single bandwidth).
An expected latency under a varying link needs E[x], the harmonic mean of the bandwidth, not its mean.

A slower device, a busy gateway and the quantile q of a latency change the stages and leave the formula (`adjusted`):

    stage_q = stage * factor * (1 + spread * z(q) / z(0.95))        z: quantile function of the normal distribution

`spread` is the measured relative distance of the 95th percentile from the median, so q = 0.5 is the median and q = 0.95
what was measured; between and beyond, the normal distribution says how much of it. The quantile of the sum is taken as
the sum of the quantiles, which is exact when all stages are slow together (comonotone) and errs on the safe side for
the usual independent ones; x must be the same quantile of 1/uplink. A gateway that is busy for the share `load` of the
time serves each request at the speed that is left, so 1 / (1 - load) times as long (processor sharing).

All of this is one request alone. Where requests follow each other each stage is a queue in front of one server, and at
a utilisation rho = rate * service of 1 it grows without end. Below that the mean wait is (`wait_s`)

    W = rho / (1 - rho) * (ca2 + cs2) / 2 * service * g       ca2, cs2: squared coefficients of variation

of the gaps between arrivals and of the service times: Allen and Cunneen's form of Kingman's bound, with the correction
g of Kraemer and Langenbach-Belz (1976). It is exact for Poisson arrivals (ca2 = 1, g = 1: Pollaczek and Khinchine) and
0 for frames of a camera that take equally long (ca2 = cs2 = 0), for which the rule of 1 / (1 - rho) would be far off.
What leaves one queue arrives at the next with rho^2 * cs2 + (1 - rho^2) * ca2 (Marshall; Whitt's network analyser).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import msgspec


class PlacementCost(msgspec.Struct, frozen=True):
    """What one request costs under one placement. Times in seconds, sizes in bytes on the wire after coding.

    Sizes are payload; the ~100-200 bytes of message header are part of the measured round trip.
    """

    edge_s: float = 0.0  # head (or whole model) on the device, declared slow-down included
    encode_s: float = 0.0
    up_nbytes: float = 0.0
    decode_s: float = 0.0
    tail_s: float = 0.0  # compute at the gateway at batch 1
    down_nbytes: float = 0.0
    # What the device and the gateway must have for it; None where it was not measured.
    edge_memory_nbytes: int | None = None  # peak of the head's process above an empty one
    cloud_memory_nbytes: int | None = None
    energy_j: float | None = None  # of the device per request, radio included where it was declared
    # Relative distance of the 95th percentile from the median, of the device's and of the gateway's stages.
    edge_spread: float = 0.0
    tail_spread: float = 0.0

    @property
    def crosses(self) -> bool:
        """Whether the gateway is asked for anything; only then is there a round trip.

        A tail that draws random numbers may need no tensor at all and still has to be asked for its results.
        """
        return self.up_nbytes > 0 or self.tail_s > 0 or self.down_nbytes > 0

    def spread(self, *, edge: float, tail: float) -> PlacementCost:
        """The same cost with these relative distances of the 95th percentile from the median."""
        return msgspec.structs.replace(self, edge_spread=edge, tail_spread=tail)


class LinkState(msgspec.Struct, frozen=True):
    """The link and what waits behind it. Bandwidths in bytes/s, times in seconds.

    `spread` is the relative standard deviation of 1/uplink from one message to the next, `doubt` that of the estimate
    itself; None: nobody knows.
    """

    uplink_bytes_per_s: float
    rtt_s: float
    downlink_bytes_per_s: float = math.inf
    queue_s: float = 0.0
    spread: float = 0.0
    doubt: float | None = None


class TcpView(NamedTuple):
    """What the kernel has seen of a connection, up to whatever ends it: a proxy, where there is one."""

    rtt_s: float  # smallest round trip of late
    bytes_per_s: float | None  # how fast data last arrived; None before any has
    is_limited_by_us: bool  # that rate is how fast we sent, and the link may carry more


class Line(NamedTuple):
    """latency = intercept_s + slope_nbytes * x, x in seconds per byte of uplink."""

    intercept_s: float
    slope_nbytes: float

    def at(self, seconds_per_byte: float) -> float:
        return self.intercept_s + self.slope_nbytes * seconds_per_byte


def latency_s(cost: PlacementCost, link: LinkState) -> float:
    """Predicted seconds from submit to answer for one request under one placement."""
    local = cost.edge_s + cost.encode_s
    if not cost.crosses:
        return local
    transfer = cost.up_nbytes / link.uplink_bytes_per_s + cost.down_nbytes / link.downlink_bytes_per_s
    return local + link.rtt_s + transfer + cost.decode_s + link.queue_s + cost.tail_s


def line_of(cost: PlacementCost, *, rtt_s: float, queue_s: float = 0.0, up_over_down: float = 1.0) -> Line:
    """The same formula as a line over 1/uplink, with the downlink a fixed fraction of the uplink."""
    if not cost.crosses:
        return Line(cost.edge_s + cost.encode_s, 0.0)
    intercept = cost.edge_s + cost.encode_s + rtt_s + cost.decode_s + queue_s + cost.tail_s
    return Line(intercept, cost.up_nbytes + up_over_down * cost.down_nbytes)


def adjusted(
    cost: PlacementCost,
    *,
    edge_factor: float = 1.0,
    cloud_factor: float = 1.0,
    cloud_load: float = 0.0,
    quantile: float = 0.5,
) -> PlacementCost:
    """The same placement on a device `edge_factor` times as slow, a gateway `cloud_factor` times as slow and busy for
    the share `cloud_load`, with every stage at its `quantile`.

    Raises ValueError for a load outside [0, 1), a quantile outside (0, 1) or a factor that is negative or infinite.
    """
    factors_are_some = 0 <= edge_factor < math.inf and 0 <= cloud_factor < math.inf
    if not (0 <= cloud_load < 1 and 0 < quantile < 1 and factors_are_some):
        raise ValueError(
            f"load {cloud_load}, quantile {quantile}, factors {edge_factor} and {cloud_factor}: "
            "a load is in [0, 1), a quantile in (0, 1), a factor finite and 0 or more"
        )
    share = _NORMAL.inv_cdf(quantile) / DEVIATIONS_OF_SPREAD
    edge = edge_factor * max(0.0, 1 + share * cost.edge_spread)
    cloud = cloud_factor / (1 - cloud_load) * max(0.0, 1 + share * cost.tail_spread)
    return msgspec.structs.replace(
        cost,
        edge_s=cost.edge_s * edge,
        encode_s=cost.encode_s * edge,
        decode_s=cost.decode_s * cloud,
        tail_s=cost.tail_s * cloud,
    )


_NORMAL = NormalDist()
DEVIATIONS_OF_SPREAD = _NORMAL.inv_cdf(0.95)  # standard deviations from the median to the 95th percentile


def bottleneck_s(cost: PlacementCost, link: LinkState) -> float:
    """Seconds between two answers when requests follow each other without a pause: the longest stage of
    head and encoding | upload | decoding and tail | download. Its inverse is the throughput in requests per second."""
    up_s = cost.up_nbytes / link.uplink_bytes_per_s
    down_s = cost.down_nbytes / link.downlink_bytes_per_s
    return max(cost.edge_s + cost.encode_s, up_s, cost.decode_s + cost.tail_s, down_s)


def wait_s(utilisation: float, service_s: float, arrivals_scv: float, service_scv: float) -> float:
    """Mean seconds in the queue of one server; infinite from a utilisation of 1 on. `_scv`: squared coefficient of
    variation. The formula and its sources stand above."""
    variability = arrivals_scv + service_scv
    if utilisation >= 1.0:
        return math.inf
    if utilisation <= 0.0 or variability <= 0.0:
        return 0.0
    if arrivals_scv <= 1.0:
        bend = -2 * (1 - utilisation) * (1 - arrivals_scv) ** 2 / (3 * utilisation * variability)
    else:
        bend = -(1 - utilisation) * (arrivals_scv - 1) / (arrivals_scv + 4 * service_scv)
    return utilisation / (1 - utilisation) * variability / 2 * service_s * math.exp(bend)


def leaving_scv(utilisation: float, arrivals_scv: float, service_scv: float) -> float:
    """How much the gaps between what leaves a server vary."""
    share = min(utilisation, 1.0) ** 2
    return share * service_scv + (1 - share) * arrivals_scv


class Stretch(NamedTuple):
    """One piece of the envelope: `line` (an index) is best for x in [from_x, to_x] seconds per byte."""

    line: int
    from_x: float
    to_x: float


def lower_envelope(lines: Sequence[Line], from_x: float, to_x: float) -> list[Stretch]:
    """The best line for every x in [from_x, to_x], left to right; ties go to the smaller slope, then to the first.

    Walks from one crossing to the next: O(lines * stretches), exact up to float comparison. Raises ValueError for no
    lines or an empty interval.
    """
    if not lines or not 0 <= from_x < to_x:
        raise ValueError(f"{len(lines)} lines over [{from_x}, {to_x}]: at least one line and a growing interval needed")
    stretches: list[Stretch] = []
    x = from_x
    best = min(range(len(lines)), key=lambda i: (lines[i].at(x), lines[i].slope_nbytes, i))
    while True:
        crossing, successor = to_x, best
        for i, line in enumerate(lines):
            # Only a flatter line can win further right, where it crosses the current one.
            if line.slope_nbytes >= lines[best].slope_nbytes:
                continue
            at = (line.intercept_s - lines[best].intercept_s) / (lines[best].slope_nbytes - line.slope_nbytes)
            if at < crossing or (at == crossing and line.slope_nbytes < lines[successor].slope_nbytes):
                crossing, successor = at, i
        if crossing > x:
            stretches.append(Stretch(best, x, min(crossing, to_x)))
        if successor == best or crossing >= to_x:
            return stretches
        x, best = crossing, successor
