"""What the next frame may be sent as a difference to: the latest answered request of each gateway and placement.

The uplink's thread writes when answers come, the compute thread reads when it encodes; both touch one dictionary entry,
whole. An answer proves that the gateway decoded the frame, so nothing else need be agreed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from protocol.delta import Reference
from protocol.tensors import Array


class _Answered(NamedTuple):
    sequence: int
    codes: Mapping[str, Array]  # what crossed, before the codec


class References:
    def __init__(self) -> None:
        self._answered: dict[tuple[str, str], _Answered] = {}

    def answered(self, gateway: str, placement: str, sequence: int, codes: Mapping[str, Array]) -> None:
        """The gateway has these codes. Answers may come in any order: the latest request counts."""
        known = self._answered.get((gateway, placement))
        if codes and (known is None or known.sequence < sequence):
            self._answered[gateway, placement] = _Answered(sequence, codes)

    def forget(self, gateway: str, placement: str) -> None:
        """The gateway no longer has this placement's frame."""
        self._answered.pop((gateway, placement), None)

    def forget_all(self, gateway: str) -> None:
        """It has a new life."""
        for key in [key for key in self._answered if key[0] == gateway]:
            del self._answered[key]

    def of(self, gateway: str, placement: str) -> dict[str, Reference]:
        """By tensor; empty where every frame has to go alone."""
        known = self._answered.get((gateway, placement))
        return {} if known is None else {name: Reference(known.sequence, codes) for name, codes in known.codes.items()}
