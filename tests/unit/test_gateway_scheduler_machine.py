"""The scheduler in whatever order of events: nothing lost, nothing run twice, nobody idle beside work, counts true."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.scheduling.cost_curve import CostCurve
from cloud_gateway.scheduling.lane_queue import AGEING_S, LaneQueue
from cloud_gateway.scheduling.scheduler import Scheduler
from protocol.messages import RejectCode

LANES = ("one", "two", "thrifty")
DELAY_S = 0.050
LIMITS = Limits(pending_requests=40, pending_nbytes=4000, credit_requests=25, credit_nbytes=3000)
TINY = 1e-9


@dataclass(eq=False)
class Job:
    name: str
    lane: str
    rows: int
    deadline: float
    priority: int
    tenant: str
    layout: str
    nbytes: int

    def __repr__(self) -> str:
        return self.name


@dataclass
class Batch:
    lane: str
    jobs: list[Job]
    predicted_s: float
    queue: LaneQueue[Job]


class SchedulerMachine(RuleBasedStateMachine):
    """Plays doors and engine threads, and keeps its own account of where every request is."""

    @initialize(
        threads=st.sampled_from([3, 2, 1]),
        instances=st.tuples(*[st.sampled_from([1, 2, 3])] * 3),
        bound=st.integers(1, 6),
    )
    def begin(self, threads: int, instances: tuple[int, int, int], bound: int) -> None:
        self.now = 100.0
        self.scheduler: Scheduler[Job] = Scheduler(LIMITS, threads=threads)
        self.threads = threads
        self.instances = dict(zip(LANES, instances, strict=True))
        self.bound = bound
        self.waiting: dict[Job, float] = {}
        self.running: dict[int, Batch] = {}
        self.ended: Counter[Job] = Counter()
        self.number = 0
        self.open: set[str] = set()
        for lane in LANES:
            self.open_lane(lane)

    def open_lane(self, lane: str) -> None:
        curve = CostCurve()
        curve.observe(1, 0.010)
        curve.observe(4, 0.022)
        delay_s = DELAY_S if lane == "thrifty" else 0.0
        queue: LaneQueue[Job] = LaneQueue(curve, max_rows=self.bound, delay_s=delay_s)
        self.scheduler.open(lane, queue, instances=self.instances[lane])
        self.open.add(lane)

    def end(self, job: Job) -> None:
        self.scheduler.leave(job)
        self.ended[job] += 1

    # ---- what may happen --------------------------------------------------------------------------------------------

    @rule(gap_s=st.sampled_from([0.001, 0.01, 0.06, 0.6, 5.0]))
    def time_passes(self, gap_s: float) -> None:
        self.now += gap_s

    @rule(
        lane=st.sampled_from(LANES),
        rows=st.sampled_from([1, 1, 2, 3, 7]),
        budget_s=st.sampled_from([*[math.inf] * 6, 1.0, 0.1, 0.1, 0.03, 0.03, 0.012, 0.005, 0.0]),
        priority=st.integers(0, 9),
        tenant=st.sampled_from("ab"),
        layout=st.sampled_from(["square", "square", "wide"]),
        nbytes=st.sampled_from([*[1] * 12, 100, 1500, 5000]),
        copies=st.sampled_from([1, 3, 6]),
    )
    def somebody_asks(
        self, lane: str, rows: int, budget_s: float, priority: int, tenant: str, layout: str, nbytes: int, copies: int
    ) -> None:
        for _ in range(copies):
            self.number += 1
            due = self.now + budget_s
            job = Job(f"{self.number}", lane, rows, due, priority, tenant, layout, nbytes)
            inside = self.scheduler.admission.requests
            verdict = self.scheduler.offer(lane, job, now=self.now)
            if verdict is None:
                assert lane in self.open
                self.waiting[job] = self.now
                assert job.deadline >= due, "a trial is given more time, never less"
                continue
            assert job.deadline == due
            assert self.scheduler.admission.requests == inside
            assert verdict.reason
            assert verdict.code is not RejectCode.UNKNOWN_SEGMENT or lane not in self.open

    @precondition(lambda self: self.waiting and len(self.running) < self.threads)
    @rule(most=st.integers(1, 3))
    def threads_look_for_work(self, most: int) -> None:
        for thread in sorted(set(range(self.threads)) - set(self.running))[:most]:
            self.take(thread)

    def take(self, thread: int) -> bool:
        dispatch = self.scheduler.take(thread, now=self.now)
        if dispatch is None:
            self.check_idleness()
            return False
        lane = str(dispatch.key)
        queue = self.scheduler.queue(lane)
        assert dispatch.batch or dispatch.expired, "a dispatch is about somebody"
        for job in dispatch.expired:
            assert self.now + queue.cost_s(max(self.bound, job.rows)) > job.deadline, "only what may be late"
        for job in (*dispatch.batch, *dispatch.expired):
            del self.waiting[job]  # KeyError: it was not waiting
            assert job.lane == lane
        for job in dispatch.expired:
            self.end(job)
        if dispatch.batch:
            self.check_batch(dispatch.batch, queue)
            self.running[thread] = Batch(lane, dispatch.batch, dispatch.predicted_s, queue)
        else:
            assert not any(job.lane == lane for job in self.waiting), "a lane is left empty-handed only if it is empty"
        return True

    def check_batch(self, batch: list[Job], queue: LaneQueue[Job]) -> None:
        rows = sum(job.rows for job in batch)
        assert rows <= self.bound or len(batch) == 1
        assert len({job.layout for job in batch}) == 1
        for job in batch:
            assert self.now + queue.typical_s(job.rows) <= job.deadline + TINY
            assert len(batch) == 1 or self.now + queue.cost_s(rows) <= job.deadline + TINY, "company made it late"

    def check_idleness(self) -> None:
        """Called when a free thread was given nothing."""
        wake = self.scheduler.next_wake(now=self.now)
        for job, since in self.waiting.items():
            if (
                sum(batch.queue is self.scheduler.queue(job.lane) for batch in self.running.values())
                >= self.instances[job.lane]
            ):
                continue
            assert job.lane == "thrifty", "a thread idles although something is ready"
            assert self.now < since + DELAY_S
            assert wake is not None
            assert self.now < wake <= since + DELAY_S + TINY
        if wake is not None:
            assert wake > self.now, "a wake-up at once would spin"

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 2), luck=st.sampled_from([0.5, 1.0, 1.0, 4.0]))
    def a_batch_ends(self, pick: int, luck: float) -> None:
        thread = sorted(self.running)[pick % len(self.running)]
        batch = self.running.pop(thread)
        took_s = batch.predicted_s * luck
        self.now += took_s
        batch.queue.curve.observe(sum(job.rows for job in batch.jobs), took_s)
        self.scheduler.release(thread)
        for job in batch.jobs:
            self.end(job)

    @precondition(lambda self: len(self.waiting) > 4)
    @rule(tenant=st.sampled_from("ab"))
    def a_tenant_goes_away(self, tenant: str) -> None:
        removed = self.scheduler.remove(lambda job: job.tenant == tenant)
        assert Counter(removed) == Counter(job for job in self.waiting if job.tenant == tenant)
        for job in removed:
            del self.waiting[job]
            self.end(job)

    @rule(lane=st.sampled_from(LANES), really=st.sampled_from([False, False, True]))
    def a_lane_closes_or_opens_again(self, lane: str, really: bool) -> None:
        if lane in self.open and not really:
            return
        if lane not in self.open:
            self.open_lane(lane)
            return
        left = self.scheduler.close(lane)
        self.open.remove(lane)
        assert Counter(left) == Counter(job for job in self.waiting if job.lane == lane)
        for job in left:
            del self.waiting[job]
            self.end(job)

    # ---- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def the_counts_agree(self) -> None:
        self.scheduler.validate()
        inside = [*self.waiting, *(job for batch in self.running.values() for job in batch.jobs)]
        assert self.scheduler.waiting == len(self.waiting)
        assert self.scheduler.running == len(self.running)
        assert self.scheduler.admission.requests == len(inside) <= LIMITS.pending_requests
        assert self.scheduler.admission.nbytes == sum(job.nbytes for job in inside)
        assert set(self.ended.values()) <= {1}

    @invariant()
    def predictions_are_numbers(self) -> None:
        for lane in self.open:
            wait_s, service_s = self.scheduler.predict(lane, rows=1, now=self.now)
            assert wait_s >= 0.0 < service_s
            assert wait_s <= self.scheduler.predict(lane, rows=7, now=self.now)[0] + TINY

    def teardown(self) -> None:
        """Let everything end: whatever was admitted must come out, and nothing may stay counted."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(200):
            if not self.waiting and not self.running:
                break
            for thread in set(range(self.threads)) - set(self.running):
                while self.take(thread) and thread not in self.running:
                    pass
            if self.running:
                self.a_batch_ends(pick=0, luck=1.0)
            else:
                self.now += DELAY_S
        assert not self.waiting
        assert not self.running
        assert (self.scheduler.waiting, self.scheduler.running) == (0, 0)
        assert (self.scheduler.admission.requests, self.scheduler.admission.nbytes) == (0, 0)
        for tenant in "ab":
            assert self.scheduler.admission.credit(tenant) == LIMITS.credit_requests


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=60, stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow]
)


