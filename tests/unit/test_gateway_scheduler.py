"""The shared scheduler: who enters, what a free thread runs next, and what a newcomer is told it would wait."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.scheduling.cost_curve import CostCurve
from cloud_gateway.scheduling.lane_queue import AGEING_S, LaneQueue
from cloud_gateway.scheduling.scheduler import TRIAL_IVL_S, TRIAL_MARGIN, TRIAL_SHARE, Scheduler
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode

FAR = 1e9
LINEAR = {1: 0.010, 2: 0.012, 4: 0.016}


@dataclass(eq=False)
class Job:
    """An item as the scheduler sees it; two jobs are never the same."""

    name: str
    rows: int = 1
    deadline: float = FAR
    priority: int = 4
    tenant: str = "one"
    layout: object = "square"
    nbytes: int = 100

    def __repr__(self) -> str:
        return self.name


def scheduler_with(*lanes: str, threads: int = 1, limits: Limits | None = None) -> Scheduler[Job]:
    """Lanes whose batches of 1, 2 and 4 take 10, 12 and 16 ms; as many instances as threads."""
    scheduler: Scheduler[Job] = Scheduler(limits or Limits(), threads=threads)
    for lane in lanes:
        open_lane(scheduler, lane, instances=threads)
    return scheduler


def open_lane(
    scheduler: Scheduler[Job],
    lane: str,
    *,
    costs: dict[int, float] | None = None,
    max_rows: int = 4,
    instances: int = 1,
    most_requests: int | None = None,
    delay_s: float = 0.0,
) -> None:
    curve = CostCurve()
    for rows, cost_s in (LINEAR if costs is None else costs).items():
        curve.observe(rows, cost_s)
    queue: LaneQueue[Job] = LaneQueue(curve, max_rows=max_rows, delay_s=delay_s)
    scheduler.open(lane, queue, instances=instances, most_requests=most_requests)


def admit(scheduler: Scheduler[Job], lane: str, *jobs: Job, now: float = 0.0) -> None:
    for job in jobs:
        assert scheduler.offer(lane, job, now=now) is None
    scheduler.validate()


def run(scheduler: Scheduler[Job], *, thread: int = 0, now: float = 0.0) -> list[Job]:
    """What `thread` is given; nothing may have expired."""
    dispatch = scheduler.take(thread, now=now)
    scheduler.validate()
    if dispatch is None:
        return []
    assert dispatch.expired == []
    return dispatch.batch


def done(scheduler: Scheduler[Job], jobs: list[Job], *, thread: int = 0) -> None:
    scheduler.release(thread)
    for job in jobs:
        scheduler.leave(job)
    scheduler.validate()


# ---- a free thread --------------------------------------------------------------------------------------------------


def test_nothing_waits_and_nothing_is_taken() -> None:
    scheduler = scheduler_with("a")
    assert scheduler.take(0, now=0.0) is None
    assert scheduler.next_wake(now=0.0) is None
    assert scheduler.wait_s(now=0.0) == 0.0


def test_a_free_thread_takes_the_lane_whose_oldest_request_came_first() -> None:
    scheduler = scheduler_with("a", "b")
    first, second, third = Job("first"), Job("second"), Job("third")
    admit(scheduler, "b", first, now=0.0)
    admit(scheduler, "a", second, now=0.001)
    admit(scheduler, "b", third, now=0.002)
    assert run(scheduler, now=0.003) == [first, third]
    done(scheduler, [first, third])
    assert run(scheduler, now=0.013) == [second]


def test_priority_comes_before_arrival_across_lanes() -> None:
    scheduler = scheduler_with("a", "b")
    patient, urgent = Job("patient", priority=5), Job("urgent", priority=1)
    admit(scheduler, "a", patient, now=0.0)
    admit(scheduler, "b", urgent, now=0.010)
    assert run(scheduler, now=0.020) == [urgent]


def test_a_request_that_has_waited_long_overtakes_a_more_urgent_one_of_another_lane() -> None:
    scheduler = scheduler_with("a", "b")
    patient, urgent = Job("patient", priority=5), Job("urgent", priority=1)
    admit(scheduler, "a", patient, now=0.0)
    admit(scheduler, "b", urgent, now=5 * AGEING_S)
    assert run(scheduler, now=5 * AGEING_S) == [patient]


def test_a_burst_on_one_lane_uses_every_thread() -> None:
    scheduler = scheduler_with("a", threads=3)
    jobs = [Job(str(i)) for i in range(12)]
    admit(scheduler, "a", *jobs)
    taken = [run(scheduler, thread=thread) for thread in range(3)]
    assert [len(batch) for batch in taken] == [4, 4, 4]
    assert [job for batch in taken for job in batch] == jobs
    assert scheduler.running == 3


def test_a_lane_never_runs_more_batches_at_once_than_it_has_instances() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=2)
    open_lane(scheduler, "single", max_rows=1)
    open_lane(scheduler, "other")
    jobs, other = [Job("1"), Job("2")], Job("other")
    admit(scheduler, "single", *jobs)
    admit(scheduler, "other", other, now=0.001)
    assert run(scheduler, thread=0) == [jobs[0]]
    assert run(scheduler, thread=1, now=0.001) == [other], "the older one waits for its lane's only instance"
    done(scheduler, [other], thread=1)
    assert scheduler.take(1, now=0.002) is None
    assert scheduler.next_wake(now=0.002) is None, "only the end of the running batch can help"
    done(scheduler, [jobs[0]], thread=0)
    assert run(scheduler, thread=1, now=0.003) == [jobs[1]]


def test_whoever_only_wants_a_quick_batch_gets_none_that_is_long_or_unknown() -> None:
    scheduler = scheduler_with("a")
    open_lane(scheduler, "unknown", costs={})
    job, other = Job("job"), Job("other")
    admit(scheduler, "a", job)
    assert scheduler.take(0, now=0.0, at_most_s=0.009) is None
    dispatch = scheduler.take(0, now=0.0, at_most_s=0.010)
    assert dispatch is not None
    assert dispatch.batch == [job]
    admit(scheduler, "unknown", other)
    assert scheduler.take(1, now=0.0, at_most_s=0.010) is None


def test_what_cannot_finish_any_more_comes_back_as_expired_and_occupies_nobody() -> None:
    scheduler = scheduler_with("a")
    running, doomed = Job("running"), Job("doomed", deadline=0.030)
    admit(scheduler, "a", running)
    run(scheduler)
    admit(scheduler, "a", doomed)
    done(scheduler, [running])
    dispatch = scheduler.take(0, now=0.029)
    assert dispatch is not None
    assert (dispatch.batch, dispatch.expired, scheduler.running) == ([], [doomed], 0)
    scheduler.leave(doomed)
    scheduler.validate()
    assert (scheduler.admission.requests, scheduler.waiting) == (0, 0)


def test_a_batch_says_how_long_it_should_take() -> None:
    scheduler = scheduler_with("a")
    admit(scheduler, "a", Job("1"), Job("2"))
    dispatch = scheduler.take(0, now=1.0)
    assert dispatch is not None
    assert dispatch.predicted_s == pytest.approx(0.012)
    assert scheduler.first_free_s(1.005) == pytest.approx(0.007)
    assert scheduler.first_free_s(2.0) == 0.0, "it takes longer, but for how long nobody knows"


# ---- waiting for company --------------------------------------------------------------------------------------------


def test_an_efficiency_delay_tells_when_to_ask_again_and_holds_up_nobody_else() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=1)
    open_lane(scheduler, "thrifty", delay_s=0.020)
    open_lane(scheduler, "prompt")
    thrifty, prompt = Job("thrifty"), Job("prompt")
    admit(scheduler, "thrifty", thrifty, now=1.0)
    assert scheduler.take(0, now=1.0) is None
    assert scheduler.next_wake(now=1.0) == pytest.approx(1.020)
    admit(scheduler, "prompt", prompt, now=1.001)
    assert run(scheduler, now=1.001) == [prompt]
    done(scheduler, [prompt])
    wake = scheduler.next_wake(now=1.011)
    assert wake is not None
    assert run(scheduler, now=wake) == [thrifty], "a promised wake-up finds something"


def test_an_efficiency_delay_ends_with_a_full_batch() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=1)
    open_lane(scheduler, "thrifty", delay_s=10.0, max_rows=2)
    jobs = [Job("1"), Job("2")]
    admit(scheduler, "thrifty", *jobs)
    assert run(scheduler) == jobs


# ---- the door -------------------------------------------------------------------------------------------------------


def test_a_lane_that_was_closed_meanwhile_is_an_unknown_segment_and_no_crash() -> None:
    verdict = scheduler_with("a").offer("gone", Job("late"), now=0.0)
    assert verdict is not None
    assert verdict.code is RejectCode.UNKNOWN_SEGMENT


def test_on_an_idle_gateway_what_a_batch_typically_takes_must_fit() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=1)
    curve = CostCurve()
    for _ in range(8):  # one run in three takes five times as long
        for cost_s in (0.010, 0.010, 0.050):
            curve.observe(1, cost_s)
    scheduler.open("uneven", LaneQueue(curve, max_rows=1))
    tight, next_one = Job("tight", deadline=0.015), Job("next", deadline=0.035)
    admit(scheduler, "uneven", tight)
    assert run(scheduler) == [tight], "it would be refused by the quantile, and nobody would gain"
    verdict = scheduler.offer("uneven", next_one, now=0.0)
    assert verdict is not None
    assert verdict.code is RejectCode.DEADLINE


def test_a_lane_that_was_slow_is_tried_again_now_and_then() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=1)
    open_lane(scheduler, "slow", costs={1: 0.100})
    trial, refused = Job("trial", deadline=1.050), Job("refused", deadline=1.050)
    admit(scheduler, "slow", trial, now=1.0)
    assert trial.deadline == pytest.approx(1.0 + 0.100 * TRIAL_MARGIN)
    assert run(scheduler, now=1.0) == [trial]
    done(scheduler, [trial])
    verdict = scheduler.offer("slow", refused, now=1.0)
    assert verdict is not None
    assert verdict.code is RejectCode.DEADLINE
    assert refused.deadline == 1.050, "only who is let in as a trial is given more time"
    rested = 1.0 + max(TRIAL_IVL_S, 0.100 / TRIAL_SHARE) + 0.001
    admit(scheduler, "slow", Job("again", deadline=rested + 0.050), now=rested)


def test_a_trial_is_not_for_whom_only_company_makes_late() -> None:
    scheduler = scheduler_with("a")
    admit(scheduler, "a", Job("first", rows=3))
    tight = Job("tight", deadline=0.011)
    assert scheduler.offer("a", tight, now=0.0) is not None
    assert tight.deadline == 0.011


def test_a_trial_needs_room_like_everybody() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(pending_nbytes=50), threads=1)
    open_lane(scheduler, "slow", costs={1: 0.100})
    large = Job("large", deadline=0.050)
    verdict = scheduler.offer("slow", large, now=0.0)
    assert verdict is not None
    assert verdict.code is RejectCode.TOO_LARGE
    assert large.deadline == 0.050
    admit(scheduler, "slow", Job("small", deadline=0.050, nbytes=10))


def test_a_lane_may_bound_how_many_wait_for_it_alone() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=1)
    open_lane(scheduler, "small", most_requests=1)
    open_lane(scheduler, "free")
    admit(scheduler, "small", Job("waits"))
    verdict = scheduler.offer("small", Job("too many"), now=0.0)
    assert verdict is not None
    assert (verdict.code, verdict.reason) == (RejectCode.BUSY, "1 requests wait for this model")
    assert verdict.retry_after_s > 0.0
    admit(scheduler, "free", Job("elsewhere"))
    assert scheduler.admission.requests == 2


def test_who_is_refused_leaves_no_trace() -> None:
    scheduler = scheduler_with("a")
    admit(scheduler, "a", Job("first"))
    assert scheduler.offer("a", Job("hopeless", deadline=0.001), now=0.0) is not None
    scheduler.validate()
    assert (scheduler.waiting, scheduler.admission.requests, scheduler.admission.nbytes) == (1, 1, 100)


# ---- the predicted wait ---------------------------------------------------------------------------------------------


def test_the_wait_is_what_is_left_of_the_running_batch_and_everything_before_it_on_any_lane() -> None:
    scheduler = scheduler_with("a", "b")
    admit(scheduler, "a", Job("running"))
    run(scheduler)
    admit(scheduler, "a", *(Job(f"a-{i}") for i in range(4)))
    admit(scheduler, "b", *(Job(f"b-{i}") for i in range(4)))
    wait_s, service_s = scheduler.predict("a", rows=1, now=0.004)
    assert wait_s == pytest.approx(0.006 + 0.016 + 0.016)
    assert service_s == pytest.approx(0.016), "its own batch may fill up until then"
    assert scheduler.wait_s(now=0.004) == pytest.approx(wait_s)


def test_a_rest_that_waits_counts_as_large_as_the_batch_before_it() -> None:
    scheduler = scheduler_with("a", "b")
    admit(scheduler, "b", *(Job(str(i)) for i in range(4)))
    run(scheduler)
    admit(scheduler, "b", Job("rest"))
    wait_s, service_s = scheduler.predict("a", rows=1, now=0.0)
    assert wait_s == pytest.approx(0.016 + 0.016), "others will join the one that waits"
    assert service_s == pytest.approx(0.010), "nobody has asked for this lane yet"
    assert scheduler.predict("b", rows=1, now=0.0)[1] == pytest.approx(0.014), "three quarters of four"


def test_several_threads_share_what_waits() -> None:
    scheduler = scheduler_with("a", threads=2)
    admit(scheduler, "a", *(Job(str(i)) for i in range(16)))
    for thread in (0, 1):
        run(scheduler, thread=thread)
    wait_s, _ = scheduler.predict("a", rows=1, now=0.0)
    assert wait_s == pytest.approx(0.016 + 2 * 0.016 / 2)


def test_a_free_thread_does_not_help_a_lane_whose_instances_are_all_busy() -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(), threads=2)
    open_lane(scheduler, "single")
    open_lane(scheduler, "other")
    admit(scheduler, "single", Job("running"))
    run(scheduler)
    assert scheduler.predict("single", rows=1, now=0.004)[0] == pytest.approx(0.006)
    assert scheduler.predict("other", rows=1, now=0.004)[0] == 0.0


def test_less_urgent_requests_do_not_count_into_a_more_urgent_ones_wait() -> None:
    scheduler = scheduler_with("a", "b")
    admit(scheduler, "b", Job("running"))
    run(scheduler)
    admit(scheduler, "a", *(Job(f"a-{i}", priority=7) for i in range(4)), Job("urgent", priority=0))
    admit(scheduler, "b", Job("b", priority=7))
    assert scheduler.predict("a", rows=1, priority=0, now=0.0)[0] == pytest.approx(0.010)
    assert scheduler.predict("a", rows=1, priority=7, now=0.0)[0] > 0.030


# ---- leaving --------------------------------------------------------------------------------------------------------


def test_a_lane_gives_back_what_waited_when_it_closes_and_its_last_batch_may_end_afterwards() -> None:
    scheduler = scheduler_with("a", "b")
    running, waiting, other = Job("running"), Job("waiting"), Job("other")
    admit(scheduler, "a", running)
    run(scheduler)
    admit(scheduler, "a", waiting)
    admit(scheduler, "b", other)
    assert scheduler.close("a") == [waiting]
    scheduler.leave(waiting)
    scheduler.validate()
    done(scheduler, [running])
    assert run(scheduler) == [other]


def test_a_lane_that_opens_again_starts_from_nothing_although_an_old_batch_still_runs() -> None:
    scheduler = scheduler_with("a", threads=2)
    old, new = Job("old"), Job("new")
    admit(scheduler, "a", old)
    run(scheduler, thread=0)
    scheduler.close("a")
    open_lane(scheduler, "a", instances=1)
    scheduler.validate()
    admit(scheduler, "a", new)
    assert run(scheduler, thread=1) == [new]
    done(scheduler, [old], thread=0)
    done(scheduler, [new], thread=1)


def test_a_lane_is_opened_once() -> None:
    with pytest.raises(InvariantViolation, match="lane a is open already"):
        open_lane(scheduler_with("a"), "a")


def test_removing_takes_out_of_every_lane_what_nobody_wants_any_more() -> None:
    scheduler = scheduler_with("a", "b")
    gone, kept = [Job("1", tenant="gone"), Job("2", tenant="gone")], Job("kept")
    admit(scheduler, "a", gone[0], kept)
    admit(scheduler, "b", gone[1])
    assert scheduler.remove(lambda job: job.tenant == "gone") == gone
    for job in gone:
        scheduler.leave(job)
    scheduler.validate()
    assert run(scheduler) == [kept]


def test_releasing_a_thread_that_ran_nothing_does_nothing() -> None:
    scheduler = scheduler_with("a")
    scheduler.release(5)
    scheduler.validate()


def test_a_tenant_may_come_back_as_soon_as_one_of_its_requests_has_left() -> None:
    scheduler = scheduler_with("a", limits=Limits(credit_requests=1))
    first = Job("first")
    admit(scheduler, "a", first)
    verdict = scheduler.offer("a", Job("second"), now=0.0)
    assert verdict is not None
    assert (verdict.code, verdict.credit) == (RejectCode.BUSY, 0)
    run(scheduler)
    done(scheduler, [first])
    admit(scheduler, "a", Job("second"))
