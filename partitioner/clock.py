"""Seconds of every step on either side of a cut, as far as they are known now."""

from __future__ import annotations

from collections.abc import Mapping

from partitioner.assemble import Workshop
from partitioner.costs import EDGE_ONLY, FULL_CLOUD, Seconds
from partitioner.cuts import Sides


class Clock:
    def __init__(self, shop: Workshop, whole: Mapping[str, Seconds]) -> None:
        self.whole = dict(whole)
        self._work = shop.model.topology.work
        self._total = sum(self._work) or 1.0

    @property
    def edge_s(self) -> tuple[float, ...]:
        return tuple(w / self._total * self.whole[EDGE_ONLY].head_s for w in self._work)

    @property
    def cloud_s(self) -> tuple[float, ...]:
        return tuple(w / self._total * self.whole[FULL_CLOUD].tail_s for w in self._work)

    def compare(self, seconds: Mapping[str, Seconds]) -> dict[str, Seconds]:
        """Seconds of one timing session as they would have been in the first one: the machine's mood cancels."""
        edge = self.whole[EDGE_ONLY].head_s / seconds[EDGE_ONLY].head_s
        cloud = self.whole[FULL_CLOUD].tail_s / seconds[FULL_CLOUD].tail_s
        return {n: Seconds(s.head_s * edge, s.tail_s * cloud) for n, s in seconds.items()}

    def observe(self, sides: Sides, seconds: Seconds) -> None:
        pass
