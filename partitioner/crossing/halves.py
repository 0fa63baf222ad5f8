"""Half precision between head and tail, offered where eight bits fail: the head ends in Cast, the tail begins with it.

    head  ... -> t/float -> Cast -> t (float16)  ~~ wire ~~>  t (float16) -> Cast -> ... tail

Two bytes an element, relative error 2^-11 (IEEE 754 binary16), greatest value 65,504. The tensor on the wire keeps its
ONNX name; the float one is renamed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import onnx_ir as ir

from partitioner.graph.split import clone, values_of, with_inputs
from protocol.errors import ModelError

LARGEST = 65_504.0


def emit_halves(
    head: ir.Model, names: Iterable[str], ranges: Mapping[str, tuple[float, float]] | None = None
) -> ir.Model:
    """A copy of the head whose float32 outputs `names` are float16.

    Raises ModelError for a tensor that is not float32, or whose range on the calibration data float16 cannot hold.
    """
    copy = clone(head)
    for name in names:
        value = values_of(copy)[name]
        _check(value, None if ranges is None else ranges.get(name))
        half = ir.val(f"{name}/half", ir.DataType.FLOAT16, value.shape)
        copy.graph.append(_cast(value, half, f"{name}/to_half"))
        value.name, half.name = f"{name}/float", name
        outputs = copy.graph.outputs
        outputs[:] = [half if v is value else v for v in outputs]
    return copy


def take_halves(tail: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of the tail whose inputs `names` are float16, cast to float32 first."""

    def enter(copy: ir.Model, name: str, entry: ir.Value) -> tuple[ir.Value, ir.Value]:
        half = ir.val(name, ir.DataType.FLOAT16, entry.shape)
        exact = ir.val(f"{name}/float", ir.DataType.FLOAT, entry.shape)
        copy.graph.append(_cast(half, exact, f"{name}/to_float"))
        return half, exact

    return with_inputs(tail, names, enter)


def _check(value: ir.Value, seen: tuple[float, float] | None) -> None:
    if value.dtype is not None and value.dtype != ir.DataType.FLOAT:
        raise ModelError(f"tensor {value.name!r} is {value.dtype}, not float32", "let it cross as it is")
    if seen is not None and max(-seen[0], seen[1]) > LARGEST:
        raise ModelError(
            f"tensor {value.name!r} reaches {max(-seen[0], seen[1]):.3g}, float16 ends at {LARGEST:.0f}",
            "let it cross as float32",
        )


def _cast(source: ir.Value, target: ir.Value, name: str) -> ir.Node:
    return ir.node("Cast", [source], {"to": int(target.dtype or 0)}, outputs=[target], name=name)
