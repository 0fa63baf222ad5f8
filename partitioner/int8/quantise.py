"""Static INT8 by recipe: QDQ pairs around what becomes eight bits. The default: MinMax, weights int8 symmetric per
channel, activations uint8, the first convolutions left float.

Leaving the first convolution float is what keeps accuracy where products saturate (MobileNetV2 80.2 -> 90.3 of 92.0 %
agreement, a keyword spotter 10 -> 90 %: measured). Softmax stays float as well: its 8-bit outputs tie. The only module
that imports onnxruntime.quantization.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from partitioner.int8.bias import corrected
from partitioner.int8.recipes import DEFAULT, HEAVY, Recipe
from partitioner.int8.rounding import constant, initializer, rounded
from partitioner.judging.observe import Ranges
from protocol.errors import ModelError
from protocol.tensors import Array

_LEFT_FLOAT = {"Softmax", "TopK", "CumSum", "LayerNormalization"}
_OPERATORS = sorted((set(QDQRegistry) | set(QLinearOpsRegistry)) - _LEFT_FLOAT)
# With the activations that the quantiser folds into the product's own rounding: without them the range before a Clip
# would be what counts (MobileNetV2: logits 7 instead of 15 dB).
_PRODUCTS = (*HEAVY, "Relu", "Clip")
_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


def quantise(
    model: ir.Model, ranges: Ranges, recipe: Recipe = DEFAULT, shifts: Mapping[str, Array] | None = None
) -> ir.Model:
    """The INT8 form of a graph (a head, or the whole model) with the given ranges of its tensors.

    `ranges` are those of the recipe's calibration method (`calibration.ranges_for`), `shifts` those of its weights
    (`bias.mean_shifts`), which the biases of what becomes eight bits make up for. Nodes whose float32 inputs or outputs
    have no range stay float. Raises ModelError when there is nothing to quantise or the quantiser cannot.
    """
    left = _left_float(model, ranges, recipe)
    if not any(n.op_type in HEAVY and n.name not in left for n in model.graph):
        raise ModelError("it holds no convolution or matrix product that may become eight bits", "it stays fp32")
    prepared = corrected(model, shifts or {}, left)
    if recipe.weight_type == "int8":
        prepared = rounded(prepared, recipe, ranges, left)
    try:
        with _quiet():
            proto = onnx.shape_inference.infer_shapes(ir.to_proto(prepared))
            result = ir.from_proto(_quantiser(proto, ranges, recipe, left))
    except Exception as error:  # it raises bare ValueError, KeyError, RuntimeError and others, or breaks the graph
        raise ModelError(
            f"the quantiser failed ({type(error).__name__}: {str(error)[:200]})", "it stays fp32"
        ) from error
    result.graph.sort()  # the quantiser appends its nodes at the end
    result = _float_scores(result)
    _shield_float_products(result, recipe)
    if not any(n.op_type == "DequantizeLinear" for n in result.graph):
        raise ModelError("the quantiser found nothing to quantise", "it stays fp32")
    return result


def _quantiser(proto: onnx.ModelProto, ranges: Ranges, recipe: Recipe, left: set[str]) -> onnx.ModelProto:
    data = {n: (np.array(low, np.float32), np.array(high, np.float32)) for n, (low, high) in ranges.items()}
    quantiser = QDQQuantizer(
        proto,
        per_channel=recipe.per_channel,
        reduce_range=recipe.reduce_range,
        weight_qType=_TYPES[recipe.weight_type],
        activation_qType=_TYPES[recipe.activation_type],
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[],
        nodes_to_exclude=sorted(left),
        op_types_to_quantize=_operators(recipe),
        extra_options={
            "ActivationSymmetric": recipe.activation_type == "int8",
            "QuantizeBias": recipe.made_for == "onnxruntime",
            "OpTypesToExcludeOutputQuantization": [] if recipe.made_for == "onnxruntime" else list(HEAVY),
        },
    )
    quantiser.quantize_model()
    quantised: onnx.ModelProto = quantiser.model.model
    return quantised


def _operators(recipe: Recipe) -> list[str]:
    if recipe.made_for == "tensorrt":
        return [op for op in _OPERATORS if op in HEAVY]
    return [op for op in _OPERATORS if op in _PRODUCTS] if recipe.products_only else _OPERATORS


def _left_float(model: ir.Model, ranges: Ranges, recipe: Recipe) -> set[str]:
    """Names of the nodes that the recipe, or a missing range, leaves float."""
    left = {*recipe.excluded, *(first_convolutions(model) if recipe.float_first else ())}
    left.update(n.name or "" for n in model.graph if any(_lacks_range(v, ranges) for v in (*n.inputs, *n.outputs)))
    return left


def _lacks_range(value: ir.Value | None, ranges: Ranges) -> bool:
    if value is None or value.const_value is not None or value.dtype != ir.DataType.FLOAT:
        return False
    return value.name not in ranges


def first_convolutions(model: ir.Model) -> list[str]:
    """Names of the convolutions that no other convolution or product precedes."""
    behind: set[ir.Value] = set()
    first: list[str] = []
    for node in model.graph:
        heavy = node.op_type in HEAVY
        follows = any(v in behind for v in node.inputs if v is not None)
        if heavy and not follows and node.op_type == "Conv":
            first.append(node.name or "")
        if heavy or follows:
            behind.update(node.outputs)
    return first


def _float_scores(model: ir.Model) -> ir.Model:
    """Hand out the last matrix product's float values instead of their 8-bit rounding, in which top scores tie."""
    outputs = model.graph.outputs
    for i, value in enumerate(outputs):
        exact = _before_rounding(value)
        if exact is not None:
            name, value.name = value.name, f"{value.name}/rounded"
            exact.name, exact.type, exact.shape = name, value.type, value.shape
            outputs[i] = exact
    return passes.RemoveUnusedNodesPass()(model).model


