"""`partitioner simulate`: a bundle's placements over a trace, beside an oracle and every fixed placement.

All of them serve the same requests with the same luck; a request that is late counts with its whole budget.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from partitioner.people import traces
from partitioner.people.simulate import Replay
from partitioner.people.traces import BYTES_PER_MBIT, Trace
from partitioner.people.world import Outcome, Request, Scene, hindsight, requests
from protocol.bundle import Bundle
from protocol.control.planner import HYSTERESIS, Candidate
from protocol.errors import InputError
from protocol.latency import LinkState, PlacementCost, latency_s

MOST_NBYTES = 64 << 20  # of a trace file
STEP_FACTOR, STEADY_S = 1.5, 2.0  # what counts as a step: the rate changes by this factor and then holds this long
MOST_STEPS = 50


@dataclass(frozen=True)
class Drive:
    """What the user asked for. `trace` is a built-in name or a file; `rtt_s` None means the bundle's own."""

    trace: str
    seed: int = 1
    rtt_s: float | None = None
    requests_per_s: float = 5.0
    deadline_s: float = 1.0


class Run(msgspec.Struct, frozen=True):
    """How one way of choosing did. `shares` of the requests that each placement answered."""

    name: str
    answered: int
    late: int
    mean_s: float
    p50_s: float
    p95_s: float
    shares: dict[str, float]


class Reaction(msgspec.Struct, frozen=True):
    """One step of the trace: how many requests were placed before `best`, or what is about as good, was `chosen`.

    Both are None when that was not before the next step.
    """

    at_s: float
    from_mbit: float
    to_mbit: float
    best: str
    chosen: str | None
    requests: int | None


class Simulated(msgspec.Struct, frozen=True):
    """What a replay showed. `regret` is mean latency over the oracle's, less 1; `versus` the same for each fixed
    placement (negative: better than it). The oracle knows the trace and all queues: it takes for each request what
    answers first, or one placement throughout, whichever is better in the mean. Where requests come faster than some
    placements can answer it may be beaten by a little: it gives up no request's advantage for a later one's.
    """

    model: str
    trace: str
    length_s: float
    mean_mbit: float
    seed: int
    rtt_s: float
    requests_per_s: float
    deadline_s: float
    requests: int
    isthmus: Run
    oracle: Run
    fixed: tuple[Run, ...]
    switches: int
    reactions: tuple[Reaction, ...]
    regret: float
    versus: dict[str, float]


def simulate_bundle(path: Path, order: Drive) -> Simulated:
    """`simulate` with the placements of the bundle at `path`. Raises BundleError too."""
    manifest = Bundle.open(path).manifest
    costs = {p.id: p.cost for p in manifest.placements}
    files = {p.id: (p.head or "", p.tail or "") for p in manifest.placements}
    return simulate(manifest.model.name, costs, manifest.conditions.rtt_s, order, files=files)


def load_trace(name: str, chance: np.random.Generator) -> Trace:
    """The built-in trace `name`, or the file of that name. Raises InputError."""
    if name in traces.BUILT_IN:
        return traces.BUILT_IN[name](chance)
    path = Path(name)
    known = ", ".join(traces.BUILT_IN)
    if not path.is_file():
        raise InputError(f"there is no trace or file {name!r}", f"give one of {known}, or a file of `t_s,mbit` lines")
    if path.stat().st_size > MOST_NBYTES:
        raise InputError(f"{name} is larger than {MOST_NBYTES >> 20} MiB", "cut it or thin it out")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read as text ({error})", "give a text file of `t_s,mbit` lines") from error
    return traces.parse(path.name, text)


