"""The nouns of an order of preference: what a lane may run on, where each engine stands, where a batch should lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cloud_gateway.models.agreement import TOLERANCE
from protocol.engines.base import Engine
from protocol.tensors import Array


@dataclass(frozen=True, slots=True)
class Offer:
    """One engine of the order. `make` reads the graph and raises IsthmusError; `absent` says why it cannot be had."""

    kind: str
    make: Callable[[], Engine]
    absent: str = ""
    is_built: bool = False  # loading it may take minutes
    gpu_nbytes: int = 0  # of the GPU's memory, reserved while it is loaded
    on_gpu: bool = False  # a run may hang there, and nothing can end it
    precision: str = ""  # "float16" where it runs that form of the tail
    tolerance: float = TOLERANCE  # how far its answers may lie from those of the engine that is trusted

    def described(self, engine: Engine) -> str:
        """What its answers say of it."""
        return f"{engine.description}, {self.precision}" if self.precision else engine.description


class RungLook(NamedTuple):
    """Where one engine of a lane stands, for people and metrics."""

    kind: str
    state: str
    serves: bool
    reason: str
    failures: int
    precision: str = ""


class Room(NamedTuple):
    """Memory that an engine reads faster than any other: pinned, on a GPU."""

    kind: str
    make: Callable[[int], Array]  # at least so many bytes, uint8
