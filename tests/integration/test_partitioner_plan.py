"""`partitioner plan`: constraints, profiles of other machines, and the way from a plan to a bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto

from partitioner.measuring.profile import ProfileOrder, profile, write
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build, decide
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Power, Search
from partitioner.planning.plans import make_plan, read_plan, to_build, write_plan
from partitioner.solver.constraints import Constraints
from protocol.bundle import Manifest
from protocol.errors import InputError
from protocol.messages import PlacementKind
from protocol.plan import PlanConditions
from tests import models

SEARCH = Search(
    Machines(slowdown=50.0, budget_s=0.5), PlanConditions(rtt_s=0.0001), budget_s=20.0, memory=False, keep_best=True
)


def order(folder: Path, maker: Any = models.residual, **changes: Any) -> Order:
    np.savez(folder / "data.npz", x=models.image_samples(24))
    path = models.write(maker(), folder)
    base = Order(path, folder / "bundle", calibration=folder / "data.npz", bound=0.3, recipe_budget_s=0.0)
    return replace(base, search=replace(SEARCH, **changes))


def planned(folder: Path, **changes: Any) -> Manifest:
    return decide(order(folder, **changes), Silent()).manifest


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Order:
    return order(tmp_path_factory.mktemp("plan"))


def test_a_plan_on_paper_builds_the_cuts_that_it_names(asked: Order, tmp_path: Path) -> None:
    made = make_plan(asked, ("latency_s", "up_nbytes"), 10.0, Silent())
    assert made.cuts
    assert made.table.stretches[0].from_mbit == pytest.approx(1000)
    assert {row.id.partition(".")[0] for row in made.table.rows} >= {"full-cloud", "cut-1", "edge-only"}
    write_plan(tmp_path / "plan.json", made)
    document = to_build(tmp_path / "plan.json")
    assert document == made
    built = build(replace(asked, cuts=document.cuts, source_digest=document.source_digest), Silent())
    cuts = {p.cut for p in built.manifest.placements if p.kind is PlacementKind.CUT}
    assert cuts == set(made.cuts)


def test_the_front_lists_what_nothing_else_beats(asked: Order) -> None:
    made = make_plan(asked, ("latency_s", "up_nbytes"), 10.0, Silent())
    assert made.front is not None
    assert "edge-only" in made.front.rows  # nothing sends less
    least = min(made.front.values["latency_s"].values())
    assert any(made.front.values["latency_s"][id_] == least for id_ in made.front.rows)


def test_a_plan_of_another_model_is_refused(asked: Order, tmp_path: Path) -> None:
    other = replace(order(tmp_path, models.two_heads), source_digest="0" * 64)
    with pytest.raises(InputError, match="the plan is of another model"):
        build(other, Silent())


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1}', "[1, 2]"])
def test_what_is_no_plan_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json does not parse.*; write a plan with `partitioner plan"):
        read_plan(tmp_path / "plan.json")


def test_a_plan_of_a_later_schema_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"schema_version": 7, "surprise": true}')
    with pytest.raises(InputError, match=r"plan\.json has schema version 7 but this version reads 1; use the version"):
        read_plan(tmp_path / "plan.json")


def test_layers_that_stay_on_the_device_keep_the_raw_input_there_too(tmp_path: Path) -> None:
    manifest = planned(tmp_path, constraints=Constraints(on_device=("node_r1",)))
    assert manifest.placement(PlacementKind.FULL_CLOUD) is None
    assert {p.kind for p in manifest.placements} <= {PlacementKind.CUT, PlacementKind.EDGE_ONLY}
    for entry in manifest.placements:
        assert "c1" not in entry.cut  # behind it would be outside
    assert manifest.conditions.constraints == ("node_r1 stays on the device",)


def test_constraints_that_conflict_are_named_with_what_each_would_have_to_be(tmp_path: Path) -> None:
    impossible = Constraints(energy_j=1e-12, cloud_s=1e-12)
    with pytest.raises(InputError) as refused:
        planned(tmp_path, constraints=impossible, power=Power(5.0, 1e-6))
    assert "energy_j <= 1e-12 would have to be >=" in str(refused.value)


def test_a_node_that_does_not_exist_cannot_stay_on_the_device(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no node 'node_r9' to keep on the device; did you mean"):
        planned(tmp_path, constraints=Constraints(on_device=("node_r9",)))


def test_declared_power_gives_every_placement_its_energy(tmp_path: Path) -> None:
    manifest = planned(tmp_path, power=Power(compute_w=5.0, radio_j_per_byte=1e-6))
    for entry in manifest.placements:
        cost = entry.cost
        expected = 5.0 * (cost.edge_s + cost.encode_s) + 1e-6 * (cost.up_nbytes + cost.down_nbytes)
        assert cost.energy_j == pytest.approx(expected)


def test_memory_is_measured_on_both_sides_and_bounds_the_head(tmp_path: Path) -> None:
    manifest = planned(tmp_path, memory=True)
    peaks = {p.id: (p.cost.edge_memory_nbytes, p.cost.cloud_memory_nbytes) for p in manifest.placements}
    assert peaks["full-cloud"][0] == 0
    assert peaks["edge-only"][1] == 0
    assert all(value is not None and value > 0 for value in (peaks["edge-only"][0], peaks["full-cloud"][1]))


def test_a_device_that_was_profiled_is_planned_with_its_own_times(tmp_path: Path) -> None:
    asked = order(tmp_path)
    seen = profile(
        ProfileOrder(asked.model, "edge", budget_s=0.5, calibration=asked.calibration, memory=False), Silent()
    )
    whole = seen.whole()
    assert whole is not None
    slow = msgspec.structs.replace(whole.time, p95_s=3 * whole.time.median_s)
    seen = seen.refined([msgspec.structs.replace(whole, time=slow)])
    write(tmp_path / "edge.json", seen)
    search = replace(asked.search, machines=Machines({"edge": seen}))
    manifest = decide(replace(asked, search=search, precision="fp32"), Silent()).manifest
    edge_only = next(p for p in manifest.placements if p.id == "edge-only")
    assert edge_only.cost.edge_s == pytest.approx(whole.time.median_s)
    # One run in twenty takes three times as long: that is what --quantile 0.95 plans for.
    assert all(p.cost.edge_spread == pytest.approx(2.0) for p in manifest.placements)


def test_the_quantile_decides_what_may_win(tmp_path: Path) -> None:
    asked = order(tmp_path)
    seen = profile(
        ProfileOrder(asked.model, "edge", budget_s=0.2, calibration=asked.calibration, memory=False), Silent()
    )
    whole = seen.whole()
    assert whole is not None
    median_s = whole.time.median_s
    seen = seen.refined(
        [msgspec.structs.replace(whole, time=msgspec.structs.replace(whole.time, p95_s=1000 * median_s))]
    )
    limit = Constraints(max_latency_s=100 * median_s, at_mbit=0.001, quantile=0.95, on_device=("node_c1",))
    with pytest.raises(InputError, match="no placement keeps max_latency_s"):
        planned(
            tmp_path,
            machines=Machines({"edge": seen}, budget_s=0.2),
            scope=PlanConditions(rtt_s=0.0001, quantile=0.95),
            constraints=limit,
        )


def test_the_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    path = models.write(models.two_heads(), other)
    seen = profile(ProfileOrder(path, "edge", budget_s=0.2, memory=False), Silent())
    with pytest.raises(InputError, match="profile of another model"):
        planned(tmp_path, machines=Machines({"edge": seen}))


def test_a_model_without_any_cut_is_not_split(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Relu", ["x"], "y")
    path = models.write(net.model(models.IMAGE, {"y": ["N", 3, 16, 16]}), tmp_path)
    manifest = decide(Order(path, tmp_path / "b", search=SEARCH, recipe_budget_s=0.0), Silent()).manifest
    assert {p.kind for p in manifest.placements} == {PlacementKind.FULL_CLOUD, PlacementKind.EDGE_ONLY}
    assert any("do not split: the model has no cut" in note for note in manifest.notes)


def test_where_the_constraints_leave_no_cut_the_model_is_not_blamed(tmp_path: Path) -> None:
    manifest = planned(tmp_path, constraints=Constraints(cloud_s=0.0))
    assert [p.id for p in manifest.placements] == ["edge-only"]
    assert any("do not split: no cut keeps the constraints" in note for note in manifest.notes)


def test_scalars_between_layers_and_pictures_of_any_size_are_planned_with(tmp_path: Path) -> None:
    net = models.Net()
    features = net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.add("ReduceMean", [features], "mean", keepdims=0)  # of everything: a tensor without axes
    net.add("Sub", [features, "mean"], "centred")
    net.add("GlobalAveragePool", ["centred"], "pooled")
    free = {"x": (TensorProto.FLOAT, ["N", 3, "H", "W"])}
    path = models.write(net.model(free, {"pooled": ["N", 8, 1, 1]}), tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(24):
        height = 16 + 8 * (i % 3)
        pixels = np.random.default_rng(i).integers(0, 256, (height, 24, 3), np.uint8)
        (pictures / f"{i}.ppm").write_bytes(b"P6 24 %d 255\n" % height + pixels.tobytes())
    asked = Order(path, tmp_path / "b", search=SEARCH, recipe_budget_s=0.0)
    asked = replace(asked, calibration=pictures, inputs=("x,mean=127.5,std=127.5",))
    manifest = decide(asked, Silent()).manifest
    assert any(p.kind is PlacementKind.CUT for p in manifest.placements), manifest.notes


def test_a_model_that_draws_random_numbers_is_planned_with_the_cuts_behind_the_draw(tmp_path: Path) -> None:
    net = models.Net()
    features = net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.add("RandomNormalLike", [features], "noise")
    net.add("Add", [features, "noise"], "noisy")
    net.add("GlobalAveragePool", ["noisy"], "pooled")
    np.savez(tmp_path / "data.npz", x=models.image_samples(24))
    path = models.write(net.model(models.IMAGE, {"pooled": ["N", 8, 1, 1]}), tmp_path)
    asked = Order(path, tmp_path / "b", search=SEARCH, calibration=tmp_path / "data.npz", recipe_budget_s=0.0)
    manifest = decide(asked, Silent()).manifest
    assert "noisy" in {name for p in manifest.placements if p.kind is PlacementKind.CUT for name in p.cut}
    assert any("changes the model's answers" in note for note in manifest.notes)  # what was given up, and why


def test_the_plan_is_one_json_document_with_finite_numbers(asked: Order, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", make_plan(asked, (), 10.0, Silent()))
    document = json.loads((tmp_path / "plan.json").read_text())
    assert {"table", "cuts", "measured", "notes", "conditions"} <= document.keys()
    assert all(row["cost"]["up_nbytes"] >= 0 for row in document["table"]["rows"])
