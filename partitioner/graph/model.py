"""The model as handed in becomes one normal form: checked, self-contained, functions inlined, opset 13 or newer.

What is written to `full.onnx` is this normal form, and every proof compares with it; that it equals the file that was
handed in is proven once, in `build`. Bytes are parsed from memory, and what lies in other files is read by `external`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from partitioner.graph import external, large_weights, preprocess
from partitioner.graph.dense import densify
from partitioner.graph.inputs import InputSpec
from partitioner.graph.large_weights import serialise as serialise  # the door through which every room takes it
from partitioner.graph.preprocess import MIN_OPSET
from partitioner.graph.topology import RANDOM_OPS, Step, TensorInfo, Topology
from partitioner.graph.wiring import check_wiring
from protocol.bundle import sha256
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, InputError, ModelError
from protocol.graphs import Graph
from protocol.tensors import DTYPES, TensorSpec

TARGET_OPSET = 17  # the version converter was exact up to here (measured)
MOST_FILE_NBYTES = (1 << 31) - 1  # of one protocol buffer
MAX_IR_VERSION = 10  # newer ones changed nothing that a runtime reads, and runtimes refuse what they do not know
MIN_IR_VERSION = 8  # from 4 on initializers need not be inputs; 8 is what opset 17 shipped with
# What the runtime says behind two lines of C++ (1.31.1).
_NEWER_OPSET = re.compile(r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL)


@dataclass(frozen=True)
class LoadedModel:
    """A model in normal form. `data` is what becomes full.onnx; `source` is the model as it was, in one piece.

    Both are `protocol.graphs.Graph`s when the model has large weights, which all graphs cut from it share.
    """

    name: str
    source: bytes
    source_digest: str  # of the file as it was, and of what it kept in other files
    data: bytes
    graph: ir.Model
    topology: Topology
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]
    front: bytes | None = None  # declared pre-processing alone: data(image) = source(front(image))


def load(path: Path, *, inputs: Sequence[InputSpec] = (), most_inline_nbytes: int | None = None) -> LoadedModel:
    """Read and normalise the ONNX file at `path`; declared `inputs` take uint8 images, prepared by the graph itself.

    External data is read from plain files beside the model only (see `external`); a model whose weights together exceed
    `most_inline_nbytes` (by default MOST_INLINE_NBYTES) keeps the large ones beside the graph (see `large_weights`).

    Raises InputError when it cannot be read and ModelError when it is no ONNX model, is damaged, names files that are
    not its own, uses what ONNX Runtime refuses, or has no inputs as declared.
    """
    source = _read(path)
    proto = _parse(source, path)
    contents = external.read_external(proto, path)
    digest = external.digest_of(sha256(source), contents)
    large = large_weights.set_aside(proto, contents, most_inline_nbytes)
    if contents or large:
        source = large_weights.with_weights(proto, large)
    del contents  # gigabytes, perhaps
    notes = _mend(proto, path)
    _check(proto, path)
    _check_interface(proto, path)
    proto, converted = _raise_opset(proto, path, preprocess.least_opset(inputs))
    normal = _normalise(proto)
    ahead = serialise(preprocess.front(normal, inputs)) if inputs else None
    # Inference comes after inlining too: what was inside a function has no types before.
    graph = ir.from_proto(_infer_shapes(ir.to_proto(preprocess.compile_input(normal, inputs))))
    large_weights.bring_back(graph, large)
    data = serialise(graph)
    with OrtEngineOrRefusal(data, path) as engine:
        takes, outputs = engine.inputs, engine.outputs
    return LoadedModel(
        name=path.stem,
        source=source,
        source_digest=digest,
        data=data,
        graph=graph,
        topology=_topology(graph),
        opset=graph.opset_imports.get("", 0),
        inputs=takes,
        outputs=outputs,
        notes=(*notes, *converted),
        front=ahead,
    )


class OrtEngineOrRefusal(OrtEngine):
    """The whole model in ONNX Runtime; what that refuses is the model's fault here, not the engine's."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data, label=str(path), optimise=False)

    def _options(self) -> Any:
        options = super()._options()
        options.add_session_config_entry("session.disable_prepacking", "1")  # nothing is run: spare the second copy
        return options

    def activate(self) -> None:
        try:
            super().activate()
        except EngineError as error:
            newer = _NEWER_OPSET.search(str(error.__cause__))
            if newer:
                raise ModelError(
                    f"{self.label} has opset {newer[1]}, and this ONNX Runtime reads {newer[2]} up to {newer[3]}",
                    f"export it with opset {newer[3]}, or install a newer onnxruntime",
                ) from error
            raise ModelError(error.fact, error.remedy or "export it for ONNX Runtime") from error


def reinfer(data: bytes) -> bytes:
    """The same graph with shapes inferred anew; what contradicts itself keeps the shapes that it states."""
    inferred = bytes(_infer_shapes(onnx.load_model_from_string(data)).SerializeToString(deterministic=True))
    return Graph(inferred, data.external) if isinstance(data, Graph) else inferred


