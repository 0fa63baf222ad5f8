"""What a graph would read from other files is found wherever it hides, without the onnx package; damage is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, ModelError
from protocol.graphs import Graph, external_of, weight_file
from protocol.onnx_scan import Reference, check_external, external_references
from tests import models

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def outside(name: str = "w", **entries: str) -> TensorProto:
    """A tensor of 3x4 floats that lies in the file "weights.bin"."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def product(*initializers: TensorProto) -> onnx.ModelProto:
    """y = x @ w with x float32 [1, 3]."""
    net = models.Net()
    net.add("MatMul", ["x", "w"], "y")
    graph = helper.make_graph(
        net.nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_a_constant(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Constant", [], ["k"], value=outside()))


def in_a_branch(proto: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "then", [], [], [outside()])
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))


def in_a_list_of_graphs(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Strange", ["x"], ["z"])
    node.attribute.append(helper.make_attribute("bodies", [helper.make_graph([], "b", [], [], [outside()])]))
    proto.graph.node.append(node)


def in_a_sparse_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add().values.CopyFrom(outside())


def in_sparse_indices(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add().indices.CopyFrom(outside())


def in_a_function(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["k"], value=outside())
    proto.functions.append(helper.make_function("toy", "F", [], ["k"], [node], []))


def in_training(proto: onnx.ModelProto) -> None:
    proto.training_info.add().initialization.initializer.append(outside())


@pytest.mark.parametrize(
    "hide",
    [
        in_a_constant,
        in_a_branch,
        in_a_list_of_graphs,
        in_a_sparse_initializer,
        in_sparse_indices,
        in_a_function,
        in_training,
    ],
)
def test_only_weights_of_the_main_graph_may_lie_in_files(hide: Callable[[onnx.ModelProto], None]) -> None:
    proto = product()
    hide(proto)
    with pytest.raises(ModelError, match=r"names the file 'weights.bin' from where no file is read"):
        external_references(proto.SerializeToString())


def test_weights_of_the_main_graph_are_listed_in_order() -> None:
    proto = product(outside("w", offset="64", length="48"), outside("v"))
    assert external_references(proto.SerializeToString()) == [
        Reference("w", "weights.bin", 64, 48),
        Reference("v", "weights.bin", 0, None),
    ]
    assert external_references(product(numpy_helper.from_array(WEIGHT, "w")).SerializeToString()) == []


def test_a_tensor_that_is_external_without_saying_where_is_found_too() -> None:
    bare = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4], data_location=TensorProto.EXTERNAL)
    with pytest.raises(ModelError, match="lies in the file ''"):
        check_external(product(bare).SerializeToString(), {})


@pytest.mark.parametrize("entries", [{"offset": "-8"}, {"length": "1e3"}, {"offset": "9" * 30}, {"offset": "\u0663"}])
def test_places_that_are_no_numbers_are_refused(entries: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="no number"):
        external_references(product(outside("w", **entries)).SerializeToString())


def test_a_key_stated_twice_is_refused() -> None:
    tensor = outside()
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ModelError, match="states its location twice"):
        external_references(product(tensor).SerializeToString())


def test_a_compiled_engine_is_refused() -> None:
    proto = product(numpy_helper.from_array(WEIGHT, "w"))
    proto.graph.node.append(helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft"))
    with pytest.raises(ModelError, match="EPContext"):
        external_references(proto.SerializeToString())


@given(st.binary(max_size=64))
def test_any_bytes_are_scanned_or_refused(data: bytes) -> None:
    with contextlib.suppress(ModelError):
        assert all(r.offset >= 0 for r in external_references(data))


def test_a_truncated_graph_is_refused() -> None:
    data = models.residual().SerializeToString()
    for end in range(1, len(data), 997):
        try:
            external_references(data[:end])
        except ModelError:
            continue
        onnx.load_model_from_string(data[:end])  # cut between two fields: a smaller message, but a message


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    inner = b""
    for _ in range(3000):  # attribute.g within node.attribute within graph.node
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            inner = tag + varint(len(inner)) + inner
    data = b"\x3a" + varint(len(inner)) + inner
    assert external_references(data) == []


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_an_engine_runs_a_graph_with_weights_from_memory() -> None:
    data = product(outside("w", offset="16", length="48")).SerializeToString()
    content = bytes(16) + WEIGHT.tobytes()
    with OrtEngine(Graph(data, {"weights.bin": content}), label="g") as engine:
        y = engine.infer({"x": np.ones((1, 3), np.float32)})["y"]
    assert np.array_equal(y, WEIGHT.sum(axis=0, keepdims=True))


def test_an_engine_reads_no_file_that_was_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())  # where the runtime would look for it
    data = product(outside()).SerializeToString()
    for given_files in ({}, {"other.bin": WEIGHT.tobytes()}):
        with pytest.raises(EngineError, match=r"'weights\.bin', which was not given"):
            OrtEngine(Graph(data, given_files), label="g").activate()


def test_a_file_that_is_too_short_is_refused_before_the_runtime_sees_it() -> None:
    data = product(outside("w", offset="8", length="48")).SerializeToString()
    with pytest.raises(EngineError, match=r"ends at byte 56 of 'weights\.bin', which holds 48"):
        OrtEngine(Graph(data, {"weights.bin": WEIGHT.tobytes()}), label="g").activate()
    without_length = product(outside()).SerializeToString()
    with pytest.raises(EngineError):
        OrtEngine(Graph(without_length, {"weights.bin": bytes(8)}), label="g").activate()


def test_plain_bytes_have_no_files_beside_them() -> None:
    assert external_of(b"graph") == {}
    assert external_of(Graph(b"graph", {"a": b"1"})) == {"a": b"1"}
    assert weight_file("ab") == "weights/ab"
