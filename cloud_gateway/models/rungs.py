"""The nouns of an order of preference: what a lane may run on, where each engine stands, where a batch should lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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


class RungLook(NamedTuple):
    """Where one engine of a lane stands, for people and metrics."""

    kind: str
    state: str
    serves: bool
    reason: str
    failures: int


class Room(NamedTuple):
    """Memory that an engine reads faster than any other: pinned, on a GPU."""

    kind: str
    make: Callable[[int], Array]  # at least so many bytes, uint8