def subgraphs_of(attribute: ir.Attr) -> list[ir.Graph]:
    """The graphs that a node carries in this attribute (If, Loop, Scan)."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no plain file", "give the path of an ONNX model")
    try:
        if path.stat().st_size > MOST_FILE_NBYTES:
            raise ModelError(f"{path} holds more than 2 GB in one file", "export it with its weights as external data")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", "give the path of an ONNX model") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "give the path of an ONNX model") from error


def _parse(source: bytes, path: Path) -> onnx.ModelProto:
    remedy = "export the model to ONNX, for example with torch.onnx.export"
    try:
        proto = onnx.load_model_from_string(source)
    except Exception as error:  # protobuf's DecodeError, which has no public home
        raise ModelError(f"{path} is not an ONNX file", remedy) from error
    if not proto.ir_version or not proto.graph.node or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph", remedy)
    return proto


def _mend(proto: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Put right what the following steps cannot take, and say what it was."""
    try:
        sparse, disordered = densify(proto), check_wiring(proto)
    except ModelError as error:
        raise ModelError(f"{path}: {error.fact}", error.remedy) from error
    notes = [f"{sparse} sparse tensors were made dense"] if sparse else []
    return (*notes, *(["nodes were put in order"] if disordered else []))


def _check(proto: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # its own error, and bare RuntimeError or ValueError for what it does not expect
        raise ModelError(f"{path} is not a valid ONNX model ({_first_line(error)})", "export it again") from error


def _check_interface(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse inputs and outputs that are missing or no tensors of numbers, before anything trips over them."""
    constants = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in constants]
    if not inputs:
        raise ModelError(f"{path} takes no input, so its answer is always the same", "export it with its inputs")
    for word, values in (("input", inputs), ("output", proto.graph.output)):
        for value in values:
            held = value.type.WhichOneof("value")
            is_text = held == "tensor_type" and value.type.tensor_type.elem_type == onnx.TensorProto.STRING
            if is_text or held not in ("tensor_type", None):
                what = "a tensor of strings" if is_text else f"a {str(held).removesuffix('_type')}"
                raise ModelError(
                    f"{path}: {word} {value.name!r} is {what}", "only tensors of numbers and booleans are served"
                )


def _raise_opset(proto: onnx.ModelProto, path: Path, least: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), TARGET_OPSET)
    if opset >= least:
        return proto, ()
    target = max(TARGET_OPSET, least)
    try:
        converted = onnx.version_converter.convert_version(proto, target)
    except Exception as error:  # the converter raises bare RuntimeError and its own ConvertError
        raise ModelError(
            f"{path} has opset {opset}, which does not convert to {target} ({_first_line(error)})",
            f"export it with opset {least} or newer"
            + (", or declare interpolation=linear" if least > MIN_OPSET else ""),
        ) from error
    return converted, (f"converted from opset {opset} to {target}",)


def _infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # contradictory or too large: shapes are seen when the model runs, inference is a convenience
        return proto


def _normalise(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    for step in (
        passes.InlinePass(),
        passes.RemoveInitializersFromInputsPass(),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
        passes.NameFixPass(),
    ):
        model = step(model).model
    model.ir_version = min(max(model.ir_version, MIN_IR_VERSION), MAX_IR_VERSION)
    return model


def _topology(model: ir.Model) -> Topology:
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]
    return Topology(
        inputs=tuple(v.name or "" for v in graph.inputs),
        outputs=tuple(v.name or "" for v in graph.outputs),
        steps=tuple(
            Step(
                node.name or "",
                node.op_type,
                _reads(node),
                tuple(o.name for o in node.outputs if o.name),
                _draws(node),
            )
            for node in graph
        ),
        tensors={v.name: _info(v) for v in values if v.name},
    )


def _reads(node: ir.Node) -> tuple[str, ...]:
    """Inputs of a node and, for nodes with subgraphs, what these capture from the main graph."""
    names = [v.name for v in node.inputs if v is not None]
    main = node.graph
    for attribute in node.attributes.values():
        for subgraph in subgraphs_of(attribute):
            for inner in subgraph.all_nodes():
                names += [v.name for v in inner.inputs if v is not None and v.graph is main]
            names += [v.name for v in subgraph.outputs if v.graph is main]
    return tuple(dict.fromkeys(n for n in names if n))


def _draws(node: ir.Node) -> bool:
    """Whether the node draws random numbers, itself or in a body."""
    inside = (n for a in node.attributes.values() for body in subgraphs_of(a) for n in body.all_nodes())
    return any(n.op_type in RANDOM_OPS for n in (node, *inside))


def _info(value: ir.Value) -> TensorInfo:
    barred = _barred(value)
    if barred:
        return TensorInfo(None, None, barred)
    shape = value.shape
    if shape is None:
        return TensorInfo(_dtype_name(value), None)
    # Batch 1: a free first dimension counts as one; any other free dimension makes the size unknown.
    dims = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(shape)]
    numbers = tuple(d for d in dims if isinstance(d, int))
    return TensorInfo(_dtype_name(value), numbers if len(numbers) == len(dims) else None)


def _barred(value: ir.Value) -> str:
    """Why a value cannot cross, in words; "" if it can or if its type is not known."""
    if value.type is None or isinstance(value.type, ir.TensorType):
        return "" if value.dtype is None or _dtype_name(value) else f"a tensor of {value.dtype.name.lower()}"
    kinds = {ir.SequenceType: "a sequence", ir.OptionalType: "an optional", ir.SparseTensorType: "a sparse tensor"}
    return kinds.get(type(value.type), "no tensor")


def _dtype_name(value: ir.Value) -> str | None:
    if value.dtype is None:
        return None
    try:
        name = str(value.dtype.numpy())
    except (TypeError, KeyError):
        return None
    return name if name in DTYPES else None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.split("\n")[0][:200] if text else type(error).__name__
