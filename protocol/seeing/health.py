"""Parts of a daemon's health: do its loops come round, and is an answer the one that was known beforehand. Pure.

A known answer is what an engine said when it was warmed up, to an input drawn from a seed: what hangs, flips bits or
fell off the bus shows there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from protocol.tensors import Array, Tensors, TensorSpec

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # batch-mates and a driver's choice of kernels move the last digits, damage does not
SILENT_S = 5.0  # loops that beat come round at least once a second
_SEED = 20_261


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of live or ready: whether, and why not."""

    ok: bool
    reason: str = ""


class Beats:
    """Loops that say they come round; one that stopped saying so is dead or stuck. A beat is one assignment."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def beat(self, loop: str, *, now: float) -> None:
        self._last[loop] = now

    def end(self, loop: str) -> None:
        self._last.pop(loop, None)

    def live(self, *, now: float) -> Verdict:
        silent = [f"{loop} for {now - last:.0f} s" for loop, last in self._last.copy().items() if now - last > SILENT_S]
        return Verdict(not silent, f"silent: {', '.join(silent)}" if silent else "")


def known_input(specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """One request's tensors, the same for the same specs; free dimensions are 1.

    Floats are drawn from [0, 1); integers are 0 or 1, which is legal as index, mask and code.
    """
    random = np.random.default_rng(_SEED)
    tensors: dict[str, Array] = {}
    for spec in specs:
        drawn = random.random([d if isinstance(d, int) else 1 for d in spec.shape])
        tensors[spec.name] = (drawn if spec.numpy_dtype.kind == "f" else drawn < 0.5).astype(spec.numpy_dtype)
    return tensors


def differs(given: Tensors, wanted: Tensors) -> str:
    """In words how the answer is not the known one; empty where it is."""
    if set(given) != set(wanted):
        return f"it answered {', '.join(sorted(given)) or 'nothing'} instead of {', '.join(sorted(wanted))}"
    for name, known in wanted.items():
        array = given[name]
        if array.shape != known.shape or array.dtype != known.dtype:
            return f"{name} is {array.dtype} {list(array.shape)} instead of {known.dtype} {list(known.shape)}"
        if not np.allclose(array, known, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            worst = float(np.max(np.abs(array.astype(np.float64) - known.astype(np.float64))))
            return f"{name} differs from the known answer by {worst:.3g}"
    return ""
