"""Suite `solver`: how long the exact plan table takes, on graphs of 500 to 100,000 units.

Law: a figure is the whole way from the problem to the proven envelope over 0.1 to 1,000 Mbit/s, arrays included. The
number of min-cuts and of plans stands beside it, since both are the same on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

from benchmarks.results import Options, Result
from benchmarks.solver_graphs import problem
from partitioner.solver.bounded import Budget, minimise
from partitioner.solver.mincut import combine
from partitioner.solver.network import Network
from partitioner.solver.parametric import Envelope, enumerate_plans, envelope
from protocol.latency import LinkState
from protocol.plan import PlanConditions, Row, plan_table, seconds_per_byte

SLOWEST_MBIT, FASTEST_MBIT = 0.1, 1000.0
LIMITS_S = {500: 1.0, 2000: 5.0}
CASES = (
    *((shape, count) for count in (500, 2000) for shape in ("residual", "inception", "searched", "detector", "exits")),
    ("inception", 10_000),
    ("searched", 10_000),
    ("residual", 100_000),
    ("inception", 100_000),
)
QUICK_CASES = CASES[:5]
LOOKUPS = 2000
LOOKUP_LIMIT_US = 20.0
BOUNDED_MIN_CUTS = 200
_T = TypeVar("_T")


def run(options: Options) -> list[Result]:
    """Time every case `options.repeats` times (large ones once), the choice from a table, and one bounded search."""
    results = [_envelope(shape, count, options) for shape, count in (QUICK_CASES if options.quick else CASES)]
    return [*results, _rungs(options), _choice(options), _bounded()]


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _envelope(shape: str, count: int, options: Options) -> Result:
    given = problem(shape, count)
    x_lo, x_hi = seconds_per_byte(FASTEST_MBIT), seconds_per_byte(SLOWEST_MBIT)

    def solve() -> tuple[Network, Envelope]:
        network = Network(given)
        return network, envelope(network, x_lo=x_lo, x_hi=x_hi)

    runs = [_timed(solve) for _ in range(1 if count > 2000 or options.quick else options.repeats)]
    network, found = runs[0][1]
    blocks = network.blocks
    note = (
        f"{found.min_cuts} min-cuts, {len(found.pieces)} plans; {len(blocks.low)} blocks, "
        f"largest {int((blocks.high - blocks.low).max(initial=1)) - 1} units"
    )
    name, samples = f"envelope, {shape}, {count:,} units", [seconds for seconds, _ in runs]
    if count in LIMITS_S:
        return Result.bounded(name, "s", samples, at_most=LIMITS_S[count], note=note)
    return Result.of(name, "s", samples, note=note)


def _rungs(options: Options) -> Result:
    """Four codec rungs at once, as `plan` asks for them."""
    plain = problem("inception", 500)
    rungs = {
        name: type(plain)(plain.units, tuple(f._replace(up_nbytes=f.up_nbytes * share) for f in plain.flows))
        for name, share in (("zstd", 1.0), ("q6", 0.7), ("q4", 0.45), ("q2", 0.2))
    }
    x_lo, x_hi = seconds_per_byte(FASTEST_MBIT), seconds_per_byte(SLOWEST_MBIT)
    runs = [_timed(lambda: enumerate_plans(rungs, x_lo=x_lo, x_hi=x_hi, rtt_s=0.02)) for _ in range(options.repeats)]
    plans = runs[0][1]
    note = f"{plans.min_cuts} min-cuts, {len(plans.plans)} plans, {len(plans.stretches)} of them on the joint envelope"
    return Result.of("plans of 4 rungs, inception, 500 units", "s", [seconds for seconds, _ in runs], note=note)


def _choice(options: Options) -> Result:
    """One look-up in a table of the plans of a real size."""
    plans = enumerate_plans(
        {"zstd": problem("exits", 2000)}, x_lo=seconds_per_byte(FASTEST_MBIT), x_hi=seconds_per_byte(SLOWEST_MBIT)
    )
    rows = [Row(f"row-{i}", plan.solution.cost) for i, plan in enumerate(plans.plans)]
    table = plan_table(rows, PlanConditions(rtt_s=0.02))
    links = [LinkState(1e4 * (i + 1), 0.02, 1e4 * (i + 1)) for i in range(LOOKUPS)]

    def choose() -> None:
        for link in links:
            table.best(link)

    samples = [_timed(choose)[0] / LOOKUPS * 1e6 for _ in range(max(3, options.repeats))]
    return Result.bounded("choose from the table", "us", samples, at_most=LOOKUP_LIMIT_US, note=f"{len(rows)} rows")


def _bounded() -> Result:
    """Branch and bound with memory for a third of the weights on the device, at 8 Mbit/s."""
    network = Network(problem("detector", 200))
    memory = [u.memory_nbytes for u in network.problem.units]
    tally = network.nbytes * 0
    tally[: network.count] = memory
    cost = combine(network.ns, network.nbytes, _x(8.0))
    budgets = [Budget("edge memory", tally, sum(memory) // 3)]
    seconds, found = _timed(lambda: minimise(network, cost, budgets, max_min_cuts=BOUNDED_MIN_CUTS))
    note = f"{found.min_cuts} min-cuts, gap {found.gap:.2%}"
    return Result.of("bounded search, detector, 200 units", "s", [seconds], note=note)


def _x(mbit: float) -> Fraction:
    return Fraction(8000) / Fraction(mbit)
