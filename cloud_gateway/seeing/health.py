"""Live, ready and deep: does the process answer, may requests come, and does every engine still compute what it did.

Deep health asks each lane for a known answer: an input drawn from a seed at warm-up, whose outputs were remembered. A
driver that hangs, memory that flips or a GPU that fell off the bus shows there and nowhere else. It costs real work, so
it is never done twice at once, its verdict stands for some seconds, and a check that hangs is told, not repeated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cloud_gateway.seeing.standing import Standing
from protocol.seeing.health import Verdict, differs
from protocol.tensors import Tensors

TIMEOUT_S = 5.0
KEEP_S = 10.0

# The outputs of one request to the lane of this key, or None where the lane is too busy to take it.
# Raises IsthmusError where it fails.
Run = Callable[[str, Tensors], Tensors | None]


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


def ready(standing: Standing) -> Verdict:
    """May requests come?"""
    if standing.draining:
        return Verdict(False, "shutting down")
    return Verdict(standing.ready, standing.reason if standing.ready or standing.reason else "no model is available")


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
                self._running, self._began, self._asking = threading.Event(), now, ""
                thread = threading.Thread(target=self._ask_all, args=(self._running,), name="isthmus-deep", daemon=True)
                thread.start()
            running, left_s = self._running, self._began + self._timeout_s - now
        done = running.wait(max(left_s, 0.0))
        with self._lock:
            if done and self._found is not None:
                return self._found[0]
            who = f"lane {self._asking} has not answered" if self._asking else "no lane could be asked"
            reason = f"{who} for {self._clock() - self._began:.1f} s"
            return DeepHealth(False, reason, (), 0.0)

    def _ask_all(self, running: threading.Event) -> None:
        with self._lock:
            known = dict(self._known)
        asked = tuple(self._ask(key, inputs, outputs) for key, (inputs, outputs) in known.items())
        with self._lock:
            # A lane that has moved to another engine meanwhile has another answer: it was asked the wrong question.
            lanes = tuple(lane for lane in asked if self._known.get(lane.key) is known[lane.key])
            ill = [f"lane {lane.key}: {lane.reason}" for lane in lanes if not lane.ok]
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
