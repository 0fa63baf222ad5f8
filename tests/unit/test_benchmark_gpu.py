"""The suite `gpu`: what it says where there is no GPU, and that its loops count what they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu, tails
from benchmarks.peers.processes import Cores
from benchmarks.results import Options, Result
from protocol.engines.catalogue import KINDS
from protocol.engines.fake import FakeEngine
from protocol.engines.trt_options import GpuError
from protocol.tensors import Array, Tensors


def engine(calls: list[int]) -> FakeEngine:
    def run(tensors: Tensors) -> dict[str, Array]:
        calls.append(len(tensors["x"]))
        return {"logits": tensors["x"].mean(axis=(2, 3))}

    return FakeEngine(run, label="tail")


def test_what_this_machine_lacks_is_a_row_with_the_reason_and_no_figure() -> None:
    absent = {name: reason for name, kind in KINDS.items() if (reason := kind.absent())}
    if not absent:
        pytest.skip("this machine lacks nothing")
    name, reason = next(iter(absent.items()))
    _, row = gpu.run(Options(quick=True, settings={"kinds": name}))
    assert (row.name, row.n, row.ok, row.note) == (name, 0, None, f"not run: {reason}")


@pytest.mark.parametrize(
    ("error", "ok", "told"),
    [
        (GpuError("no tactic", cause="build-failed"), None, "not run: no tactic"),
        (GpuError("it is gone", cause="device-lost"), False, "failed: it is gone"),
        (TimeoutError("no answer"), False, "failed: TimeoutError: no answer"),
    ],
)
def test_an_engine_that_fails_is_a_row_and_takes_no_other_with_it(error: Exception, ok: bool | None, told: str) -> None:
    def work() -> list[Result]:
        raise error

    (row,) = gpu.attempted("tail_fc, tensorrt", work)
    assert (row.name, row.n, row.ok) == ("tail_fc, tensorrt", 0, ok)
    assert row.note.startswith(told)


def test_every_row_is_said_as_soon_as_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Result.of("rate", "1/s", [2.0, 4.0], note="batch 8"), Result.missing("tensorrt", "not run: no driver")]
    assert gpu.told(iter(rows)) == rows
    assert capsys.readouterr().err.splitlines() == ["rate: 3 1/s (2 to 4) batch 8", "tensorrt:  not run: no driver"]


def test_a_bare_loop_counts_every_row_of_every_thread() -> None:
    calls: list[int] = []
    with engine(calls) as fake:
        rate = gpu.per_s(fake, 4, 0.02, threads=2)
    assert set(calls) == {4}
    assert rate > 0
    assert gpu.inputs(2)["x"].shape == (2, *tails.INPUT)
    np.testing.assert_array_equal(gpu.inputs(2)["x"], gpu.inputs(2)["x"])


def test_the_best_batch_is_the_one_with_most_rows_a_second() -> None:
    calls: list[int] = []
    with engine(calls) as fake:
        assert gpu.best_batch(fake, 0.005) in (1, 2, 4, 8, 16, 32)
    assert set(calls) == {1, 2, 4, 8, 16, 32}


@pytest.mark.parametrize(("bound", "ok"), [(0.95, False), (0.5, True), (None, None)])
def test_a_ratio_is_judged_only_where_something_was_promised(bound: float | None, ok: bool | None) -> None:
    assert gpu.at_least("throughput", [0.7, 0.8], bound).ok is ok
    assert gpu.at_most("latency", [1.0], None).ok is None
    assert isinstance(gpu.at_most("latency", [1.0], 1.1), Result)


def test_profiles_are_compared_by_single_rows_batches_and_memory() -> None:
    calls: dict[bool, list[int]] = {True: [], False: []}

    class Known(FakeEngine):
        gpu_nbytes = 300

    def make(*, several: bool) -> Known:
        made = Known(engine(calls[several])._function, label="tail")
        made.gpu_nbytes = 300 if several else 200
        return made

    nowhere = Path("nowhere")
    stage = gpu.Stage("tensorrt", "tail_fc", nowhere, nowhere, nowhere, 8, 0.02, Cores.of_this_machine())
    single, batch, memory = gpu.profiles(stage, make, 2)
    assert set(calls[True]) == set(calls[False]) == {1, gpu.MOST_ROWS}
    assert single.n == batch.n == 2
    assert memory.median == 1.5
