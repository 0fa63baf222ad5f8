"""What TensorRT-RTX compiles for a GPU, kept between runs; on a SIMULATED TensorRT-RTX and GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.engines import trt_loaded
from protocol.engines.tensorrt import TensorRtEngine
from tests.gpu.tiny import Make, x_of, y_of

RTX = {"edition": "tensorrt-rtx"}
Kept = Callable[..., Path]


def run(engine: TensorRtEngine, *rows: int) -> list[str]:
    """From beginning to end, with batches of so many rows; what it told."""
    told: list[str] = []
    engine._told = told.append
    with engine:
        for count in rows:
            x = x_of(count, count)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
    return told


def test_what_was_compiled_is_not_compiled_again_after_a_restart(
    simulated_gpu: Any, make: Make, kept: Kept
) -> None:  # fmt: skip
    cache = kept(**RTX)
    first = run(make(**RTX, cache=cache), 1, 1, 3, 3, 8)
    compiled = simulated_gpu.calls["compile"]
    assert compiled == 3
    assert not any("compiled" in line for line in first)
    second = run(make(**RTX, cache=cache), 1, 3, 8, 3, 3, 3)
    assert simulated_gpu.calls["compile"] == compiled
    assert "tiny: what was compiled for this GPU before is there" in second
    assert simulated_gpu.launched_on == {"isthmus-gpu-0"}
    assert simulated_gpu.clean() == []


def test_a_process_that_is_killed_has_kept_the_first_shapes(simulated_gpu: Any, make: Make, kept: Kept) -> None:
    cache = kept(**RTX)
    engine = make(**RTX, cache=cache, slots=1)
    engine.activate()
    for rows in (1, 2):
        engine.infer({"x": x_of(rows)})
        assert engine._keeping is not None
        engine._keeping.wait(20)
    compiled = simulated_gpu.calls["compile"]
    run(make(**RTX, cache=cache), 1, 2)  # the first engine has not been deactivated
    assert simulated_gpu.calls["compile"] == compiled


def test_what_does_not_fit_this_machine_any_more_is_compiled_again(
    simulated_gpu: Any, make: Make, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = kept(**RTX)
    import tensorrt_rtx

    run(make(**RTX, cache=cache), 1)
    compiled = simulated_gpu.calls["compile"]
    monkeypatch.setattr(tensorrt_rtx, "_COMPILED", b"kernels of another driver\n")
    assert "tiny: what was compiled for this GPU before does not fit any more" in run(make(**RTX, cache=cache), 1)
    assert simulated_gpu.calls["compile"] == compiled + 1
    run(make(**RTX, cache=cache), 1)  # and takes the place of the old
    assert simulated_gpu.calls["compile"] == compiled + 1


def test_what_somebody_changed_is_never_given_to_the_library(simulated_gpu: Any, make: Make, kept: Kept) -> None:
    cache = kept(**RTX)
    run(make(**RTX, cache=cache), 1)
    for path in cache.glob("*.plan"):
        data = bytearray(path.read_bytes())
        if b"simulated kernels" in data:
            data[-1] ^= 1
            path.write_bytes(data)
    given = simulated_gpu.calls["deserialize_compiled"]
    run(make(**RTX, cache=cache), 1)
    assert simulated_gpu.calls["deserialize_compiled"] == given


def test_too_much_is_not_kept_and_runs_all_the_same(
    simulated_gpu: Any, make: Make, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = kept(**RTX)
    monkeypatch.setattr(trt_loaded, "MOST_COMPILED_NBYTES", 10)
    run(make(**RTX, cache=cache), 1)
    run(make(**RTX, cache=cache), 1)
    assert simulated_gpu.calls["compile"] == 2


def test_a_full_disk_loses_nothing_but_the_next_starts_time(
    simulated_gpu: Any, make: Make, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = kept(**RTX)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    engine = make(**RTX, cache=cache)
    told: list[str] = []
    engine._told = told.append
    with monkeypatch.context() as on_disk, engine:
        on_disk.setattr("os.fsync", full)
        np.testing.assert_array_equal(engine.infer({"x": x_of(1)})["y"], y_of(x_of(1)))
    assert any("No space left" in line for line in told)
    assert [path.name for path in cache.glob(".isthmus-*")] == []


def test_a_plan_that_cannot_be_captured_is_enqueued_plainly(simulated_gpu: Any, make: Make) -> None:
    simulated_gpu.uncapturable = True
    with make(**RTX, slots=1) as engine:
        for _ in range(3):
            engine.infer({"x": x_of(2)})
        assert simulated_gpu.calls["enqueue"] == 3
        assert "cannot be captured" in engine.graphs


def test_tensorrt_itself_keeps_nothing_of_the_kind(simulated_gpu: Any, make: Make, tmp_path: Path) -> None:
    run(make(cache=tmp_path / "plans"), 1, 1, 2)
    assert len(list((tmp_path / "plans").glob("*.plan"))) == 2  # the plan, and what its builder measured


def test_a_graph_that_cannot_be_built_to_be_captured_is_built_without(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_SIMULATED_BUILD", "own memory")
    run(make(**RTX, cache=None), 1)
