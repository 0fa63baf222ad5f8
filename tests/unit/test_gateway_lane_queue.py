"""The queue of one lane: what goes in comes out exactly once, in batches that make nobody late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_gateway.scheduling.cost_curve import CostCurve
from cloud_gateway.scheduling.lane_queue import AGEING_S, LaneQueue, Taken

FAR = 1e9


@dataclass(frozen=True, eq=False)
class Job:
    """An item as the queue sees it; two jobs are never the same."""

    name: str
    rows: int = 1
    deadline: float = FAR
    priority: int = 4
    layout: object = "square"
    tenant: str = "one"

    def __repr__(self) -> str:
        return self.name


def curve_of(costs: dict[int, float]) -> CostCurve:
    curve = CostCurve()
    for batch, cost_s in costs.items():
        curve.observe(batch, cost_s)
    return curve


def queue_with(*jobs: Job, max_rows: int = 8, costs: dict[int, float] | None = None) -> LaneQueue[Job]:
    queue: LaneQueue[Job] = LaneQueue(curve_of(costs or {}), max_rows=max_rows)
    for at, job in enumerate(jobs):
        queue.offer(job, now=at * 1e-3)
    queue.validate()
    return queue


def take(queue: LaneQueue[Job], *, now: float = 0.1) -> Taken[Job]:
    taken = queue.take(now=now)
    queue.validate()
    return taken


# ---- scenarios ------------------------------------------------------------------------------------------------------


def test_an_empty_queue_gives_nothing_and_wants_nothing() -> None:
    queue = queue_with()
    assert take(queue) == Taken([], [])
    assert queue.next_deadline() is None
    assert queue.backlog_s() == 0.0
    assert len(queue) == 0


def test_a_single_item_is_taken_at_once() -> None:
    job = Job("only")
    queue = queue_with(job)
    assert take(queue, now=0.0).batch == [job]
    assert len(queue) == 0


def test_everything_that_waits_and_fits_becomes_one_batch_oldest_first() -> None:
    jobs = [Job(str(i)) for i in range(5)]
    assert take(queue_with(*jobs)).batch == jobs


def test_a_batch_stops_at_the_bound_and_the_rest_waits_its_turn() -> None:
    jobs = [Job(str(i)) for i in range(5)]
    queue = queue_with(*jobs, max_rows=2)
    assert [take(queue).batch for _ in range(4)] == [jobs[:2], jobs[2:4], jobs[4:], []]


def test_rows_count_and_not_items() -> None:
    jobs = [Job("a", rows=3), Job("b", rows=3), Job("c", rows=1)]
    queue = queue_with(*jobs, max_rows=4)
    assert take(queue).batch == [jobs[0], jobs[2]]
    assert take(queue).batch == [jobs[1]]


def test_an_item_larger_than_the_bound_goes_alone() -> None:
    small, large = Job("small"), Job("large", rows=9)
    queue = queue_with(small, large, max_rows=4)
    assert take(queue).batch == [small]
    assert take(queue).batch == [large]
    assert take(queue_with(large, small, max_rows=4)).batch == [large]


def test_layouts_are_never_mixed() -> None:
    square, wide, square_too = Job("a"), Job("b", layout="wide"), Job("c")
    queue = queue_with(square, wide, square_too)
    assert take(queue).batch == [square, square_too]
    assert take(queue).batch == [wide]


def test_the_most_urgent_priority_leads_and_the_others_fill_the_batch() -> None:
    late, urgent = Job("late", priority=9), Job("urgent", priority=0)
    assert take(queue_with(late, urgent)).batch == [urgent, late]
    assert take(queue_with(late, urgent, max_rows=1)).batch == [urgent]


def test_a_waiting_item_gains_a_step_of_priority_with_time() -> None:
    queue: LaneQueue[Job] = LaneQueue(CostCurve(), max_rows=1)
    old, urgent = Job("old", priority=2), Job("urgent", priority=0)
    queue.offer(old, now=0.0)
    queue.offer(urgent, now=3 * AGEING_S)
    assert take(queue, now=3 * AGEING_S).batch == [old]


def test_nothing_starves_under_a_stream_of_urgent_items() -> None:
    queue: LaneQueue[Job] = LaneQueue(CostCurve(), max_rows=1)
    patient = Job("patient", priority=9)
    queue.offer(patient, now=0.0)
    for step in range(1, 200):
        now = step * 0.1
        queue.offer(Job(f"urgent-{step}", priority=0), now=now)
        queue.offer(Job(f"urgent-{step}-too", priority=0), now=now)  # twice what can be served
        if patient in take(queue, now=now).batch:
            break
    assert now <= 2 * (9 + 1) * AGEING_S, f"the least urgent item waited {now} s"


def test_what_can_no_longer_finish_is_dropped_at_dispatch_and_not_run() -> None:
    doomed, fine = Job("doomed", deadline=0.105), Job("fine", deadline=0.2)
    assert take(queue_with(doomed, fine, costs={1: 0.010}), now=0.1) == Taken([fine], [doomed])


def test_an_item_that_can_just_finish_is_run() -> None:
    just = Job("just", deadline=0.1 + 0.010)
    assert take(queue_with(just, costs={1: 0.010}), now=0.1) == Taken([just], [])


def test_a_large_item_is_judged_by_what_its_own_rows_cost() -> None:
    large = Job("large", rows=8, deadline=0.150)  # one row would make it, eight need 80 ms
    assert take(queue_with(large, costs={1: 0.010, 8: 0.080}), now=0.1) == Taken([], [large])


def test_joining_does_not_make_a_batch_mate_late() -> None:
    tight, easy = Job("tight", deadline=0.115), Job("easy")
    queue = queue_with(tight, easy, costs={1: 0.010, 2: 0.020})
    assert take(queue, now=0.1).batch == [tight]
    assert take(queue, now=0.11).batch == [easy]


def test_a_pressed_newcomer_goes_first_when_all_others_can_wait_for_it() -> None:
    easy, tight = Job("easy"), Job("tight", deadline=0.115)
    queue = queue_with(easy, tight, costs={1: 0.010, 2: 0.020})
    assert take(queue, now=0.1).batch == [tight]
    assert take(queue, now=0.11).batch == [easy]


def test_an_overloaded_lane_keeps_its_batches_full_and_drops_what_cannot_make_them() -> None:
    late = [Job(f"late-{i}", deadline=0.115) for i in range(2)]
    others = [Job(str(i), deadline=0.135) for i in range(6)]
    queue = queue_with(*late, *others, max_rows=4, costs={1: 0.010, 4: 0.020})
    assert take(queue, now=0.1) == Taken(others[:4], late)  # two small batches first would make two others late


def test_a_more_urgent_priority_is_not_dropped_for_a_fuller_batch() -> None:
    urgent = Job("urgent", deadline=0.115, priority=0)
    others = [Job(str(i), deadline=0.125) for i in range(4)]
    queue = queue_with(urgent, *others, max_rows=4, costs={1: 0.010, 4: 0.020})
    taken = take(queue, now=0.1)
    assert urgent in taken.batch
    assert taken.expired == []


def test_tenants_share_a_lane_by_rows_however_many_requests_each_has_queued() -> None:
    greedy = [Job(f"greedy-{i}", tenant="greedy") for i in range(6)]
    modest = [Job(f"modest-{i}", tenant="modest") for i in range(2)]
    queue = queue_with(*greedy, *modest, max_rows=4)
    assert take(queue).batch == [greedy[0], modest[0], greedy[1], modest[1]]
    assert take(queue).batch == greedy[2:6]


def test_rows_that_were_cancelled_do_not_count_against_their_tenant() -> None:
    waste = [Job(f"waste-{i}", tenant="a") for i in range(20)]
    queue = queue_with(*waste, Job("b-0", tenant="b"), max_rows=2)
    queue.remove(lambda job: job in waste)
    queue.offer(Job("a-0", tenant="a"), now=0.1)
    queue.offer(Job("b-1", tenant="b"), now=0.1)
    assert [job.name for job in take(queue, now=0.1).batch] == ["b-0", "a-0"]


def test_a_tenant_that_was_away_gets_no_credit_for_it() -> None:
    queue = queue_with(*(Job(f"a-{i}", tenant="a") for i in range(4)), max_rows=2)
    take(queue)
    for i in range(3):
        queue.offer(Job(f"b-{i}", tenant="b"), now=0.2)
    assert [job.tenant for job in take(queue, now=0.2).batch] == ["b", "a"]


def test_an_efficiency_delay_counts_what_was_waited_already_and_ends_with_a_full_batch() -> None:
    queue: LaneQueue[Job] = LaneQueue(curve_of({1: 0.010}), max_rows=2, delay_s=0.005)
    queue.offer(Job("first"), now=1.0)
    assert queue.ready_at(now=1.001) == 1.005
    assert queue.ready_at(now=1.007) == 1.007
    queue.offer(Job("second"), now=1.002)
    assert queue.ready_at(now=1.002) == 1.002


def test_an_efficiency_delay_never_costs_a_deadline() -> None:
    queue: LaneQueue[Job] = LaneQueue(curve_of({1: 0.010, 2: 0.020}), max_rows=2, delay_s=10.0)
    queue.offer(Job("pressed", deadline=1.050), now=1.0)
    assert queue.ready_at(now=1.0) == pytest.approx(1.050 - 2 * 0.020)


def test_a_batch_costs_what_the_profile_that_it_is_padded_to_costs() -> None:
    queue: LaneQueue[Job] = LaneQueue(curve_of({1: 0.010, 4: 0.016, 8: 0.030}), max_rows=8, sizes=(1, 4, 8))
    assert [queue.padded(rows) for rows in (1, 2, 4, 5, 9)] == [1, 4, 4, 8, 9]
    assert queue.cost_s(2) == 0.016


def test_removing_takes_out_what_is_chosen_and_nothing_else() -> None:
    jobs = [Job(str(i), priority=i % 3) for i in range(6)]
    queue = queue_with(*jobs)
    gone = queue.remove(lambda job: job in jobs[:2])
    queue.validate()
    assert set(gone) == set(jobs[:2])
    assert len(queue) == 4
    assert set(take(queue).batch) == set(jobs[2:])
    assert queue.remove(lambda _: True) == []


def test_the_wait_is_that_of_full_batches_and_a_rest() -> None:
    queue = queue_with(*(Job(str(i)) for i in range(5)), max_rows=2, costs={1: 0.010, 2: 0.016})
    assert abs(queue.backlog_s() - (2 * 0.016 + 0.010)) < 1e-12


def test_the_earliest_deadline_that_waits_is_known() -> None:
    assert queue_with(Job("a", deadline=3.0), Job("b", deadline=2.0, priority=0)).next_deadline() == 2.0


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
    assert hopeless <= set(taken.expired), "what cannot finish is dropped"
    assert len(taken.expired) == len(set(taken.expired))
    for job in set(taken.expired) - hopeless:
        assert now + curve.predict(max(max_rows, job.rows)) > job.deadline, "else only what a full batch makes late"
    feasible = [job for job in waiting if job not in taken.expired]
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

    by_deadline = [job.deadline for job in taken.batch]
    first = min(urgency(job)[:2] for job in feasible)
    assert urgency(taken.batch[0])[:2] == first or by_deadline == sorted(by_deadline), "the most urgent item goes"
    for left in set(feasible) - set(taken.batch):  # nobody is passed over by a younger twin
        twins = (
            t for t in taken.batch[1:] if (t.rows, t.priority, t.layout) == (left.rows, left.priority, left.layout)
        )
        assert all(waiting[t] <= waiting[left] or t.deadline != left.deadline for t in twins)


@settings(max_examples=120)
@given(steps, curves, st.integers(1, 16))
def test_every_item_comes_out_exactly_once_and_every_batch_keeps_its_promises(
    steps: list[Step], costs: list[tuple[int, float]], max_rows: int
) -> None:
    curve = CostCurve()
    for size, cost_s in costs:
        curve.observe(size, cost_s)
    queue: LaneQueue[Job] = LaneQueue(curve, max_rows=max_rows)
    waiting: dict[Job, float] = {}
    now = 0.0
    for number, step in enumerate(steps):
        now += step.gap_s
        if step.what == "offer":
            job = Job(str(number), step.rows, now + step.budget_s, step.priority, step.layout)
            queue.offer(job, now=now)
            waiting[job] = now
        elif step.what == "take":
            taken = queue.take(now=now)
            check_taken(taken, waiting, curve, max_rows, now=now)
            for job in taken.batch + taken.expired:
                del waiting[job]
        else:
            chosen = {job for job in waiting if job.priority == step.priority}
            removed = queue.remove(chosen.__contains__)
            assert len(removed) == len(chosen)
            assert set(removed) == chosen
            for job in chosen:
                del waiting[job]
        queue.validate()
        assert len(queue) == len(waiting)
        assert queue.rows == sum(job.rows for job in waiting)
        assert queue.next_deadline() == min((job.deadline for job in waiting), default=None)
        assert (queue.backlog_s() > 0.0) <= bool(waiting)
    while waiting:
        taken = queue.take(now=now)
        check_taken(taken, waiting, curve, max_rows, now=now)
        for job in taken.batch + taken.expired:
            del waiting[job]
    assert len(queue) == 0
