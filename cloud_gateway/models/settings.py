"""How one model is served, as its folder declares it. Frozen nouns, pure.

`max_batch_size` follows Triton: 0 means that shapes are complete as they are declared and requests are never joined, n
that the first dimension of every tensor is the batch and at most n rows run at once, None that nobody declared it: the
gateway then takes the batch axis that was proven and the bound that it measured.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import msgspec

from protocol.tensors import TensorSpec

PRIORITIES = 10  # requests carry 0 (first) to 9


class VersionPolicy(msgspec.Struct, frozen=True):
    """Which of a model's versions are served: the `count` latest ones, all, or those listed in `versions`."""

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, present: Collection[int]) -> frozenset[int]:
        """Those of the versions that are there which this policy wants."""
        if self.kind == "all":
            return frozenset(present)
        if self.kind == "specific":
            return frozenset(self.versions) & frozenset(present)
        return frozenset(sorted(present)[-self.count :])

    def __str__(self) -> str:
        if self.kind == "all":
            return "all"
        return f"latest {self.count}" if self.kind == "latest" else f"specific {', '.join(map(str, self.versions))}"


class WarmUpSample(msgspec.Struct, frozen=True):
    """A request to run before the model is ready: `inputs` have whole shapes without the batch, all numbers.

    `batch_size` 0 means that the shapes are complete as they stand.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    batch_size: int = 0
    count: int = 1
    random: bool = False  # random values; zeros otherwise


class ModelSettings(msgspec.Struct, frozen=True):
    max_batch_size: int | None = None
    instances: int | None = None  # engines that run side by side; None: the gateway's own setting
    threads: int | None = None  # of each engine; None: the gateway's own setting
    engines: tuple[str, ...] = ()  # in order of preference; (): the gateway's own order
    gpu_memory_nbytes: int | None = None  # that each of its engines may take; None: as its size suggests
    # How long a request may wait for others; 0: never while an engine is free; None: the gateway's own setting.
    efficiency_delay_s: float | None = None
    half: Literal["auto", "never"] | None = None  # whether tails run in float16; None: the gateway's own setting
    preferred_sizes: tuple[int, ...] = ()  # as declared, and shown so: a batch is what waits, whatever its size
    profile_sizes: tuple[int, ...] = ()  # sizes that the engine was built for; batches are padded to them
    default_timeout_s: float | None = None  # for requests that state no budget of their own
    max_queue_requests: int | None = None
    priority_levels: int = PRIORITIES
    default_priority: int = PRIORITIES // 2  # as requests carry it: 0 first
    version_policy: VersionPolicy | None = None  # None: the gateway's own
    response_cache: bool | None = None  # whether answers may be kept where the cache is on; None: they may
    warm_up: tuple[WarmUpSample, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()  # whole shapes, the batch included; () where nothing was declared
    outputs: tuple[TensorSpec, ...] = ()
    model_filename: str = "model.onnx"


class Wanted(NamedTuple):
    """What a tail's engine is asked for."""

    threads: int = 1  # of one run
    max_rows: int = 1
    order: tuple[str, ...] = ()  # engines by name, the preferred first; empty: the gateway's own order
    gpu_memory_nbytes: int | None = None  # that it may take; None: as its size suggests
    half: Literal["auto", "never"] | None = None  # whether it may run the float16 form
    knee: int | None = None  # rows to be fastest at; None: `max_rows`
