"""From what was measured to what ships: constraints decide before speed does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from partitioner.crossing.codings import Coding
from partitioner.planning import choose, select
from partitioner.planning.clock import Machines
from partitioner.planning.costs import EDGE_ONLY, FULL_CLOUD, Families
from partitioner.planning.explore import Cut, Power, Search
from partitioner.planning.workshop import Variant
from partitioner.solver.constraints import Constraints
from protocol.bench import Silent
from protocol.bundle import ParityCertificate
from protocol.latency import PlacementCost

CERTIFICATE = ParityCertificate(0.0, 1e-5, "agreement", 1.0, 1.0, 0.99, 8)
VARIANTS = (Variant("", (), Coding({}, 0.0, 0.0, 0.0), CERTIFICATE),)
# The fast cut keeps the device at work for long; the frugal one is far slower to answer.
COSTS: Families = {
    FULL_CLOUD: {FULL_CLOUD: PlacementCost(up_nbytes=1e6, tail_s=0.5)},
    "fast": {"fast": PlacementCost(edge_s=0.05, up_nbytes=100.0, tail_s=0.001)},
    "frugal": {"frugal": PlacementCost(edge_s=0.01, up_nbytes=100.0, tail_s=0.4)},
    EDGE_ONLY: {EDGE_ONLY: PlacementCost(edge_s=0.2)},
}


def explorer() -> Any:
    segments = {Cut((name,)): SimpleNamespace(variants=VARIANTS) for name in ("fast", "frugal")}
    ends = SimpleNamespace(edge_certificate=CERTIFICATE, full_variants=VARIANTS)
    return SimpleNamespace(shop=None, ends=ends, segments=segments)


def finalists(constraints: Constraints) -> list[str]:
    search = Search(Machines(), constraints=constraints, power=Power(compute_w=1.0), memory=False)
    promising = choose._promising(explorer(), COSTS, search, Silent())
    return select.finalists(*choose._apart(promising), search.scope)


@pytest.mark.parametrize(
    ("constraints", "chosen"),
    [
        (Constraints(), ["fast"]),
        (Constraints(energy_j=0.3), ["fast"]),
        (Constraints(energy_j=0.02), ["frugal"]),  # the fast one would break it and must not take its place
        (Constraints(energy_j=0.02, cloud_s=0.05), ["fast"]),  # a conflict, for the side-by-side measurement to name
    ],
)
def test_finalists_are_chosen_among_what_keeps_the_constraints(constraints: Constraints, chosen: list[str]) -> None:
    assert finalists(constraints) == chosen


def test_memory_is_measured_for_every_cut_where_a_limit_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"fast": 9_000_000, "frugal": 1_000_000, FULL_CLOUD: 0, EDGE_ONLY: 9_000_000}

    def with_memory(_shop: object, _ends: object, _segments: object, costs: Families) -> Families:
        return {
            n: {i: msgspec.structs.replace(c, edge_memory_nbytes=peaks[n], cloud_memory_nbytes=0) for i, c in f.items()}
            for n, f in costs.items()
        }

    monkeypatch.setattr(choose, "with_memory", with_memory)
    assert finalists(Constraints(edge_memory_nbytes=2e6)) == ["frugal"]
