"""A network as plain nouns: steps in order and the tensors between them. Pure: no ONNX, no files, no clocks.

What an If, Loop or Scan captures from outside counts as an input of that step, so it always stays whole on one side.
A tensor is *live* when it depends on a model input; what does not (constants, weights and what is computed from them
alone) is never sent but present on both sides.

Some live steps may be *recomputed*: present on both sides although they depend on an input, because sending what they
read costs less than sending what they write.

    Shape, Size          of any tensor: the shape of what crosses is known where it arrives
    DequantizeLinear     of 8-bit activations: the codes cross, and either side decodes them for itself
    mask arithmetic      Cast, Unsqueeze, Sub, Mul, Expand ... on side inputs and shapes, if the work is negligible

The tensors that a recomputed one rests on, `bases`, are written by other steps or are inputs of the model. Recomputing
mask arithmetic turned the one cut of MiniLM with a single heavy tensor into 56 (measured).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

# Drawn anew at every run: never computed on both sides.
RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# Where a small result follows from small tensors: shapes, indices, masks, positions. No activation functions.
_CHEAP_OPS = frozenset(
    {"Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "ConstantOfShape", "Cos", "CumSum", "Div"}
    | {"Equal", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater"}
    | {"GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod"}
    | {"Mul", "Neg", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin"}
    | {"ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements", "ScatterND", "Sign", "Sin", "Slice", "Split"}
    | {"Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"}
)
_SHAPE_OPS = frozenset({"Shape", "Size"})
_CODE_DTYPES = frozenset({"int8", "uint8"})
# Negligible: this share of the model's estimated work for one step and for all recomputed steps together, or so many
# multiply-adds that nobody could measure them.
_NEGLIGIBLE_SHARE, _NEGLIGIBLE_SHARE_TOGETHER = 0.005, 0.02
_NEGLIGIBLE_WORK, _NEGLIGIBLE_WORK_TOGETHER = 256, 4096
# A larger constant is an embedding table: it weighs more on both sides than what is looked up in it does on the wire.
_MOST_CONSTANT_ELEMENTS = 1 << 16
_MOST_BASES = 8  # resting on more tensors than this, a step is sent and not recomputed
_SIDE_INPUT_SHARE = 0.25  # a float input this much smaller than the largest one is a mask or a condition
_KERNEL_OPS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
_PRODUCT_OPS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})
# One memory-bound element costs about as much as this many multiply-adds inside a convolution.
_ELEMENT_COST = 4.0


class TensorInfo(NamedTuple):
    """Element type and shape of a tensor at batch 1, as far as known (None: not known).

    `barred` says in words why it cannot cross ("a sequence of tensors"); "" for what can.
    """

    dtype: str | None
    shape: tuple[int, ...] | None
    barred: str = ""

    @property
    def elements(self) -> int | None:
        return None if self.shape is None else math.prod(self.shape)


class Step(NamedTuple):
    """One node: unique name, operator, tensors read (captures included) and written.

    `chance` means that it draws random numbers, itself or in a body that it carries.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    chance: bool = False


