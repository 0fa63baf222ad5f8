from __future__ import annotations

import contextlib
import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.oip import codec
from protocol.oip.service import InferRequest, InferResponse, OipError, Refusal
from protocol.oip.tensors import DATATYPES


def decode(body: bytes | memoryview, json_nbytes: int | None = None) -> tuple[InferRequest, codec.Form]:
    return codec.decode(memoryview(body), json_nbytes, model="m", version=None, tenant="me")


WITH_CLASSES = {"name": "y", "parameters": {"classification": 3}}
EMPTY = {"name": "x", "datatype": "BOOL", "shape": [0], "data": []}


def body(*inputs: dict[str, Any], binary: bytes = b"", **more: Any) -> tuple[bytes, int]:
    document = json.dumps({"inputs": list(inputs), **more}).encode()
    return document + binary, len(document)


def one(data: Any, shape: list[int], datatype: str = "FP32") -> bytes:
    return body({"name": "x", "datatype": datatype, "shape": shape, "data": data})[0]


def raw(data: str, shape: str = "[1]", datatype: str = "FP32") -> bytes:
    return f'{{"inputs": [{{"name": "x", "datatype": "{datatype}", "shape": {shape}, "data": {data}}}]}}'.encode()


def binary(shape: list[int], size: int, datatype: str = "FP32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def refusal(body: bytes, json_nbytes: int | None = None) -> OipError:
    with pytest.raises(OipError) as caught:
        decode(body, json_nbytes)
    return caught.value


# ---- what is taken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_element_type_comes_in_as_numbers_and_as_bytes_and_goes_out_the_same(datatype: str) -> None:
    dtype = DATATYPES[datatype]
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    as_numbers, _ = decode(one(values.tolist(), [2, 3], datatype))
    whole, length = body(binary([2, 3], values.nbytes, datatype), binary=values.tobytes())
    as_bytes, _ = decode(whole, length)
    for request in (as_numbers, as_bytes):
        assert request.tensors["x"].dtype == dtype
        assert np.array_equal(request.tensors["x"], values)
    response = InferResponse("m", "1", "", {"x": values})
    for form in (codec.PLAIN, codec.Form(binary=True)):
        answer, length_out = codec.encode(response, form)
        document = json.loads(answer[:length_out])
        assert document["outputs"][0]["datatype"] == datatype
        if length_out is None:
            assert document["outputs"][0]["data"] == values.ravel().tolist()
        else:
            assert answer[length_out:] == values.tobytes()
            assert document["outputs"][0]["parameters"]["binary_data_size"] == values.nbytes


def test_a_binary_tensor_is_a_read_only_view_of_the_body() -> None:
    values = np.arange(6, dtype=np.uint8)
    whole, length = body(binary([6], 6, "UINT8"), binary=values.tobytes())
    array = decode(whole, length)[0].tensors["x"]
    assert np.shares_memory(array, np.frombuffer(whole, np.uint8))
    assert not array.flags.writeable


def test_binary_tensors_lie_behind_one_another_in_the_order_of_their_inputs() -> None:
    first, second = np.arange(4, dtype=np.float32), np.arange(3, dtype=np.int64)
    whole, length = body(
        binary([4], 16, name="a"),
        {"name": "j", "datatype": "INT8", "shape": [1], "data": [7]},
        binary([3], 24, "INT64", name="b"),
        binary=first.tobytes() + second.tobytes(),
    )
    tensors = decode(whole, length)[0].tensors
    assert list(tensors) == ["a", "j", "b"]
    assert np.array_equal(tensors["a"], first)
    assert np.array_equal(tensors["b"], second)
    assert all(array.flags.aligned for array in tensors.values())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.booleans(), st.integers(0, 2**32))
