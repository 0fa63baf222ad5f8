"""Live, ready and deep: does the process answer, may requests come, and does every engine still compute what it did.

Deep health asks each lane for a known answer: an input drawn from a seed at warm-up, whose outputs were remembered. A
driver that hangs, memory that flips or a GPU that fell off the bus shows there and nowhere else. It costs real work, so
it is never done twice at once, its verdict stands for some seconds, and a check that hangs is told, not repeated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from cloud_gateway.seeing.standing import Standing
from protocol.tensors import Array, Tensors, TensorSpec

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # batch-mates and a driver's choice of kernels move the last digits, damage does not
SILENT_S = 5.0  # loops that beat come round at least once a second
TIMEOUT_S = 5.0
KEEP_S = 10.0
_SEED = 20_261

# The outputs of one request to the lane of this key, or None where the lane is too busy to take it.
# Raises IsthmusError where it fails.
Run = Callable[[str, Tensors], Tensors | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of live or ready: whether, and why not."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LaneHealth:
    key: str
    ok: bool
    reason: str
    took_s: float


@dataclass(frozen=True, slots=True)
class DeepHealth:
    """`age_s` is how long ago it was found. Without a lane there is nothing that could be ill."""

    ok: bool
    reason: str
    lanes: tuple[LaneHealth, ...]
    age_s: float


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


def ready(standing: Standing) -> Verdict:
    """May requests come?"""
    if standing.draining:
        return Verdict(False, "shutting down")
    return Verdict(standing.ready, standing.reason if standing.ready or standing.reason else "no model is available")


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


class DeepCheck:
    """Questions whose answers are known. `check` blocks its caller for `timeout_s` at most."""

    def __init__(
        self,
        run: Run,
        *,
        timeout_s: float = TIMEOUT_S,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._timeout_s, self._keep_s = timeout_s, keep_s
        self._clock = clock
        self._known: dict[str, tuple[Tensors, Tensors]] = {}
        self._lock = threading.Lock()
        self._found: tuple[DeepHealth, float] | None = None
        self._running: threading.Event | None = None
        self._began = 0.0
        self._asking = ""

    def remember(self, key: str, inputs: Tensors, outputs: Tensors) -> None:
        """At warm-up: what the lane answered to `inputs`, which `known_input` drew."""
        kept = {name: array.copy() for name, array in outputs.items()}
        with self._lock:
            self._known[key] = (inputs, kept)
            self._found = None

    def forget(self, key: str) -> None:
        with self._lock:
            self._known.pop(key, None)
            self._found = None

    def check(self) -> DeepHealth:
        """Ask every lane, or say what was found up to `keep_s` ago; callers who come together share one check."""
        with self._lock:
            now = self._clock()
            if self._running is None:
                if self._found is not None and now - self._found[1] < self._keep_s:
                    return replace(self._found[0], age_s=now - self._found[1])
                self._running, self._began = threading.Event(), now
                thread = threading.Thread(target=self._ask_all, args=(self._running,), name="isthmus-deep", daemon=True)
                thread.start()
            running, left_s = self._running, self._began + self._timeout_s - now
        done = running.wait(max(left_s, 0.0))
        with self._lock:
            if done and self._found is not None:
                return self._found[0]
            reason = f"lane {self._asking} has not answered for {self._clock() - self._began:.1f} s"
            return DeepHealth(False, reason, (), 0.0)

    def _ask_all(self, running: threading.Event) -> None:
        with self._lock:
            known = dict(self._known)
        lanes = tuple(self._ask(key, inputs, outputs) for key, (inputs, outputs) in known.items())
        ill = [f"lane {lane.key}: {lane.reason}" for lane in lanes if not lane.ok]
        with self._lock:
            self._found = DeepHealth(not ill, "; ".join(ill), lanes, 0.0), self._clock()
            self._running = None
        running.set()

    def _ask(self, key: str, inputs: Tensors, wanted: Tensors) -> LaneHealth:
        self._asking, began = key, self._clock()
        try:
            given = self._run(key, inputs)
            reason = "busy, not asked" if given is None else differs(given, wanted)
            ok = given is None or not reason
        except Exception as error:  # whatever an engine raises is what a health check is there to tell
            ok, reason = False, f"{type(error).__name__}: {error}"[:300]
        return LaneHealth(key, ok, reason, self._clock() - began)


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
