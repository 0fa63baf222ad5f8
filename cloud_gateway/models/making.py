"""Makes a tail's engine as the settings order it: what is there of the order, in which precision, in how much memory.

An order that was stated is kept to the letter: what it names and this machine lacks is told, for every lane, and never
replaced by something that nobody asked for. Without one, everything that is there stands in the order of the
catalogue, which is the order of speed; what was found is told once.

A tail that comes in float16 as well runs in that form where an engine gains by it, and in float32 on all others: should
the lane fall back to the processor, its answers are those of the float32 form.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence

from cloud_gateway.config import EnginesSettings
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.served import Tail
from cloud_gateway.models.settings import Wanted
from cloud_gateway.models.workshop import MIB, Workshop
from protocol.engines.base import Engine
from protocol.engines.catalogue import CPU, KINDS, EngineOptions, Kind, Kinds, gpu_memory, present
from protocol.errors import EngineError
from protocol.graphs import external_of

SHARE = 0.9  # of a GPU's memory: the driver, other processes and fragments want some; half where it is the processor's
# What a lane's engine takes where nobody says: its weights twice, since a library keeps its own layout of them beside
# the file's, and room for workspaces and activations.
WEIGHTS, ROOM_NBYTES = 2, 512 * MIB


# What this machine has, and why it lacks the rest.
Found = Callable[[Sequence[str], Mapping[str, str]], None]


class Making:
    """Thread-safe. `kinds` are what may be ordered by name; `found` is told once what the order by speed is here."""

    def __init__(
        self,
        settings: EnginesSettings,
        workshop: Workshop,
        *,
        kinds: Kinds = KINDS,
        found: Found = lambda order, absent: None,
    ) -> None:
        self._settings = settings
        self._report = found
        self._workshop = workshop
        self._kinds = kinds
        self._lock = threading.Lock()
        self._found: tuple[str, ...] | None = None

    def __call__(self, tail: Tail, wanted: Wanted) -> Engine:
        """The engine for one tail, not active. Raises EngineError where the order names what does not exist."""
        order = wanted.order or self._settings.order or self._what_is_there()
        if unknown := [name for name in order if name not in self._kinds]:
            raise EngineError(f"there is no engine {unknown[0]!r}", f"known are {', '.join(self._kinds)}")
        if tuple(order) == (CPU,):  # nothing to choose, nothing to budget: the session itself
            return self._kinds[CPU].make(tail.graph(), EngineOptions(tail.label, threads=wanted.threads))
        _, absent = present(self._kinds, order)
        offers = [self._offer(self._kinds[name], tail, wanted, absent.get(name, "")) for name in order]
        settings = self._settings
        return PreferredEngine(
            offers,
            label=tail.label,
            workshop=self._workshop,
            first_rest_s=settings.retry_s,
            longest_rest_s=settings.longest_retry_s,
        )

    def _offer(self, kind: Kind, tail: Tail, wanted: Wanted, absent: str) -> Offer:
        settings = self._settings
        is_half = tail.half is not None and kind.takes_half and (wanted.half or settings.half) == "auto"
        graph = tail.half.graph if is_half and tail.half is not None else tail.graph
        needed_nbytes = _needed_nbytes(graph, wanted) if kind.on_gpu and not absent else 0
        axes = None if tail.boundary is None else {b.spec.name: b.batch_axis for b in tail.boundary}
        options = EngineOptions(
            tail.label,
            threads=wanted.threads,
            max_rows=wanted.max_rows,
            knee=wanted.knee,
            several=settings.profiles == "auto",
            batch_axes=axes,
            device=settings.device,
            gpu_memory_nbytes=needed_nbytes if kind.on_gpu else None,
            cache_dir=settings.plans_dir,
            told=functools.partial(self._workshop.told, "engine_build"),
        )
        return Offer(
            kind.name,
            lambda: kind.make(graph(), options),
            absent=absent,
            is_built=kind.is_built,
            gpu_nbytes=needed_nbytes,
            on_gpu=kind.on_gpu,
            precision="float16" if is_half else "",
            tolerance=settings.half_tolerance if is_half else settings.tolerance,
        )

    def _what_is_there(self) -> tuple[str, ...]:
        with self._lock:
            if self._found is None:
                self._found, absent = present(self._kinds, tuple(self._kinds))
                self._report(self._found, absent)
            return self._found


def gpu_memory_for_lanes(settings: EnginesSettings, told: Callable[[str, str], None]) -> int | None:
    """Bytes of the GPU that all lanes share; None where nobody knows how many there are. Asks the driver.

    `told` hears where the settings name more than the GPU has: then it is as if they named nothing.
    """
    found = gpu_memory(settings.device)
    if found is None:
        return None if settings.gpu_memory_mib == "auto" else settings.gpu_memory_mib * MIB
    total, is_integrated = found
    share = int(total * SHARE) // (1 + is_integrated)
    if settings.gpu_memory_mib == "auto":
        return share
    if settings.gpu_memory_mib * MIB <= total:
        return settings.gpu_memory_mib * MIB
    told(
        "gpu_memory",
        f"engines.gpu_memory_mib is {settings.gpu_memory_mib}, and GPU {settings.device} has {total // MIB} MiB: "
        f"lanes share {share // MIB}",
    )
    return share


def _needed_nbytes(graph: Callable[[], bytes], wanted: Wanted) -> int:
    if wanted.gpu_memory_nbytes is not None:
        return wanted.gpu_memory_nbytes
    return WEIGHTS * _nbytes(graph()) + ROOM_NBYTES


def _nbytes(graph: bytes) -> int:
    return len(graph) + sum(memoryview(data).nbytes for data in external_of(graph).values())
