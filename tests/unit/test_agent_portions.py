"""More rows than a plan is laid out for run in portions, and come back as one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.device.portions import MOST_NBYTES, MOST_ROWS, Layout, Portions
from protocol.bundle import BatchProof, Manifest
from protocol.engines.fake import FakeEngine
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec
from tests import manifests

X = TensorSpec("x", "float32", ("N", 2))
WHOLE = TensorSpec("whole", "float32", (3,))
OUT, LATE = TensorSpec("out", "float32", ("N", 2)), TensorSpec("late", "float32", (2, "N"))


class Counting:
    """out = x + 1, late = x transposed: rows along axis 1."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.engine = FakeEngine(self._run, label="head", inputs=(X, WHOLE), outputs=(OUT, LATE))

    def _run(self, tensors: Tensors) -> dict[str, Array]:
        x = tensors["x"]
        self.rows.append(len(x))
        return {"out": x + tensors["whole"][0], "late": x.T}


def portions(counting: Counting, **more: object) -> Portions:
    asked = {"inputs": {"x": 0}, "outputs": {"out": 0, "late": 1}, "most": 8} | more
    engine = Portions(counting.engine, **asked)  # type: ignore[arg-type]
    engine.activate()
    return engine


def question(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), "whole": np.ones(3, np.float32)}


@given(st.integers(0, 40), st.integers(1, 9))
def test_any_number_of_rows_gives_what_one_run_would(rows: int, most: int) -> None:
    counting = Counting()
    made = portions(counting, most=most).infer(question(rows))
    np.testing.assert_array_equal(made["out"], question(rows)["x"] + 1)
    np.testing.assert_array_equal(made["late"], question(rows)["x"].T)
    assert max(counting.rows) <= most
    assert sum(counting.rows) == rows
    assert len(counting.rows) == max(1, -(-rows // most))


def test_an_output_whose_rows_lie_nowhere_known_bounds_the_request() -> None:
    engine = portions(Counting(), outputs={"out": 0})
    assert engine.infer(question(8))["out"].shape == (8, 2)
    with pytest.raises(EngineError, match=r"8 rows at once, and this request holds 9; its output 'late'"):
        engine.infer(question(9))


def test_inputs_that_disagree_about_rows_are_the_engines_to_refuse() -> None:
    counting = Counting()
    engine = portions(counting, inputs={"x": 0, "whole": 0}, most=2)
    engine.infer(question(9))
    assert counting.rows == [9]


# ---- what a bundle says ---------------------------------------------------------------------------------------------


def manifest(*, batchable: bool = True, sizes: tuple[int, ...] = (3, 32, 32)) -> Manifest:
    made = manifests.manifest()
    proof = BatchProof(batchable=batchable, reason="", output_axes={"logits": 0} if batchable else {})
    spec = TensorSpec("image", "uint8", (None, *sizes))
    entries = tuple(msgspec.structs.replace(e, batch=e.batch and proof) for e in made.placements)
    return msgspec.structs.replace(
        made, placements=entries, model=msgspec.structs.replace(made.model, inputs=(spec, WHOLE))
    )


def test_a_bundle_says_where_rows_lie_in_inputs_outputs_and_what_crosses() -> None:
    layout = Layout(manifest())
    assert layout.axes == {"image": 0, "whole": None}
    assert layout.outputs == {"logits": 0, "relu_3": 0, "add_7": 0, "mask": 0}
    assert layout.most == MOST_ROWS
    assert isinstance(layout.portioned(Counting().engine), Portions)


def test_where_rows_were_not_proven_independent_plans_hold_one_and_nothing_is_split() -> None:
    layout = Layout(manifest(batchable=False))
    engine = Counting().engine
    assert (layout.axes, layout.most, layout.portioned(engine)) == (None, 1, engine)


@pytest.mark.parametrize(("side", "most"), [(1000, 2), (1448, 1), (5000, 1)])
def test_large_rows_are_fewer_at_once(side: int, most: int) -> None:
    layout = Layout(manifest(sizes=(3, side, side)))
    assert layout.most == most
    assert most == 1 or most * 3 * side * side <= MOST_NBYTES
