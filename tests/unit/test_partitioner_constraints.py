"""Constraints on the rows of a plan, and which of them conflict."""

from __future__ import annotations

import pytest

from partitioner.solver.constraints import Admitted, Conflict, Constraints, Relaxation, admit, conflict
from protocol.errors import InputError
from protocol.latency import PlacementCost
from protocol.plan import PlanConditions, PlanTable, Row, plan_table


def row(id_: str, edge_s: float, up_nbytes: float, tail_s: float, energy_j: float, accuracy: float) -> Row:
    memory = {"edge_memory_nbytes": int(edge_s * 1e8), "cloud_memory_nbytes": int(tail_s * 1e9)}
    return Row(id_, PlacementCost(edge_s, 0, up_nbytes, 0, tail_s, energy_j=energy_j, **memory), {"accuracy": accuracy})


def table() -> PlanTable:
    rows = [
        row("full-cloud", 0.0, 100_000, 0.01, 0.8, 0.95),
        row("cut-1", 0.02, 10_000, 0.004, 0.52, 0.94),
        row("edge-only", 0.1, 0, 0.0, 0.6, 0.90),
    ]
    return plan_table(rows, PlanConditions(rtt_s=0.01))


def admitted(constraints: Constraints, **given: list[str]) -> list[str]:
    found = admit(table(), constraints, **given)
    assert isinstance(found, Admitted), found
    return [r.id for r in found.rows]


def test_rows_that_keep_every_constraint_are_admitted_and_the_others_say_what_they_break() -> None:
    found = admit(table(), Constraints(energy_j=0.7, min_accuracy=0.92))
    assert isinstance(found, Admitted)
    assert [r.id for r in found.rows] == ["cut-1"]
    assert found.refused == {"full-cloud": ("energy_j",), "edge-only": ("min_accuracy",)}


def test_each_constraint_is_about_its_own_number() -> None:
    assert admitted(Constraints()) == ["full-cloud", "cut-1", "edge-only"]
    assert admitted(Constraints(edge_memory_nbytes=2_000_000)) == ["full-cloud", "cut-1"]
    assert admitted(Constraints(cloud_memory_nbytes=4_000_000)) == ["cut-1", "edge-only"]
    assert admitted(Constraints(cloud_s=0.004)) == ["cut-1", "edge-only"]
    assert admitted(Constraints(min_per_s=40, at_mbit=100)) == ["full-cloud", "cut-1"]
    assert admitted(Constraints(max_latency_s=0.05, at_mbit=10)) == ["cut-1"]
    assert admitted(Constraints(on_device=("conv",)), keep_pins=["cut-1", "edge-only"]) == ["cut-1", "edge-only"]


def test_a_latency_is_judged_at_its_quantile() -> None:
    slow = plan_table([Row("edge-only", PlacementCost(0.1, edge_spread=0.5))], PlanConditions(rtt_s=0))
    median = Constraints(max_latency_s=0.12, at_mbit=1)
    assert isinstance(admit(slow, median), Admitted)
    tail = Constraints(max_latency_s=0.12, at_mbit=1, quantile=0.95)
    found = admit(slow, tail)
    assert isinstance(found, Conflict)
    assert found.relaxations[0].needed == pytest.approx(0.15)


def test_a_single_constraint_that_nobody_keeps_says_what_it_would_have_to_be() -> None:
    found = admit(table(), Constraints(energy_j=0.4, edge_memory_nbytes=5_000_000))
    assert isinstance(found, Conflict)
    assert found.constraints == ("energy_j",)
    assert str(found) == "no placement keeps energy_j: energy_j <= 0.4 would have to be >= 0.52"


def test_a_conflict_names_a_minimal_subset_and_the_nearest_relaxation_of_each() -> None:
    # Only full-cloud is so accurate, and it takes 0.8 J; the memory is kept by all but edge-only and is not to blame.
    found = admit(table(), Constraints(energy_j=0.55, min_accuracy=0.945, edge_memory_nbytes=5_000_000))
    assert isinstance(found, Conflict)
    assert found.constraints == ("energy_j", "min_accuracy")
    assert found.relaxations == (Relaxation("energy_j", 0.55, 0.8), Relaxation("min_accuracy", 0.945, 0.94))
    assert "min_accuracy >= 0.945 would have to be <= 0.94" in str(found)


def test_pins_may_be_part_of_a_conflict() -> None:
    found = admit(table(), Constraints(on_device=("conv",), edge_memory_nbytes=0), keep_pins=["edge-only"])
    assert isinstance(found, Conflict)
    assert set(found.constraints) == {"edge_memory_nbytes", "on_device"}
    assert "on_device would have to be given up" in str(found)
    assert "edge_memory_nbytes <= 0 would have to be >= 1e+07" in str(found)


def test_where_nothing_is_possible_at_all_nothing_is_to_blame() -> None:
    found = conflict(Constraints(energy_j=1.0), lambda _: False, lambda *_: None)
    assert found.constraints == ()
    assert "whatever is asked" in str(found)
    assert str(Relaxation("energy_j", 1.0, None)) == "energy_j <= 1 would have to be given up"


def test_a_number_that_was_not_measured_is_refused_by_name() -> None:
    bare = plan_table([Row("a", PlacementCost(0.1))], PlanConditions(rtt_s=0))
    with pytest.raises(InputError, match="'energy_j' is not known for a"):
        admit(bare, Constraints(energy_j=1.0))


@pytest.mark.parametrize(
    "given",
    [
        {"energy_j": -1.0},
        {"energy_j": float("nan")},
        {"min_per_s": 3.0},
        {"max_latency_s": 1.0, "at_mbit": 0.0},
        {"max_latency_s": 1.0, "at_mbit": float("inf")},
        {"quantile": 1.0},
    ],
)
def test_constraints_that_are_none_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Constraints(**given).link(rtt_s=0.0)  # type: ignore[arg-type]
