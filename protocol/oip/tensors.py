"""Element types in the protocol's words, and bytes that become arrays: what HTTP and gRPC share; nothing is copied.

Strings (BYTES) have no fixed size and bfloat16 (BF16) no numpy type: both are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from protocol.oip.service import OipError, Parameter, Refusal
from protocol.tensors import MAX_NAME_LENGTH, MAX_RANK, MAX_TENSORS, Array

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_NOT_SPOKEN = {
    "BYTES": "strings have no fixed size; encode them as numbers before the model, for example as UINT8",
    "BF16": "numpy has no bfloat16; convert it to FP32 or FP16",
}
MAX_DIM = 2**31
MAX_PARAMETERS = 64
MICROSECONDS_A_DAY = 86_400_000_000
# Sequences and shared memory change what a request means: who asks for them must hear that they are not there.
NOT_SPOKEN_PARAMETERS = {
    "sequence_id": "sequences of requests are not spoken here; send the state as a tensor",
    "sequence_start": "sequences of requests are not spoken here; send the state as a tensor",
    "sequence_end": "sequences of requests are not spoken here; send the state as a tensor",
    "shared_memory_region": "shared memory is not spoken here; send the tensor in the message",
    "classification": "the classification extension is not spoken here; ask for the tensor and sort it",
}


def refuse(reason: str, refusal: Refusal = Refusal.BAD_REQUEST) -> OipError:
    return OipError(refusal, reason)


def dtype_of(tensor: str, datatype: str) -> np.dtype[Any]:
    """Raises OipError for an element type that is not spoken here."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        if datatype in _NOT_SPOKEN:
            raise refuse(f"tensor {tensor!r} is {datatype}: {_NOT_SPOKEN[datatype]}", Refusal.UNSUPPORTED)
        raise refuse(f"tensor {tensor!r} has datatype {datatype[:32]!r}; it must be one of {', '.join(DATATYPES)}")
    return dtype


def datatype_of(tensor: str, array: Array) -> str:
    """The protocol's name of an answer's element type; a model that makes another is our fault, not the caller's."""
    name = NAMES.get(array.dtype)
    if name is None:
        raise refuse(f"output {tensor!r} has element type {array.dtype}, which the protocol lacks", Refusal.INTERNAL)
    return name


def element_count(tensor: str, shape: Sequence[int]) -> int:
    """How many elements a shape announces. Raises OipError for what is no shape."""
    if len(shape) > MAX_RANK:
        raise refuse(f"tensor {tensor!r} has {len(shape)} dimensions; at most {MAX_RANK} are taken")
    if any(not 0 <= dim <= MAX_DIM for dim in shape):
        raise refuse(f"tensor {tensor!r} has shape {list(shape)}; every dimension must be a number from 0 to 2^31")
    return math.prod(shape)


def from_bytes(tensor: str, datatype: str, shape: Sequence[int], data: memoryview | bytes) -> Array:
    """A read-only array over `data`, copied only where it does not lie aligned. Raises OipError if sizes disagree."""
    dtype = dtype_of(tensor, datatype)
    wanted, given = element_count(tensor, shape) * dtype.itemsize, len(data)
    if wanted != given:
        raise refuse(f"tensor {tensor!r} {datatype}{list(shape)} takes {wanted:,} bytes, but {given:,} came")
    array: Array = np.frombuffer(data, dtype).reshape(shape)
    if not array.flags.aligned:  # engines are given the address as it is
        array = array.copy()
    array.flags.writeable = False
    return array


def check_tensors(names: Sequence[str]) -> None:
    """Raises OipError for none, too many, doubled or endless names."""
    if not 0 < len(names) <= MAX_TENSORS:
        raise refuse(f"the request has {len(names)} inputs; 1 to {MAX_TENSORS} are taken")
    if len(set(names)) != len(names):
        raise refuse("an input is given twice; every name may come once")
    if any(not name or len(name) > MAX_NAME_LENGTH for name in names):
        raise refuse(f"a tensor's name is empty or longer than {MAX_NAME_LENGTH} characters")


def budget_of(parameters: dict[str, Parameter]) -> tuple[float | None, int | None]:
    """Takes `timeout` (microseconds) and `priority` out of the parameters: seconds, and our 0 (first) .. 9.

    0 means the server's default for both, and 1 is the first priority: so says Triton. Raises OipError.
    """
    for name, remedy in NOT_SPOKEN_PARAMETERS.items():
        if parameters.get(name):
            raise refuse(f"parameter {name!r}: {remedy}")
    timeout = _integer(parameters.pop("timeout", 0), "timeout", "microseconds", MICROSECONDS_A_DAY)
    priority = _integer(parameters.pop("priority", 0), "priority", "0 for the default, else 1 (first)", 10)
    return timeout / 1e6 if timeout else None, priority - 1 if priority else None


def _integer(value: Parameter, name: str, unit: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise refuse(f"parameter {name!r} is {str(value)[:40]!r}; it is an integer from 0 to {most} ({unit})")
    return value