def test_numbers_come_flat_or_nested_with_any_space_between(shape: list[int], flat: bool, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(shape)
    text = json.dumps((values.ravel() if flat else values).tolist(), indent=seed % 3 or None)
    assert np.array_equal(decode(raw(text, json.dumps(shape), "FP64"))[0].tensors["x"], values)


def test_long_lists_are_read_in_pieces_without_losing_a_number() -> None:
    values = np.random.default_rng(0).standard_normal((30, 1000)).astype(np.float32)
    assert np.array_equal(decode(one(values.tolist(), [30, 1000]))[0].tensors["x"], values)


def test_deadline_priority_and_id_are_taken_and_the_callers_own_parameters_are_left() -> None:
    parameters = {"timeout": 1500, "priority": 1, "binary_data_output": True, "mine": "yes"}
    x = {"name": "x", "datatype": "BOOL", "shape": [1], "data": [True]}
    request, form = decode(body(x, id="q1", parameters=parameters)[0])
    assert (request.id, request.timeout_s, request.priority) == ("q1", 0.0015, 0)
    assert request.parameters == {"mine": "yes"}
    assert form.is_binary("anything")


def test_zero_means_no_deadline_and_the_default_priority() -> None:
    request, _ = decode(body(EMPTY, parameters={"timeout": 0, "priority": 0})[0])
    assert (request.timeout_s, request.priority) == (None, None)


def test_each_output_may_be_asked_for_in_its_own_form() -> None:
    x = {"name": "x", "datatype": "BOOL", "shape": [1], "data": [True]}
    wanted = [{"name": "p"}, {"name": "q", "parameters": {"binary_data": False}}]
    request, form = decode(body(x, outputs=wanted, parameters={"binary_data_output": True})[0])
    assert request.outputs == ("p", "q")
    assert (form.is_binary("p"), form.is_binary("q")) == (True, False)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "no JSON document"),
        (b"{", "no JSON document"),
        (b"[]", "Expected `object`"),
        (b'{"inputs": []}', "0 inputs"),
        (b'{"inputs": 5}', "$.inputs"),
        (b"\xff\xfe", "no JSON document"),
        (raw("[1]", shape='["1"]'), "$.inputs[0].shape[0]"),
        (raw("[1]", shape="[-1]"), "$.inputs[0].shape[0]"),
        (raw("[1]", shape="[1,1,1,1,1,1,1,1,1]"), "length <= 8"),
        (raw("[1]", shape="[99999999999]"), "2^31"),
        (raw("[1, 2]"), "2 values"),
        (raw("[[1, 2], [3, 4]]", shape="[4, 1]"), "nested otherwise"),
        (raw("[[1, 2, 3], [4]]", shape="[2, 2]"), "nested otherwise"),
        (raw("5"), "is no list"),
        (raw('["1"]'), "x"),
        (raw("[null]"), "nested otherwise"),
        (raw("[1e999]"), "no FP32"),
        (raw("[1e39]"), "no FP32"),
        (raw("[300]", datatype="UINT8"), "no UINT8"),
        (raw("[-1]", datatype="UINT64"), "no UINT64"),
        (raw("[1.5]", datatype="INT32"), "no INT32"),
        (raw("[1]", datatype="BOOL"), "no BOOL"),
        (raw("[true]", datatype="INT32"), "no INT32"),
        (raw("[NaN]"), "no JSON document"),
        (raw("[1 2]"), "no JSON document"),
        (raw("[1]", datatype="FLOAT"), "one of BOOL"),
        (one([1], [1]).replace(b'"x"', b'""'), "empty"),
        (body(binary([1], 4))[0], "0 bytes follow"),
        (body({"name": "x", "datatype": "FP32", "shape": [1]})[0], "neither"),
        (body({**binary([1], 4), "data": [1]})[0], "both"),
        (body(EMPTY, parameters={"timeout": -1})[0], "'timeout'"),
        (body(EMPTY, parameters={"timeout": "5"})[0], "'timeout'"),
        (body(EMPTY, parameters={"priority": 11})[0], "'priority'"),
        (body(EMPTY, parameters={"sequence_id": 3})[0], "sequences"),
        (body(EMPTY, parameters={"a": [1]})[0], "$.parameters"),
        (
            body({"name": "x", "datatype": "BOOL", "shape": [1], "parameters": {"shared_memory_region": "r"}})[0],
            "shared memory",
        ),
        (
            body(EMPTY, outputs=[WITH_CLASSES])[0],
            "classification",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_place(document: bytes, says: str) -> None:
    error = refusal(document)
    assert error.status == 400
    assert says in error.reason


@pytest.mark.parametrize(("datatype", "says"), [("BYTES", "strings"), ("BF16", "bfloat16")])
def test_what_numpy_cannot_hold_is_refused_by_name(datatype: str, says: str) -> None:
    error = refusal(raw("[1]", datatype=datatype))
    assert error.refusal is Refusal.UNSUPPORTED
    assert says in error.reason


def test_a_name_that_comes_twice_is_refused() -> None:
    x = {"name": "x", "datatype": "BOOL", "shape": [1], "data": [True]}
    assert "twice" in refusal(body(x, x)[0]).reason


@pytest.mark.parametrize(
    ("shape", "size", "sent", "says"),
    [([2], 4, 4, "takes 8"), ([1], 4, 3, "only 3 bytes follow"), ([1], 4, 5, "1 bytes"), ([2**31] * 4, 4, 4, "")],
)  # fmt: skip
def test_binary_sizes_must_agree_with_shape_and_body(shape: list[int], size: int, sent: int, says: str) -> None:
    whole, length = body(binary(shape, size), binary=bytes(sent))
    assert says in refusal(whole, length).reason


def test_a_json_part_longer_than_the_body_is_refused() -> None:
    assert "the body has 2 bytes" in refusal(b"{}", 3).reason


def test_json_over_its_limit_is_refused_before_it_is_read() -> None:
    error = refusal(b"[" + b" " * codec.MAX_JSON_NBYTES)
    assert error.refusal is Refusal.TOO_LARGE
    assert "binary" in error.reason


_K64 = 65_536
BOMBS = {
    "brackets": b"[" * _K64,
    "objects": b'{"a":' * (_K64 // 5),
    "inputs in inputs": b'{"inputs":' * (_K64 // 10),
    "nested data": raw("[" * 30_000 + "]" * 30_000),
    "shallow nested data": raw(",".join(["[" * 400 + "]" * 400] * 80).join("[]")),
    "many parameters": b'{"parameters":{' + b",".join(b'"%d":1' % i for i in range(6000)) + b"}}",
    "many inputs": b'{"inputs":[' + b",".join([b'{"name":"a"}'] * 5000) + b"]}",
    "a long number": raw("[1" + "0" * 65_000 + "]", datatype="INT64"),
    "a long string": b'{"id":"' + b"\\u0000" * 10_000 + b'"}',
    "many empty lists": raw("[" + ",".join(["[]"] * 20_000) + "]", shape="[20000, 0]"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_document_of_64_kib_costs_little_memory(bomb: str) -> None:
    tracemalloc.start()
    with contextlib.suppress(OipError):
        decode(BOMBS[bomb])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 250)))
def test_garbage_is_refused_and_raises_nothing_else(garbage: bytes, length: int | None) -> None:
    refusal(garbage, length)


@given(st.data())
def test_a_good_request_with_a_few_bytes_changed_is_taken_or_refused(
    data: st.DataObject,
) -> None:
    x = np.arange(4, dtype=np.float32)
    whole, length = body(
        binary([4], 16), {"name": "y", "datatype": "INT8", "shape": [2], "data": [1, 2]}, binary=x.tobytes(), id="i"
    )
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(OipError):
        request, _ = decode(bytes(changed), length)
        assert sum(array.nbytes for array in request.tensors.values()) <= 18


# ---- the answer -----------------------------------------------------------------------------------------------------


def test_nan_is_refused_in_json_and_travels_as_bytes() -> None:
    response = InferResponse("m", "1", "", {"y": np.array([math.nan], np.float32)})
    with pytest.raises(OipError, match="binary_data"):
        codec.encode(response, codec.PLAIN)
    assert codec.encode(response, codec.Form(binary=True))[1] is not None


def test_an_answer_of_millions_of_numbers_is_sent_only_as_bytes() -> None:
    response = InferResponse("m", "1", "", {"y": np.zeros(codec.MAX_JSON_ELEMENTS + 1, np.bool_)})
    with pytest.raises(OipError, match="binary_data"):
        codec.encode(response, codec.PLAIN)


def test_an_answer_that_is_not_contiguous_goes_out_in_order() -> None:
    values = np.arange(6, dtype=np.int32).reshape(2, 3).T
    answer, length = codec.encode(InferResponse("m", "1", "", {"y": values}), codec.Form(binary=True))
    assert np.array_equal(np.frombuffer(answer[length:], np.int32).reshape(3, 2), values)


def test_the_answer_tells_id_and_where_it_was_made() -> None:
    response = InferResponse("m", "3", "q", {}, {"placement": "cut-1", "queue_us": 12})
    document = json.loads(codec.encode(response, codec.PLAIN)[0])
    assert document == {
        "model_name": "m",
        "model_version": "3",
        "id": "q",
        "parameters": {"placement": "cut-1", "queue_us": 12},
        "outputs": [],
    }


def test_a_refusal_tells_its_code_and_the_time_that_is_left() -> None:
    error = OipError(Refusal.BUSY, "the queue is full", slack_s=0.0241, retry_after_s=0.5)
    assert codec.error_document(error) == {
        "error": "the queue is full",
        "code": "BUSY",
        "slack_us": 24_100,
        "retry_after_us": 500_000,
    }
