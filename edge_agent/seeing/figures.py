"""What the requests of one scope add up to on the device: counters, rates, quantiles. Pure: `now` is monotonic seconds.

    finished -> refused (code, slack left)
             -> answered (in time, or late; as planned, or degraded for a cause) with the time of every stage

Counters only grow. A `Row` is written once for each finished request and copied in microseconds as a `Moment`; what
takes longer, the quantiles, is computed on the copy, when nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from protocol.seeing.sums import Refusals, count
from protocol.seeing.windows import Quantiles, Rates, Recent, SampleWindow, Seconds, joined, quantiles, summed


class Scope(NamedTuple):
    """Whose numbers these are: the labels of every series. Without a gateway it was answered on the device alone."""

    model: str
    version: str
    placement: str
    gateway: str
    precision: str


class Stages(NamedTuple):
    """Seconds of one answer; `outcomes.StageTimings` without its `total_s`."""

    edge_s: float
    encode_s: float
    network_s: float
    queue_s: float
    decode_s: float
    compute_s: float


@dataclass(slots=True)
class Counters(Refusals):
    """Sums since the start; they only grow. Times are seconds."""

    answered: int = 0  # late and degraded ones among them
    late: int = 0
    degraded: int = 0  # answers from another placement than the plan wanted
    causes: dict[str, int] = field(default_factory=dict)  # why; one answer may have several
    repeated: int = 0  # attempts after the first
    hedged: int = 0  # answers for which both sides worked at once
    up_nbytes: int = 0
    down_nbytes: int = 0
    total_s: float = 0.0  # submit to answer
    edge_s: float = 0.0
    encode_s: float = 0.0
    network_s: float = 0.0
    queue_s: float = 0.0  # at the gateway
    decode_s: float = 0.0
    compute_s: float = 0.0  # at the gateway
    waited_s: float = 0.0  # on the device, for its turn or for the gateway: the rest of the total
    budget_used: float = 0.0  # sum over answers of total / budget, where there was a budget
    budgeted: int = 0  # how many answers that are
    predicted: int = 0  # answers for which the plan had a prediction; the next two are of those
    predicted_s: float = 0.0
    actual_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """One scope at one moment. Rates and quantiles are over the last minute, None where nothing happened in it."""

    scope: Scope
    engine: str  # what really ran last; empty before the first answer
    counters: Counters
    qps: float  # answers a second
    goodput: float  # answers in time a second
    predicted_over_actual: float | None
    prediction_error: float | None  # mean of |predicted - actual| / actual
    total: Quantiles | None
    edge: Quantiles | None
    network: Quantiles | None  # of answers that came over the link, and the next
    gateway: Quantiles | None  # queue, decode and compute there
    in_time: tuple[int, ...]  # answers in time in every second of the window, oldest first


_ANSWERED, _IN_TIME = range(2)


class Row:
    """The account of one scope. Every method is a handful of additions."""

    __slots__ = ("_answers", "_answers_s", "_predictions", "_remote", "counters", "engine", "scope")

    def __init__(self, scope: Scope, *, now: float) -> None:
        self.scope = scope
        self.engine = ""
        self.counters = Counters()
        self._answers = SampleWindow()  # total, edge
        self._remote = SampleWindow()  # network, gateway
        self._predictions = SampleWindow()  # predicted, actual
        self._answers_s = Seconds(now=now)  # answers, answers in time

    def answer(
        self,
        stages: Stages,
        total_s: float,
        budget_s: float,
        predicted_s: float | None,
        causes: Sequence[str],
        attempts: int,
        hedged: bool,
        remote: bool,
        nbytes: tuple[int, int],
        engine: str,
        now: float,
    ) -> None:
        """`nbytes` are those that went up and came down, `remote` is whether any did.

        A budget of 0 or infinity is none, and then nothing is late.
        """
        c = self.counters
        self.engine = engine
        c.answered += 1
        c.edge_s += stages.edge_s
        c.encode_s += stages.encode_s
        c.network_s += stages.network_s
        c.queue_s += stages.queue_s
        c.decode_s += stages.decode_s
        c.compute_s += stages.compute_s
        c.total_s += total_s
        c.waited_s += max(total_s - sum(stages), 0.0)
        c.up_nbytes += nbytes[0]
        c.down_nbytes += nbytes[1]
        c.hedged += hedged
        if attempts > 1:
            c.repeated += attempts - 1
        if causes:
            c.degraded += 1
            for cause in causes:
                count(c.causes, cause)
        late = False
        if 0.0 < budget_s < math.inf:
            late = total_s > budget_s
            c.late += late
            c.budget_used += total_s / budget_s
            c.budgeted += 1
        self._answers_s.add(1, not late, now)
        self._answers.add(total_s, stages.edge_s, now)
        if remote:
            self._remote.add(stages.network_s, stages.queue_s + stages.decode_s + stages.compute_s, now)
        if predicted_s is not None and predicted_s > 0.0:
            c.predicted += 1
            c.predicted_s += predicted_s
            c.actual_s += total_s
            self._predictions.add(predicted_s, total_s, now)

    def copy(self, now: float) -> Moment:
        return Moment(
            self.scope,
            self.engine,
            self.counters.copy(),
            self._answers_s.copy(now),
            self._answers.copy(now),
            self._remote.copy(now),
            self._predictions.copy(now),
        )


class Moment(NamedTuple):
    """A row, or several, as they stood at one moment."""

    scope: Scope
    engine: str
    counters: Counters
    rates: Rates  # answers, answers in time
    answers: Recent  # total, edge
    remote: Recent  # network, gateway
    predictions: Recent  # predicted, actual

    def figures(self) -> Figures:
        total, edge = self.answers.kinds
        network, gateway = self.remote.kinds
        predicted, actual = self.predictions.kinds
        positive = actual > 0.0
        predicted, actual = predicted[positive], actual[positive]
        return Figures(
            scope=self.scope,
            engine=self.engine,
            counters=self.counters,
            qps=sum(self.rates.kinds[_ANSWERED]) / self.rates.span_s,
            goodput=sum(self.rates.kinds[_IN_TIME]) / self.rates.span_s,
            predicted_over_actual=float(predicted.sum() / actual.sum()) if len(actual) else None,
            prediction_error=float(np.mean(np.abs(predicted - actual) / actual)) if len(actual) else None,
            total=quantiles(total, self.answers.window_s),
            edge=quantiles(edge, self.answers.window_s),
            network=quantiles(network, self.remote.window_s),
            gateway=quantiles(gateway, self.remote.window_s),
            in_time=self.rates.kinds[_IN_TIME],
        )


def together(moments: Sequence[Moment], scope: Scope) -> Moment:
    """At least one row as one: sums, and the samples of all. Where their windows differ, the shortest is told."""
    counters = Counters()
    for moment in moments:
        counters.absorb(moment.counters)
    return Moment(
        scope,
        "",
        counters,
        summed([m.rates for m in moments]),
        joined([m.answers for m in moments]),
        joined([m.remote for m in moments]),
        joined([m.predictions for m in moments]),
    )
