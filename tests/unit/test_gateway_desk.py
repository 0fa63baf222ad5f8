"""The desk under real threads: what is submitted is taken once, waits for nobody's clock, and gives its credit back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import numpy as np
import pytest

from cloud_gateway.desk import GUEST, SMALL_S, Desk
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.work import Item, Outcome
from protocol import codecs
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.messages import RejectCode
from protocol.tensors import TensorSpec

X = BoundaryTensor(TensorSpec("x", "float32", ("N", 3)), "raw", 0)
WAIT_S = 10.0


def lane(key: str = "a", *, cost_s: float = 0.0001, **rules: object) -> Lane:
    engine = FakeEngine(lambda tensors: {"y": tensors["x"]}, inputs=(X.spec,))
    given = LaneRules(max_rows=4, **rules)  # type: ignore[arg-type]
    made = Lane(key * 64, engine, boundary=(X,), output_axes={"y": 0}, batchable=True, rules=given)
    for size in (1, 2, 4):
        made.curve.observe(size, cost_s)
    return made


class Bench:
    """A desk with one lane; the test itself is the door and the engine threads."""

    def __init__(self, *lanes: Lane, threads: int = 2, limits: Limits | None = None) -> None:
        self.desk = Desk(limits or Limits(), threads=threads)
        self.lanes = lanes or (lane(),)
        self.segments = [Segment(one, (X,), "b", "fp32", "cut-1", Scope("m", "1", "cut-1")) for one in self.lanes]
        for one in self.lanes:
            self.desk.open(one)

    def item(self, which: int = 0, *, tenant: str = "one", priority: int = 4, budget_s: float = 60.0) -> Item:
        header, buffer = codecs.encode("x", np.ones((1, 3), np.float32), "raw")
        now = time.monotonic()
        return Item(
            self.segments[which], (header,), [buffer], [1], None, 1, ((3,),), header.nbytes, now, now + budget_s,
            priority, tenant, self, None,
        )  # fmt: skip

    def submit(self, which: int = 0, *, wake: bool = True, tenant: str = "one", priority: int = 4) -> Item:
        item = self.item(which, tenant=tenant, priority=priority)
        assert self.desk.submit(item, wake=wake) is None
        return item

    def post_all(self, items: Iterable[Outcome], /) -> None:
        pass


# ---- in and out -----------------------------------------------------------------------------------------------------


def test_what_waits_is_taken_together_and_its_credit_comes_back_when_it_is_finished() -> None:
    bench = Bench()
    items = [bench.submit() for _ in range(3)]
    assert bench.desk.pending() == (3, 36)
    assert bench.desk.credit("one") == Limits().credit_requests - 3
    assert bench.segments[0].pending == 3
    taken = bench.desk.take(0)
    assert taken is not None
    assert taken.batch == items
    assert bench.desk.pending() == (3, 36), "it still occupies the gateway"
    bench.desk.finished(0, items)
    assert bench.desk.pending() == (0, 0)
    assert bench.segments[0].pending == 0


def test_what_expired_while_it_waited_is_handed_out_with_its_credit_given_back() -> None:
    bench = Bench()
    late = bench.item(budget_s=0.02)
    assert bench.desk.submit(late) is None
    bench.lanes[0].curve.observe(1, 5.0)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < late.deadline:
        assert time.monotonic() < deadline
    taken = bench.desk.take(0)
    assert taken is not None
    assert (taken.batch, taken.expired) == ([], [late])
    assert bench.desk.pending() == (0, 0)


def test_a_request_that_nobody_wants_any_more_is_taken_out_once() -> None:
    bench = Bench()
    kept, gone = bench.submit(), bench.submit()
    assert bench.desk.withdraw(lambda item: item is gone) == [gone]
    assert bench.desk.withdraw(lambda item: item is gone) == []
    taken = bench.desk.take(0)
    assert taken is not None
    assert taken.batch == [kept]
    assert gone.segment.pending == 1


def test_work_wakes_a_thread_that_waits() -> None:
    bench = Bench()
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(bench.desk.take(0)))
    thread.start()
    item = bench.submit()
    thread.join(WAIT_S)
    assert [dispatch.batch for dispatch in taken] == [[item]]  # type: ignore[attr-defined]


def test_many_doors_and_threads_lose_nothing_and_double_nothing() -> None:
    bench = Bench(lane("a"), lane("b"), threads=3, limits=Limits(credit_requests=10_000, pending_requests=10_000))
    seen: list[Item] = []

    def work(thread: int) -> None:
        while (taken := bench.desk.take(thread)) is not None:
            bench.desk.finished(thread, taken.batch)
            seen.extend([*taken.batch, *taken.expired])

    def ask(which: int) -> None:
        for _ in range(200):
            bench.submit(which)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    doors = [threading.Thread(target=ask, args=(n % 2,)) for n in range(4)]
    for thread in (*workers, *doors):
        thread.start()
    for thread in doors:
        thread.join(WAIT_S)
    bench.desk.stop()
    for thread in workers:
        thread.join(WAIT_S)
    assert len(seen) == len({id(item) for item in seen}) == 800
    assert bench.desk.pending() == (0, 0)


# ---- a door that runs small batches itself --------------------------------------------------------------------------


def test_a_door_may_run_a_small_batch_while_everybody_is_idle() -> None:
    bench = Bench()
    item = bench.submit(wake=False)
    taken = bench.desk.take_small()
    assert taken is not None
    assert taken.batch == [item]
    bench.submit(wake=False)
    assert bench.desk.take_small() is None, "it has one at a time"
    bench.desk.finished(GUEST, taken.batch)
    assert bench.desk.take_small() is not None


@pytest.mark.parametrize("cost_s", [SMALL_S * 2, 0.0])
def test_a_batch_that_is_not_known_to_be_small_is_left_to_engine_threads(cost_s: float) -> None:
    heavy = lane(cost_s=cost_s) if cost_s else lane()
    if not cost_s:
        heavy.curve = type(heavy.curve)()  # never measured
    bench = Bench(heavy)
    bench.submit(wake=False)
    assert bench.desk.take_small() is None
    assert bench.desk.take(0) is not None


def test_a_batch_whose_rows_may_be_of_any_size_is_left_to_engine_threads() -> None:
    free = BoundaryTensor(TensorSpec("x", "float32", ("N", "W")), "raw", 0)
    engine = FakeEngine(lambda tensors: {"y": tensors["x"]}, inputs=(free.spec,))
    wide = Lane("a" * 64, engine, boundary=(free,), output_axes={"y": 0}, batchable=True, rules=LaneRules())
    wide.curve.observe(1, 0.0001)  # measured at one column
    bench = Bench(wide)
    bench.submit(wake=False)
    assert bench.desk.take_small() is None
    assert bench.desk.take(0) is not None


def test_what_a_door_does_not_run_itself_wakes_a_thread() -> None:
    bench = Bench(lane(cost_s=1.0))
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(bench.desk.take(0)))
    thread.start()
    bench.submit(wake=False)
    while thread.is_alive():  # the thread may not have been waiting yet at the first look
        bench.desk.take_small()
        thread.join(0.001)
    assert len(taken) == 1


def test_while_paused_nobody_takes_anything_and_afterwards_all_of_it_together() -> None:
    bench = Bench()
    with bench.desk.paused():
        items = [bench.submit(wake=False) for _ in range(2)]
        assert bench.desk.take_small() is None
    taken = bench.desk.take(0)
    assert taken is not None
    assert taken.batch == items


# ---- limits, lanes, ends --------------------------------------------------------------------------------------------


def test_one_tenants_credit_is_not_anothers() -> None:
    bench = Bench(limits=Limits(credit_requests=1))
    bench.submit()
    verdict = bench.desk.submit(bench.item())
    assert verdict is not None
    assert (verdict.code, verdict.credit) == (RejectCode.BUSY, 0)
    bench.submit(tenant="two")
    bench.desk.limits = bench.desk.limits._replace(credit_requests=2)
    bench.submit()


def test_a_desk_that_drains_admits_nobody_and_finishes_what_it_holds() -> None:
    bench = Bench()
    item = bench.submit()
    bench.desk.drain()
    assert bench.desk.is_draining
    verdict = bench.desk.submit(bench.item())
    assert verdict is not None
    assert verdict.code is RejectCode.DRAINING
    bench.desk.stop()
    taken = bench.desk.take(0)
    assert taken is not None
    assert taken.batch == [item]
    bench.desk.finished(0, taken.batch)
    assert bench.desk.take(0) is None


def test_stopping_finishes_also_what_waits_for_company() -> None:
    bench = Bench(lane(delay_s=0.02))
    item = bench.submit()
    bench.desk.stop()
    taken = bench.desk.take(0)
    assert taken is not None
    assert taken.batch == [item]
    assert bench.desk.take(0) is None


def test_closing_a_lane_hands_out_what_waited_there_and_nothing_else() -> None:
    bench = Bench(lane("a"), lane("b"))
    here, there = bench.submit(0), bench.submit(1)
    assert bench.desk.close(bench.lanes[0]) == [here]
    taken = bench.desk.take(0)
    assert taken is not None
    assert taken.batch == [there]
    assert bench.desk.look(bench.lanes[0], now=time.monotonic()) is None
    assert bench.desk.pending()[0] == 1


def test_a_lane_may_close_while_one_of_its_batches_runs() -> None:
    bench = Bench()
    bench.submit()
    taken = bench.desk.take(0)
    assert taken is not None
    assert bench.desk.close(bench.lanes[0]) == []
    bench.desk.finished(0, taken.batch)
    assert bench.desk.pending() == (0, 0)


def test_a_look_says_what_waits_what_runs_and_how_long_a_newcomer_would_wait() -> None:
    bench = Bench(lane(cost_s=0.5), threads=1)
    bench.submit()
    assert bench.desk.take(0) is not None
    bench.submit()
    look = bench.desk.look(bench.lanes[0], now=time.monotonic())
    assert look is not None
    assert (look.waiting, look.waiting_nbytes, look.busy) == (1, 12, 1)
    assert look.wait_s > 0.1
    assert bench.desk.busy_until > time.monotonic()
    assert bench.desk.wait_s(now=time.monotonic()) > 0.1


def test_a_lane_is_tuned_and_bounded_while_it_serves() -> None:
    bench = Bench()
    bench.desk.bound(bench.lanes[0], 2)
    for _ in range(3):
        bench.submit()
    taken = bench.desk.take(0)
    assert taken is not None
    assert len(taken.batch) == 2
    bench.desk.retune(bench.lanes[0], delay_s=30.0, ageing_s=1.0, margin=1.0)
    assert bench.desk.take_small() is None, "now it waits for company"
    bench.desk.close(bench.lanes[0])
    bench.desk.retune(bench.lanes[0], delay_s=0.0, ageing_s=1.0, margin=1.0)  # a lane that has gone is left alone
