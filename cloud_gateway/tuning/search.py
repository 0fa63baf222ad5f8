"""Which setting serves most requests in time, or answers soonest at a given rate; and why it and not another. Pure.

The objective is the highest rate at which 99 % of all requests end in time. When a rate is given and several settings
bear it, the one with the lowest 99th percentile wins. Settings within `TIE` of the best are as good as it: of those the
one with the fewest processors is taken, then the smallest batch, since both leave room for other models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cloud_gateway.tuning.traffic import Measured, Outcome, Setting, play

IN_TIME = 0.99
TIE = 0.03
REQUESTS = 1500
BISECTIONS = 7  # to within 1 % of the ceiling
SEED = 5
RESTLESS = 1.5  # times the median that the slowest tenth of all runs take: then the machine was not alone

Pair = tuple[int, int]  # threads, instances
Measurements = Mapping[Pair, Measured]


@dataclass(frozen=True, slots=True)
class Goal:
    """`slo_s` is the budget of every request. `rate_per_s`: what is expected; None asks for as much as possible.

    `requests` are played for every rate that is tried.
    """

    slo_s: float
    rate_per_s: float | None = None
    requests: int = REQUESTS


@dataclass(frozen=True, slots=True)
class Scored:
    """A setting, the most requests a second that it answers in time, and what it does at `played_per_s`."""

    setting: Setting
    sustained_per_s: float
    played_per_s: float
    outcome: Outcome | None  # None: not even a trickle is in time

    def meets(self, goal: Goal) -> bool:
        return self.outcome is not None and self.sustained_per_s >= (goal.rate_per_s or 0.0)


def pairs(processors: int) -> list[Pair]:
    """Threads and instances that fit, in powers of two and the most that fit."""
    counts = sorted({*(1 << n for n in range(processors.bit_length()) if 1 << n <= processors), processors})
    return [(threads, instances) for threads in counts for instances in counts if threads * instances <= processors]


def grid(measurements: Measurements) -> Iterator[Setting]:
    """Every pair with every measured batch size as its bound."""
    for (threads, instances), measured in measurements.items():
        yield from (Setting(threads, instances, size) for size in measured.sizes)


def score(measured: Measured, setting: Setting, goal: Goal) -> Scored:
    """Find the most that `setting` sustains by bisection; the same arrivals, only denser, for every rate."""

    def at(rate_per_s: float) -> Outcome:
        return play(measured, setting, rate_per_s=rate_per_s, budget_s=goal.slo_s, requests=goal.requests, seed=SEED)

    low, high = 0.0, measured.ceiling_per_s(setting)
    best: Outcome | None = None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        outcome = at(middle)
        if outcome.share_in_time >= IN_TIME:
            low, best = middle, outcome
        else:
            high = middle
    if goal.rate_per_s is not None and best is not None and low >= goal.rate_per_s:
        return Scored(setting, low, goal.rate_per_s, at(goal.rate_per_s))
    return Scored(setting, low, low, best)


def search(
    measurements: Measurements, settings: Iterable[Setting], goal: Goal, *, out_of_time: Callable[[], bool]
) -> list[Scored]:
    """Score `settings`, those with the highest ceiling first, until time is over; at least one is scored.

    What could not even reach the best with full batches all the time is left out.
    """
    order = sorted(
        settings, key=lambda s: (-measurements[s.threads, s.instances].ceiling_per_s(s), s.processors, s.max_batch_size)
    )
    found: list[Scored] = []
    for setting in order:
        if found and out_of_time():
            break
        measured = measurements[setting.threads, setting.instances]
        most = max((each.sustained_per_s for each in found), default=0.0)
        if goal.rate_per_s is None and measured.ceiling_per_s(setting) < most * (1 - TIE):
            continue
        found.append(score(measured, setting, goal))
    return found


def best_of(found: Sequence[Scored], goal: Goal) -> Scored | None:
    """The one to recommend; None when no setting answers in time."""
    usable = [each for each in found if each.outcome is not None and each.sustained_per_s > 0]
    if not usable:
        return None
    bearing = [each for each in usable if each.meets(goal)]
    if goal.rate_per_s is not None and bearing:
        soonest = min(_p99(each) for each in bearing)
        equals = [each for each in bearing if _p99(each) <= soonest * (1 + TIE)]
    else:
        most = max(each.sustained_per_s for each in usable)
        equals = [each for each in usable if each.sustained_per_s >= most * (1 - TIE)]
    return min(equals, key=lambda e: (e.setting.processors, e.setting.max_batch_size, e.setting.delay_ms, e.setting))


def why(best: Scored, found: Sequence[Scored], measurements: Measurements, goal: Goal) -> list[str]:
    """Sentences with the numbers that decided."""
    setting = best.setting
    measured = measurements[setting.threads, setting.instances]
    outcome = best.outcome
    said = [
        f"{setting} answers {best.sustained_per_s:.0f} requests/s within {goal.slo_s * 1e3:g} ms, 99 of 100 of them"
    ]
    if outcome is not None:
        said.append(
            f"at {best.played_per_s:.0f}/s half of the answers come within {outcome.p50_s * 1e3:.1f} ms and 99 % "
            f"within {outcome.p99_s * 1e3:.1f} ms, in batches of {outcome.mean_batch:.1f} on average"
        )
    one, many = measured.median_s(1), measured.median_s(setting.max_batch_size)
    if setting.max_batch_size > 1:
        gain = setting.max_batch_size * one / many
        said.append(
            f"a batch of {setting.max_batch_size} takes {many * 1e3:.2f} ms where one row takes {one * 1e3:.2f}: "
            f"{gain:.1f} times the rows a second"
        )
    else:
        said.append(f"one row takes {one * 1e3:.2f} ms, and larger batches do not raise what is answered in time")
    others = {(each.setting.threads, each.setting.instances): each for each in sorted(found, key=_sustained)}
    for pair, other in others.items():
        if pair != (setting.threads, setting.instances):
            said.append(f"the best with {other.setting} answers {other.sustained_per_s:.0f}/s")
    if measured.unrest() > RESTLESS:
        said.append(
            f"the slowest tenth of all runs took {measured.unrest():.1f} times the median: something else was running, "
            "measure again on a machine left alone"
        )
    if goal.rate_per_s is not None and not best.meets(goal):
        said.append(
            f"no setting bears the {goal.rate_per_s:g}/s that are expected; allow more time, add processors or another "
            "gateway"
        )
    return said


def as_toml(model: str, best: Scored) -> str:
    """The sections to put into the gateway's file. Other models may want more workers; fewer would bind this one."""
    setting = best.setting
    lines = ["[scheduling]", f"workers = {setting.instances}", "", f'[models.override."{model}"]']
    lines += [f"max_batch_size = {setting.max_batch_size}", f"instances = {setting.instances}"]
    lines.append(f"threads = {setting.threads}")
    if setting.delay_ms:
        lines.append(f"efficiency_delay_ms = {setting.delay_ms:g}")
    return "\n".join(lines) + "\n"


def _p99(each: Scored) -> float:
    return each.outcome.p99_s if each.outcome is not None else float("inf")


def _sustained(each: Scored) -> float:
    return each.sustained_per_s
