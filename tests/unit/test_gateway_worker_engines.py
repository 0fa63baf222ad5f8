"""A batch whose engine fails: run on the next one for those who still have time for it, and answered once each."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import pytest

from cloud_gateway.desk import GUEST, Desk
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.worker import Runner
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Item, NotComputed, Outcome
from protocol import codecs
from protocol.bundle import BoundaryTensor
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError
from protocol.messages import RejectCode
from protocol.tensors import Array, Tensors, TensorSpec
from tests.scripted_engines import Scripted

X = BoundaryTensor(TensorSpec("x", "float32", ("N", 1)), "raw", 0)
LOST = GpuError("the GPU is gone", cause="device-lost")


class Bench:
    """A lane over scripted engines, run by hand."""

    def __init__(self, *engines: Scripted, on_gpu: tuple[str, ...] = ()) -> None:
        workshop = Workshop()
        workshop.enter = lambda engine: None  # type: ignore[method-assign]
        self.workshop = workshop
        offers = [
            Offer(e.label, lambda e=e: e, on_gpu=e.label in on_gpu)  # type: ignore[misc]
            for e in engines
        ]
        self.engine = PreferredEngine(offers, label="tail", workshop=workshop)
        self.engine.activate()
        self.lane = Lane(
            "f" * 64, self.engine, boundary=(X,), output_axes={"y": 0}, batchable=True,
            rules=LaneRules(max_rows=8, find_knee=False, warm_up_s=0.01),
        )  # fmt: skip
        self.lane.warm_up()
        self.desk = Desk(Limits(), threads=1)
        self.desk.open(self.lane)
        self.engine.moved = lambda: self.desk.refit(self.lane)
        self.segment = Segment(self.lane, (X,), "bundle", "int8", "cut-1", Scope("toy", "1", "cut-1"))
        self.runner = Runner(self.desk, Ledger(now=time.monotonic()))

    def offer(self, value: float, *, budget_s: float = 60.0) -> Item:
        header, data = codecs.encode("x", np.full((1, 1), value, np.float32), "raw")
        now = time.monotonic()
        item = Item(
            self.segment, (header,), [data], [1], None, 1, ((1,),), header.nbytes, now, now + budget_s, 4, "one", self,
            value,
        )  # fmt: skip
        assert self.desk.submit(item) is None
        return item

    def run(self) -> list[Outcome]:
        """What became of everything that waits, as one batch."""
        dispatch = self.desk.take(0)
        assert dispatch is not None
        return self.runner.run(0, dispatch)

    def post_all(self, items: Iterable[Outcome], /) -> None:
        pass


def answers(outcomes: list[Outcome]) -> dict[float, float]:
    """What each request was answered; raises if one was answered twice, or refused."""
    found: dict[float, float] = {}
    for outcome in outcomes:
        assert isinstance(outcome, Computed), outcome
        assert isinstance(outcome.item.ticket, float)
        assert outcome.item.ticket not in found, "answered twice"
        found[outcome.item.ticket] = float(codecs.decode(outcome.headers[0], outcome.buffers[0])[0, 0])
    return found


def engines_of(outcomes: list[Outcome]) -> set[str]:
    return {outcome.engine for outcome in outcomes if isinstance(outcome, Computed)}


def test_every_engine_of_the_order_is_measured_before_traffic_comes() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)
    assert bench.lane.curve.is_known
    with bench.engine.using("cpu"):
        assert bench.lane.expected_s(1) > 0.0


def test_a_failed_batch_is_run_by_the_next_engine_and_each_of_its_requests_is_answered_once() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)
    before = bench.lane.curve
    for value in (1.0, 2.0, 3.0):
        bench.offer(value)
    gpu.fails.append(LOST)
    outcomes = bench.run()
    assert answers(outcomes) == {1.0: 2.0, 2.0: 4.0, 3.0: 6.0}
    assert engines_of(outcomes) == {"scripted cpu"}
    assert bench.engine.kind == "cpu"
    assert bench.lane.curve is not before, "what the GPU took says nothing about the processor"
    bench.offer(4.0)
    assert engines_of(bench.run()) == {"scripted cpu"}
    assert bench.segment.pending == 0


def test_who_has_no_time_for_a_second_run_is_told_so_and_the_others_are_answered() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)
    with bench.engine.using("cpu"):
        for _ in range(64):
            bench.lane._fits["cpu",].curve.observe(2, 30.0)  # the processor takes half a minute for two
    bench.offer(1.0, budget_s=10.0)
    bench.offer(2.0, budget_s=600.0)
    gpu.fails.append(LOST)
    outcomes = bench.run()
    refused = [outcome for outcome in outcomes if isinstance(outcome, NotComputed)]
    assert [(r.item.ticket, r.code) for r in refused] == [(1.0, RejectCode.DEADLINE)]
    assert "gpu failed, and it can no longer finish" in refused[0].reason
    assert answers([outcome for outcome in outcomes if isinstance(outcome, Computed)]) == {2.0: 4.0}


def test_values_that_no_engine_takes_are_refused_alone_and_the_lane_stays_where_it_is() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)

    def picky(tensors: Tensors) -> None:
        if (tensors["x"] == 13).any():
            raise EngineError("index 13 is out of bounds", "")

    gpu.before_run = cpu.before_run = picky
    for value in (1.0, 13.0, 3.0):
        bench.offer(value)
    outcomes = bench.run()
    assert [o.item.ticket for o in outcomes if isinstance(o, NotComputed)] == [13.0]
    assert answers([o for o in outcomes if isinstance(o, Computed)]) == {1.0: 2.0, 3.0: 6.0}
    assert bench.engine.kind == "gpu"


def test_two_engines_fail_and_the_third_answers() -> None:
    one, two, three = Scripted("one"), Scripted("two"), Scripted("three")
    bench = Bench(one, two, three)
    for engine in (one, two):
        engine.fails.append(LOST)
    bench.offer(5.0)
    outcomes = bench.run()
    assert answers(outcomes) == {5.0: 10.0}
    assert engines_of(outcomes) == {"scripted three"}
    assert bench.engine.ready() == ["three"]


@pytest.mark.parametrize("cause", ["out-of-memory", "bad-input"])
def test_where_nothing_else_runs_the_requests_are_refused_with_the_engines_words(cause: str) -> None:
    cpu = Scripted("cpu")
    bench = Bench(cpu)
    cpu.fails.append(GpuError("no more of it", cause=cause))  # type: ignore[arg-type]
    bench.offer(1.0)
    (refused,) = bench.run()
    assert isinstance(refused, NotComputed)
    assert (refused.code, refused.reason) == (RejectCode.INTERNAL, "no more of it")


def test_one_that_stands_by_and_does_not_run_is_no_longer_counted_on() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")

    def nothing_but_ones(tensors: Tensors) -> None:
        if not tensors["x"].any():
            raise EngineError("zeros are not for me", "")

    gpu.before_run = nothing_but_ones  # it agrees with the other one, and fails when it is measured
    bench = Bench(gpu, cpu)
    assert bench.engine.kind == "cpu"
    assert bench.engine.look()[0].reason == "zeros are not for me"


def test_no_door_runs_what_may_hang_and_it_does_again_once_the_processor_serves() -> None:
    """A GPU's run cannot be ended. The thread that owns the socket would hang with it, and the gateway be deaf."""
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu, on_gpu=("gpu",))
    bench.offer(1.0)
    assert bench.desk.take_small() is None
    gpu.fails.append(LOST)
    assert engines_of(bench.run()) == {"scripted cpu"}
    bench.offer(2.0)
    small = bench.desk.take_small()
    assert small is not None
    assert answers(bench.runner.run(GUEST, small)) == {2.0: 4.0}


