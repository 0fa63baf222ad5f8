"""How much slower something is than the plan says, learned from what it takes: one factor. Pure.

A factor follows what is seen slowly, and one outlier (a page fault, a scheduler hiccup) by no more than a doubling or
a halving. A device that begins to throttle does not drift, it steps: as with the link's bandwidth, three in a row
that are off by a factor in the same direction are the new speed, and what was learned before is dropped.
"""

from __future__ import annotations

LEARNING_RATE = 0.2
STEP_FACTOR = 1.35  # less is followed within a few requests anyway
STEP_SAMPLES = 3


class Speed:
    """A learned factor; `value` is None until something was seen."""

    __slots__ = ("_before", "_direction", "_off", "value")

    def __init__(self, value: float | None = None) -> None:
        self.value = value
        self._off: list[float] = []  # the last ones in a row that were off in the same direction
        self._direction = 0
        self._before = 1.0  # the value when they began

    @property
    def run(self) -> int:
        """How many in a row were off by now."""
        return len(self._off)

    def learn(self, seen: float) -> float:
        """Take in one measurement; return by which factor the value stepped, 1 when it only followed."""
        old = self.value
        if old is None or old <= 0:
            self.value = seen  # the first measurement beats any prior from another machine
            return 1.0
        direction = (seen > old * STEP_FACTOR) - (seen * STEP_FACTOR < old)
        if direction != self._direction:
            self._off.clear()
            self._direction = direction
        if direction:
            self._before = old if not self._off else self._before
            self._off.append(seen)
        if len(self._off) >= STEP_SAMPLES:
            self.value = sorted(self._off)[len(self._off) // 2]
            self._off.clear()
            return self.value / self._before
        bounded = min(max(seen, old / 2), old * 2)
        self.value = old + LEARNING_RATE * (bounded - old)
        return 1.0

    def scale(self, factor: float) -> None:
        """Something else that shares the cause stepped by `factor`."""
        if self.value is not None:
            self.value *= factor
            self._off.clear()
