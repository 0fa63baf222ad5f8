"""Inference requests and answers between protocol buffers and nouns. Raw contents are looked at, never copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format

from protocol.oip.contract import contract
from protocol.oip.service import InferRequest, InferResponse, ModelStatistics, Parameter
from protocol.oip.tensors import (
    DATATYPES,
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
from protocol.tensors import Array

# Where typed contents lie. float16 has no field of its own and comes raw.
_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{name: f"{name.lower()}_contents" for name in ("INT64", "UINT64", "FP32", "FP64")},
}


def decode(message: Any, *, tenant: str, remaining_s: float | None, trace: str = "") -> InferRequest:
    """A ModelInferRequest as a noun; `remaining_s` is what the call's own deadline leaves. Raises OipError."""
    check_tensors([given.name for given in message.inputs])
    parameters = parameters_of(message.parameters)
    timeout_s, priority = budget_of(parameters)
    if remaining_s is not None:
        timeout_s = remaining_s if timeout_s is None else min(timeout_s, remaining_s)
    for wanted in message.outputs:
        _check_output(wanted.name, wanted.parameters)
    return InferRequest(
        model=message.model_name,
        version=message.model_version or None,
        id=message.id,
        tensors=_tensors(message),
        outputs=tuple(wanted.name for wanted in message.outputs),
        timeout_s=timeout_s,
        priority=priority,
        tenant=tenant,
        parameters=parameters,
        trace=trace,
    )


def _tensors(message: Any) -> dict[str, Array]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise refuse(f"{len(message.inputs)} inputs, but {len(raw)} raw contents; give one for each, or none")
    tensors = {}
    for i, given in enumerate(message.inputs):
        if "shared_memory_region" in given.parameters:
            raise refuse(f"input {given.name!r}: {NOT_SPOKEN_PARAMETERS['shared_memory_region']}")
        if raw and given.HasField("contents"):
            raise refuse(f"input {given.name!r} has typed contents in a request with raw contents")
        make = from_bytes(given.name, given.datatype, given.shape, raw[i]) if raw else _typed(given)
        tensors[given.name] = make
    return tensors


def _typed(given: Any) -> Array:
    dtype = dtype_of(given.name, given.datatype)
    field = _FIELDS.get(given.datatype)
    if field is None:
        raise refuse(f"input {given.name!r} is {given.datatype}: there are no typed contents for it; send it raw")
    values, wanted = getattr(given.contents, field), element_count(given.name, given.shape)
    if len(values) != wanted:
        raise refuse(f"input {given.name!r} has {len(values):,} {field}, but its shape takes {wanted:,}")
    array: Array = np.fromiter(values, DATATYPES.get(_WIDE.get(field, ""), dtype), wanted)
    if array.dtype != dtype:
        narrow = array.astype(dtype)
        if not np.array_equal(narrow, array):
            raise refuse(f"input {given.name!r} holds a value that is no {given.datatype}")
        array = narrow
    array = array.reshape(tuple(given.shape))
    array.flags.writeable = False
    return array


_WIDE = {"int_contents": "INT32", "uint_contents": "UINT32"}


def _check_output(name: str, parameters: Mapping[str, Any]) -> None:
    for unwanted in ("classification", "shared_memory_region"):
        if unwanted in parameters:
            raise refuse(f"output {name!r}: {NOT_SPOKEN_PARAMETERS[unwanted]}")


def parameters_of(given: Mapping[str, Any]) -> dict[str, Parameter]:
    """The set values of a map of parameters. Raises OipError for too many, or for bytes."""
    if len(given) > MAX_PARAMETERS:
        raise refuse(f"{len(given)} parameters; at most {MAX_PARAMETERS} are taken")
    parameters: dict[str, Parameter] = {}
    for name, parameter in given.items():
        field = parameter.WhichOneof("parameter_choice")
        if field == "bytes_param":
            raise refuse(f"parameter {name[:64]!r}: models come from the repository's folder only")
        if field is not None:
            parameters[name] = getattr(parameter, field)
    return parameters


def encode(response: InferResponse) -> Any:
    """A ModelInferResponse with raw contents. Raises OipError for an element type the protocol lacks."""
    message = contract.ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for name, value in response.parameters.items():
        _set(message.parameters[name], value)
    for name, array in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(name, array), shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    return message


def _set(parameter: Any, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value


def config(document: dict[str, Any]) -> Any:
    """ModelConfig from its JSON; what the contract has no field for is left out."""
    return json_format.ParseDict(document, contract.ModelConfig(), ignore_unknown_fields=True)


def statistics(found: Sequence[ModelStatistics]) -> Any:
    message = contract.ModelStatisticsResponse()
    for one in found:
        told = message.model_stats.add(
            name=one.name,
            version=one.version,
            last_inference=one.last_inference,
            inference_count=one.inference_count,
            execution_count=one.execution_count,
        )
        _durations(told.inference_stats, one.inference_stats)
        for batch in one.batch_stats:
            _durations(told.batch_stats.add(batch_size=batch.batch_size), batch)
    return message


def _durations(told: Any, found: Any) -> None:
    for field in told.DESCRIPTOR.fields:
        if field.message_type is not None:
            duration = getattr(found, field.name)
            target = getattr(told, field.name)
            target.count, target.ns = duration.count, duration.ns