def _shield_float_products(model: ir.Model, recipe: Recipe) -> None:
    """Let what is left float stay float in ONNX Runtime.

    From 1.22 on its optimiser rounds the float weights of a product between DequantizeLinear and QuantizeLinear to
    eight bits per tensor (WeightBiasQuantization): leaving one depthwise convolution of MobileNetV2 float so cost 17 dB
    instead of winning some. It does so only where the input has one scale; the same scale once per channel stops it.
    TensorRT wants one scale there: in graphs for it a Clip to what eight bits can say, which changes nothing, stands
    between instead.
    """
    for node in list(model.graph):
        maker = _float_product_behind(node)
        if maker is None:
            continue
        if recipe.made_for == "tensorrt":
            _clip_before(model, node, maker)
            continue
        output = ir.val(f"{node.name}/float_input", ir.DataType.FLOAT, node.inputs[0].shape if node.inputs[0] else None)
        channels = _input_channels(node)
        inputs = [maker.inputs[0], *(_repeated(model, f"{node.name}/{i}", maker.inputs[i], channels) for i in (1, 2))]
        shield = ir.node("DequantizeLinear", inputs, {"axis": 1}, outputs=[output], name=f"{node.name}/dequantise")
        model.graph.insert_before(node, shield)
        node.replace_input_with(0, output)
        if not any(o.uses() or o.is_graph_output() for o in maker.outputs):
            model.graph.remove(maker, safe=True)


def _clip_before(model: ir.Model, node: ir.Node, maker: ir.Node) -> None:
    """Let the product read what `maker` gives through a Clip to its greatest and least values."""
    scale, zero = (constant(v) for v in maker.inputs[1:3])
    assert scale is not None, "_float_product_behind saw it"
    assert zero is not None
    codes = np.iinfo(zero.dtype)
    ends = [
        initializer(model, f"{node.name}/{name}", ((code - zero.astype(np.float32)) * scale).reshape(()))
        for name, code in (("least", codes.min), ("most", codes.max))
    ]
    entry = maker.outputs[0]
    output = ir.val(f"{node.name}/float_input", ir.DataType.FLOAT, entry.shape)
    clip = ir.node("Clip", [entry, *ends], outputs=[output], name=f"{node.name}/clip")
    model.graph.insert_before(node, clip)
    node.replace_input_with(0, output)


def _float_product_behind(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear with one scale that feeds this product with float weights, if there is one."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or node.attributes.get_int("transA", 0) != 0:
        return None
    entry, weight = node.inputs[:2]
    maker = None if entry is None else entry.producer()
    if maker is None or maker.op_type != "DequantizeLinear" or len(maker.inputs) < 3:
        return None
    one_scale = all(v is not None and v.const_value is not None and v.const_value.size == 1 for v in maker.inputs[1:])
    return maker if one_scale and weight is not None and weight.const_value is not None else None


def _input_channels(node: ir.Node) -> int:
    shape = node.inputs[1].const_value.numpy().shape  # type: ignore[union-attr] # _float_product_behind saw it
    if node.op_type == "Conv":
        return int(shape[1]) * node.attributes.get_int("group", 1)
    return int(shape[1] if node.attributes.get_int("transB", 0) else shape[0])


def _repeated(model: ir.Model, name: str, value: ir.Value | None, count: int) -> ir.Value:
    exact = value.const_value.numpy()  # type: ignore[union-attr]
    array = np.full(count, exact.reshape(-1)[0], exact.dtype)
    return initializer(model, name, array)


def _before_rounding(value: ir.Value) -> ir.Value | None:
    dequantise = value.producer()
    if dequantise is None or dequantise.op_type != "DequantizeLinear" or value.uses():
        return None
    codes = dequantise.inputs[0]
    quantise_node = codes.producer() if codes is not None else None
    if quantise_node is None or quantise_node.op_type != "QuantizeLinear":
        return None
    exact = quantise_node.inputs[0]
    maker = exact.producer() if exact is not None else None
    return exact if maker is not None and maker.op_type in ("Gemm", "MatMul") else None


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice about its own defaults to the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
