"""Lanes over engines that fail in every way, in any order of events: each request ends once, and rightly.

Two lanes share a workshop and a GPU that has room for two of their four engines. The test itself is the engine thread
and the workshop's: it takes batches, gives turns, and lets rests end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud_gateway.desk import Desk
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.models.preference import RungState
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.worker import Runner
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Crashed, Item, NotComputed, Outcome
from protocol import codecs
from protocol.bundle import BoundaryTensor
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec
from tests.scripted_engines import Scripted

X = BoundaryTensor(TensorSpec("x", "float32", ("N", 1)), "raw", 0)
KINDS = ("built", "gpu", "cpu")
POISON = 13.0
TOTAL, SHARE = 100, 40
FAILURES: dict[str, Exception] = {
    "out of memory": GpuError("it is full", cause="out-of-memory"),
    "lost": GpuError("it is lost", cause="device-lost"),
    "refused": GpuError("it refused the run", cause="run-failed"),
    "does not fit": GpuError("a row too many", cause="bad-input"),
    "who knows": EngineError("no such kernel", ""),
    "foreign": RuntimeError("CUDA error 999"),
}
LOADS = ("well", "well", "fails", "for good", "foreign", "other values", "mixes rows")


class Wild(Scripted):
    """One engine, as it was loaded: `is_false` computes something else, and must therefore never serve."""

    def __init__(self, kind: str, line: Line, load: str) -> None:
        super().__init__(kind, factor=3.0 if load == "other values" else 2.0, is_built=kind == "built")
        self.line, self.load = line, load
        self.is_false = load in ("other values", "mixes rows")
        self.description = f"{kind}{' (false)' if self.is_false else ''}"

    def activate(self) -> None:
        if self.load == "fails":
            raise EngineError("no room", "")
        if self.load == "for good":
            raise GpuError("not this graph", cause="unsupported-graph")
        if self.load == "foreign":
            raise ImportError("libcudnn.so.9")
        super().activate()

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        if (tensors["x"] == POISON).any():
            raise EngineError("index 13 is out of bounds", "")
        if self.line.is_served and (failure := self.line.fails.pop(self.label, None)) is not None:
            raise FAILURES[failure]
        y = super().infer(tensors)["y"]
        return {"y": np.concatenate([y[:1]] * len(y)) if self.load == "mixes rows" else y}


class Line:
    """One lane with its desk and runner, and the account of its requests."""

    def __init__(self, workshop: Workshop) -> None:
        self.loads: dict[str, str] = {}
        self.fails: dict[str, str] = {}
        self.made: list[Wild] = []
        self.is_served = False
        offers = [
            Offer(kind, lambda kind=kind: self.make(kind), is_built=kind == "built", gpu_nbytes=SHARE * (kind != "cpu"))  # type: ignore[misc]
            for kind in KINDS
        ]
        self.engine = PreferredEngine(offers, label="tail", workshop=workshop, first_rest_s=1000.0, longest_rest_s=1e6)
        self.engine.activate()
        rules = LaneRules(max_rows=4, find_knee=False, warm_up_s=0.0)
        self.lane = Lane("f" * 64, self.engine, boundary=(X,), output_axes={"y": 0}, batchable=True, rules=rules)
        self.lane.warm_up()
        self.desk = Desk(Limits(), threads=1)
        self.desk.open(self.lane)
        self.engine.fit = self.lane.measure
        self.engine.moved = lambda: self.desk.refit(self.lane)
        self.engine.settled = self.settled
        self.segment = Segment(self.lane, (X,), "bundle", "int8", "cut-1", Scope("toy", "1", "cut-1"))
        self.runner = Runner(self.desk, Ledger(now=time.monotonic()))
        self.numbers = itertools.count()
        self.waiting: set[object] = set()

    def make(self, kind: str) -> Wild:
        self.made.append(Wild(kind, self, "well" if kind == "cpu" else self.loads.pop(kind, "well")))
        return self.made[-1]

    def settled(self) -> None:
        self.lane.measure_if_new()
        self.desk.refit(self.lane)

    def offer(self, value: float) -> None:
        header, data = codecs.encode("x", np.full((1, 1), value, np.float32), "raw")
        now, ticket = time.monotonic(), (value, next(self.numbers))
        item = Item(
            self.segment, (header,), [data], [1], None, 1, ((1,),), header.nbytes, now, now + 3600.0, 4, "one", self,
            ticket,
        )  # fmt: skip
        if self.desk.submit(item) is None:  # else there is no credit left
            self.waiting.add(ticket)

    def run(self) -> None:
        """Take a batch; each of its requests must end once, and be refused only if its values or all engines fail."""
        dispatch = self.desk.take(0)
        assert dispatch is not None
        may_fail = "cpu" in self.fails
        self.is_served = True
        outcomes = self.runner.run(0, dispatch)
        self.is_served = False
        assert len(outcomes) == len(dispatch.batch)
        for outcome in outcomes:
            assert not isinstance(outcome, Crashed)
            self.ended(outcome, may_fail)

    def ended(self, outcome: Computed | NotComputed, may_fail: bool) -> None:
        self.waiting.remove(outcome.item.ticket)  # raises where it has ended before
        ticket = outcome.item.ticket
        assert isinstance(ticket, tuple)
        value = ticket[0]
        if isinstance(outcome, Computed):
            assert "false" not in outcome.engine, "it disagreed"
            assert float(codecs.decode(outcome.headers[0], outcome.buffers[0])[0, 0]) == 2.0 * value
        else:
            assert value == POISON or may_fail, outcome

    def close(self) -> None:
        while self.desk.waiting:
            self.run()
        assert not self.waiting
        self.engine.deactivate()
        assert not any(engine.is_active for engine in self.made)

    def post_all(self, items: Iterable[Outcome], /) -> None:
        pass


class OrderMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.workshop = Workshop(gpu_memory=lambda: TOTAL)
        self.workshop.enter = lambda engine: None  # type: ignore[method-assign]
        self.lines = [Line(self.workshop) for _ in range(2)]

    @rule(which=st.integers(0, 1), values=st.lists(st.sampled_from([1.0, 2.0, 3.0, POISON]), min_size=1, max_size=5))
    def requests_come(self, which: int, values: list[float]) -> None:
        for value in values:
            self.lines[which].offer(value)

    @precondition(lambda self: any(line.desk.waiting for line in self.lines))
    @rule()
    def batches_run(self) -> None:
        for line in self.lines:
            if line.desk.waiting:
                line.run()

    @rule(which=st.integers(0, 1), kind=st.sampled_from(KINDS), failure=st.sampled_from(sorted(FAILURES)))
    def an_engine_will_fail(self, which: int, kind: str, failure: str) -> None:
        self.lines[which].fails[kind] = failure

    @rule(which=st.integers(0, 1), kind=st.sampled_from(KINDS[:2]), load=st.sampled_from(LOADS))
    def the_next_load_will_go(self, which: int, kind: str, load: str) -> None:
        self.lines[which].loads[kind] = load

    @rule(which=st.integers(0, 1))
    def the_workshop_has_time(self, which: int) -> None:
        while self.lines[which].engine.turn():
            pass

    @rule(which=st.integers(0, 1))
    def a_rest_is_over(self, which: int) -> None:
        room = self.lines[which].engine._room
        assert room is not None
        for rung in room.rungs.values():
            if rung.state is RungState.RESTING:
                rung.rests_until = 0.0

    @rule(which=st.integers(0, 1))
    def a_lane_is_unloaded_and_loaded_anew(self, which: int) -> None:
        self.lines[which].close()
        held = sum(SHARE for engine in self.lines[1 - which].made if engine.is_active and engine.label != "cpu")
        assert self.workshop.gpu_memory()[0] == held, "what it held was given back"
        self.lines[which] = Line(self.workshop)

    @invariant()
    def the_gpu_holds_no_more_than_it_has_and_what_is_loaded_is_reserved(self) -> None:
        active = [e for line in self.lines for e in line.made if e.is_active and e.label != "cpu"]
        assert self.workshop.gpu_memory()[0] == SHARE * len(active) <= TOTAL

    @invariant()
    def what_serves_is_the_best_that_is_ready_and_says_what_the_others_say(self) -> None:
        for line in self.lines:
            assert line.engine._room is not None
            line.engine._room.validate()
            serving = line.engine._serving
            assert serving is not None
            assert isinstance(serving[1], Wild)
            assert serving[0] == line.engine._room.in_use
            assert serving[1].is_active
            assert not serving[1].is_false

    @invariant()
    def a_lane_counts_on_the_curve_of_what_serves(self) -> None:
        for line in self.lines:
            assert line.lane.curve is line.lane._fits[line.engine.serving,].curve

    @invariant()
    def every_load_and_move_was_counted_once(self) -> None:
        counts = self.workshop.counts()
        assert counts.loads.get(("cpu", False), 0) == 0
        for before, after in counts.moves:
            assert before != after

    def teardown(self) -> None:
        for line in self.lines:
            line.close()
        assert self.workshop.gpu_memory()[0] == 0


OrderMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=30)
TestOrder = OrderMachine.TestCase
