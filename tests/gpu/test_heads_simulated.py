"""Heads on TensorRT over a SIMULATED GPU, from a bundle that was built for it: trial, swap, requests of many rows.

What it proves: the trial of an update builds every plan into the folder from which the swap loads it, and a request of
more rows than a plan holds gives what the processor gives. The simulation computes with ONNX Runtime: nothing is said
about a real GPU's numbers or speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.bundles.first_run import judge
from edge_agent.device.portions import MOST_ROWS
from edge_agent.doctor import checks_bundle
from edge_agent.doctor.case import Case
from edge_agent.heads import Heads
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Search
from protocol.bundle import Bundle
from protocol.engines import catalogue
from protocol.engines.base import Engine
from protocol.engines.catalogue import EngineOptions, Kind
from protocol.engines.gpu_thread import GpuThreads
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_options import TrtOptions
from tests import models
from tests.gpu.conftest import simulated_driver

NATIVE = ("tensorrt-native",)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("for-tensorrt")
    np.savez(folder / "data.npz", x=models.image_samples())
    order = Order(
        models.write(models.residual(), folder),
        folder / "bundle",
        cuts=(("r3",),),
        calibration=folder / "data.npz",
        head_engine="tensorrt",
        bound=0.2,
        search=Search(Machines(slowdown=8.0, budget_s=0.5), budget_s=0.5, memory=False),
        recipe_budget_s=0.0,
    )
    return Bundle.open(build(order, Silent()).target)


@pytest.fixture
def made(simulated_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[TensorRtEngine]:
    """TensorRT on the simulated GPU as the catalogue's own; every engine that was asked of it."""
    threads, found = GpuThreads(), list[TensorRtEngine]()

    def make(graph: bytes, options: EngineOptions) -> Engine:
        wanted = TrtOptions(
            max_batch=options.max_rows, knee=options.knee, batch_axes=options.batch_axes or {}, cache=options.cache_dir,
            build_timeout_s=60.0,
        )  # fmt: skip
        engine = TensorRtEngine(graph, label=options.label, options=wanted, driver=simulated_driver, threads=threads)
        found.append(engine)
        return engine

    monkeypatch.setitem(catalogue.KINDS, "tensorrt", Kind("tensorrt", lambda: "", make))
    return found


def test_a_trial_builds_what_the_swap_then_finds(bundle: Bundle, made: list[TensorRtEngine], tmp_path: Path) -> None:
    building: list[str] = []

    @contextmanager
    def slow() -> Iterator[None]:
        building.append("began")
        yield
        building.append("ended")

    assert judge(bundle.root, NATIVE, plans=tmp_path, building=slow) == ""
    files = {entry.head for entry in bundle.manifest.placements if entry.head}
    assert building == ["began", "ended"] * len(files)
    assert all(engine.build_s is not None for engine in made)
    tried = len(made)
    heads = Heads(bundle, order=NATIVE, plans=tmp_path)
    heads.activate()
    heads.deactivate()
    assert len(made) == 2 * tried == 2 * len(files)
    assert all(engine.build_s is None for engine in made[tried:]), "a plan was built again"


def test_the_doctor_says_how_to_build_heads_that_tensorrt_takes(
    toy_bundle: Path, bundle: Bundle, made: list[TensorRtEngine], tmp_path: Path
) -> None:
    found = []
    for root in (toy_bundle, bundle.root):
        asked = {"state_dir": str(tmp_path), "bundle.path": str(root), "device.providers": [*NATIVE, "cpu"]}
        case = Case(env={}, overrides=asked)
        try:
            found.append(checks_bundle.heads(case))
        finally:
            case.close()
    for_others, for_tensorrt = found
    assert "on cpu, not on tensorrt-native" in for_others.fact
    assert "--head-engine tensorrt" in for_others.remedy
    assert for_tensorrt.fact.endswith("on tensorrt-native")


def test_requests_of_any_number_of_rows_give_what_the_processor_gives(
    bundle: Bundle, made: list[TensorRtEngine], tmp_path: Path
) -> None:
    gpu, cpu = Heads(bundle, order=NATIVE, plans=tmp_path), Heads(bundle)
    gpu.activate()
    cpu.activate()
    try:
        assert not gpu.failed
        for rows in (1, MOST_ROWS, 2 * MOST_ROWS + 3):
            inputs = {"x": models.image_samples(rows, seed=rows)}
            for entry in bundle.manifest.placements:
                if entry.head is None:
                    continue
                expected = cpu.raw(entry.id, inputs)
                for name, values in gpu.raw(entry.id, inputs).items():
                    assert values.shape == expected[name].shape
                    assert len(values) == rows
                    np.testing.assert_allclose(
                        values.astype(np.float32), expected[name].astype(np.float32), rtol=1e-4, atol=1.001
                    )
    finally:
        gpu.deactivate()
        cpu.deactivate()
