"""The placement problem as plain nouns: units of work, flows of bytes, and what one placement costs. Pure.

    unit    steps that are placed together; takes `edge_s` on the device or `cloud_s` at the gateway
    flow    one tensor: made by a unit (or given to the device), read by units; paid once, however many read it
    placement    the set of units on the device. It must hold every predecessor of its members, since nothing that was
                 sent to the gateway comes back before the results do

What crosses is every flow that is made on the device and read at the gateway. A model output made at the gateway pays
its bytes on the way down; one that is made on the device pays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from partitioner.graph.topology import Topology
from protocol.errors import InputError
from protocol.latency import PlacementCost

# Small inputs of the model (a mask, token ids) are sent rather than what is made of them: they code to almost nothing.
SMALL_NBYTES = 4096.0

Side = Literal["edge", "cloud"]


class Unit(NamedTuple):
    """Work that is placed as a whole. Seconds per request on either side; memory on whichever side has it.

    `energy_j` is what the device spends on it. `pinned` fixes the side.
    """

    name: str
    edge_s: float
    cloud_s: float
    memory_nbytes: int = 0
    energy_j: float = 0.0
    pinned: Side | None = None


class Flow(NamedTuple):
    """One tensor. `source` is the unit that makes it, None for a model input, which starts on the device.

    `up_nbytes` are bytes on the wire after coding; infinite for what cannot be sent, which then never crosses.
    `down_nbytes` is paid when the flow is a model output made at the gateway.
    """

    name: str
    source: int | None
    readers: tuple[int, ...]
    up_nbytes: float
    encode_s: float = 0.0
    decode_s: float = 0.0
    down_nbytes: float = 0.0


class Size(NamedTuple):
    """What one tensor costs to send under one codec: bytes on the wire, seconds to encode and to decode."""

    nbytes: float
    encode_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Problem:
    """Units in topological order and the flows between them; a directed acyclic graph.

    `radio_j_per_byte` is the device's energy for a byte up or down. `steps` says which step of the topology each unit
    is, where the problem was made from one. Raises InputError for numbers that are no costs, and for flows that go
    backwards.
    """

    units: tuple[Unit, ...]
    flows: tuple[Flow, ...]
    radio_j_per_byte: float = 0.0
    steps: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for unit in self.units:
            _check_numbers(unit.name, (unit.edge_s, unit.cloud_s, unit.memory_nbytes, unit.energy_j))
        for flow in self.flows:
            _check_numbers(flow.name, (flow.encode_s, flow.decode_s, flow.down_nbytes))
            if not flow.up_nbytes >= 0:
                raise InputError(f"tensor {flow.name!r} has {flow.up_nbytes} bytes", "sizes are 0 or more")
            self._check_order(flow)

    def _check_order(self, flow: Flow) -> None:
        source = -1 if flow.source is None else flow.source
        if flow.readers and not (source < min(flow.readers) and max(flow.readers) < len(self.units)):
            raise InputError(
                f"tensor {flow.name!r} is made by unit {source} and read by units {flow.readers}",
                "give the units in topological order: every reader stands after what it reads",
            )

    def scaled(self, *, edge: float = 1.0, cloud: float = 1.0) -> Problem:
        """The same problem on a device `edge` times as slow and a gateway `cloud` times as slow, codecs included."""
        units = tuple(u._replace(edge_s=u.edge_s * edge, cloud_s=u.cloud_s * cloud) for u in self.units)
        flows = tuple(f._replace(encode_s=f.encode_s * edge, decode_s=f.decode_s * cloud) for f in self.flows)
        return replace(self, units=units, flows=flows)

    def pinned(self, names: Iterable[str]) -> Problem:
        """The same problem with these units pinned to the device. Raises InputError for a name that no unit has."""
        wanted = set(names)
        unknown = sorted(wanted - {u.name for u in self.units})
        if unknown:
            raise InputError(
                f"the problem has no unit {unknown[0]!r} to keep on the device", "name a node of the model"
            )
        units = tuple(u._replace(pinned="edge") if u.name in wanted else u for u in self.units)
        return replace(self, units=units)

    def is_closed(self, on_edge: Iterable[int]) -> bool:
        """Whether every predecessor of the units on the device is there too."""
        return self._culprit(frozenset(on_edge)) is None

    def _culprit(self, on_edge: frozenset[int]) -> tuple[Flow, int] | None:
        """A flow that is made at the gateway, and the unit on the device that would read it."""
        for flow in self.flows:
            if flow.source is not None and flow.source not in on_edge:
                for reader in flow.readers:
                    if reader in on_edge:
                        return flow, reader
        return None


def _check_numbers(name: str, numbers: Iterable[float]) -> None:
    for number in numbers:
        if not (number >= 0 and math.isfinite(number)):
            raise InputError(f"{name!r} costs {number}", "times, sizes and energies are finite and 0 or more")


class Solution(NamedTuple):
    """One placement: units on the device, the tensors that cross in the order of the graph, and the cost."""

    on_edge: frozenset[int]
    crossing: tuple[str, ...]
    cost: PlacementCost


def evaluate(problem: Problem, on_edge: Iterable[int]) -> Solution:
    """What a placement costs, straight from the definition; each tensor that crosses is paid once.

    Raises InputError if the set is not closed under predecessors, holds a unit pinned to the gateway or lacks one
    pinned to the device, or if a tensor that cannot be sent would have to cross.
    """
    edge = frozenset(on_edge)
    _check_placement(problem, edge)
    crossing = [f for f in problem.flows if crosses(f, edge)]
    down = [f for f in problem.flows if f.down_nbytes and f.source is not None and f.source not in edge]
    here = [problem.units[i] for i in sorted(edge)]
    there = [unit for i, unit in enumerate(problem.units) if i not in edge]
    up_nbytes, down_nbytes = sum(f.up_nbytes for f in crossing), sum(f.down_nbytes for f in down)
    cost = PlacementCost(
        edge_s=sum(u.edge_s for u in here),
        encode_s=sum(f.encode_s for f in crossing),
        up_nbytes=up_nbytes,
        decode_s=sum(f.decode_s for f in crossing),
        tail_s=sum(u.cloud_s for u in there),
        down_nbytes=down_nbytes,
        edge_memory_nbytes=sum(u.memory_nbytes for u in here),
        cloud_memory_nbytes=sum(u.memory_nbytes for u in there),
        energy_j=sum(u.energy_j for u in here) + problem.radio_j_per_byte * (up_nbytes + down_nbytes),
    )
    return Solution(edge, tuple(f.name for f in crossing), cost)


def crosses(flow: Flow, on_edge: frozenset[int]) -> bool:
    """Whether the flow is made on the device and read at the gateway."""
    return (flow.source is None or flow.source in on_edge) and any(r not in on_edge for r in flow.readers)


def _check_placement(problem: Problem, edge: frozenset[int]) -> None:
    culprit = problem._culprit(edge)
    if culprit is not None:
        flow, reader = culprit
        raise InputError(
            f"{problem.units[reader].name!r} is on the device but reads {flow.name!r}, which is made at the gateway",
            "a placement holds every predecessor of its members",
        )
    for i, unit in enumerate(problem.units):
        if unit.pinned is not None and (unit.pinned == "edge") != (i in edge):
            raise InputError(f"{unit.name!r} is pinned to the {unit.pinned} side", "leave it there")
    for flow in problem.flows:
        if flow.up_nbytes == math.inf and crosses(flow, edge):
            raise InputError(f"tensor {flow.name!r} cannot be sent", "keep its readers on the side that makes it")


def problem_of(
    topology: Topology,
    *,
    edge_s: Sequence[float],
    cloud_s: Sequence[float],
    sizes: Mapping[str, Size],
    down_nbytes: Mapping[str, float] | None = None,
    memory_nbytes: Sequence[int] | None = None,
    energy_j: Sequence[float] | None = None,
    pinned: Mapping[str, Side] | None = None,
    radio_j_per_byte: float = 0.0,
) -> Problem:
    """The placement problem of a network.

    `edge_s`, `cloud_s`, `memory_nbytes` and `energy_j` have one entry for each step of the topology, `sizes` one for
    each tensor that may cross (a tensor without one never crosses), `down_nbytes` for model outputs (default: their
    plain size), `pinned` a side by step name.

    Steps that depend on no input are on both sides and cost nothing. So are those of the topology's `recomputed` steps
    whose bases are no larger than what they write: sending the bases instead is never worse. Who reads such a tensor
    counts as a reader of what lies beneath it. Where the result is smaller (a shape) the step is a unit like others.
    Raises InputError for a list of the wrong length or an unknown name.
    """
    count = len(topology.steps)
    for label, values in (("edge_s", edge_s), ("cloud_s", cloud_s), ("memory", memory_nbytes), ("energy", energy_j)):
        if values is not None and len(values) != count:
            raise InputError(f"{label} has {len(values)} entries for {count} steps", "give one for each step")
    sides = dict(pinned or {})
    unknown = sorted(sides.keys() - {step.name for step in topology.steps})
    if unknown:
        raise InputError(f"the model has no node {unknown[0]!r} to pin", "`partitioner inspect MODEL` lists the nodes")
    placed = _placed_steps(topology)
    units = [
        Unit(
            topology.steps[i].name,
            edge_s[i],
            cloud_s[i],
            memory_nbytes[i] if memory_nbytes else 0,
            energy_j[i] if energy_j else 0.0,
            sides.get(topology.steps[i].name),
        )
        for i in placed
    ]
    flows = _flows(topology, placed, sizes, down_nbytes)
    return Problem(tuple(units), tuple(flows), radio_j_per_byte, tuple(placed))


def _placed_steps(topology: Topology) -> list[int]:
    """Live steps that are on one side only. One that makes a model output always is."""
    outputs, inputs = set(topology.outputs), set(topology.inputs)
    beneath: dict[str, frozenset[str]] = {}  # for what is on both sides: the tensors it rests on, which may cross
    placed = []
    for i in topology.live_steps:
        step = topology.steps[i]
        live = [name for name in step.inputs if name in topology.live]
        bases = frozenset[str]().union(*(beneath.get(name, frozenset((name,))) for name in live))
        few = SMALL_NBYTES if bases <= inputs else 0.0
        if (
            i in topology.recomputed
            and outputs.isdisjoint(step.outputs)
            and _plain_nbytes(topology, bases) <= max(_plain_nbytes(topology, step.outputs), few)
        ):
            beneath.update(dict.fromkeys(step.outputs, bases))
        else:
            placed.append(i)
    return placed


def _plain_nbytes(topology: Topology, names: Iterable[str]) -> float:
    sizes = [topology.wire_nbytes(name) for name in names]
    return sum(math.inf if size is None else size for size in sizes)


def _flows(
    topology: Topology, placed: Sequence[int], sizes: Mapping[str, Size], down_nbytes: Mapping[str, float] | None
) -> list[Flow]:
    unit_of = {step: unit for unit, step in enumerate(placed)}
    readers = _readers(topology, unit_of)
    sources = [(name, None) for name in topology.inputs]
    made = [(name, unit) for step, unit in unit_of.items() for name in topology.steps[step].outputs]
    flows = []
    for name, source in [*sources, *made]:
        back = _down_nbytes(topology, name, down_nbytes) if name in topology.outputs and source is not None else 0.0
        if name in topology.live and (readers.get(name) or back):
            size = sizes.get(name, Size(math.inf))
            size = Size(math.inf) if _is_barred(topology, name) else size
            flows.append(Flow(name, source, tuple(sorted(readers.get(name, ()))), *size, back))
    return flows


def _is_barred(topology: Topology, name: str) -> bool:
    return name in topology.tensors and bool(topology.tensors[name].barred)


def _down_nbytes(topology: Topology, name: str, given: Mapping[str, float] | None) -> float:
    if given is not None and name in given:
        return given[name]
    return float(topology.wire_nbytes(name) or 0)


def _readers(topology: Topology, unit_of: Mapping[int, int]) -> dict[str, set[int]]:
    """Tensor name -> units that need it, seen through the steps that are recomputed on both sides."""
    readers: dict[str, set[int]] = {}
    for i in reversed(topology.live_steps):
        step = topology.steps[i]
        through = (readers.get(name, set()) for name in step.outputs)
        needing = {unit_of[i]} if i in unit_of else set().union(*through)
        for name in step.inputs:
            if name in topology.live:
                readers.setdefault(name, set()).update(needing)
    return readers
