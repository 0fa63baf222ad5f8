"""The picture as it passes through pre-processing nodes: which layout, which size, which tensor now.

With a known size every crop and resize is a constant; with a free one it is int64 arithmetic on the picture's shape, in
the graph. Halves are rounded down, so crops lie up and left of the exact centre by at most half a pixel. Resize is told
to exclude what is outside (`exclude_outside`): only then are the borders Pillow's. In ONNX Runtime 1.31 they were up to
19 grey levels apart without it and below 0.003 with it; what remains is that Pillow rounds to 8 bits: 1 level at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir

from partitioner.graph.inputs import Size
from protocol.errors import ModelError
from protocol.tensors import Array

CUBIC_COEFFICIENT = -0.5  # Pillow's; ONNX's own default is -0.75
_RESIZE: dict[str, dict[str, Any]] = {
    "linear": {"mode": "linear"},
    "antialias": {"mode": "linear", "antialias": 1, "exclude_outside": 1},
    "cubic": {"mode": "cubic", "antialias": 1, "exclude_outside": 1, "cubic_coeff_a": CUBIC_COEFFICIENT},
}
_TO = {("nhwc", "nchw"): [0, 3, 1, 2], ("nchw", "nhwc"): [0, 2, 3, 1]}


class Canvas:
    """Nodes and constants so far; `at` is the tensor now, in `layout`, of `size` (None: known only when it runs)."""

    def __init__(self, name: str, given: ir.Value, layout: str, size: Size | None) -> None:
        self.name, self.at, self.layout, self.size = name, given, layout, size
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}

    @property
    def channel_axis(self) -> int:
        return 1 if self.layout == "nchw" else 3

    @property
    def row_axis(self) -> int:
        return 2 if self.layout == "nchw" else 1

    def op(self, op: str, name: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Append a node; what it computes is called NAME/name."""
        out = ir.val(f"{self.name}/{name}")
        self.nodes.append(ir.node(op, inputs, attributes, outputs=[out], name=f"{self.name}/{name}"))
        return out

    def constant(self, name: str, array: Array) -> ir.Value:
        name = f"{self.name}/{name}"
        if name not in self.constants:
            tensor = ir.tensor(array, name=name)
            self.constants[name] = ir.val(name, tensor.dtype, list(array.shape), const_value=tensor)
        return self.constants[name]

    def cast(self, dtype: ir.DataType) -> None:
        self.at = self.op("Cast", f"as_{dtype.name.lower()}", [self.at], to=int(dtype))

    def lay_out(self, layout: str) -> None:
        if layout != self.layout:
            self.at = self.op("Transpose", f"as_{layout}", [self.at], perm=_TO[self.layout, layout])
            self.layout = layout

    def flip_channels(self) -> None:
        order = self.constant("order", np.array([2, 1, 0], np.int64))
        self.at = self.op("Gather", "flipped", [self.at, order], axis=self.channel_axis)

    # ---- crops

    def crop_fraction(self, fraction: float) -> None:
        """Keep the central `fraction` of height and of width, each rounded down."""
        part = Fraction(str(fraction))  # 0.9 means 9/10: floats of it round differently here and there
        if self.size is not None:
            self._crop_fixed(self.size, Size(int(self.size.height * part), int(self.size.width * part)), "part")
            return
        hw = self._free_size("whole")
        times = self.op("Mul", "part_times", [hw, self._ints("part_of", part.numerator)])
        self._crop_free(hw, self.op("Div", "part_size", [times, self._ints("part_in", part.denominator)]), "part")

    def crop_pixels(self, kept: Size) -> None:
        """Keep the central `kept`. Raises ModelError when the picture is known to be smaller."""
        if self.size is None:
            self._crop_free(self._free_size("uncropped"), self._ints("crop_size", kept.height, kept.width), "crop")
        elif self.size.height < kept.height or self.size.width < kept.width:
            raise ModelError(f"crop={kept} of pictures of {self.size}", "crop less, or resize to more")
        else:
            self._crop_fixed(self.size, kept, "crop")
        self.size = kept

    def _crop_fixed(self, have: Size, kept: Size, name: str) -> None:
        if kept == have:
            return
        top, left = (have.height - kept.height) // 2, (have.width - kept.width) // 2
        stop = self._ints(f"{name}_stop", top + kept.height, left + kept.width)
        self._slice(self._ints(f"{name}_start", top, left), stop, name)
        self.size = kept

    def _crop_free(self, hw: ir.Value, kept: ir.Value, name: str) -> None:
        over = self.op("Sub", f"{name}_over", [hw, kept])
        # Too small a picture must fail in the model by its shape; a negative start would count from the end.
        over = self.op("Max", f"{name}_inside", [over, self._ints("zero", 0)])
        start = self.op("Div", f"{name}_start", [over, self._ints("two", 2)])
        self._slice(start, self.op("Add", f"{name}_stop", [start, kept]), name)

    def _slice(self, start: ir.Value, stop: ir.Value, name: str) -> None:
        axes = self._ints(f"{name}_axes", self.row_axis, self.row_axis + 1)
        self.at = self.op("Slice", name, [self.at, start, stop, axes])

    # ---- resize

    def resize(self, to: int | Size, interpolation: str) -> None:
        """Resize to `to`, or until the short side has `to` pixels (the other one rounded down)."""
        self.lay_out("nchw")  # the last two axes are what ONNX Runtime's kernels are fast and complete for
        if self.size is None:
            self._resized(None, self._free_sizes(to), interpolation)
            self.size = to if isinstance(to, Size) else None
            return
        wanted = to if isinstance(to, Size) else short_side(self.size, to)
        if wanted != self.size:
            # Scales and no sizes: sizes would have to repeat the batch, which is free.
            factors = [1, 1, _scale(self.size.height, wanted.height), _scale(self.size.width, wanted.width)]
            self._resized(self.constant("scales", np.array(factors, np.float32)), None, interpolation)
            self.size = wanted

    def _resized(self, scales: ir.Value | None, sizes: ir.Value | None, interpolation: str) -> None:
        inputs = [self.at, None, scales] if sizes is None else [self.at, None, None, sizes]
        self.at = self.op("Resize", "resized", inputs, **_RESIZE[interpolation])
        if interpolation == "cubic":  # it overshoots at edges
            bounds = [self.constant(name, np.array(x, np.float32)) for name, x in (("black", 0.0), ("white", 255.0))]
            self.at = self.op("Clip", "resized_in_range", [self.at, *bounds])

    def _free_sizes(self, to: int | Size) -> ir.Value:
        hw = self._free_size("unresized")
        if isinstance(to, Size):
            wanted = self._ints("resize_to", to.height, to.width)
        else:
            times = self.op("Mul", "resize_times", [hw, self._ints("resize_to", to)])
            wanted = self.op("Div", "resize_hw", [times, self.op("ReduceMin", "short_side", [hw], keepdims=1)])
        shape = self.op("Shape", "unresized_nchw", [self.at])
        batch = self.op("Slice", "unresized_nc", [shape, self._ints("zero", 0), self._ints("two", 2)])
        return self.op("Concat", "resize_sizes", [batch, wanted], axis=0)

    def _free_size(self, name: str) -> ir.Value:
        """[height, width] of the picture as it is when the graph runs; int64 [2]."""
        shape = self.op("Shape", f"{name}_shape", [self.at])
        first, last = self.row_axis, self.row_axis + 2
        return self.op(
            "Slice", f"{name}_hw", [shape, self._ints(f"axis_{first}", first), self._ints(f"axis_{last}", last)]
        )

    def _ints(self, name: str, *numbers: int) -> ir.Value:
        return self.constant(name, np.array(numbers, np.int64))


def short_side(have: Size, to: int) -> Size:
    """The size of a picture whose short side was resized to `to`, its aspect ratio kept; the long side rounded down."""
    short = min(have.height, have.width)
    return Size(have.height * to // short, have.width * to // short)


def _scale(have: int, to: int) -> np.float32:
    """The least float32 factor with have * factor >= to exactly: then rounding down gives `to` in float32, which ONNX
    Runtime uses, and in double, which shape inference uses.
    """
    scale = np.float32(to / have)
    return scale if have * float(scale) >= to else np.nextafter(scale, np.float32(np.inf))
