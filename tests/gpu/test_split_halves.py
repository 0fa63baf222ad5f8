"""Float16 tails as `partitioner split --half-tails` writes them, through the real compiler of TensorRT-RTX: no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed; `make gpu-gate` runs this in an environment of its own"
)

from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol.bundle import Bundle
from tests.gpu import compile_gate

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


def test_every_tail_of_a_split_demo_is_built_with_a_free_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(7).integers(0, 256, (8, 1, 224, 224), np.uint8))
    asked = Order(
        DIGITS,
        tmp_path / "bundle",
        cuts=(("stem3/relu",), ("down/relu",)),
        calibration=tmp_path / "data.npz",
        search=Search(memory=False),
        precision="fp32",
        bound=0.5,
        half_tails=True,
    )
    made = Bundle.open(build(asked, Silent()).target)
    files = {entry.half.file for entry in made.remote_segments() if entry.half is not None}
    assert files == {"full.fp16.onnx", "cut-1/tail.fp16.onnx", "cut-2/tail.fp16.onnx"}
    for file in sorted(files):
        verdict = compile_gate.build("digits", "split", file, lambda f=file: made.graph(f))  # type: ignore[misc]
        assert verdict.problem == ""
        assert verdict.is_dynamic
