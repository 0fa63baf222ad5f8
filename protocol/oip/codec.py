"""Inference requests and answers between bytes and nouns: JSON, and the binary tensor extension.

    [JSON: Inference-Header-Content-Length bytes][binary tensors in the order of their inputs]

JSON is decoded into typed structs, so what does not fit is refused where it begins and costs little. A tensor's size is
compared with its announced shape before anything of that size is made. Numbers in JSON go straight into the array, a
piece at a time: a list of Python floats would take ten times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from protocol.oip.service import InferRequest, InferResponse, OipError, Parameter, Refusal
from protocol.oip.tensors import (
    MAX_PARAMETERS,
    NOT_SPOKEN_PARAMETERS,
    budget_of,
    check_tensors,
    datatype_of,
    dtype_of,
    element_count,
    from_bytes,
    refuse,
)
from protocol.tensors import MAX_NAME_LENGTH, MAX_RANK, MAX_TENSORS, Array

# Binary tensors do not count: who sends more than this as JSON loses more time with it than we do.
MAX_JSON_NBYTES = 16 << 20
MAX_JSON_ELEMENTS = 1 << 20  # of an answer: 0.1 s in which nobody else is served
MAX_ID_LENGTH = 256
_PIECE_NBYTES = 1 << 16

_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)]
_Parameters = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], bool | int | float | str],
    msgspec.Meta(max_length=MAX_PARAMETERS),
]
_NO_DATA = msgspec.Raw()
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class _TensorParameters(msgspec.Struct):
    binary_data_size: _Size | None = None
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str = ""


class _Input(msgspec.Struct):
    name: _Name
    datatype: Annotated[str, msgspec.Meta(max_length=32)]
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=MAX_RANK)]
    parameters: _TensorParameters | None = None
    data: msgspec.Raw = _NO_DATA  # decoded when datatype and shape are known


class _Output(msgspec.Struct):
    name: _Name
    parameters: _TensorParameters | None = None


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=MAX_TENSORS)]
    id: Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)] = ""
    parameters: _Parameters | None = None
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=MAX_TENSORS)] | None = None


class Form(msgspec.Struct, frozen=True):
    """How the caller wants its answer: which outputs as bytes behind the JSON, and which as numbers in it."""

    binary: bool = False  # for outputs that are not named below
    named: dict[str, bool | None] = {}

    def is_binary(self, output: str) -> bool:
        wish = self.named.get(output)
        return self.binary if wish is None else wish


PLAIN = Form()
_decoder = msgspec.json.Decoder(_Request)
_encoder = msgspec.json.Encoder()


def decode(
    body: memoryview, json_nbytes: int | None, *, model: str, version: str | None, tenant: str, trace: str = ""
) -> tuple[InferRequest, Form]:
    """One inference from the bytes of its body; `json_nbytes` is None where all of it is JSON. Raises OipError."""
    size = len(body) if json_nbytes is None else json_nbytes
    if size > len(body):
        raise refuse(f"Inference-Header-Content-Length is {size:,}, but the body has {len(body):,} bytes")
    if size > MAX_JSON_NBYTES:
        reason = f"{size:,} bytes of JSON; at most {MAX_JSON_NBYTES:,} are taken: send tensors as binary data"
        raise refuse(reason, Refusal.TOO_LARGE)
    request = parse(body[:size], _decoder)
    check_tensors([given.name for given in request.inputs])
    tensors = _tensors(request.inputs, body, size)
    parameters: dict[str, Parameter] = dict(request.parameters) if request.parameters else {}
    timeout_s, priority = budget_of(parameters)
    binary = parameters.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise refuse("parameter 'binary_data_output' is true or false")
    named = {wanted.name: _wish(wanted) for wanted in request.outputs} if request.outputs else {}
    decoded = InferRequest(
        model=model,
        version=version,
        id=request.id,
        tensors=tensors,
        outputs=tuple(named),
        timeout_s=timeout_s,
        priority=priority,
        tenant=tenant,
        parameters=parameters,
        trace=trace,
    )
    return decoded, Form(binary, named) if binary or named else PLAIN


def parse(document: memoryview | bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """A JSON document as its typed struct. Raises OipError with the place where it does not fit."""
    try:
        return decoder.decode(document)
    except msgspec.ValidationError as error:
        raise refuse(f"the request does not fit the protocol: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse(f"the request is no JSON document: {error}") from None
    except RecursionError:
        raise refuse("the request's JSON is nested too deeply") from None


def _tensors(inputs: Sequence[_Input], body: memoryview, at: int) -> dict[str, Array]:
    tensors = {}
    for given in inputs:
        parameters = given.parameters
        if parameters is not None and parameters.shared_memory_region:
            raise refuse(f"input {given.name!r}: {NOT_SPOKEN_PARAMETERS['shared_memory_region']}")
        size = None if parameters is None else parameters.binary_data_size
        has_data = given.data is not _NO_DATA
        if (size is None) != has_data:
            what = "neither data nor binary_data_size" if size is None else "both data and binary_data_size"
            raise refuse(f"input {given.name!r} has {what}")
        if size is None:
            tensors[given.name] = _from_json(given, bytes(given.data))
        else:
            if size > len(body) - at:
                reason = f"input {given.name!r} has binary_data_size {size:,}, but only {len(body) - at:,} bytes follow"
                raise refuse(reason)
            tensors[given.name] = from_bytes(given.name, given.datatype, given.shape, body[at : at + size])
            at += size
    if at != len(body):
        raise refuse(f"{len(body) - at:,} bytes behind the last tensor; every input names its binary_data_size")
    return tensors


def _wish(wanted: _Output) -> bool | None:
    parameters = wanted.parameters
    if parameters is None:
        return None
    for name in ("classification", "shared_memory_region"):
        if getattr(parameters, name):
            raise refuse(f"output {wanted.name!r}: {NOT_SPOKEN_PARAMETERS[name]}")
    return parameters.binary_data


# ---- numbers in JSON ------------------------------------------------------------------------------------------------

_SPACE = b" \t\r\n"
_NUMBERS: dict[str, msgspec.json.Decoder[Any]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "f": msgspec.json.Decoder(list[float]),
}


def _from_json(given: _Input, text: bytes) -> Array:
    """Numbers, flat or nested as the shape says. `text` is known to be one JSON value."""
    dtype = dtype_of(given.name, given.datatype)
    count = element_count(given.name, given.shape)
    flat = text.translate(None, b"[]" + _SPACE)
    found = flat.count(b",") + 1 if flat.strip(b",") else 0
    if not text.startswith(b"["):
        raise refuse(f"the data of input {given.name!r} is no list")
    if found != count:
        raise refuse(f"input {given.name!r} has {found:,} values, but its shape {given.shape} takes {count:,}")
    if count and not _is_nested_like(text, given.shape):
        raise refuse(f"input {given.name!r} is nested otherwise than its shape {given.shape} says")
    array: Array = np.empty(count, dtype)
    at = 0
    try:
        with np.errstate(over="raise"):  # 1e39 is no FP32
            for piece in _pieces(flat) if count else ():
                values = _NUMBERS[dtype.kind].decode(b"[" + piece + b"]")
                array[at : at + len(values)] = values
                at += len(values)
    except (msgspec.MsgspecError, UnicodeDecodeError, ArithmeticError, RecursionError) as error:
        reason = f"input {given.name!r} holds a value that is no {given.datatype}: {error}"
        raise refuse(reason) from None
    if at != count:
        raise refuse(f"input {given.name!r} has {at:,} values, but its shape {given.shape} takes {count:,}")
    array = array.reshape(given.shape)
    array.flags.writeable = False
    return array


def _is_nested_like(text: bytes, shape: Sequence[int]) -> bool:
    """Whether the brackets and commas stand as a tensor of this shape has them, or those of a flat list."""
    skeleton = text.translate(None, b"0123456789+-.eEtrufals" + _SPACE)
    for dims in ([int(np.prod(shape))], shape):
        expected = b""
        for dim in reversed(dims):
            expected = b"[" + b",".join([expected] * dim) + b"]"
        if skeleton == expected:
            return True
    return False


def _pieces(flat: bytes) -> Iterator[bytes]:
    """`1,2,3` in runs that end between two values."""
    start = 0
    while len(flat) - start > _PIECE_NBYTES:
        end = flat.rfind(b",", start, start + _PIECE_NBYTES)
        if end < 0:  # no number is that long
            raise msgspec.DecodeError("a number of more than 65,536 digits")
        yield flat[start:end]
        start = end + 1
    yield flat[start:]


# ---- the answer -----------------------------------------------------------------------------------------------------


def encode(response: InferResponse, form: Form) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part where binary tensors follow. Raises OipError."""
    outputs: list[dict[str, Any]] = []
    parts: list[Any] = [b""]
    for name, array in response.outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(name, array), "shape": array.shape}
        if form.is_binary(name):
            output["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(np.ascontiguousarray(array))
        else:
            output["data"] = _to_json(name, array)
        outputs.append(output)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    parts[0] = _encoder.encode(document)
    if len(parts) == 1:
        return parts[0], None
    return b"".join(parts), len(parts[0])


def _to_json(name: str, array: Array) -> list[Any]:
    if array.size > MAX_JSON_ELEMENTS:
        reason = f"output {name!r} has {array.size:,} values; as JSON at most {MAX_JSON_ELEMENTS:,} are sent"
        raise refuse(f"{reason}: ask for binary_data", Refusal.TOO_LARGE)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise refuse(f"output {name!r} holds NaN or infinity, which JSON cannot say: ask for binary_data")
    values: list[Any] = array.ravel().tolist()
    return values


def error_document(error: OipError) -> dict[str, Any]:
    """The body of a refusal: `error` is what every client shows, the rest is for those who act on it."""
    document: dict[str, Any] = {"error": error.reason, "code": error.refusal.name}
    if error.slack_s is not None:
        document["slack_us"] = max(0, int(error.slack_s * 1e6))
    if error.retry_after_s is not None:
        document["retry_after_us"] = max(0, int(error.retry_after_s * 1e6))
    return document


def to_json(document: Any) -> bytes:
    return _encoder.encode(document)
