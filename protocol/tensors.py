"""Tensors as nouns: what one is called, what it holds and how large it may be. A tensor keeps its ONNX name throughout.

Shapes in a `TensorSpec` may hold names ("N") or None for dimensions that are only known when a request comes; shapes in
a `TensorHeader` (on the wire) are always numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import InputError, WireError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Dim = int | str | None

# The element types that may cross. Strings and objects may not: they have no fixed size.
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("bool", *_INTEGERS, "float16", "float32", "float64")
}

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_RANK = 8
MAX_NAME_LENGTH = 512
MAX_TENSORS = 64


class TensorSpec(msgspec.Struct, frozen=True):
    """What a graph promises about one of its tensors: ONNX name, element type, shape with free dimensions."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]


class TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a message, as announced on the wire; its `nbytes` encoded bytes follow in the payload parts."""

    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)]
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31)], ...], msgspec.Meta(max_length=MAX_RANK)]
    codec: Annotated[str, msgspec.Meta(max_length=32)]
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=2**40)]

    def decoded_nbytes(self) -> int:
        """Size of the decoded tensor in bytes, from the announced shape alone (nothing is allocated).

        Raises WireError for an element type that may not cross.
        """
        if self.dtype not in DTYPES:
            raise WireError(f"tensor {self.name!r} has element type {self.dtype!r}", f"send one of {', '.join(DTYPES)}")
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def dtype_name(tensor: str, array: Array) -> str:
    """The ONNX name of the array's element type; numpy's own `dtype.name` takes microseconds.

    Raises WireError for an element type that may not cross.
    """
    name = _NAMES.get(array.dtype)
    if name is None:  # foreign byte order too
        raise WireError(f"tensor {tensor!r} has element type {array.dtype}", f"send one of {', '.join(DTYPES)}")
    return name


def describe(spec: TensorSpec) -> str:
    """`image: uint8 [N, 1, 224, 224]`"""
    return f"{spec.name}: {spec.dtype} [{', '.join('?' if d is None else str(d) for d in spec.shape)}]"


def shape_fits(shape: Sequence[int], wanted: Sequence[Dim]) -> bool:
    return len(shape) == len(wanted) and all(
        not isinstance(w, int) or w == s for s, w in zip(shape, wanted, strict=True)
    )


def check_inputs(specs: Sequence[TensorSpec], given: Tensors) -> None:
    """Check that `given` holds exactly the tensors of `specs`, with their element types and shapes.

    Raises InputError naming the tensor, what it is and what it should be.
    """
    expected = ", ".join(describe(s) for s in specs)
    if not isinstance(given, Mapping):
        raise InputError(f"the inputs are a {type(given).__name__}", f"give a dictionary with {expected}")
    for spec in specs:
        if spec.name not in given:
            others = [repr(name) for name in given if name not in {s.name for s in specs}]
            instead = f", and {', '.join(others[:3])} is none of its inputs" if others else ""
            raise InputError(f"input {spec.name!r} is missing{instead}", f"the model takes {expected}")
        array = given[spec.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {spec.name!r} is a {type(array).__name__}", "give a numpy array")
        if array.dtype != spec.numpy_dtype:
            raise InputError(
                f"input {spec.name!r} has element type {array.dtype} but the model takes {spec.dtype}",
                f"convert it with .astype({spec.dtype!r}) if the values are the same",
            )
        if not shape_fits(array.shape, spec.shape):
            raise InputError(
                f"input {spec.name!r} has shape {list(array.shape)} but the model takes {describe(spec)}",
                "resize, transpose or reshape it",
            )
        if array.shape[:1] == (0,):  # there is nothing to answer, and times of nothing would be learned from
            raise InputError(f"input {spec.name!r} has no rows: its shape is {list(array.shape)}", "send at least one")
    unknown = [name for name in given if name not in {s.name for s in specs}]
    if unknown:
        raise InputError(f"input {unknown[0]!r} is not an input of the model", f"the model takes {expected}")
