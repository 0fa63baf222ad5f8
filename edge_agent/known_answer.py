"""A question whose answer is known: recorded when an agent starts, asked again for as long as it serves.

It goes the way of a request, through the socket thread and the compute thread, and runs the head of the edge-only
placement, or of another one where the bundle has none. So it says nothing of any gateway: a device without a link is
well. A thread that hangs, a head that fails and one that computes something else are all the same: the question has no
good answer, systemd's watchdog is not fed, and the device is started anew.
"""

from __future__ import annotations

import concurrent.futures
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from edge_agent.heads import Prepared
from protocol.bundle import Bundle, PlacementEntry
from protocol.errors import EngineError, IsthmusError
from protocol.messages import PlacementKind
from protocol.tensors import Array, Tensors, TensorSpec

# Heads of one file on one machine give the same floats run for run; a GPU's may differ in their last bits.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
_ORDER = (PlacementKind.EDGE_ONLY, PlacementKind.CUT, PlacementKind.FULL_CLOUD)


class Rehearses(Protocol):
    """What of an agent this room needs."""

    @property
    def bundle(self) -> Bundle: ...

    def rehearse(self, inputs: Tensors, *, placement: str) -> Future[Prepared]: ...


class KnownAnswer:
    """One agent's question and its answer. Constructing asks it once. Raises EngineError if nothing answers it."""

    def __init__(
        self, agent: Rehearses, *, usable: Sequence[str] = (), failed: Sequence[str] = (), timeout_s: float
    ) -> None:
        """`usable` placements, if any are named, and of those none of `failed`."""
        self.agent = agent
        entry = _chosen(agent.bundle, usable, failed)
        if entry is None:
            raise EngineError("no head of the bundle can be asked a known question", "see the reasons above")
        self.placement = entry.id
        self._inputs = {spec.name: _question(spec) for spec in agent.bundle.manifest.model.inputs}
        made, why = self._ask(timeout_s)
        if made is None:
            raise EngineError(f"the device cannot answer its own question ({why})", "rebuild the bundle")
        self.wanted = made

    def check(self, timeout_s: float) -> str:
        """Ask again: why the answer is a bad one, or "". Returns within `timeout_s`."""
        made, why = self._ask(timeout_s)
        return why if made is None else _difference(self.wanted, made)

    def _ask(self, timeout_s: float) -> tuple[Prepared | None, str]:
        try:
            return self.agent.rehearse(self._inputs, placement=self.placement).result(timeout_s), ""
        except concurrent.futures.TimeoutError:
            return None, f"{self.placement} has not answered a known question within {timeout_s:g} s"
        except IsthmusError as error:
            return None, f"{self.placement} fails on a known question: {error}"


def _chosen(bundle: Bundle, usable: Sequence[str], failed: Sequence[str]) -> PlacementEntry | None:
    entries = [e for e in bundle.manifest.placements if (not usable or e.id in usable) and e.id not in failed]
    return min(entries, key=lambda entry: _ORDER.index(entry.kind), default=None)


def _question(spec: TensorSpec) -> Array:
    """Values that any model takes: floats drawn by the tensor's name, zeros where numbers may be indices."""
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    dtype = spec.numpy_dtype
    if dtype.kind == "f":
        return np.random.default_rng(zlib.crc32(spec.name.encode())).standard_normal(shape).astype(dtype)
    if dtype == np.uint8:  # a picture
        return np.random.default_rng(zlib.crc32(spec.name.encode())).integers(0, 256, shape, np.uint8)
    return np.zeros(shape, dtype)


def _difference(wanted: Prepared, made: Prepared) -> str:
    if made.outputs.keys() != wanted.outputs.keys():
        return "a known question got other outputs"
    for name, known in wanted.outputs.items():
        given = made.outputs[name]
        if given.shape != known.shape or given.dtype != known.dtype:
            return f"a known question got {name!r} in another form"
        if not _is_close(known, given):
            return f"a known question got another answer in {name!r}"
    if [h.name for h in made.headers] != [h.name for h in wanted.headers]:
        return "a known question got other tensors to send"
    return ""


def _is_close(known: Array, given: Array) -> bool:
    if known.dtype.kind != "f":
        return bool(np.array_equal(known, given))
    return bool(np.allclose(given, known, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True))
