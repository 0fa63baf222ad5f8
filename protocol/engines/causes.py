"""What an engine failed of: what it says itself, else what its library's words mean. Pure.

Libraries raise sentences. What they mean decides what comes next: out of memory, a lost device or a refused run are the
engine's own trouble whatever the request held, tensors that do not fit are the request's, and of the rest nobody knows
before another engine has run the same batch.
"""

from __future__ import annotations

import re
from typing import Literal

from protocol.engines.trt_options import Cause as GpuCause
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError

Cause = GpuCause | Literal["disagrees", "other"]
DISAGREES: Cause = "disagrees"  # it computes something else than the engine that serves
OWN: frozenset[Cause] = frozenset({"out-of-memory", "device-lost", "run-failed"})  # whatever the request held
THE_REQUESTS: frozenset[Cause] = frozenset({"bad-input"})

# The words of CUDA's runtime and driver, of ONNX Runtime's providers and of TensorRT, the most telling first. Lost is
# what CUDA documents as leaving the process in a state in which every further call fails until it ends, and a GPU that
# is gone. A device that is busy (46) or a stream that is captured (900) is none of these: it may be well soon after.
_WORDS: dict[Cause, re.Pattern[str]] = {
    "out-of-memory": re.compile(
        r"out[ _-]?of[ _-]?memory|failed to allocate memory|bad_?alloc|memory limit|BFCArena|_ALLOC_FAILED"
        r"|could not be allocated|failure with error:? 2\b",
        re.IGNORECASE,
    ),
    "device-lost": re.compile(
        r"device (is |was )?lost|lost device|fallen off the bus|illegal (memory access|address|instruction)"
        r"|unspecified launch failure|launch timed out|uncorrectable|no CUDA-capable device|NO_DEVICE"
        r"|device-side assert|hardware stack error|misaligned address|on global/shared address space"
        r"|invalid program counter|tensor memory not completely freed|peer GPU memory over nvlink|MPS client"
        r"|context is destroyed|CONTEXT_IS_DESTROYED|DEINITIALIZED|ILLEGAL_(ADDRESS|INSTRUCTION)|MISALIGNED_ADDRESS"
        r"|INVALID_(PC|ADDRESS_SPACE)|HARDWARE_STACK_ERROR|LAUNCH_(FAILED|TIMEOUT)"
        r"|CUDA failure (100|214|220|226|700|702|709|710|714|715|716|717|718|719|721|810)\b",
        re.IGNORECASE,
    ),
    "run-failed": re.compile(
        r"CUDA failure|CUDA error|CUDNN_STATUS|CUBLAS_STATUS|enqueue|busy or unavailable|DEVICES?_?UNAVAILABLE",
        re.IGNORECASE,
    ),
}


def cause_of(error: BaseException | str) -> Cause:
    """What the error says of itself, or what its words mean."""
    if isinstance(error, GpuError):
        return error.cause
    text = str(error)
    return next((cause for cause, words in _WORDS.items() if words.search(text)), "other")


def no_room_or(words: str, otherwise: GpuCause) -> GpuCause:
    """Whether the words of a refusal say that there is no room; what it is `otherwise`."""
    return "out-of-memory" if _WORDS["out-of-memory"].search(words) else otherwise


def failed(fact: str, cause: Cause) -> EngineError:
    """The error that says so, and its cause where that is one of a GPU's."""
    return EngineError(fact, "") if cause == "disagrees" or cause == "other" else GpuError(fact, cause=cause)


def is_final(error: BaseException) -> bool:
    """Whether asking the same engine again, in this process, cannot help."""
    return isinstance(error, GpuError) and error.is_final