# ---- over longer times ----------------------------------------------------------------------------------------------


def queue_of(max_rows: int) -> LaneQueue[Job]:
    curve = CostCurve()
    curve.observe(1, 0.100)
    curve.observe(max_rows, 0.100)
    return LaneQueue(curve, max_rows=max_rows)


def job(name: str, lane: str, rows: int, priority: int, tenant: str) -> Job:
    return Job(name, lane, rows, math.inf, priority, tenant, "square", 1)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 4), min_size=20, max_size=40),
    st.lists(st.integers(1, 4), min_size=20, max_size=40),
    st.integers(1, 8),
)
def test_two_tenants_that_both_wait_are_never_further_apart_than_their_largest_requests_and_a_batch(
    greedy: list[int], modest: list[int], max_rows: int
) -> None:
    """Start-time fair queueing promises the two largest requests, however early each came and whatever it asks for.

    Besides, a batch takes smaller ones out of turn where the next one does not fit.
    """
    scheduler: Scheduler[Job] = Scheduler(Limits(credit_requests=99), threads=1)
    scheduler.open("lane", queue_of(max_rows))
    left = {"greedy": sum(greedy), "modest": sum(modest)}
    for tenant, sizes in (("greedy", greedy), ("modest", modest)):
        for i, rows in enumerate(sizes):
            assert scheduler.offer("lane", job(f"{tenant}-{i}", "lane", rows, 4, tenant), now=0.0) is None
    bound = max(greedy) + max(modest) + max_rows
    served: Counter[str] = Counter()
    now = 0.0
    while all(left.values()):
        now += 0.001
        dispatch = scheduler.take(0, now=now)
        assert dispatch is not None
        for one in dispatch.batch:
            served[one.tenant] += one.rows
            left[one.tenant] -= one.rows
            scheduler.leave(one)
        scheduler.release(0)
        if all(left.values()):
            assert abs(served["greedy"] - served["modest"]) <= bound


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from(["lane", "other"]))
def test_nothing_starves_under_twice_as_many_urgent_requests_as_can_be_served(
    priority: int, threads: int, where: str
) -> None:
    scheduler: Scheduler[Job] = Scheduler(Limits(10**6, 10**9, 10**6, 10**9), threads=threads)
    for lane in ("lane", "other"):
        scheduler.open(lane, queue_of(1), instances=threads)
    patient = job("patient", where, 1, priority, "patient")
    assert scheduler.offer(where, patient, now=0.0) is None
    longest_s = 2 * (priority + 1) * AGEING_S
    for step in range(1, int(longest_s / 0.1) + 2):
        now = step * 0.1  # a batch takes as long
        for i in range(2 * threads):
            scheduler.offer("lane", job(f"{step}-{i}", "lane", 1, 0, "urgent"), now=now)
        for thread in range(threads):
            dispatch = scheduler.take(thread, now=now)
            assert dispatch is not None
            if patient in dispatch.batch:
                return
            scheduler.release(thread)
    raise AssertionError(f"a request of priority {priority} still waits after {longest_s} s")
