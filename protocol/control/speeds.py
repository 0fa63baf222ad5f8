"""How much slower something is than the plan says, learned from what it takes: one factor. Pure.

A factor follows what is seen slowly, and one outlier (a page fault, a scheduler hiccup) by no more than a doubling or
a halving. A device that begins to throttle does not drift, it steps: as with the link's bandwidth, three in a row
that are off by a factor in the same direction are the new speed, and what was learned before is dropped.

How much one measurement says depends on how much is known already: of n that count the next has the share 1 / (n + 1),
never less than LEARNING_RATE. What was not measured for a while counts as little as a single one (`doubt`).

`usual` is what the factor was before it stepped up, followed ever more slowly: what was slow a while ago, because
something else kept the device busy, is hoped to be as fast again, and worth another try.
"""

from __future__ import annotations

LEARNING_RATE = 0.2
USUAL_RATE = 0.05
STEP_FACTOR = 1.35  # less is followed within a few requests anyway
STEP_SAMPLES = 3


class Speed:
    """A learned factor; `value` is None until something was seen."""

    __slots__ = ("_before", "_count", "_direction", "_off", "usual", "value")

    def __init__(self, value: float | None = None, *, usual: float = 1.0, worth: int = 1) -> None:
        """A `value` from the start counts as so many measurements as it is `worth`."""
        self.value = value
        self.usual = usual
        self._count = worth if value is not None else 0
        self._off: list[float] = []  # the last ones in a row that were off in the same direction
        self._direction = 0
        self._before = 1.0  # the value when they began

    @property
    def run(self) -> int:
        """How many in a row were off by now."""
        return len(self._off)

    @property
    def recovers(self) -> bool:
        """Whether the last ones say that it is fast again, and it has not stepped yet."""
        return self._direction < 0 and bool(self._off)

    @property
    def hoped(self) -> float | None:
        """What it would be at its usual speed, if that is faster than it is believed to be."""
        return None if self.value is None else min(self.value, self.usual)

    def learn(self, seen: float) -> float:
        """Take in one measurement; return by which factor the value stepped, 1 when it only followed."""
        old = self.value
        if old is None or old <= 0:
            self.value, self._count = seen, 1  # the first measurement beats any prior from another machine
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
            self._count = len(self._off)
            self._off.clear()
            self.usual = min(self._before, self.value) if direction > 0 else self.value
            return self.value / self._before
        bounded = min(max(seen, old / 2), old * 2)
        self.value = old + max(LEARNING_RATE, 1 / (self._count + 1)) * (bounded - old)
        self._count += 1
        self.usual += USUAL_RATE * (self.value - self.usual)
        return 1.0

    def doubt(self) -> None:
        """It was not measured for a while."""
        self._count = min(self._count, 1)

    def scale(self, factor: float) -> None:
        """Something else that shares the cause stepped by `factor`."""
        if self.value is not None:
            self.value *= factor
            self._off.clear()
            self.doubt()
            self.usual = min(self.usual, self.value)
