"""Engines in order of preference: the first that loads runs, and why the others did not is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.models.preferred import PreferredEngine, ort_engines
from cloud_gateway.models.served import open_model
from protocol.engines.fake import FakeEngine
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError
from tests import models


class Refusing(FakeEngine):
    """One that a machine lacks."""

    def activate(self) -> None:
        raise EngineError(f"{self.label} is not here", "install it")


def fake(value: int) -> FakeEngine:
    return FakeEngine(lambda _: {"y": np.array([value])}, label=str(value))


def test_the_first_engine_runs_where_it_can() -> None:
    told: list[str] = []
    engines = [fake(1), fake(2)]
    with PreferredEngine(engines, told=lambda _, text: told.append(text)) as engine:
        engine.activate()
        assert engine.infer({})["y"] == [1]
        assert engine.description == "fake"
    assert told == []
    assert engines[1].calls == 0


def test_the_next_one_runs_where_the_first_cannot_and_the_reason_is_told() -> None:
    told: list[str] = []
    refusing = Refusing(lambda _: {}, label="gpu")
    with PreferredEngine([refusing, fake(2)], told=lambda _, text: told.append(text)) as engine:
        assert engine.infer({})["y"] == [2]
    assert told == ["gpu is not here; install it; the next in order of preference is tried"]
    with pytest.raises(EngineError, match="not active"):
        engine.infer({})


def test_where_none_loads_the_last_reason_is_raised() -> None:
    engine = PreferredEngine([Refusing(lambda _: {}, label=name) for name in "ab"], told=lambda *_: None)
    with pytest.raises(EngineError, match="b is not here"):
        engine.activate()
    assert (engine.inputs, engine.outputs) == ((), ())


def test_onnx_runtime_on_the_processor_serves_where_there_is_no_graphics_card(tmp_path: Path) -> None:
    (tail,) = open_model(models.write(models.residual(), tmp_path)).tails
    told: list[str] = []
    make = ort_engines(["onnxruntime-cuda", "onnxruntime-cpu"], told=lambda _, text: told.append(text))
    engine = make(tail, 1)
    engine.activate()
    assert [spec.name for spec in engine.inputs] == ["x"]
    assert engine.description.endswith("CPUExecutionProvider" if told else "CUDAExecutionProvider")
    engine.deactivate()
    assert isinstance(ort_engines(["onnxruntime-cpu"], told=lambda *_: None)(tail, 1), OrtEngine)
