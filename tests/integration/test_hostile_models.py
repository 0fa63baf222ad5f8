"""Models that lie, are damaged or point elsewhere: each is refused with a reason, and no foreign file is opened.

    how a path leaves the model's folder   x   where in the model the tensor stands

Whether a file was opened is asked of the kernel (inotify), so that reads by the libraries count as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from partitioner.graph.external import place_of, read_external
from partitioner.graph.model import load
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, InputError, ModelError
from tests import models

SECRET = np.full(4, 1234.5, np.float32)
IN_ACCESS, IN_OPEN = 0x1, 0x20


@contextmanager
def never_opened(path: Path) -> Iterator[None]:
    """Fails when anybody opens `path` (or another name of it) within; skips where the kernel cannot tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if sys.platform == "linux" else -1
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(path), IN_ACCESS | IN_OPEN) < 0:
        pytest.skip("inotify is not available here")
    try:
        yield
        try:
            events = os.read(descriptor, 4096)
        except BlockingIOError:
            events = b""
        masks = [struct.unpack_from("iIII", events, at)[1] for at in range(0, len(events) - 15, 16)]
        assert not masks, f"{path} was opened or read: {masks}"
    finally:
        os.close(descriptor)


# ---- how a path leaves the model's folder; each returns the location that the model states ---------------------------


def absolute(_: Path, secret: Path) -> str:
    return str(secret)


def upwards(folder: Path, secret: Path) -> str:
    return f"../{secret.name}"


def upwards_in_between(folder: Path, secret: Path) -> str:
    (folder / "sub").mkdir()
    return f"sub/../../{secret.name}"


def symbolic_link(folder: Path, secret: Path) -> str:
    (folder / "data.bin").symlink_to(secret)
    return "data.bin"


def linked_folder(folder: Path, secret: Path) -> str:
    (folder / "sub").symlink_to(secret.parent)
    return f"sub/{secret.name}"


def hard_link(folder: Path, secret: Path) -> str:
    os.link(secret, folder / "data.bin")
    return "data.bin"


FORMS = (absolute, upwards, upwards_in_between, symbolic_link, linked_folder, hard_link)


# ---- where in the model the tensor stands ----------------------------------------------------------------------------


def outside(location: str, name: str = "k", *, data_type: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def adding(net: models.Net, name: str) -> onnx.ModelProto:
    net.add("Add", ["x", name], "y")
    graph = helper.make_graph(
        net.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        net.initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_an_initializer(location: str) -> onnx.ModelProto:
    net = models.Net()
    net.initializers.append(outside(location))
    return adding(net, "k")


def in_a_constant(location: str) -> onnx.ModelProto:
    net = models.Net()
    net.add("Constant", [], "k", value=outside(location))
    return adding(net, "k")


def in_a_branch(location: str) -> onnx.ModelProto:
    net = models.Net()
    out = helper.make_tensor_value_info("k_out", TensorProto.FLOAT, [4])
    body = helper.make_graph([helper.make_node("Identity", ["k"], ["k_out"])], "b", [], [out], [outside(location)])
    net.add("If", [net.constant("yes", np.array(True))], "chosen", then_branch=body, else_branch=body)
    return adding(net, "chosen")


def in_a_sparse_initializer(location: str) -> onnx.ModelProto:
    net = models.Net()
    proto = adding(net, "k")
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside(location))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4, dtype=np.int64), "k_places"))
    sparse.dims.append(4)
    return proto


def in_a_function(location: str) -> onnx.ModelProto:
    net = models.Net()
    net.nodes.append(helper.make_node("Secret", [], ["k"], domain="toy", name="call"))
    proto = adding(net, "k")
    nodes = [helper.make_node("Constant", [], ["s"], value=outside(location))]
    proto.functions.append(helper.make_function("toy", "Secret", [], ["s"], nodes, [helper.make_opsetid("", 17)]))
    proto.opset_import.append(helper.make_opsetid("toy", 1))
    return proto


