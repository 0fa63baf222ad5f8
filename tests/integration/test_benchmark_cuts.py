"""The sweep over cuts: it finds what is broken, refuses to prove nothing, and deals its work out without losing any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import cuts
from benchmarks.results import Options, Result
from partitioner.graph.cuts import Sides
from partitioner.graph.model import LoadedModel
from partitioner.graph.split import Halves, split
from tests import models


def shares(path: Path, of: int) -> list[cuts.Sweep]:
    return [cuts.sweep_share(cuts.Share("toy", path, cuts.Most(), i, of)) for i in range(of)]


def verdict(found: cuts.Sweep) -> Result:
    return cuts._results(found, seconds=1.0)[1]


def test_shares_together_try_every_cut_once(tmp_path: Path) -> None:
    path = models.write(models.residual(), tmp_path)
    (whole,) = shares(path, 1)
    first, second = shares(path, 2)
    both = first.join(second)
    assert first.tried > 0
    assert second.tried > 0
    assert (both.alone, both.several, both.exact) == (whole.alone, whole.several, whole.exact)
    assert (both.worst, both.refused, both.largest) == (whole.worst, whole.refused, whole.largest)
    assert verdict(both).ok


def test_fewer_cuts_are_a_sample_of_each_kind(tmp_path: Path) -> None:
    model, _ = cuts.prepared(models.write(models.residual(), tmp_path))
    every = {s.cut for s in cuts.choose(model.topology, cuts.Most(wide=0)) if isinstance(s, Sides)}
    some = [s.cut for s in cuts.choose(model.topology, cuts.Most(alone=2, several=1, wide=0)) if isinstance(s, Sides)]
    assert sorted(len(cut) > 1 for cut in some) == [False, False, True]
    assert set(some) < every


def test_a_weight_that_changes_on_the_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = models.residual()
    path = models.write(proto, tmp_path)
    bias = next(i for i in proto.graph.initializer if i.name == "fc.b")
    changed = numpy_helper.to_array(bias) + np.float32(1e-6)
    bias.CopyFrom(numpy_helper.from_array(changed, bias.name))
    other, _ = cuts.prepared(models.write(proto, tmp_path, "other"))

    def careless(_: LoadedModel, sides: Sides) -> Halves:
        return split(other, sides)

    monkeypatch.setattr(cuts, "split", careless)
    (found,) = shares(path, 1)
    assert found.exact == 0
    assert len(found.inexact) == found.tried > 0
    assert 0.0 < found.broken < 1e-5
    assert verdict(found).ok is False


def test_a_model_that_no_input_moves_proves_nothing(tmp_path: Path) -> None:
    proto: onnx.ModelProto = models.residual()
    for weight in proto.graph.initializer:
        if weight.name == "fc.w":
            weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), weight.name))
    (found,) = shares(models.write(proto, tmp_path), 1)
    assert found.exact == found.tried > 0
    assert verdict(found).ok is False
    assert "another input changes nothing" in verdict(found).note


def test_the_suite_runs_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cuts._KEEP_MEMORY.items():
        monkeypatch.setenv(name, value)  # and taken back afterwards
    results = cuts.run(Options(quick=True, settings={"models": "control_flow", "workers": "2"}))
    assert [r.ok for r in results if r.target] == [True, True]
    assert results[-1].name == "all models: cuts"
    assert results[-1].median == results[0].median > 0
