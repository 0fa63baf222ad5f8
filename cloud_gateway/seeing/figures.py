"""What the requests of one scope add up to: counters, rates, quantiles. Pure: `now` is monotonic seconds.

    offered -> refused (code, slack left)
            -> executed (one engine run, several requests) -> answered (in time, or late)

Counters only grow. A `Row` is written by the threads that serve and copied in microseconds as a `Moment`; what takes
longer, the quantiles, is computed on the copy, when nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.seeing.sums import Refusals
from protocol.seeing.windows import Quantiles, Rates, Recent, SampleWindow, Seconds, joined, quantiles, summed

LARGEST_BATCH = 128  # larger batches are counted as this one


class Scope(NamedTuple):
    """Whose numbers these are: the labels of every series. One object per segment, made once."""

    model: str
    version: str
    placement: str


OWN = Scope("", "", "")  # the gateway's own questions: they are counted under no name


@dataclass(slots=True)
class Counters(Refusals):
    """Sums since the start; they only grow. Times are seconds."""

    offered: int = 0
    answered: int = 0  # late ones among them
    late: int = 0
    executed: int = 0  # requests that an engine has run
    rows: int = 0  # inferences: a request of three rows counts three
    executions: int = 0  # engine runs
    batch_sizes: dict[int, int] = field(default_factory=dict)  # rows of a run -> runs
    residence_s: float = 0.0  # last byte in to first byte out, of every answer
    queue_s: float = 0.0
    decode_s: float = 0.0  # a run's time counts for every request in it, here and in the next two: so does Triton
    compute_s: float = 0.0
    encode_s: float = 0.0
    busy_s: float = 0.0  # every run's time once: how long the engine was occupied
    predicted_s: float = 0.0  # what the cost curve had said for the same runs
    budget_used: float = 0.0  # sum over answers of residence / budget, where there was a budget
    budgeted: int = 0  # how many answers that are


@dataclass(frozen=True, slots=True)
class Figures:
    """One scope at one moment. Rates and quantiles are over the last minute, None where nothing happened in it."""

    scope: Scope
    engine: str  # what really ran last; empty before the first run
    counters: Counters
    qps: float  # answers a second
    goodput: float  # answers in time a second
    predicted_over_actual: float | None  # of engine runs
    residence: Quantiles | None
    queue: Quantiles | None
    compute: Quantiles | None  # of engine runs, not of requests
    in_time: tuple[int, ...]  # answers in time in every second of the window, oldest first


_ANSWERED, _IN_TIME = range(2)


class Row:
    """The account of one scope. Every method is a handful of additions."""

    __slots__ = ("_answers", "_answers_s", "_runs", "counters", "engine", "scope")

    def __init__(self, scope: Scope, *, now: float) -> None:
        self.scope = scope
        self.engine = ""
        self.counters = Counters()
        self._answers = SampleWindow()  # residence, queue
        self._answers_s = Seconds(now=now)  # answers, answers in time
        self._runs = SampleWindow()  # compute, predicted

    def refuse(self, code: str, slack_s: float, budget_s: float) -> None:
        self.counters.refuse(code, slack_s, budget_s)

    def execute(
        self,
        rows: int,
        requests: int,
        decode_s: float,
        compute_s: float,
        encode_s: float,
        predicted_s: float,
        engine: str,
        now: float,
    ) -> None:
        self.engine = engine
        counters = self.counters
        counters.executed += requests
        counters.executions += 1
        counters.rows += rows
        size = min(rows, LARGEST_BATCH)
        counters.batch_sizes[size] = counters.batch_sizes.get(size, 0) + 1
        counters.decode_s += decode_s * requests
        counters.compute_s += compute_s * requests
        counters.encode_s += encode_s * requests
        counters.busy_s += compute_s
        counters.predicted_s += predicted_s
        self._runs.add(compute_s, predicted_s, now)

    def answer(self, queue_s: float, residence_s: float, budget_s: float, late: bool, now: float) -> None:
        counters = self.counters
        counters.answered += 1
        counters.late += late
        counters.residence_s += residence_s
        counters.queue_s += queue_s
        if 0.0 < budget_s < math.inf:
            counters.budget_used += residence_s / budget_s
            counters.budgeted += 1
        self._answers_s.add(1, not late, now)
        self._answers.add(residence_s, queue_s, now)

    def copy(self, now: float) -> Moment:
        return Moment(
            self.scope,
            self.engine,
            self.counters.copy(),
            self._answers_s.copy(now),
            self._answers.copy(now),
            self._runs.copy(now),
        )


class Moment(NamedTuple):
    """A row, or several, as they stood at one moment."""

    scope: Scope
    engine: str
    counters: Counters
    rates: Rates  # answers, answers in time
    answers: Recent  # residence, queue
    runs: Recent  # compute, predicted

    def figures(self) -> Figures:
        compute, predicted = self.runs.kinds
        residence, queue = self.answers.kinds
        actual_s = float(compute.sum())
        return Figures(
            scope=self.scope,
            engine=self.engine,
            counters=self.counters,
            qps=sum(self.rates.kinds[_ANSWERED]) / self.rates.span_s,
            goodput=sum(self.rates.kinds[_IN_TIME]) / self.rates.span_s,
            predicted_over_actual=float(predicted.sum()) / actual_s if actual_s > 0.0 else None,
            residence=quantiles(residence, self.answers.window_s),
            queue=quantiles(queue, self.answers.window_s),
            compute=quantiles(compute, self.runs.window_s),
            in_time=self.rates.kinds[_IN_TIME],
        )


def together(moments: Sequence[Moment], scope: Scope) -> Moment:
    """At least one row as one: sums, and the samples of all. Where their windows differ, the shortest is told."""
    counters = Counters()
    for moment in moments:
        counters.absorb(moment.counters)
    rates = summed([m.rates for m in moments])
    return Moment(scope, "", counters, rates, joined([m.answers for m in moments]), joined([m.runs for m in moments]))
