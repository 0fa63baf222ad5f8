"""A network as plain nouns: steps in order and the tensors between them. Pure: no ONNX, no files, no clocks.

What an If, Loop or Scan captures from outside counts as an input of that step, so it always stays whole on one side.
A tensor is *live* when it depends on a model input; what does not (constants, weights and what is computed from them
alone) is never sent but present on both sides.
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
_KERNEL_OPS = frozenset({"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"})
_PRODUCT_OPS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})
# One memory-bound element costs about as much as this many multiply-adds inside a convolution.
_ELEMENT_COST = 4.0


class TensorInfo(NamedTuple):
    """Element type and shape of a tensor at batch 1, as far as known (None: not known)."""

    dtype: str | None
    shape: tuple[int, ...] | None

    @property
    def elements(self) -> int | None:
        return None if self.shape is None else math.prod(self.shape)


class Step(NamedTuple):
    """One node: unique name, operator, tensors read (captures included) and written."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


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
    def live(self) -> frozenset[str]:
        """The tensors that depend on a model input (or on chance)."""
        live = set(self.inputs)
        for step in self.steps:
            if step.op in RANDOM_OPS or not live.isdisjoint(step.inputs):
                live.update(step.outputs)
        return frozenset(live)

    @cached_property
    def live_steps(self) -> tuple[int, ...]:
        return tuple(i for i, step in enumerate(self.steps) if not self.live.isdisjoint(step.outputs))

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
        """
        dtype = self.tensors.get(name, TensorInfo(None, None)).dtype
        return dtype == "float32" and name not in self.inputs and name not in self.outputs


_ITEM_NBYTES = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("uint16", "int16", "float16"), 2),
    **dict.fromkeys(("uint32", "int32", "float32"), 4),
}
