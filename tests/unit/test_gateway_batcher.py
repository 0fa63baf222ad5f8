"""The queue of one lane: what goes in comes out exactly once, in batches that make nobody late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_gateway.scheduling.batcher import AGEING_S, Batcher, Taken
from cloud_gateway.scheduling.cost_curve import CostCurve

FAR = 1e9


@dataclass(frozen=True, eq=False)
class Job:
    """An item as the batcher sees it; two jobs are never the same."""

    name: str
    rows: int = 1
    deadline: float = FAR
    priority: int = 4
    layout: object = "square"

    def __repr__(self) -> str:
        return self.name


def curve_of(costs: dict[int, float]) -> CostCurve:
    curve = CostCurve()
    for batch, cost_s in costs.items():
        curve.observe(batch, cost_s)
    return curve


def batcher_with(*jobs: Job, max_rows: int = 8, costs: dict[int, float] | None = None) -> Batcher[Job]:
    batcher: Batcher[Job] = Batcher(curve_of(costs or {}), max_rows=max_rows)
    for at, job in enumerate(jobs):
        batcher.offer(job, now=at * 1e-3)
    batcher.validate()
    return batcher


def take(batcher: Batcher[Job], *, now: float = 0.1) -> Taken[Job]:
    taken = batcher.take(now=now)
    batcher.validate()
    return taken


# ---- scenarios ------------------------------------------------------------------------------------------------------


def test_an_empty_queue_gives_nothing_and_wants_nothing() -> None:
    batcher = batcher_with()
    assert take(batcher) == Taken([], [])
    assert batcher.next_deadline() is None
    assert batcher.wait_s() == 0.0
    assert len(batcher) == 0


def test_a_single_item_is_taken_at_once() -> None:
    job = Job("only")
    batcher = batcher_with(job)
    assert take(batcher, now=0.0).batch == [job]
    assert len(batcher) == 0


def test_everything_that_waits_and_fits_becomes_one_batch_oldest_first() -> None:
    jobs = [Job(str(i)) for i in range(5)]
    assert take(batcher_with(*jobs)).batch == jobs


def test_a_batch_stops_at_the_bound_and_the_rest_waits_its_turn() -> None:
    jobs = [Job(str(i)) for i in range(5)]
    batcher = batcher_with(*jobs, max_rows=2)
    assert [take(batcher).batch for _ in range(4)] == [jobs[:2], jobs[2:4], jobs[4:], []]


def test_rows_count_and_not_items() -> None:
    jobs = [Job("a", rows=3), Job("b", rows=3), Job("c", rows=1)]
    batcher = batcher_with(*jobs, max_rows=4)
    assert take(batcher).batch == [jobs[0], jobs[2]]
    assert take(batcher).batch == [jobs[1]]


def test_an_item_larger_than_the_bound_goes_alone() -> None:
    small, large = Job("small"), Job("large", rows=9)
    batcher = batcher_with(small, large, max_rows=4)
    assert take(batcher).batch == [small]
    assert take(batcher).batch == [large]
    assert take(batcher_with(large, small, max_rows=4)).batch == [large]


def test_layouts_are_never_mixed() -> None:
    square, wide, square_too = Job("a"), Job("b", layout="wide"), Job("c")
    batcher = batcher_with(square, wide, square_too)
    assert take(batcher).batch == [square, square_too]
    assert take(batcher).batch == [wide]


def test_the_most_urgent_priority_leads_and_the_others_fill_the_batch() -> None:
    late, urgent = Job("late", priority=9), Job("urgent", priority=0)
    assert take(batcher_with(late, urgent)).batch == [urgent, late]
    assert take(batcher_with(late, urgent, max_rows=1)).batch == [urgent]


def test_a_waiting_item_gains_a_step_of_priority_with_time() -> None:
    batcher: Batcher[Job] = Batcher(CostCurve(), max_rows=1)
    old, urgent = Job("old", priority=2), Job("urgent", priority=0)
    batcher.offer(old, now=0.0)
    batcher.offer(urgent, now=3 * AGEING_S)
    assert take(batcher, now=3 * AGEING_S).batch == [old]


def test_nothing_starves_under_a_stream_of_urgent_items() -> None:
    batcher: Batcher[Job] = Batcher(CostCurve(), max_rows=1)
    patient = Job("patient", priority=9)
    batcher.offer(patient, now=0.0)
    for step in range(1, 200):
        now = step * 0.1
        batcher.offer(Job(f"urgent-{step}", priority=0), now=now)
        batcher.offer(Job(f"urgent-{step}-too", priority=0), now=now)  # twice what can be served
        if patient in take(batcher, now=now).batch:
            break
    assert now <= 2 * (9 + 1) * AGEING_S, f"the least urgent item waited {now} s"


def test_what_can_no_longer_finish_is_dropped_at_dispatch_and_not_run() -> None:
    doomed, fine = Job("doomed", deadline=0.105), Job("fine", deadline=0.2)
    assert take(batcher_with(doomed, fine, costs={1: 0.010}), now=0.1) == Taken([fine], [doomed])


def test_an_item_that_can_just_finish_is_run() -> None:
    just = Job("just", deadline=0.1 + 0.010)
    assert take(batcher_with(just, costs={1: 0.010}), now=0.1) == Taken([just], [])


def test_a_large_item_is_judged_by_what_its_own_rows_cost() -> None:
    large = Job("large", rows=8, deadline=0.150)  # one row would make it, eight need 80 ms
    assert take(batcher_with(large, costs={1: 0.010, 8: 0.080}), now=0.1) == Taken([], [large])


def test_joining_does_not_make_a_batch_mate_late() -> None:
    tight, easy = Job("tight", deadline=0.115), Job("easy")
    batcher = batcher_with(tight, easy, costs={1: 0.010, 2: 0.020})
    assert take(batcher, now=0.1).batch == [tight]
    assert take(batcher, now=0.11).batch == [easy]


def test_joining_does_not_make_the_newcomer_late() -> None:
    easy, tight = Job("easy"), Job("tight", deadline=0.115)
    assert take(batcher_with(easy, tight, costs={1: 0.010, 2: 0.020}), now=0.1).batch == [easy]


def test_removing_takes_out_what_is_chosen_and_nothing_else() -> None:
    jobs = [Job(str(i), priority=i % 3) for i in range(6)]
    batcher = batcher_with(*jobs)
    gone = batcher.remove(lambda job: job in jobs[:2])
    batcher.validate()
    assert set(gone) == set(jobs[:2])
    assert len(batcher) == 4
    assert set(take(batcher).batch) == set(jobs[2:])
    assert batcher.remove(lambda _: True) == []


def test_the_wait_is_that_of_full_batches_and_a_rest() -> None:
    batcher = batcher_with(*(Job(str(i)) for i in range(5)), max_rows=2, costs={1: 0.010, 2: 0.016})
    assert abs(batcher.wait_s() - (2 * 0.016 + 0.010)) < 1e-12


def test_the_earliest_deadline_that_waits_is_known() -> None:
    assert batcher_with(Job("a", deadline=3.0), Job("b", deadline=2.0, priority=0)).next_deadline() == 2.0


# ---- properties -----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    what: str
    gap_s: float
    rows: int
    budget_s: float
    priority: int
    layout: str


steps = st.lists(
    st.builds(
        Step,
        what=st.sampled_from(["offer", "offer", "offer", "take", "remove"]),
        gap_s=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
        rows=st.integers(1, 7),
        budget_s=st.floats(0.0, 3.0),
        priority=st.integers(0, 9),
        layout=st.sampled_from(["square", "wide"]),
    ),
    max_size=60,
)
curves = st.lists(st.tuples(st.integers(1, 16), st.floats(0.0, 0.5)), max_size=12)


def check_taken(taken: Taken[Job], waiting: dict[Job, float], curve: CostCurve, max_rows: int, *, now: float) -> None:
    """Every promise of `take` at once; `waiting` maps each job to when it was offered."""
    hopeless = {job for job in waiting if now + curve.predict(job.rows) > job.deadline}
    assert set(taken.expired) == hopeless, "expired is exactly what cannot finish"
    assert len(taken.expired) == len(hopeless)
    feasible = [job for job in waiting if job not in hopeless]
    assert bool(taken.batch) == bool(feasible), "an engine never idles while something feasible waits"
    if not taken.batch:
        return
    assert len(set(taken.batch)) == len(taken.batch)
    assert set(taken.batch) <= set(feasible)
    rows = sum(job.rows for job in taken.batch)
    assert rows <= max_rows or len(taken.batch) == 1
    assert len({job.layout for job in taken.batch}) == 1
    assert now + curve.predict(rows) <= min(job.deadline for job in taken.batch)

    def urgency(job: Job) -> tuple[int, int, float]:
        return job.priority - int((now - waiting[job]) / AGEING_S), job.priority, waiting[job]

    assert urgency(taken.batch[0]) == min(urgency(job) for job in feasible), "the most urgent item always goes"
    for left in set(feasible) - set(taken.batch):  # nobody is passed over by a younger twin
        twins = (
            t for t in taken.batch[1:] if (t.rows, t.priority, t.layout) == (left.rows, left.priority, left.layout)
        )
        assert all(waiting[t] <= waiting[left] or t.deadline > left.deadline for t in twins)


@settings(max_examples=120)
@given(steps, curves, st.integers(1, 16))
def test_every_item_comes_out_exactly_once_and_every_batch_keeps_its_promises(
    steps: list[Step], costs: list[tuple[int, float]], max_rows: int
) -> None:
    curve = CostCurve()
    for size, cost_s in costs:
        curve.observe(size, cost_s)
    batcher: Batcher[Job] = Batcher(curve, max_rows=max_rows)
    waiting: dict[Job, float] = {}
    now = 0.0
    for number, step in enumerate(steps):
        now += step.gap_s
        if step.what == "offer":
            job = Job(str(number), step.rows, now + step.budget_s, step.priority, step.layout)
            batcher.offer(job, now=now)
            waiting[job] = now
        elif step.what == "take":
            taken = batcher.take(now=now)
            check_taken(taken, waiting, curve, max_rows, now=now)
            for job in taken.batch + taken.expired:
                del waiting[job]
        else:
            chosen = {job for job in waiting if job.priority == step.priority}
            removed = batcher.remove(chosen.__contains__)
            assert len(removed) == len(chosen)
            assert set(removed) == chosen
            for job in chosen:
                del waiting[job]
        batcher.validate()
        assert len(batcher) == len(waiting)
        assert batcher.rows == sum(job.rows for job in waiting)
        assert batcher.next_deadline() == min((job.deadline for job in waiting), default=None)
        assert (batcher.wait_s() > 0.0) <= bool(waiting)
    while waiting:
        taken = batcher.take(now=now)
        check_taken(taken, waiting, curve, max_rows, now=now)
        for job in taken.batch + taken.expired:
            del waiting[job]
    assert len(batcher) == 0
