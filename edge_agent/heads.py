"""The device's share of every placement: run a head, encode what crosses. All heads of the bundle are held ready.

What runs a head (an accelerator, the processor) is the first of an order of preference that can: see
`edge_agent.device.providers`.
A head that cannot be loaded, or that fails, costs the placements that share it and no other; a codec that this device
cannot write (Pillow is missing, say) costs its own. The declared slow-down (for demos and drills:
"a device 8 times slower than this machine") stretches every preparation by sleeping, so that the processor time it does
not use stays free for others, as it would on another machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from edge_agent.device import providers
from edge_agent.device.portions import Layout
from edge_agent.device.providers import Attempt, Started
from protocol import drift
from protocol.bundle import Bundle, PlacementEntry
from protocol.codecs import encode
from protocol.delta import DeltaCodec, Reference
from protocol.engines.base import Engine
from protocol.engines.ort import OrtEngine, available
from protocol.errors import EngineError, WireError
from protocol.messages import PlacementKind
from protocol.tensors import Array, TensorHeader, Tensors, TensorSpec
from protocol.wire import Buffer, checksum


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the device made of one request: encoded tensors to send, and model outputs that never cross."""

    headers: tuple[TensorHeader, ...]
    buffers: tuple[Buffer, ...]
    checksum: int
    outputs: dict[str, Array]  # by the head itself; for edge-only all of them
    edge_s: float
    encode_s: float
    engine: str
    outer_ppm: int | None = None  # share of crossing codes at the ends of their range: see protocol.drift
    codes: Mapping[str, Array] = field(default_factory=dict)  # what later frames may be sent as differences to

    @property
    def nbytes(self) -> int:
        return sum(h.nbytes for h in self.headers)


class ValuesError(EngineError):
    """The head is sound but cannot run these values (an index out of range, for example)."""


