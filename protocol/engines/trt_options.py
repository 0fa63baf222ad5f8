"""Everything a TensorRT engine can be told, and how it says what went wrong. Pure: no library is touched.

A failure carries its `cause`, so that whoever falls back to the next engine can count it and knows whether asking this
one again can help: a full GPU may have room later, a graph that TensorRT does not take will never be one that it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from protocol.errors import EngineError

Edition = Literal["tensorrt", "tensorrt-rtx"]  # of the library, by the names of their packages

Cause = Literal[
    "no-driver",  # nothing that an engine could run on
    "no-library",  # TensorRT, or what hands memory to it, is not installed
    "unsupported-graph",  # refused by our own check, or by TensorRT's parser
    "build-failed",
    "build-timeout",
    "out-of-memory",
    "bad-input",  # tensors that do not fit; the engine is well
    "run-failed",  # a run was refused; the next may succeed
    "device-lost",  # this process cannot use the GPU any more
]
# Trying again in this process cannot help.
FINAL: frozenset[Cause] = frozenset({"no-driver", "no-library", "unsupported-graph", "device-lost"})


class GpuError(EngineError):
    """An engine on a GPU cannot be had, or failed. Where `is_final`, asking it again in this process cannot help."""

    def __init__(self, fact: str, remedy: str = "", *, cause: Cause) -> None:
        super().__init__(fact, remedy)
        self.cause: Cause = cause

    @property
    def is_final(self) -> bool:
        return self.cause in FINAL


LEAST_FOR_SEVERAL = 4  # rows at the knee: below, one set of kernels does for all


class Span(msgspec.Struct, frozen=True):
    """Sizes that one profile of an engine takes: from `least` to `most`, fastest at `best`."""

    least: int
    best: int
    most: int

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.least <= size <= self.most


class TrtOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is built and run.

    `batches` are the profiles' batch sizes, each its own span; empty leaves them to `choices`. `batch_axes` says which
    axis of an input is its batch; an input that is not named has it at axis 0 if that is free. `free` gives the sizes
    of other free dimensions by their ONNX names.
    """

    edition: Edition = "tensorrt"
    device: int = 0
    max_batch: int = 1
    knee: int | None = None  # the batch beyond which more rows gain nothing, where somebody knows; else `max_batch`
    several: bool = False  # profiles: one for single rows beside the one for batches
    batches: tuple[Span, ...] = ()
    batch_axes: Mapping[str, int | None] = {}
    free: Mapping[str, Span] = {}
    cache: Path | None = None  # folder of plans that this user built; None: build each time
    workspace_nbytes: int = 1 << 30  # scratch memory that the builder may count on
    memory_nbytes: int | None = None  # what the engine may take of the GPU's memory in all
    tf32: bool = False  # shorter products of float32: faster, and not what the accuracy bound was judged with
    optimisation: int | None = None  # 0..5, the builder's effort; None: its own default
    version_compatible: bool = False  # the plan outlives an update of TensorRT, at some cost in speed
    same_capability: bool = False  # the plan runs on every GPU of this compute capability
    build_timeout_s: float = 1800.0
    run_timeout_s: float = 30.0  # a GPU that has not answered by then is lost
    slots: int = 2  # batches in flight: the next is copied while this one computes
    graphs: bool = True  # CUDA graphs, where cuda-python is installed
    most_graphs: int = 16  # of one slot

    def choices(self) -> list[tuple[Span, ...]]:
        """Sets of batch sizes to build for, the best first; whoever cannot have one takes the next. Pure.

        A kernel is chosen for the size at which its profile is fastest, and serves all others of the profile: one that
        was chosen for 32 rows leaves most of the GPU idle with one. A lane that is not busy runs single rows, so they
        get a profile of their own; all else is fastest at the knee. More profiles would differ less and cost the same:
        build time, and weights once more wherever two kernels want them laid out otherwise. Raises EngineError where
        `batches` are no sizes.
        """
        if self.batches:
            return [checked(self.batches)]
        best = min(max(self.knee or self.max_batch, 1), self.max_batch)
        one = checked((Span(1, best, self.max_batch),))
        if not self.several or best < LEAST_FOR_SEVERAL:
            return [one]
        return [checked((Span(1, 1, 1), Span(2, best, self.max_batch))), one]


def checked(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Smallest first. Raises EngineError where they are no sizes."""
    for span in spans:
        if not 1 <= span.least <= span.best <= span.most:
            raise EngineError(
                f"a profile of batches {span.least}, {span.best}, {span.most} is none",
                "give least <= best <= most, each at least 1",
            )
    return tuple(sorted(spans, key=lambda span: span.most))
