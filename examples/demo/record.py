"""What the agent's lines amount to: per phase, per placement, and in all. Pure: lines in, statistics out.

Law: nothing is smoothed, dropped or assumed. A line belongs to the phase in which it arrived; a request is lost if it
was submitted and never ended, and a duplicate if it ended more than once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STAGES = ("edge", "encode", "network", "queue", "compute")
WITHIN = 0.01  # one point of accuracy may be lost against the whole fp32 model


@dataclass(frozen=True)
class Truth:
    """What is right for each shown sample, and whether the whole fp32 model got it right.

    With labels `right` holds them; without, it holds the whole model's own answers, and accuracy is agreement.
    """

    right: tuple[int, ...]
    reference: tuple[bool, ...]
    labelled: bool

    @property
    def word(self) -> str:
        return "accuracy" if self.labelled else "agreement"


@dataclass(frozen=True, slots=True)
class Answer:
    index: int
    at_s: float
    placement: str
    kind: str
    latency_ms: float
    stages_ms: tuple[float, ...]  # in the order of STAGES; the gateway's decoding counts as queue
    up_nbytes: int
    correct: bool
    reference_correct: bool
    degraded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    index: int
    at_s: float
    code: str
    reason: str


@dataclass(frozen=True)
class Stats:
    """Of one phase, or of all. Latencies in ms, sizes in bytes per answered request."""

    name: str
    answered: int
    refused: int
    lost: int
    shares: dict[str, float]  # of the answers, by placement, largest first
    p50_ms: float
    p95_ms: float
    up_nbytes: float
    accuracy: float
    reference: float  # the whole fp32 model on the same requests
    reasons: dict[str, int]  # why answers were degraded or requests refused, most frequent first


@dataclass
class Act:
    """One phase as it was played: its name and what arrived in it."""

    name: str
    from_s: float
    answers: list[Answer] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    lost: int = 0


class Record:
    """Feed it `begin` and `add` in the order of time."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.acts: list[Act] = []
        self.ends: Counter[int] = Counter()  # how often each index ended
        self.counts: dict[str, int] | None = None  # the agent's own, from its last line
        self.endpoint = ""
        self._next = 0

    def begin(self, name: str, at_s: float) -> None:
        self.acts.append(Act(name, at_s))

    def add(self, line: Mapping[str, Any], at_s: float) -> None:
        """One line of `edge-agent infer --json`, which arrived at `at_s`. ValueError before the first `begin`."""
        if line.get("event") == "ready":
            self.endpoint = str(line["endpoint"])
        elif line.get("event") == "stopped":
            self.counts = {name: int(n) for name, n in line["counts"].items()}
        elif "index" in line:
            if not self.acts:
                raise ValueError("a request ended before the first phase began")
            self._end(self.acts[-1], line, at_s)

    def _end(self, act: Act, line: Mapping[str, Any], at_s: float) -> None:
        index = int(line["index"])
        act.lost += max(index - self._next, 0)  # lines come in the order of submission
        self._next = max(self._next, index + 1)
        self.ends[index] += 1
        if line["status"] == "answered":
            act.answers.append(self._answer(index, line, at_s))
        else:
            act.refused.append(Refused(index, at_s, str(line.get("code", line["status"])), str(line.get("reason", ""))))

    def _answer(self, index: int, line: Mapping[str, Any], at_s: float) -> Answer:
        timings = {name: float(ms) for name, ms in line["timings_ms"].items()}
        timings["queue"] = timings.get("queue", 0.0) + timings.pop("decode", 0.0)
        sample = index % len(self.truth.right)
        return Answer(
            index=index,
            at_s=at_s,
            placement=str(line["placement"]),
            kind=str(line["kind"]),
            latency_ms=float(line["latency_ms"]),
            stages_ms=tuple(timings.get(name, 0.0) for name in STAGES),
            up_nbytes=int(line["up_bytes"]),
            correct=top1(line["outputs"]) == self.truth.right[sample],
            reference_correct=self.truth.reference[sample],
            degraded=tuple(line["degraded"]),
        )

    # ---- what it amounts to -----------------------------------------------------------------------------------------

    @property
    def answers(self) -> list[Answer]:
        return [answer for act in self.acts for answer in act.answers]

    @property
    def refused(self) -> list[Refused]:
        return [refused for act in self.acts for refused in act.refused]

    @property
    def submitted(self) -> int:
        """By the agent's own count, or as far as the lines tell."""
        return self.counts["submitted"] if self.counts is not None else self._next

    @property
    def lost(self) -> int:
        """Submitted, and never ended."""
        return self.submitted - len(self.ends)

    @property
    def duplicates(self) -> int:
        return sum(times - 1 for times in self.ends.values())

    def phase(self, number: int) -> Stats:
        act = self.acts[number]
        return statistics(act.name, act.answers, act.refused, act.lost)

    def total(self) -> Stats:
        return statistics("all", self.answers, self.refused, self.lost)

    def verdict(self) -> list[str]:
        """What was not kept, one sentence each; empty when everything was."""
        if self.counts is None:
            return ["the agent did not report its counts at the end, so it is unknown whether requests were lost"]
        total, word = self.total(), self.truth.word
        broken = []
        if self.lost:
            broken.append(f"{self.lost} of {self.submitted} requests were lost: submitted, but never ended")
        if self.duplicates:
            broken.append(f"{self.duplicates} requests ended more than once")
        if not total.answered:
            broken.append("no request was answered")
        elif total.accuracy < total.reference - WITHIN:
            broken.append(
                f"{word} was {total.accuracy:.2%}, more than one point below the whole fp32 model's "
                f"{total.reference:.2%} on the same requests"
            )
        return broken


