"""Engines that may hang: they never hold every thread, and whoever waits for them is told in time, and once."""

from __future__ import annotations

import time

import pytest

from cloud_gateway.desk import OVERDUE_IVL_S, OVERDUE_S
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.scheduling.cost_curve import CostCurve
from cloud_gateway.scheduling.lane_queue import LaneQueue
from cloud_gateway.scheduling.scheduler import Scheduler
from cloud_gateway.work import Computed, NotComputed
from protocol.messages import RejectCode
from tests.scripted_engines import Scripted
from tests.unit.test_gateway_scheduler import Job, admit, run
from tests.unit.test_gateway_worker_engines import Bench, answers


def scheduler_of(threads: int, **lanes: bool) -> Scheduler[Job]:
    """Lanes by name, and whether they may hang; each may have as many batches as there are threads."""
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=threads)
    for lane, may_hang in lanes.items():
        curve = CostCurve()
        curve.observe(1, 0.010)
        queue: LaneQueue[Job] = LaneQueue(curve, max_rows=1, may_hang=may_hang)
        scheduler.open(lane, queue, instances=threads)
    return scheduler


def test_what_may_hang_never_has_all_threads_while_there_are_lanes_that_do_not() -> None:
    scheduler = scheduler_of(2, gpu=True, other=True, cpu=False)
    one, two, three, four = (Job(name) for name in ("one", "two", "three", "four"))
    admit(scheduler, "gpu", one, two)
    admit(scheduler, "other", three)
    assert run(scheduler, thread=0) == [one]
    assert run(scheduler, thread=1) == []
    assert scheduler.next_wake(now=0.0) is None, "only a release or another request can bring it something"
    admit(scheduler, "cpu", four)
    assert run(scheduler, thread=1) == [four]
    scheduler.release(0)
    assert run(scheduler, thread=0) == [two]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_where_all_lanes_may_hang_they_have_all_threads(threads: int) -> None:
    scheduler = scheduler_of(threads, gpu=True)
    admit(scheduler, "gpu", *(Job(str(n)) for n in range(threads)))
    assert all(run(scheduler, thread=n) for n in range(threads))


def test_with_one_thread_there_is_none_to_keep_free() -> None:
    scheduler = scheduler_of(1, gpu=True, cpu=False)
    admit(scheduler, "gpu", one := Job("one"))
    assert run(scheduler) == [one]


def test_what_waits_too_long_is_taken_out_and_what_runs_where_nothing_hangs_is_left_to_end() -> None:
    scheduler = scheduler_of(2, gpu=True, cpu=False)
    hung, slow, late, patient = (
        Job("hung", deadline=1.0), Job("slow", deadline=1.0), Job("late", deadline=1.0), Job("patient")
    )  # fmt: skip
    admit(scheduler, "gpu", hung)
    admit(scheduler, "cpu", slow)
    assert run(scheduler, thread=0) == [hung]
    assert run(scheduler, thread=1) == [slow]
    admit(scheduler, "gpu", late, patient)
    assert scheduler.overdue(now=0.9) == ([], [])
    assert scheduler.overdue(now=1.1) == ([late], [hung])
    scheduler.validate()
    assert scheduler.overdue(now=1.2) == ([], [hung]), "the desk knows whom it has told"
    assert scheduler.waiting == 1


# ---- the whole of it: lane, desk, runner ----------------------------------------------------------------------------


def test_whoever_waits_for_a_run_that_hangs_is_refused_in_time_and_what_comes_of_it_later_is_nobodys() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu, on_gpu=("gpu",))
    hurried = bench.offer(1.0, budget_s=5.0)
    patient = bench.offer(2.0, budget_s=600.0)
    told: list[object] = []

    def hang(tensors: object) -> None:
        bench.offer(3.0, budget_s=4.0)  # behind it
        now = time.monotonic()
        assert bench.desk.overdue(now=now) == []
        for at in (now + 5.0 + OVERDUE_S, now + 5.0 + OVERDUE_S + OVERDUE_IVL_S):
            told.extend((o.item.ticket, o.code) for o in bench.desk.overdue(now=at) if isinstance(o, NotComputed))

    gpu.before_run = hang
    outcomes = bench.run()
    assert told == [(3.0, RejectCode.DEADLINE), (1.0, RejectCode.DEADLINE)]
    assert [o.item for o in outcomes if isinstance(o, Computed)] == [patient]
    assert answers(outcomes) == {2.0: 4.0}
    assert hurried.is_given_up
    assert (bench.segment.pending, bench.desk.pending(), bench.desk.waiting) == (0, (0, 0), 0)
    assert bench.desk.overdue(now=time.monotonic() + 1000.0) == []


def test_what_the_processor_runs_is_answered_late_and_not_refused() -> None:
    cpu = Scripted("cpu")
    bench = Bench(cpu)
    bench.offer(1.0, budget_s=5.0)
    cpu.before_run = lambda _: overdue.extend(bench.desk.overdue(now=time.monotonic() + 60.0))
    overdue: list[object] = []
    assert answers(bench.run()) == {1.0: 2.0}
    assert overdue == []