@dataclass(frozen=True)
class Topology:
    """Steps in topological order. `inputs` are the real model inputs, without initializers."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def producer(self) -> dict[str, int]:
        """Tensor name -> index of the step that writes it."""
        return {name: i for i, step in enumerate(self.steps) for name in step.outputs}

    @cached_property
    def rank(self) -> dict[str, int]:
        """Tensor name -> its place in the order in which inputs and steps bring tensors forth."""
        return {name: i for i, name in enumerate(dict.fromkeys((*self.inputs, *self.producer)))}

    @cached_property
    def live(self) -> frozenset[str]:
        """The tensors that depend on a model input (or on chance)."""
        live = set(self.inputs)
        for step in self.steps:
            if step.chance or step.op in RANDOM_OPS or not live.isdisjoint(step.inputs):
                live.update(step.outputs)
        return frozenset(live)

    @cached_property
    def live_steps(self) -> tuple[int, ...]:
        return tuple(i for i, step in enumerate(self.steps) if not self.live.isdisjoint(step.outputs))

    @cached_property
    def bases(self) -> dict[str, frozenset[str]]:
        """Recomputed tensor name -> the live tensors it rests on, none of which is recomputed itself."""
        return _bases(self)

    @cached_property
    def recomputed(self) -> frozenset[int]:
        """Indices of the live steps that may be computed on both sides."""
        return frozenset(self.producer[name] for name in self.bases)

    @cached_property
    def work(self) -> tuple[float, ...]:
        """Estimated cost of each step, in multiply-adds. Only for shortlists: what ships is measured."""
        return tuple(self._work(step) for step in self.steps)

    def _work(self, step: Step) -> float:
        if self.live.isdisjoint(step.outputs):
            return 0.0
        elements = float(sum(self._elements(name) for name in step.outputs))
        if step.op in _KERNEL_OPS and len(step.inputs) > 1:
            kernel = self.tensors.get(step.inputs[1], TensorInfo(None, None)).shape or (1,)
            return elements * math.prod(kernel[1:])
        if step.op in _PRODUCT_OPS and step.inputs:
            shape = self.tensors.get(step.inputs[0], TensorInfo(None, None)).shape or (1,)
            return elements * (shape[-1] if shape else 1)
        return elements * _ELEMENT_COST

    def _elements(self, name: str) -> int:
        return self.tensors.get(name, TensorInfo(None, None)).elements or 0

    def wire_nbytes(self, name: str) -> int | None:
        """Bytes of one tensor on the wire before entropy coding: one an element for float32, else its own size."""
        info = self.tensors.get(name, TensorInfo(None, None))
        if info.elements is None:
            return None
        return info.elements * (1 if self.crosses_as_codes(name) else _ITEM_NBYTES.get(info.dtype or "", 8))

    def crosses_as_codes(self, name: str) -> bool:
        """Whether a crossing tensor may become 8-bit codes: float32, and not itself an input or output of the model.

        Codes take the tensor's name on the wire, so a tensor that someone else knows as float32 must cross as it is.
        So must a mask, which holds minus infinity or what stands for it.
        """
        dtype = self.tensors.get(name, TensorInfo(None, None)).dtype
        return dtype == "float32" and name not in self.inputs and name not in self.outputs and not self._is_mask(name)

    def _is_mask(self, name: str) -> bool:
        return name in self.bases and self.steps[self.producer[name]].op != "DequantizeLinear"


def _bases(topology: Topology) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    light = set(_side_inputs(topology))  # what mask arithmetic may read
    total, spent = sum(topology.work), 0.0
    for i in topology.live_steps:
        step = topology.steps[i]
        read = [n for n in step.inputs if n in topology.live]
        rests_on = frozenset[str]().union(*(found.get(n, frozenset((n,))) for n in read))
        if step.chance or not 0 < len(rests_on) <= _MOST_BASES:
            continue
        if step.op in _SHAPE_OPS or _is_cheap(topology, step, light):
            work = 0.0 if step.op in _SHAPE_OPS else topology.work[i]
            if work > max(_NEGLIGIBLE_WORK, _NEGLIGIBLE_SHARE * total):
                continue
            if spent + work > max(_NEGLIGIBLE_WORK_TOGETHER, _NEGLIGIBLE_SHARE_TOGETHER * total):
                continue
            spent += work
            light.update(step.outputs)
        elif not _decodes(topology, step, read):
            continue
        found.update(dict.fromkeys(step.outputs, rests_on))
    return found


def _side_inputs(topology: Topology) -> list[str]:
    """Inputs of whole numbers, and float ones that are small beside the largest input."""
    infos = {name: topology.tensors.get(name, TensorInfo(None, None)) for name in topology.inputs}
    largest = max((info.elements or 0 for info in infos.values()), default=0)

    def is_light(info: TensorInfo) -> bool:
        if info.dtype is not None and not info.dtype.startswith("float"):
            return True
        return info.elements is not None and info.elements <= _SIDE_INPUT_SHARE * largest

    return [name for name, info in infos.items() if is_light(info)]


def _is_cheap(topology: Topology, step: Step, light: set[str]) -> bool:
    if step.op not in _CHEAP_OPS:
        return False
    constants = [n for n in step.inputs if n not in topology.live]
    return all(n in light for n in step.inputs if n in topology.live) and all(
        (topology.tensors.get(n, TensorInfo(None, None)).elements or 0) <= _MOST_CONSTANT_ELEMENTS for n in constants
    )


def _decodes(topology: Topology, step: Step, read: list[str]) -> bool:
    """Whether the step only decodes 8-bit activations, with constant scale and zero point."""
    if step.op != "DequantizeLinear" or read != list(step.inputs[:1]):
        return False
    dtype = topology.tensors.get(read[0], TensorInfo(None, None)).dtype
    made_by = topology.producer.get(read[0])
    quantised = made_by is not None and topology.steps[made_by].op == "QuantizeLinear"
    return dtype in _CODE_DTYPES or (dtype is None and quantised)


_ITEM_NBYTES = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("uint16", "int16", "float16"), 2),
    **dict.fromkeys(("uint32", "int32", "float32"), 4),
}
