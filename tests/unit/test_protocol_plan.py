"""The plan table: choosing, flip points and Pareto fronts, against the formula itself."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import InputError
from protocol.latency import LinkState, PlacementCost, adjusted, bottleneck_s, latency_s
from protocol.plan import PlanConditions, PlanTable, Row, pareto, plan_table, seconds_per_byte, under

CLOUD = Row("full-cloud", PlacementCost(up_nbytes=100_000, tail_s=0.005, down_nbytes=400), {"accuracy": 0.9})
CUT = Row("cut-1", PlacementCost(edge_s=0.02, up_nbytes=10_000, tail_s=0.002, down_nbytes=400), {"accuracy": 0.89})
EDGE = Row("edge-only", PlacementCost(edge_s=0.1), {"accuracy": 0.88})
CONDITIONS = PlanConditions(rtt_s=0.01)


def link(mbit: float, rtt_s: float = 0.01, *, up_over_down: float = 1.0, queue_s: float = 0.0) -> LinkState:
    uplink = 1 / seconds_per_byte(mbit)
    return LinkState(uplink, rtt_s, uplink / up_over_down, queue_s)


def table(*rows: Row, conditions: PlanConditions = CONDITIONS) -> PlanTable:
    return plan_table(rows or (CLOUD, CUT, EDGE), conditions)


# Whole microseconds and bytes: costs that differ by a rounding error are equal, and no test may ask which is less.
times_s = st.integers(0, 500_000).map(lambda us: us / 1e6)
costs = st.builds(
    PlacementCost,
    edge_s=times_s,
    encode_s=times_s,
    up_nbytes=st.integers(0, 1_000_000).map(float),
    decode_s=times_s,
    tail_s=times_s,
    down_nbytes=st.integers(0, 100_000).map(float),
    edge_spread=st.floats(0, 1),
    tail_spread=st.floats(0, 1),
)
conditions = st.builds(
    PlanConditions,
    rtt_s=times_s,
    up_over_down=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
    queue_s=times_s,
    edge_factor=st.floats(0.1, 10),
    cloud_factor=st.floats(0.1, 10),
    cloud_load=st.floats(0, 0.9),
    quantile=st.floats(0.05, 0.99),
)


def test_stretches_run_from_the_fastest_link_to_the_slowest_and_switch_where_latencies_are_equal() -> None:
    plan = table()
    assert [s.id for s in plan.stretches] == ["full-cloud", "cut-1", "edge-only"]
    first, second, third = plan.stretches
    assert (first.from_mbit, third.to_mbit) == pytest.approx((1000, 0.1))
    assert first.to_mbit == second.from_mbit
    # 5 ms + 100,400 B against 22 ms + 10,400 B
    assert first.to_mbit == pytest.approx(90_000 * 8 / 0.017 / 1e6)
    latencies = plan.latencies_s(link(second.to_mbit))
    assert latencies["cut-1"] == pytest.approx(latencies["edge-only"])


@settings(deadline=None)
@given(st.lists(costs, min_size=1, max_size=8), conditions, st.floats(-2, 3), times_s, times_s, st.booleans())
def test_the_best_row_has_the_least_latency(
    drawn: list[PlacementCost], given_: PlanConditions, log_mbit: float, rtt_s: float, queue_s: float, same: bool
) -> None:
    rows = [Row(f"row-{i}", cost) for i, cost in enumerate(drawn)]
    plan = plan_table(rows, given_)
    now = link(10**log_mbit, rtt_s, queue_s=queue_s, up_over_down=(given_.up_over_down if same else 2.0) or 1e-12)
    latencies = {row.id: latency_s(under(row.cost, given_), now) for row in rows}
    assert plan.latencies_s(now) == latencies
    assert latencies[plan.best(now)] == pytest.approx(min(latencies.values()), rel=1e-9, abs=1e-12)


def test_a_table_without_remote_or_without_local_rows_still_chooses() -> None:
    assert table(EDGE).best(link(1)) == "edge-only"
    assert table(CLOUD).best(link(0.001)) == "full-cloud"


def test_at_equal_latency_nothing_is_sent() -> None:
    local, remote = (
        Row("local", PlacementCost(edge_s=0.5)),
        Row("remote", PlacementCost(tail_s=0.25, up_nbytes=125_000)),
    )
    for ratio in (1.0, 0.5):  # by bisection and by formula
        assert table(remote, local).best(link(8, 0.125, up_over_down=ratio)) == "local"


def test_the_conditions_change_who_wins() -> None:
    at = link(100, 0.01)
    assert table().best(at) == "full-cloud"
    assert table(conditions=PlanConditions(rtt_s=0.01, cloud_load=0.95)).best(at) == "cut-1"
    assert table(conditions=PlanConditions(rtt_s=0.01, edge_factor=0.05)).best(at) == "edge-only"
    assert table().best(link(100, 0.2)) == "edge-only"
    assert table().best(link(100, 0.01, queue_s=0.2)) == "edge-only"


def test_a_tail_quantile_counts_the_spread_of_every_stage() -> None:
    cost = PlacementCost(edge_s=1, encode_s=2, decode_s=3, tail_s=4, up_nbytes=5, edge_spread=0.5, tail_spread=0.1)
    assert adjusted(cost) == cost
    tail = adjusted(cost, quantile=0.95)
    assert (tail.edge_s, tail.encode_s, tail.decode_s, tail.tail_s) == pytest.approx((1.5, 3, 3.3, 4.4))
    assert adjusted(cost, quantile=0.99).edge_s > 1.5
    assert adjusted(cost, quantile=0.001).tail_s > 0
    busy = adjusted(cost, cloud_load=0.75, cloud_factor=0.5, edge_factor=2)
    assert (busy.edge_s, busy.encode_s, busy.decode_s, busy.tail_s) == (2, 4, 6, 8)


@pytest.mark.parametrize("name", ["cloud_load", "quantile", "edge_factor", "cloud_factor"])
def test_conditions_that_are_none_are_refused(name: str) -> None:
    value = {"cloud_load": 1.0, "quantile": 1.0}.get(name, -1.0)
    with pytest.raises(ValueError, match="a load is in"):
        adjusted(CUT.cost, **{name: value})
    with pytest.raises(InputError, match="a load is in"):
        table(conditions=msgspec.structs.replace(CONDITIONS, **{name: value}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["rtt_s", "queue_s", "up_over_down", "edge_factor", "cloud_factor"])
def test_a_table_is_made_for_finite_conditions_only(name: str, value: float) -> None:
    with pytest.raises(InputError, match="finite"):
        table(conditions=msgspec.structs.replace(CONDITIONS, **{name: value}))


def test_the_throughput_is_that_of_the_slowest_stage() -> None:
    at = link(8, up_over_down=2.0)  # 1 MB/s up, 0.5 MB/s down
    cost = PlacementCost(edge_s=0.1, encode_s=0.1, up_nbytes=1000, decode_s=0.01, tail_s=0.02, down_nbytes=500)
    assert bottleneck_s(cost, at) == pytest.approx(0.2)
    assert bottleneck_s(msgspec.structs.replace(cost, up_nbytes=400_000), at) == pytest.approx(0.4)
    assert bottleneck_s(msgspec.structs.replace(cost, tail_s=0.5), at) == pytest.approx(0.51)
    assert bottleneck_s(msgspec.structs.replace(cost, down_nbytes=500_000), at) == pytest.approx(1.0)
    assert table(EDGE).values("per_s", at) == {"edge-only": pytest.approx(10)}


def test_flip_points_are_where_another_placement_takes_over() -> None:
    bandwidth, rtt, edge, cloud = table().flip_points("cut-1", link(10))
    assert bandwidth.holds_now
    assert (bandwidth.below, bandwidth.above) == ("edge-only", "full-cloud")
    assert bandwidth.high == pytest.approx(90_000 * 8 / 0.017 / 1e6)
    assert (rtt.low, rtt.above) == (0, "edge-only")
    transfer_s = 10_400 * seconds_per_byte(10)
    assert rtt.high == pytest.approx(0.1 - 0.022 - transfer_s)
    # A device twice as fast changes nothing, one fast enough does it alone.
    assert edge.below == "edge-only"
    assert edge.low == pytest.approx((0.012 + transfer_s) / 0.08)
    assert cloud.exists
    assert cloud.above == "edge-only"


@settings(deadline=None)
@given(st.lists(costs, min_size=2, max_size=6), st.floats(-1, 2), times_s, st.integers(0, 5))
def test_a_placement_is_best_inside_its_ranges_and_not_outside(
    drawn: list[PlacementCost], log_mbit: float, rtt_s: float, index: int
) -> None:
    rows = [Row(f"row-{i}", cost) for i, cost in enumerate(drawn)]
    chosen = rows[index % len(rows)].id
    mbit = 10**log_mbit
    plan = plan_table(rows, PlanConditions(rtt_s=rtt_s))
    for found in plan.flip_points(chosen, link(mbit, rtt_s)):
        for value in (0.3 * found.now + 0.01, found.now, 2 * found.now + 0.01, (found.low + found.high) / 2):
            if not (math.isfinite(value) and value > 0):
                continue
            mine, least = _at(rows, found.condition, value, mbit, rtt_s, chosen)
            if found.low * (1 + 1e-6) < value < found.high * (1 - 1e-6):
                assert mine <= least + 1e-9
            elif not found.low * (1 - 1e-6) - 1e-6 <= value <= found.high * (1 + 1e-6) + 1e-6:
                assert mine > least


def _at(rows: list[Row], condition: str, value: float, mbit: float, rtt_s: float, chosen: str) -> tuple[float, float]:
    """Latency of the chosen row and the least of all, with one condition set to `value`."""
    changed = {"uplink_mbit": mbit, "rtt_s": rtt_s, "edge_factor": 1.0, "cloud_factor": 1.0, condition: value}
    now = link(changed["uplink_mbit"], changed["rtt_s"])
    factors = {"edge_factor": changed["edge_factor"], "cloud_factor": changed["cloud_factor"]}
    latencies = {row.id: latency_s(adjusted(row.cost, **factors), now) for row in rows}
    return latencies[chosen], min(latencies.values())


def test_a_placement_that_is_never_best_has_an_empty_range() -> None:
    worse = Row("worse", PlacementCost(edge_s=0.03, up_nbytes=20_000, tail_s=0.01, down_nbytes=400))
    bandwidth = table(CLOUD, CUT, EDGE, worse).flip_points("worse", link(10))[0]
    assert not bandwidth.exists
    # Slower at every bandwidth and by more on slower links: it would win only where a byte took less than no time.
    dominated = Row("dominated", PlacementCost(edge_s=0.2, up_nbytes=20_000))
    assert not table(EDGE, dominated).flip_points("dominated", link(10))[0].exists
    parallel = Row("parallel", msgspec.structs.replace(EDGE.cost, edge_s=0.2))
    assert not table(EDGE, parallel).flip_points("parallel", link(10))[0].exists
    with pytest.raises(InputError, match="no placement 'nobody'"):
        table().flip_points("nobody", link(10))


def test_the_front_holds_what_no_other_row_beats_in_everything() -> None:
    plan = table(CLOUD, CUT, EDGE, Row("bad", PlacementCost(edge_s=0.2, up_nbytes=5), {"accuracy": 0.5}))
    at = link(100)
    assert plan.pareto(["latency_s"], at) == ("full-cloud",)
    assert plan.pareto(["latency_s", "up_nbytes"], at) == ("full-cloud", "cut-1", "edge-only")
    assert plan.pareto(["cloud_s", "accuracy"], at, greatest=["accuracy"]) == ("full-cloud", "cut-1", "edge-only")
    assert plan.pareto(["per_s"], at) == ("full-cloud",)


def test_points_that_are_equal_are_all_on_the_front() -> None:
    assert pareto({"a": (1.0, 2.0), "b": (1.0, 2.0), "c": (1.0, 3.0), "d": (0.0, 9.0)}) == ("a", "b", "d")


def test_the_front_equals_brute_force() -> None:
    chance = random.Random(2)
    for _ in range(50):
        points = {str(i): tuple(float(chance.randint(0, 5)) for _ in range(3)) for i in range(12)}
        front = set(pareto(points))
        for name, point in points.items():
            others = [o for n, o in points.items() if n != name]
            beaten = any(o != point and all(x <= y for x, y in zip(o, point, strict=True)) for o in others)
            assert (name in front) != beaten


def test_an_objective_that_was_not_measured_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'energy_j' is not known for full-cloud, cut-1, edge-only"):
        table().pareto(["energy_j"], link(10))
    with pytest.raises(InputError, match="'beauty' is not known"):
        table().values("beauty", link(10))


def test_tables_without_rows_with_equal_ids_or_without_a_range_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        plan_table([], CONDITIONS)
    with pytest.raises(InputError, match="id of its own"):
        plan_table([EDGE, EDGE], CONDITIONS)
    with pytest.raises(InputError, match="slower than the fastest"):
        plan_table([EDGE], PlanConditions(rtt_s=0, fastest_mbit=1, slowest_mbit=2))


def test_a_table_survives_the_trip_through_json() -> None:
    plan = table()
    again = msgspec.json.decode(msgspec.json.encode(plan), type=PlanTable)
    assert again == plan
    assert again.best(link(10)) == "cut-1"
