"""What a client and the daemon on its device say to each other, as bytes: the Open Inference Protocol's binary tensors.

    [JSON][tensors in the order of their names in it]

Pure: sockets are `local_client`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edge_agent.outcomes import Answer, Refusal, StageTimings
from protocol.control.causes import Cause
from protocol.control.flights import RefusalCode
from protocol.errors import InputError, NetworkError
from protocol.oip.service import OipError
from protocol.oip.tensors import DATATYPES, datatype_of, from_bytes
from protocol.tensors import Array, Tensors, TensorSpec, dtype_name

_STAGES = tuple(StageTimings.__slots__)
_CODES = {
    "DEADLINE": RefusalCode.DEADLINE,
    "BUSY": RefusalCode.BUSY,
    "RATE_LIMITED": RefusalCode.BUSY,
    "NOT_READY": RefusalCode.NO_PLACEMENT,
    "DRAINING": RefusalCode.CLOSED,
    "CANCELLED": RefusalCode.CANCELLED,
    "INTERNAL": RefusalCode.CLOSED,
}


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any]


class _Answered(msgspec.Struct):
    outputs: list[_Output]
    parameters: dict[str, Any]


class _Refused(msgspec.Struct):
    error: str
    code: str = ""
    slack_us: int = 0


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class Metadata(msgspec.Struct):
    """What the daemon says of its model."""

    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]

    def specs(self) -> tuple[TensorSpec, ...]:
        """The inputs; a free dimension has no name here."""
        return tuple(
            TensorSpec(t.name, dtype_name(t.name, np.empty(0, DATATYPES[t.datatype])),
                       tuple(None if d < 0 else d for d in t.shape))
            for t in self.inputs
        )  # fmt: skip


class Request(NamedTuple):
    json_nbytes: int
    parts: list[bytes | memoryview]  # the JSON, then the callers' own arrays

    @property
    def nbytes(self) -> int:
        return sum(len(part) for part in self.parts)


def encode(inputs: Tensors, *, deadline_s: float, priority: int | None) -> Request:
    """Raises InputError for an element type that the protocol lacks."""
    described: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for name, array in inputs.items():
        data = np.ascontiguousarray(array)
        try:
            datatype = datatype_of(name, data)
        except OipError as error:
            raise InputError(error.reason, "convert it to what the model takes") from None
        described.append(
            {"name": name, "datatype": datatype, "shape": data.shape, "parameters": {"binary_data_size": data.nbytes}}
        )
        parts.append(data.reshape(-1).view("u1").data)
    parameters: dict[str, Any] = {"timeout": max(1, int(deadline_s * 1e6)), "binary_data_output": True}
    if priority is not None:
        parameters["priority"] = priority + 1
    head = msgspec.json.encode({"inputs": described, "parameters": parameters})
    return Request(len(head), [head, *parts])


def decode(body: memoryview, json_nbytes: int) -> Answer:
    """An answer with its provenance; its arrays lie in `body`. Raises NetworkError for what is none."""
    try:
        found = msgspec.json.decode(body[:json_nbytes], type=_Answered)
        outputs: dict[str, Array] = {}
        at = json_nbytes
        for output in found.outputs:
            size = int(output.parameters["binary_data_size"])
            outputs[output.name] = from_bytes(output.name, output.datatype, output.shape, body[at : at + size])
            at += size
        return _answer(outputs, found.parameters)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, OipError) as error:
        raise stranger(str(error)) from error


def _answer(outputs: dict[str, Array], said: Mapping[str, Any]) -> Answer:
    degraded, causes = str(said.get("degraded", "")), str(said.get("causes", ""))
    optional = {
        field.name: said[field.name]
        for field in dataclasses.fields(Answer)
        if field.name in ("gateway", "hedged") and field.name in said
    }
    return Answer(
        request=str(said["request"]),
        outputs=outputs,
        placement=str(said["placement"]),
        kind=str(said["kind"]),
        precision=str(said["precision"]),
        engine=str(said["engine"]),
        bundle=str(said["bundle"]),
        timings=StageTimings(**{stage: said[f"{stage.removesuffix('_s')}_us"] / 1e6 for stage in _STAGES}),
        up_nbytes=int(said["up_bytes"]),
        down_nbytes=int(said["down_bytes"]),
        attempts=int(said["attempts"]),
        batch_size=int(said["batch_size"]),
        degraded=tuple(degraded.split("; ")) if degraded else (),
        causes=tuple(map(Cause, causes.split(","))) if causes else (),
        predicted_s=said["predicted_us"] / 1e6 if "predicted_us" in said else None,
        **optional,
    )


def refusal(status: int, body: bytes) -> Refusal:
    """A refusal as a value. Raises InputError for what the caller has to mend: 4xx."""
    try:
        said = msgspec.json.decode(body, type=_Refused)
    except msgspec.MsgspecError as error:
        raise stranger(f"status {status}") from error
    code = _CODES.get(said.code)
    if code is None:
        raise InputError(said.error, "see docs/oip.md")
    return Refusal("", code, said.error, said.slack_us / 1e6)


def described(body: bytes) -> Metadata:
    try:
        return msgspec.json.decode(body, type=Metadata)
    except msgspec.MsgspecError as error:
        raise stranger(str(error)) from error


def only_model(body: bytes) -> str:
    """The name in the daemon's repository index."""
    try:
        entries: Sequence[Mapping[str, Any]] = msgspec.json.decode(body)
        return str(entries[0]["name"])
    except (msgspec.MsgspecError, KeyError, IndexError, TypeError) as error:
        raise stranger(str(error)) from error


def stranger(why: str) -> NetworkError:
    return NetworkError(f"what answers there is no edge-agent ({why})", "name the agent's socket or http://HOST:PORT")