PLACES = (in_an_initializer, in_a_constant, in_a_branch, in_a_sparse_initializer, in_a_function)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.bin").write_bytes(SECRET.tobytes())
    made = tmp_path / "model"
    made.mkdir()
    return made


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_a_foreign_file_is_never_opened(
    form: Callable[[Path, Path], str],
    place: Callable[[str], onnx.ModelProto],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = folder.parent / "secret.bin"
    path = models.write(place(form(folder, secret)), folder)
    monkeypatch.chdir(folder)  # against which a runtime would resolve it
    with never_opened(secret):
        with pytest.raises(ModelError):
            load(path)
        with pytest.raises(EngineError, match=r"names the file|which was not given"):
            OrtEngine(path.read_bytes(), label="hostile").activate()


@pytest.mark.parametrize("form", FORMS)
def test_our_own_gate_holds_without_the_checker(
    form: Callable[[Path, Path], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = folder.parent / "secret.bin"
    path = models.write(in_an_initializer(form(folder, secret)), folder)
    monkeypatch.setattr("partitioner.graph.external._check", lambda _: None)
    with never_opened(secret), pytest.raises(ModelError):
        read_external(onnx.load(path, load_external_data=False), path)


@pytest.mark.parametrize("place", PLACES)
def test_the_models_own_file_is_read_wherever_the_tensor_stands(
    place: Callable[[str], onnx.ModelProto], folder: Path
) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data.bin").write_bytes(SECRET.tobytes())
    model = load(models.write(place("sub/data.bin"), folder))
    for data in (model.data, model.source):
        with OrtEngine(data, label="own") as engine:
            assert np.array_equal(engine.infer({"x": np.zeros((1, 4), np.float32)})["y"], SECRET[None])


def test_the_digest_covers_what_other_files_hold(folder: Path) -> None:
    path = models.write(in_an_initializer("data.bin"), folder)
    digests = set()
    for value in (1.0, 2.0):
        (folder / "data.bin").write_bytes(np.full(4, value, np.float32).tobytes())
        digests.add(load(path).source_digest)
    assert len(digests) == 2


def test_a_pipe_does_not_hang_us(folder: Path) -> None:
    os.mkfifo(folder / "data.bin")
    with pytest.raises(ModelError):
        load(models.write(in_an_initializer("data.bin"), folder))


def entries(**values: str) -> onnx.ModelProto:
    proto = in_an_initializer("data.bin")
    for key, value in values.items():
        proto.graph.initializer[0].external_data.add(key=key, value=value)
    return proto


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (entries(offset="4"), "holds 16 bytes but a tensor ends at 20"),
        (entries(offset="-4"), "no number of bytes|not a valid"),
        (entries(length="99999999999999999999"), "no number of bytes|not a valid"),
        (entries(length="8"), "16 bytes by its shape but 8 bytes are stated|not a valid"),
        (entries(strange="8"), "unknown way|not a valid"),
        (in_an_initializer("*/_ORT_MEM_ADDR_/*"), "outside the model's folder|not a valid"),
        (in_an_initializer("gone.bin"), "cannot be opened|not a valid"),
        (in_an_initializer(""), "outside the model's folder|not a valid"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(proto: onnx.ModelProto, reason: str, folder: Path) -> None:
    (folder / "data.bin").write_bytes(SECRET.tobytes())
    with pytest.raises(ModelError, match=reason):
        load(models.write(proto, folder))


def test_sizes_are_checked_before_memory_is_allocated(folder: Path) -> None:
    (folder / "data.bin").write_bytes(SECRET.tobytes())
    proto = in_an_initializer("data.bin")
    proto.graph.initializer[0].dims[:] = [1 << 40]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        load(models.write(proto, folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_small_file_cannot_be_read_a_thousand_times(folder: Path) -> None:
    (folder / "data.bin").write_bytes(bytes(1 << 16))
    proto = in_an_initializer("data.bin")
    for i in range(1, 64):
        more = proto.graph.initializer.add()
        more.CopyFrom(outside("data.bin", f"k{i}"))
        more.external_data.add(key="offset", value=str(i))
    with pytest.raises(ModelError, match=r"two tensors overlap in 'data\.bin'"):
        read_external(proto, models.write(proto, folder))


def test_tied_weights_are_read_once(folder: Path) -> None:
    (folder / "data.bin").write_bytes(SECRET.tobytes())
    proto = in_an_initializer("data.bin")
    proto.graph.initializer.append(outside("data.bin", "tied"))
    contents = read_external(proto, models.write(proto, folder))
    assert list(contents) == [place_of(proto.graph.initializer[0])]


# ---- graphs that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x08\x08", bytes(range(256)) * 8])
def test_what_is_no_onnx_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not an ONNX"):
        load(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    data = models.residual().SerializeToString()
    path = tmp_path / "model.onnx"
    for end in range(10, len(data), len(data) // 20):
        path.write_bytes(data[:end])
        with pytest.raises(ModelError):
            load(path)


def test_damaged_bytes_are_refused_or_still_a_model(tmp_path: Path) -> None:
    data = bytearray(models.residual().SerializeToString())
    rng = np.random.default_rng(5)
    path = tmp_path / "model.onnx"
    for place in rng.integers(0, len(data), 40):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(ModelError):
            load(path)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="no plain file"):
        load(tmp_path)


def refusal(proto: onnx.ModelProto, folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(models.write(proto, folder))
    assert caught.value.remedy
    return str(caught.value)


def test_a_cycle_is_refused_with_its_nodes(tmp_path: Path) -> None:
    proto = models.residual()
    by_output = {n.output[0]: n for n in proto.graph.node}
    by_output["r2"].input[0] = "r3"
    text = refusal(proto, tmp_path)
    assert "the graph is cyclic" in text
    assert all(
        name in text for name in ("'node_r2' (Relu)", "'node_c3' (Conv)", "'node_sum' (Add)", "'node_r3' (Relu)")
    )
    assert "node_c1" not in text


def test_a_node_that_waits_for_itself_is_refused(tmp_path: Path) -> None:
    proto = models.residual()
    proto.graph.node[1].input[0] = proto.graph.node[1].output[0]
    assert "'node_r1' (Relu) wait for each other" in refusal(proto, tmp_path)


def test_a_cycle_through_a_body_is_refused(tmp_path: Path) -> None:
    proto = models.branching()
    branch = next(n for n in proto.graph.node if n.op_type == "If").attribute[0].g
    branch.node[0].input[0] = "pooled"
    assert "'node_chosen' (If)" in refusal(proto, tmp_path)


def test_a_tensor_that_nobody_writes_is_named(tmp_path: Path) -> None:
    proto = models.residual()
    proto.graph.node[1].input[0] = "nowhere"
    assert "node 'node_r1' (Relu) reads 'nowhere', which nothing" in refusal(proto, tmp_path)
    proto = models.residual()
    proto.graph.output[0].name = "nowhere"
    assert "the graph's outputs reads 'nowhere'" in refusal(proto, tmp_path)


def test_a_tensor_that_is_written_twice_is_named(tmp_path: Path) -> None:
    proto = models.residual()
    proto.graph.node[3].output[0] = "r1"
    assert "tensor 'r1' is written twice: by node 'node_r1' (Relu) and node" in refusal(proto, tmp_path)
    proto = models.residual()
    proto.graph.node[3].output[0] = "fc.w"
    assert "tensor 'fc.w' is written twice: by an input or initializer" in refusal(proto, tmp_path)
    proto = models.residual()
    proto.graph.initializer.append(proto.graph.initializer[0])
    assert f"two initializers {proto.graph.initializer[0].name!r}" in refusal(proto, tmp_path)
    proto = models.residual()
    proto.graph.output.append(proto.graph.output[0])
    assert "the graph has two outputs 'logits'" in refusal(proto, tmp_path)


def test_a_model_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    net = models.Net()
    net.add("RandomNormal", [], "noise", shape=[1, 4])
    assert "takes no input" in refusal(net.model({}, {"noise": [1, 4]}), tmp_path)


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    proto = models.residual()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = load(models.write(proto, tmp_path))
    assert model.notes == ("nodes were put in order",)
    assert model.topology.steps[0].name == "node_c1"


def test_text_inputs_are_refused_by_name(tmp_path: Path) -> None:
    net = models.Net()
    net.add("StringNormalizer", ["words"], "lower", case_change_action="LOWER")
    net.add("Equal", ["lower", net.constant("stop", np.array(["a"], dtype=object))], "same")
    net.add("Cast", ["same"], "y", to=TensorProto.FLOAT)
    proto = net.model({"words": (TensorProto.STRING, [3])}, {"y": [3]}, opset=19, ir_version=9)
    assert "input 'words' is a tensor of strings" in refusal(proto, tmp_path)


def test_sequences_are_no_inputs_or_outputs(tmp_path: Path) -> None:
    net = models.Net()
    net.add("SplitToSequence", ["x"], "parts", axis=1)
    proto = net.model({"x": (TensorProto.FLOAT, [1, 4])}, {"parts": [1]})
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 1]))
    proto.graph.output[0].CopyFrom(helper.make_value_info("parts", kind))
    assert "output 'parts' is a sequence" in refusal(proto, tmp_path)


def test_what_the_runtime_refuses_is_the_models_fault(tmp_path: Path) -> None:
    net = models.Net()
    net.nodes.append(helper.make_node("Unheard", ["x"], ["y"], domain="of", name="n"))
    proto = net.model({"x": (TensorProto.FLOAT, [1, 4])}, {"y": [1, 4]}, opsets=[helper.make_opsetid("of", 1)])
    assert "ONNX Runtime refuses the graph" in refusal(proto, tmp_path)


def test_a_sparse_tensor_of_any_size_is_checked_before_it_is_made_dense(tmp_path: Path) -> None:
    cases = ((3, 1 << 40, "too large"), (9, 4, "outside its shape"), (-1, 4, "outside its shape"))
    for place, size, reason in cases:
        proto = adding(models.Net(), "k")
        sparse = proto.graph.sparse_initializer.add()
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "k"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array([place], np.int64), "k_places"))
        sparse.dims.append(size)
        assert reason in refusal(proto, tmp_path)