def test_a_lane_takes_the_cost_of_what_serves_also_from_a_thread_that_tries_out_another_engine() -> None:
    bench = Bench(Scripted("gpu"), Scripted("cpu"))
    serving = bench.lane.curve
    with bench.engine.using("cpu", on_trial=True):
        bench.desk.refit(bench.lane)
    assert bench.lane.curve is serving


def test_what_serves_is_measured_also_where_nobody_has_said_yet_that_the_lane_moved() -> None:
    """The thread that found out counts and logs first; the workshop may look at the lane before it has."""
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)
    bench.lane._fits.clear()
    bench.lane.measure_if_new()
    bench.desk.refit(bench.lane)
    assert bench.lane.curve.is_known


def test_all_that_failed_a_batch_are_convicted_by_the_one_that_ran_it() -> None:
    one, two, three = Scripted("one"), Scripted("two"), Scripted("three")
    bench = Bench(one, two, three)
    for engine in (one, two):
        engine.fails.append(EngineError("who knows", ""))
    bench.offer(5.0)
    assert engines_of(bench.run()) == {"scripted three"}
    assert bench.engine.ready() == ["three"]


def test_an_engine_that_returns_too_few_rows_hands_nobody_anothers_answer_and_the_next_one_serves() -> None:
    class Short(Scripted):
        def infer(self, tensors: Tensors) -> dict[str, Array]:
            y = super().infer(tensors)["y"]
            return {"y": y[: 1 if self.is_short else None]}

        is_short = False

    gpu, cpu = Short("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)
    gpu.is_short = True
    for value in (1.0, 2.0, 3.0):
        bench.offer(value)
    outcomes = bench.run()
    assert answers(outcomes) == {1.0: 2.0, 2.0: 4.0, 3.0: 6.0}
    assert engines_of(outcomes) == {"scripted cpu"}
    assert bench.engine.kind == "cpu"


def test_more_rows_than_the_best_engine_takes_are_run_by_the_next_and_the_lane_stays_with_its_cost() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    bench = Bench(gpu, cpu)
    before = bench.lane.curve
    seen = before._samples[1].copy()
    bench.offer(1.0)
    gpu.fails.append(GpuError("no profile takes that", cause="bad-input"))
    outcomes = bench.run()
    assert answers(outcomes) == {1.0: 2.0}
    assert engines_of(outcomes) == {"scripted cpu"}
    assert (bench.engine.kind, bench.lane.curve, bench.workshop.counts().failures) == ("gpu", before, {})
    assert before._samples[1] == seen, "what the processor took says nothing about the GPU"


def test_one_by_one_after_a_failure_only_those_are_run_who_can_still_be_in_time() -> None:
    cpu = Scripted("cpu")
    bench = Bench(cpu)

    def slow_for_many(tensors: Tensors) -> None:
        if len(tensors["x"]) > 1:
            bench.lane.curve.observe(1, 30.0)  # so long that one alone would be too late
            for _ in range(64):
                bench.lane.curve.observe(1, 30.0)
            raise EngineError("values", "")

    bench.offer(1.0, budget_s=10.0)
    bench.offer(2.0, budget_s=600.0)
    cpu.before_run = slow_for_many
    outcomes = bench.run()
    refused = [o for o in outcomes if isinstance(o, NotComputed)]
    assert [(r.item.ticket, r.code) for r in refused] == [(1.0, RejectCode.DEADLINE)]
    assert "its batch failed, and it can no longer finish" in refused[0].reason
    assert answers([o for o in outcomes if isinstance(o, Computed)]) == {2.0: 4.0}
