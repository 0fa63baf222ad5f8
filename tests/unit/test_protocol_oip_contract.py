from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from protocol.errors import InvariantViolation
from protocol.oip import grpc_codec
from protocol.oip.contract import Contract, contract
from protocol.oip.service import InferResponse, OipError
from protocol.oip.tensors import DATATYPES

THEIRS = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
OURS = sorted(name.partition(".")[2] for name in contract._found if name.count(".") == 1)


@pytest.mark.parametrize("name", OURS)
def test_every_field_has_the_number_and_type_of_the_public_protocol(name: str) -> None:
    compare(getattr(contract, name).DESCRIPTOR, THEIRS[name])


def compare(ours: Any, theirs: Any) -> None:
    for field in ours.fields:
        public = theirs.fields_by_number[field.number]
        assert (field.name, field.type, field.is_repeated) == (public.name, public.type, public.is_repeated)
        one_of = [f.containing_oneof.name if f.containing_oneof else None for f in (field, public)]
        assert one_of[0] == one_of[1]
        if field.message_type is not None:
            compare(field.message_type, public.message_type)
        if field.enum_type is not None:
            assert {v.name: v.number for v in field.enum_type.values} == {
                v.name: v.number for v in public.enum_type.values
            }


def test_every_call_takes_and_gives_what_the_public_protocol_says() -> None:
    public = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for call in contract.calls:
        theirs = public[call.name]
        assert (call.request.DESCRIPTOR.name, call.response.DESCRIPTOR.name) == (
            theirs.input_type.name,
            theirs.output_type.name,
        )
        assert call.is_stream == theirs.client_streaming


@pytest.mark.parametrize(
    "text", ["", 'syntax = "proto2";', "message M {", 'syntax = "proto3"; package p; option;', "$"]
)
def test_a_contract_that_is_not_understood_is_a_bug(text: str) -> None:
    with pytest.raises(InvariantViolation):
        Contract(text)


# ---- requests -------------------------------------------------------------------------------------------------------


def message(datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> Any:
    asked = contract.ModelInferRequest(model_name="m", id="q")
    given = asked.inputs.add(name="x", datatype=datatype, shape=shape)
    if raw is not None:
        asked.raw_input_contents.append(raw)
    for field, values in contents.items():
        getattr(given.contents, field).extend(values)
    return asked


def tensor(asked: Any) -> np.ndarray[Any, Any]:
    return grpc_codec.decode(asked, tenant="me", remaining_s=None).tensors["x"]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_element_type_comes_raw_and_goes_back_raw(datatype: str) -> None:
    values = np.array([[0, 1, 1]]).astype(DATATYPES[datatype])
    found = tensor(message(datatype, [1, 3], values.tobytes()))
    assert np.array_equal(found, values)
    assert not found.flags.writeable
    answer = grpc_codec.encode(InferResponse("m", "1", "q", {"y": values}))
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (datatype, [1, 3])
    assert answer.raw_output_contents[0] == values.tobytes()


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        ("BOOL", "bool_contents"),
        ("INT8", "int_contents"),
        ("INT32", "int_contents"),
        ("INT64", "int64_contents"),
        ("UINT8", "uint_contents"),
        ("UINT64", "uint64_contents"),
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
    ],
)
def test_typed_contents_become_the_same_tensor(datatype: str, field: str) -> None:
    found = tensor(message(datatype, [2, 2], **{field: [0, 1, 1, 0]}))
    assert found.dtype == DATATYPES[datatype]
    assert found.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (contract.ModelInferRequest(), "0 inputs"),
        (message("FP32", [2], b"1234"), "takes 8 bytes"),
        (message("FP32", [-1], b"1234"), "2\\^31"),
        (message("FP32", [2]), "0 fp32_contents"),
        (message("FP32", [1], int_contents=[1]), "0 fp32_contents"),
        (message("FP32", [1], b"1234", fp32_contents=[1]), "typed contents in a request with raw"),
        (message("FP16", [1]), "send it raw"),
        (message("INT8", [1], int_contents=[200]), "no INT8"),
        (message("UINT8", [1], uint_contents=[256]), "no UINT8"),
        (message("BYTES", [1], b"1234"), "strings"),
        (message("BF16", [1], b"12"), "bfloat16"),
        (message("QUAD", [1], b"12"), "one of BOOL"),
    ],
)
def test_what_does_not_fit_is_refused(asked: Any, says: str) -> None:
    with pytest.raises(OipError, match=says):
        tensor(asked)


def test_raw_contents_must_be_one_for_each_input() -> None:
    asked = message("UINT8", [1], b"1")
    asked.raw_input_contents.append(b"2")
    with pytest.raises(OipError, match="1 inputs, but 2 raw contents"):
        tensor(asked)


def test_the_shorter_of_parameter_and_call_deadline_is_the_budget() -> None:
    asked = message("UINT8", [1], b"1")
    asked.parameters["timeout"].int64_param = 500_000
    asked.parameters["mine"].string_param = "yes"
    for remaining_s, budget_s in ((None, 0.5), (2.0, 0.5), (0.1, 0.1)):
        request = grpc_codec.decode(asked, tenant="me", remaining_s=remaining_s)
        assert request.timeout_s == budget_s
        assert request.parameters == {"mine": "yes"}


def test_parameters_of_every_kind_come_back() -> None:
    told = {"b": True, "i": 7, "f": 0.5, "s": "x"}
    answer = grpc_codec.encode(InferResponse("m", "1", "", {}, told))
    assert grpc_codec.parameters_of(answer.parameters) == told
