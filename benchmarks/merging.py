"""Suite `merging`: several cuts of one model as lanes of their own, or as one lane that joins at their common suffix?

Law: both run under the gateway's real scheduler in simulated time, with the same requests, on one engine thread. A
merged batch runs each cut's own prefix for its rows (convolutions: batching pays nothing there, and each call costs
0.1 ms more) and then the common suffix once for all rows. Separate lanes run prefix and suffix of one cut as one tail.
The prefix of a cut takes between nothing and twice its mean share of what one row takes alone; loads are of the merged
lane's capacity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.policies import MOST_ROWS, PAYS, PAYS_NOTHING, Scene, ours
from benchmarks.results import Options, Result
from cloud_gateway.scheduling.simulation import NoisyEngines, Request, Summary, Tail, simulate, summarise

CALL_S = 0.0001
BUDGET_S = 0.100
SUFFIXES = {"pays 5x": PAYS, "pays nothing": PAYS_NOTHING}
CUTS = (1, 4, 8)
SHARES = (0.05, 0.2, 0.4)
LOADS = (0.3, 0.6, 0.9)
REQUESTS, QUICK_REQUESTS = 8_000, 1_000
MERGED = "merged"


def prefixes(suffix: Tail, cuts: int, share: float) -> dict[str, float]:
    """Seconds a row of each cut's own prefix; together with the suffix, `share` of a row alone in the mean."""
    mean_s = suffix.cost_s(1) * share / (1 - share)
    return {f"cut-{i}": mean_s * 2 * (i + 0.5) / cuts for i in range(cuts)}


class MergedEngines(NoisyEngines):
    """One lane for all cuts: a batch costs its prefixes, a call for each cut in it, and the suffix once."""

    def __init__(self, suffix: Tail, row_s: dict[str, float], chance: np.random.Generator) -> None:
        mean_s = float(np.mean(list(row_s.values())))
        super().__init__({MERGED: Tail(suffix.fixed_s + CALL_S, suffix.row_s + mean_s)}, chance)
        self._suffix = suffix
        self._row_s = row_s

    def cost_s(self, key: str, batch: Sequence[Request]) -> float:
        calls = len({item.cut for item in batch}) * CALL_S
        return self._suffix.cost_s(len(batch)) + calls + sum(self._row_s[item.cut] for item in batch)


def play(
    suffix: Tail,
    cuts: int,
    share: float,
    load: float,
    *,
    merged: bool,
    seed: int,
    count: int,
    budget_s: float = math.inf,
) -> tuple[Summary, float]:
    """What came of one simulation, and the merged lane's capacity in rows a second."""
    row_s = prefixes(suffix, cuts, share)
    capacity = Tail(suffix.fixed_s, suffix.row_s + float(np.mean(list(row_s.values())))).rows_per_s(MOST_ROWS)
    chance = np.random.default_rng(seed)
    times = np.cumsum(chance.exponential(1.0 / (load * capacity), count)).tolist()
    names = [f"cut-{i}" for i in chance.integers(0, cuts, count)]
    luck = np.random.default_rng([seed, 1])
    engines: NoisyEngines
    if merged:
        engines = MergedEngines(suffix, row_s, luck)
    else:
        engines = NoisyEngines({cut: Tail(suffix.fixed_s, suffix.row_s + own_s) for cut, own_s in row_s.items()}, luck)
    requests = [Request(MERGED if merged else cut, at, budget_s, cut=cut) for at, cut in zip(times, names, strict=True)]
    policy = ours(Scene(load, budget_s, tails=dict(engines.tails)), engines)
    return summarise(simulate(policy, requests, engines)), capacity


def run(options: Options) -> list[Result]:
    """Mean latency of both at three loads, and goodput at 120 % load with a budget of 100 ms."""
    seeds = range(1 if options.quick else options.repeats)
    count = QUICK_REQUESTS if options.quick else REQUESTS
    results = []
    for kind, suffix in SUFFIXES.items():
        for cuts in CUTS:
            for share in SHARES:
                name = f"suffix {kind}, {cuts} cuts, prefix {share:.0%}"
                for load in LOADS:
                    arms = [
                        [
                            play(suffix, cuts, share, load, merged=merged, seed=seed, count=count)[0].mean_s * 1e3
                            for seed in seeds
                        ]
                        for merged in (False, True)
                    ]
                    note = f"separate lanes; merged {np.median(arms[1]):.1f} ms"
                    results.append(Result.of(f"{name}, {load:.0%} load", "ms", arms[0], note=note))
                shares = []
                for merged in (False, True):
                    played = [
                        play(suffix, cuts, share, 1.2, merged=merged, seed=s, count=count, budget_s=BUDGET_S)
                        for s in seeds
                    ]
                    shares.append([100 * summary.of_capacity(capacity) for summary, capacity in played])
                note = f"separate lanes; merged {np.median(shares[1]):.0f} %"
                results.append(Result.of(f"goodput, {name}, 120% load", "% of capacity", shares[0], note=note))
    return results
