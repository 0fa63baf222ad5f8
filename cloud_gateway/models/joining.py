"""Tails that end in the same layers, as one lane: each cut's bridge runs for its rows, then the suffix once for all.

    cut-1: rows -> bridge --+
                            +--> joined along the batch axes -> suffix -> each request's rows
    cut-2: rows -> bridge --+

Both ways are measured at warm-up, and cuts share a lane only where one batch of all of them takes clearly less time
than a batch of each: elsewhere a request would wait for company that does not help it (docs/scheduling.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from cloud_gateway.models.asking import doubt
from cloud_gateway.models.lanes import BATCH_OVERHEAD_S, LEAST_RUNS, Bridge, Lane, LaneRules, zeros
from cloud_gateway.models.served import Joint, Tail
from protocol.bundle import BoundaryTensor
from protocol.engines.base import Engine
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors

# What comes through one bridge, and its rows; None where it was made for the suffix itself.
Fed = tuple[Bridge | None, Tensors, int]

TURNS, TURNS_S = 9, 0.5
WORTH = 0.9  # of the time apart: less is won than what joining costs under light load (8 to 12 %)


@dataclass(frozen=True, slots=True)
class Alike:
    """Tails of one version with a suffix in common. `lanes` run the tails as they are, each once."""

    tails: tuple[Tail, ...]
    lanes: tuple[Lane, ...]
    suffix: Tail
    batch_axes: Mapping[str, int]
    bridges: Mapping[str, Tail]  # by key

    @property
    def key(self) -> str:
        return "+".join((self.suffix.key, *sorted(self.bridges)))


def alike(tails: Sequence[Tail], lanes: Sequence[Lane]) -> Iterator[Alike]:
    """What might share a lane: two tails or more that take batches, of shapes that are known but for the batch."""
    groups: dict[str, list[tuple[Tail, Lane, Joint]]] = {}
    for tail, lane in zip(tails, lanes, strict=True):
        may_batch = lane.batchable and None not in lane.batch_axes.values() and not lane.rules.sizes
        if tail.joint is not None and may_batch and not lane.is_guessed:
            groups.setdefault(tail.joint.suffix.key, []).append((tail, lane, tail.joint))
    for group in groups.values():
        own = tuple(dict.fromkeys(lane for _, lane, _ in group))
        if len(own) > 1:
            joint, bridges = group[0][2], {joint.bridge.key: joint.bridge for *_, joint in group}
            yield Alike(tuple(tail for tail, *_ in group), own, joint.suffix, joint.batch_axes, bridges)


class JoinedLane(Lane):
    """A lane whose engine is the suffix. Requests come through one of its bridges; its curve is of the whole."""

    def __init__(self, key: str, engine: Engine, found: Alike, bridges: Mapping[str, Bridge], rules: LaneRules) -> None:
        boundary = tuple(BoundaryTensor(spec, "raw", found.batch_axes[spec.name]) for spec in engine.inputs)
        axes = found.suffix.output_axes
        self.bridges = bridges  # by the digest of their graph
        super().__init__(key, engine, boundary=boundary, output_axes=axes, batchable=True, rules=rules)

    @property
    def engines(self) -> tuple[Engine, ...]:
        return self.engine, *(bridge.engine for bridge in self.bridges.values())

    def deactivate(self) -> None:
        super().deactivate()
        for bridge in self.bridges.values():
            bridge.engine.deactivate()

    def trial(self, rows: int) -> Callable[[], object]:
        """The rows come through as many bridges as they can, which is the dearest mixture."""
        count = len(self.bridges)
        shares = [(b, rows // count + (i < rows % count)) for i, b in enumerate(self.bridges.values())]
        fed = [(b, zeros(b.engine.inputs, b.batch_axes, n), n) for b, n in shares if n]
        return lambda: self.engine.infer(bridged(self, fed))


def is_worth(lane: Lane, apart: Sequence[Lane]) -> bool:
    """Whether a full batch of all cuts takes clearly less time in one lane than in as many as there are cuts.

    Both are run in turn, and their fastest runs compared: noise only ever adds time.
    """
    if lane.max_rows < 2:
        return False
    each = max(lane.max_rows // len(apart), 1)
    trials = [lane.trial(each * len(apart)), *(other.trial(each) for other in apart)]
    fastest_s = [math.inf] * len(trials)
    began = time.perf_counter()
    for turn in range(TURNS):
        if turn >= LEAST_RUNS and time.perf_counter() - began > TURNS_S:
            break
        for i, trial in enumerate(trials):
            start = time.perf_counter()
            trial()
            fastest_s[i] = min(fastest_s[i], time.perf_counter() - start + BATCH_OVERHEAD_S)
    return fastest_s[0] < WORTH * sum(fastest_s[1:])


def joined_lane(
    key: str, found: Alike, make: Callable[[Tail], Engine], *, worth: Callable[[Lane, Sequence[Lane]], bool] = is_worth
) -> JoinedLane | None:
    """A warm lane for all that was found alike, if it is worth it; the lanes apart are warm too. Raises EngineError."""
    with ExitStack() as stack:

        def active(part: Tail) -> Engine:
            engine = make(part)
            engine.activate()
            stack.callback(engine.deactivate)
            return engine

        engine, wanted = active(found.suffix), found.batch_axes.keys()
        bridges = {key: Bridge(key, active(part), part.boundary or ()) for key, part in found.bridges.items()}
        given = [{spec.name for spec in bridge.engine.outputs} for bridge in bridges.values()]
        if any(names != wanted for names in (*given, {spec.name for spec in engine.inputs})):
            raise EngineError("a bridge does not give what the common suffix takes", "rebuild the bundle")
        lane = JoinedLane(key, engine, found, bridges, found.lanes[0].rules)
        lane.warm_up()
        if worth(lane, found.lanes):
            stack.pop_all()
            return lane
    return None


def bridged(lane: Lane, fed: Sequence[Fed]) -> Tensors:
    """What the lane's engine takes of all rows, in the order given. Raises EngineError."""
    if len(fed) == 1:
        return _through(lane, *fed[0])
    made = [_through(lane, *one) for one in fed]
    tensors: dict[str, Array] = {}
    for name, axis in lane.batch_axes.items():
        parts = [each[name] for each in made]
        # What differs in more than its rows would be handed to the wrong caller.
        if axis is None or len({_row(array, axis, one[2]) for array, one in zip(parts, fed, strict=True)}) > 1:
            raise EngineError(f"the bridges disagree about {name!r}", "rebuild the bundle")
        tensors[name] = np.concatenate(parts, axis)
    return tensors


def check_rows(engine: Engine, arrays: Tensors, axes: Mapping[str, int | None], rows: int) -> None:
    """What returns fewer rows than it was given would hand one caller another's answer. Raises EngineError.

    Whether the graph does so, or this engine alone, is known when another one has been asked.
    """
    for name, array in arrays.items():
        axis = axes[name]
        if axis is None or array.ndim <= axis or array.shape[axis] % rows:
            error = EngineError(f"output {name!r} has shape {list(array.shape)} for {rows} rows", "serve it at batch 1")
            doubt(engine, error)
            raise error


def _through(lane: Lane, bridge: Bridge | None, tensors: Tensors, rows: int) -> Tensors:
    if bridge is None:
        return tensors
    made = bridge.engine.infer(tensors)
    check_rows(bridge.engine, made, lane.batch_axes, rows)
    return made


def _row(array: Array, axis: int, rows: int) -> tuple[object, ...]:
    """What of an array is one row."""
    return array.dtype.str, array.shape[:axis], array.shape[axis] // rows, array.shape[axis + 1 :]