def simulate(
    model: str,
    costs: dict[str, PlacementCost],
    rtt_s: float,
    order: Drive,
    *,
    files: Mapping[str, tuple[str, str]] | None = None,
) -> Simulated:
    """Replay `order.trace` over the placements in `costs`. Deterministic by seed. Raises InputError.

    `files` names each placement's head and tail: codings of one cut share them, and what is learned about them.
    """
    if order.seed < 0:
        raise InputError(f"the seed {order.seed} is negative", "give 0 or more")
    # Two streams, so that another number of requests does not give another trace.
    of_trace, of_requests = (np.random.default_rng(seed) for seed in np.random.SeedSequence(order.seed).spawn(2))
    trace = load_trace(order.trace, of_trace)
    candidates = tuple(Candidate(id_, cost, *(files or {}).get(id_, ("", ""))) for id_, cost in costs.items())
    rtt_s = rtt_s if order.rtt_s is None else order.rtt_s
    scene = Scene(trace, candidates, rtt_s, order.requests_per_s, order.deadline_s)
    asked = requests(scene, of_requests)
    ours = Replay(scene, asked).run()
    fixed = tuple(run_of(c.id, hindsight(scene, asked, (c,))) for c in candidates)
    # Greedy hindsight fills queues that later requests wait in: under overload one placement throughout beats it.
    greedy = run_of("oracle", hindsight(scene, asked, candidates))
    oracle = msgspec.structs.replace(min((greedy, *fixed), key=lambda run: run.mean_s), name="oracle")
    isthmus = run_of("isthmus", ours)
    return Simulated(
        model=model,
        trace=trace.name,
        length_s=trace.length_s,
        mean_mbit=trace.mean_mbit,
        seed=order.seed,
        rtt_s=rtt_s,
        requests_per_s=order.requests_per_s,
        deadline_s=order.deadline_s,
        requests=len(asked),
        isthmus=isthmus,
        oracle=oracle,
        fixed=fixed,
        switches=sum(a.decided != b.decided for a, b in pairwise(ours)),
        reactions=tuple(reactions(scene, asked, ours)),
        regret=isthmus.mean_s / oracle.mean_s - 1,
        versus={run.name: isthmus.mean_s / run.mean_s - 1 for run in fixed},
    )


def run_of(name: str, outcomes: Sequence[Outcome]) -> Run:
    """The figures of one run. A late request has no placement that answered it."""
    latencies = sorted(o.latency_s for o in outcomes)
    late = sum(o.late for o in outcomes)
    count = Counter(o.placement for o in outcomes if not o.late)
    return Run(
        name=name,
        answered=len(outcomes) - late,
        late=late,
        mean_s=sum(latencies) / len(latencies),
        p50_s=_quantile(latencies, 0.5),
        p95_s=_quantile(latencies, 0.95),
        shares={id_: n / len(outcomes) for id_, n in count.most_common()},
    )


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, max(0, math.ceil(share * len(ascending)) - 1))]


def reactions(scene: Scene, asked: Sequence[Request], outcomes: Sequence[Outcome]) -> list[Reaction]:
    """For every step of the trace that lasts: after how many requests the placement for the new rate was chosen."""
    steps = _steps(scene.trace)
    if len(steps) > MOST_STEPS:
        return []
    ends = [*steps[1:], scene.trace.length_s]
    return [_reaction(scene, at, end, asked, outcomes) for at, end in zip(steps, ends, strict=False)]


def _steps(trace: Trace) -> list[float]:
    """When the rate changes by a factor and holds."""
    changes = trace.changes_s()
    found = []
    for at, following in zip(changes, [*changes[1:], trace.length_s], strict=False):
        before, after = trace.rate_at(math.nextafter(at, 0.0)), trace.rate_at(at)
        low, high = sorted((before, after))
        if high >= STEP_FACTOR * low and following - at >= STEADY_S:
            found.append(at)
    return found


def _reaction(
    scene: Scene, at_s: float, end_s: float, asked: Sequence[Request], outcomes: Sequence[Outcome]
) -> Reaction:
    before, after = scene.trace.rate_at(math.nextafter(at_s, 0.0)), scene.trace.rate_at(at_s)
    predicted = {c.id: _predicted_s(scene, c.cost, after) for c in scene.candidates}
    best = min(predicted, key=predicted.__getitem__)
    good = {id_ for id_, seconds in predicted.items() if (1 - HYSTERESIS) * seconds <= predicted[best]}
    placed = [o.decided for r, o in zip(asked, outcomes, strict=True) if at_s <= r.at_s < end_s]
    count = next((i for i, id_ in enumerate(placed) if id_ in good), None)
    chosen = None if count is None else placed[count]
    return Reaction(at_s, before / BYTES_PER_MBIT, after / BYTES_PER_MBIT, best, chosen, count)


def _predicted_s(scene: Scene, cost: PlacementCost, bytes_per_s: float) -> float:
    if bytes_per_s <= 0:
        return math.inf if cost.crosses else latency_s(cost, LinkState(1.0, scene.rtt_s))
    return latency_s(cost, LinkState(bytes_per_s, scene.rtt_s, bytes_per_s))