class Heads:
    """Every head of a bundle. `prepare` is called by one thread."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        slowdown: float = 1.0,
        fault_file: Path | None = None,
        order: Sequence[str] = providers.DEFAULT,
        plans: Path | None = None,
        building: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`order` names what may run heads, the preferred first; `plans` is where built ones are kept; `building` is
        entered while a head is loaded that may have to be built first, which takes minutes.

        Raises InputError for an unknown name.
        """
        self.failed: dict[str, str] = {}
        self.started: dict[str, Started] = {}  # by file: what runs it, and why nothing better does
        self._attempts = providers.attempts(order, available())
        self._plans = plans
        self.building = building
        self._layout = Layout(bundle.manifest)
        self._bundle = bundle
        self._threads = threads
        self._slowdown = slowdown
        self._counts_work = False
        self._fault_file = fault_file
        self._entries = {p.id: p for p in bundle.manifest.placements}
        self._engines: dict[str, Engine] = {}  # by file: placements that differ in the codec share the head

    def activate(self) -> None:
        """Load every head; `failed` lists what could not be loaded, and why. Raises BundleError for a damaged file."""
        broken: dict[str, str] = {}
        for file in dict.fromkeys(e.head for e in self._entries.values() if e.head is not None):
            graph = self._bundle.graph(file)
            try:
                started = providers.first_that_runs(self._attempts, partial(self._start, file, graph))
            except EngineError as error:
                broken[file] = str(error)
                continue
            self.started[file] = started
            self._engines[file] = started.engine
        on_cpu = all(started.name == "cpu" for started in self.started.values())
        self._counts_work = self._slowdown > 1.0 and self._threads == 1 and on_cpu
        self.failed = {e.id: broken[e.head] for e in self._entries.values() if e.head in broken}
        for entry in self._entries.values():
            if entry.id not in self.failed and (why := _cannot_encode(entry)):
                self.failed[entry.id] = why

    def _start(self, file: str, graph: bytes, wanted: Attempt) -> Engine:
        """An engine that has run once. Raises EngineError."""
        engine = self._made(file, graph, wanted)
        with self.building() if wanted.is_built else nullcontext():
            try:
                engine.activate()
                _warm_up(engine)
            except EngineError:
                if not _free_to_vary(engine):
                    engine.deactivate()  # of a GPU's memory the next attempt needs all
                    raise
        return engine

    def _made(self, file: str, graph: bytes, wanted: Attempt) -> Engine:
        if wanted.name in providers.NATIVE:
            from protocol.engines.catalogue import KINDS, EngineOptions

            options = EngineOptions(
                file, max_rows=self._layout.most, knee=1, batch_axes=self._layout.axes, cache_dir=self._plans
            )
            return self._layout.portioned(KINDS[providers.NATIVE[wanted.name]].make(graph, options))
        return OrtEngine(graph, label=file, providers=wanted.providers, threads=self._threads)

    def deactivate(self) -> None:
        for engine in self._engines.values():
            engine.deactivate()
        self._engines.clear()
        self.started.clear()

    def prepare(self, placement: str, inputs: Tensors, before: Mapping[str, Reference] | None = None) -> Prepared:
        """Do the device's share of one request; `before` are tensors of an answered one, for differences.

        Raises EngineError when the head fails or is not there.
        """
        entry = self._entries[placement]
        start = self._clocks()
        values = self._run(entry, inputs)
        ran = self._clocks()
        encoded = _encode(entry, values, before or {})
        done = self._clocks()
        edge_s, encode_s = self._seconds(start, ran), self._seconds(ran, done)
        if self._slowdown > 1.0:
            time.sleep(edge_s + encode_s - (done[0] - start[0]))
        buffers = tuple(buffer for _, buffer in encoded)
        engine = self._engines.get(entry.head or "")
        names = entry.head_outputs if entry.boundary else tuple(values)
        return Prepared(
            headers=tuple(header for header, _ in encoded),
            buffers=buffers,
            checksum=checksum(buffers),
            outputs={name: values[name] for name in names},
            edge_s=edge_s,
            encode_s=encode_s,
            engine=engine.description if engine else "",
            outer_ppm=drift.outer_ppm(entry.boundary, values),
            codes=_to_refer_to(entry, values),
        )

    def raw(self, placement: str, inputs: Tensors) -> dict[str, Array]:
        """Every output of the placement's head, before anything is encoded. Raises EngineError."""
        return self._run(self._entries[placement], inputs)

    def _clocks(self) -> tuple[float, float]:
        """Seconds that have passed, and seconds of work. One thread's work is what it had of the processor: a slower
        device is slower at that, while what other processes of this machine take is no longer on it."""
        passed = time.perf_counter()
        return passed, time.thread_time() if self._counts_work else passed

    def _seconds(self, since: tuple[float, float], until: tuple[float, float]) -> float:
        """What it takes on the device that this machine was declared to be."""
        return until[0] - since[0] + (until[1] - since[1]) * (self._slowdown - 1.0)

    def _run(self, entry: PlacementEntry, inputs: Tensors) -> dict[str, Array]:
        if entry.head is None:
            return dict(inputs)
        engine = self._engines.get(entry.head)
        if engine is None:
            raise EngineError(f"the head of {entry.id} is not loaded: {self.failed.get(entry.id, 'inactive')}", "")
        if self._fault_file is not None and entry.kind is PlacementKind.CUT and os.path.exists(self._fault_file):
            raise EngineError("the head was made to fail (fault drill)", "")
        try:
            return engine.infer(inputs)
        except EngineError as error:
            _warm_up(engine)  # raises if the head itself is broken
            raise ValuesError(error.fact, error.remedy) from error


def _encode(
    entry: PlacementEntry, values: Mapping[str, Array], before: Mapping[str, Reference]
) -> list[tuple[TensorHeader, Buffer]]:
    """Raises ValuesError: the codecs were tried at the start, so only these values (their shape) can be at fault."""
    try:
        return [
            encode(b.spec.name, values[b.spec.name], b.codec, b.levels, before.get(b.spec.name)) for b in entry.boundary
        ]
    except WireError as error:
        raise ValuesError(error.fact, error.remedy) from error


def _to_refer_to(entry: PlacementEntry, values: Mapping[str, Array]) -> dict[str, Array]:
    """What crosses as differences. Without a head it is the caller's array, which may soon hold the next frame."""
    names = [b.spec.name for b in entry.boundary if b.codec == DeltaCodec.name]
    return {name: values[name] if entry.head else values[name].copy() for name in names}


def _cannot_encode(entry: PlacementEntry) -> str:
    """Why this device cannot write the placement's codecs, or "". The trial also loads what a codec needs."""
    try:
        _encode(entry, {b.spec.name: _zeros(b.spec) for b in entry.boundary}, {})
    except ValuesError as error:
        return str(error)
    return ""


def _zeros(spec: TensorSpec) -> Array:
    """A tensor that fits; a free dimension is 1."""
    return np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.numpy_dtype)


def _free_to_vary(engine: Engine) -> bool:
    """Whether the head takes sizes that the warm-up had to guess: failing on the guess says nothing then."""
    return any(not isinstance(d, int) for spec in engine.inputs for d in spec.shape[1:])


def _warm_up(engine: Engine) -> None:
    """The first run of a session allocates and is several times slower: not in a caller's budget."""
    engine.infer({spec.name: _zeros(spec) for spec in engine.inputs})