def top1(outputs: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The first output's largest class, as the agent's summary tells it; None for an output without classes."""
    first = next(iter(outputs.values()), {})
    found = first.get("argmax")
    return int(found[0]) if found else None


def statistics(name: str, answers: Sequence[Answer], refused: Sequence[Refused], lost: int) -> Stats:
    count = len(answers)
    placements = Counter(a.placement for a in answers)
    latencies = sorted(a.latency_ms for a in answers)
    reasons = Counter(why for a in answers for why in a.degraded)
    reasons.update(f"refused: {r.code} {r.reason}".strip() for r in refused)
    return Stats(
        name=name,
        answered=count,
        refused=len(refused),
        lost=lost,
        shares={id_: n / count for id_, n in placements.most_common()},
        p50_ms=quantile(latencies, 0.50),
        p95_ms=quantile(latencies, 0.95),
        up_nbytes=mean([a.up_nbytes for a in answers]),
        accuracy=mean([a.correct for a in answers]),
        reference=mean([a.reference_correct for a in answers]),
        reasons=dict(reasons.most_common()),
    )


def quantile(ascending: Sequence[float], q: float) -> float:
    """The nearest-rank quantile: always a value that occurred. NaN of nothing."""
    return ascending[max(math.ceil(q * len(ascending)) - 1, 0)] if ascending else math.nan


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Measured:
    """Mean cost of one placement at one link rate: each stage of STAGES, and the whole, in ms."""

    placement: str
    rate_mbit: float
    count: int
    stages_ms: tuple[float, ...]
    latency_ms: float


def measured(record: Record, steady: Mapping[str, float]) -> list[Measured]:
    """Mean costs of every placement that ran, by link rate. `steady` maps names of comparable phases to Mbit/s."""
    groups: dict[tuple[float, str], list[Answer]] = {}
    for act in record.acts:
        if act.name in steady:
            for answer in act.answers:
                groups.setdefault((steady[act.name], answer.placement), []).append(answer)
    return [
        Measured(
            placement,
            rate,
            len(group),
            tuple(mean([a.stages_ms[i] for a in group]) for i in range(len(STAGES))),
            mean([a.latency_ms for a in group]),
        )
        for (rate, placement), group in groups.items()
    ]
