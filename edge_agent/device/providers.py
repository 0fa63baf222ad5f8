"""What runs the heads, in an explicit order of preference: TensorRT, CUDA, the processor. Nothing falls back silently.

    attempts(("tensorrt", "cuda", "cpu"), available)
      tensorrt          ONNX Runtime's TensorRT, and CUDA for the nodes that TensorRT leaves
      cuda              ONNX Runtime's CUDA alone
      cpu               the processor
      tensorrt-native   TensorRT itself, without ONNX Runtime: the engine of the gateway's tails. Its plans are built on
                        this device, in minutes, and kept; its modules are imported only when an order names it.

An accelerator runs a head whole or not at all: nodes that it leaves may go to another one that the order names later,
never to the processor, since every such node costs two copies. The first attempt that loads the head and runs it once
is taken; why the earlier ones were not stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from protocol.engines.base import Engine
from protocol.errors import EngineError, InputError

CPU = "cpu"
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    CPU: "CPUExecutionProvider",
}
NATIVE = {"tensorrt-native": "tensorrt"}  # by the catalogue's name of the same engine
DEFAULT = (CPU,)
_BUILT = frozenset({"tensorrt", *NATIVE})


class Attempt(NamedTuple):
    """`providers` are ONNX Runtime's names in order, none for an engine of its own. `lacking` says what is missing."""

    name: str
    providers: tuple[str, ...] = ()
    lacking: str = ""

    @property
    def is_built(self) -> bool:
        """Whether a head takes minutes to load, because it is compiled for this device first."""
        return self.name in _BUILT


class Started(NamedTuple):
    """`engine` runs on `name`; `passed_over` are what was preferred, each with why it does not run this."""

    engine: Engine
    name: str
    passed_over: tuple[tuple[str, str], ...] = ()


def plans_in(plans_dir: Path | None, state_dir: Path) -> Path:
    """Where heads that were built are kept: where the settings say, or beside everything else that is."""
    return plans_dir or state_dir / "plans"


def checked(order: Sequence[str]) -> tuple[str, ...]:
    """The order itself. Raises InputError for a name that is unknown or stands twice, and for none at all."""
    known = ", ".join((*PROVIDERS, *NATIVE))
    for name in order:
        if name not in PROVIDERS and name not in NATIVE:
            raise InputError(f"there is no execution provider {name!r}", f"known are {known}")
    if not order or len(set(order)) != len(order):
        raise InputError("an order of execution providers names each at most once, and one at least", f"use {known}")
    return tuple(order)


def attempts(order: Sequence[str], available: Sequence[str]) -> tuple[Attempt, ...]:
    """What to try one after another. `available` are the providers that this build of ONNX Runtime brings."""
    return tuple(_attempt(name, order[at:], available) for at, name in enumerate(checked(order)))


def _attempt(name: str, order: Sequence[str], available: Sequence[str]) -> Attempt:
    if name in NATIVE:
        from protocol.engines.catalogue import KINDS

        return Attempt(name, lacking=KINDS[NATIVE[name]].absent())
    if PROVIDERS[name] not in available:
        return Attempt(name, lacking=f"this onnxruntime was built without {PROVIDERS[name]}")
    return Attempt(name, _providers(order, available))


def _providers(order: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    together = order[:1] if order[0] == CPU else [name for name in order if name != CPU and name in PROVIDERS]
    return tuple(PROVIDERS[name] for name in together if PROVIDERS[name] in available)


def first_that_runs(tried: Sequence[Attempt], start: Callable[[Attempt], Engine]) -> Started:
    """The first attempt that `start` makes an engine of. Raises EngineError with the reasons of all when none does."""
    passed_over: list[tuple[str, str]] = []
    for attempt in tried:
        if attempt.lacking:
            passed_over.append((attempt.name, attempt.lacking))
            continue
        try:
            return Started(start(attempt), attempt.name, tuple(passed_over))
        except EngineError as error:
            if len(tried) == 1:
                raise
            passed_over.append((attempt.name, str(error)))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over)
    raise EngineError(f"nothing runs it: {reasons}", "install the provider, or name another one (cpu runs everything)")
