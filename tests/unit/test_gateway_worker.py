"""One lane's worker on a real thread: batches come back as the requests they were, and trouble stays with its owner.

The worker is started after everything was offered, so the first batch is known; results are awaited in a bounded queue.
"""

from __future__ import annotations

import gc
import queue
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from cloud_gateway.desk import Desk
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.models.worker import Runner, Worker
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import OWN, Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Crashed, Item, NotComputed, Outcome
from protocol import codecs, wire
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode
from protocol.tensors import Array, Tensors, TensorSpec
from protocol.wire import Buffer

WAIT_S = 5.0
X = BoundaryTensor(TensorSpec("x", "float32", ("N", 3)), "raw", 0)
STATE = BoundaryTensor(TensorSpec("state", "float32", (2, "N")), "raw", 1)
SCALE = BoundaryTensor(TensorSpec("scale", "float32", (1,)), "raw", None)


def twice(tensors: Tensors) -> dict[str, Array]:
    return {"y": tensors["x"] * 2}


class Bench:
    """A lane over a fake engine, and what its worker posted."""

    def __init__(
        self,
        function: Callable[[Tensors], dict[str, Array]] = twice,
        *,
        boundary: tuple[BoundaryTensor, ...] = (X,),
        output_axes: dict[str, int] | None = None,
        max_rows: int = 16,
        batchable: bool = True,
        sizes: tuple[int, ...] = (),
    ) -> None:
        self.engine = FakeEngine(function, inputs=tuple(b.spec for b in boundary))
        self.lane = Lane(
            "f" * 64,
            self.engine,
            boundary=boundary,
            output_axes=output_axes or {"y": 0},
            batchable=batchable,
            rules=LaneRules(max_rows=max_rows, sizes=sizes),
        )
        self.segment = Segment(self.lane, boundary, "bundle", "int8", "cut-1", Scope("toy", "1", "cut-1"))
        self.posted: queue.Queue[Outcome] = queue.Queue()
        self.ledger = Ledger(now=time.monotonic())
        self.desk = Desk(Limits(), threads=1)
        self.desk.open(self.lane)
        self.worker = Worker(0, self.desk, self.ledger, crashed=lambda error: self.posted.put(Crashed(error)))

    def offer(
        self,
        *,
        codec: str = "raw",
        checksum: int | None = None,
        garble: Callable[[list[Buffer]], list[Buffer]] | None = None,
        budget_s: float = 60.0,
        **arrays: Array,
    ) -> Item:
        """One request; `garble` damages the payload before its checksum is taken."""
        encoded = [codecs.encode(name, array, codec) for name, array in arrays.items()]
        headers = tuple(header for header, _ in encoded)
        parts: list[Buffer] = [buffer for _, buffer in encoded]
        if garble is not None:
            parts = garble(parts)
        rows, layout = self.segment.fit(headers)
        now = time.monotonic()
        item = Item(
            segment=self.segment,
            headers=headers,
            parts=parts,
            counts=[1] * len(parts),
            checksum=wire.checksum(parts) if checksum is None else checksum,
            rows=rows,
            layout=layout,
            nbytes=sum(h.nbytes for h in headers),
            arrived=now,
            deadline=now + budget_s,
            priority=4,
            tenant="one",
            door=self,
            ticket=None,
        )
        assert self.desk.submit(item) is None
        return item

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.engine:
            self.worker.start()
            try:
                yield
            finally:
                self.desk.stop()
                self.worker.join(WAIT_S)

    def post_all(self, items: Iterable[Outcome]) -> None:
        for item in items:
            self.posted.put(item)

    def next(self) -> Outcome:
        return self.posted.get(timeout=WAIT_S)

    def computed(self) -> Computed:
        post = self.next()
        assert isinstance(post, Computed), post
        return post

    def refused(self) -> NotComputed:
        post = self.next()
        assert isinstance(post, NotComputed), post
        return post


def outputs(done: Computed) -> dict[str, Array]:
    return {h.name: codecs.decode(h, b) for h, b in zip(done.headers, done.buffers, strict=True)}


def row(value: float, count: int = 1) -> Array:
    return np.full((count, 3), value, np.float32)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_a_single_request_is_computed_and_says_where_its_time_went() -> None:
    bench = Bench()
    item = bench.offer(x=row(3))
    with bench.running():
        done = bench.computed()
    assert done.item is item
    assert np.array_equal(outputs(done)["y"], row(6))
    assert (done.batch_size, done.engine) == (1, "fake")
    assert min(done.queue_s, done.decode_s, done.compute_s) >= 0.0


def test_what_waits_together_runs_together_and_comes_back_apart() -> None:
    bench = Bench()
    items = [bench.offer(x=row(i, count)) for i, count in ((1, 1), (2, 3), (3, 2))]
    with bench.running():
        done = [bench.computed() for _ in items]
    assert bench.engine.calls == 1
    assert [d.item for d in done] == items
    assert [d.batch_size for d in done] == [6, 6, 6]
    for d, (value, count) in zip(done, ((1, 1), (2, 3), (3, 2)), strict=True):
        assert np.array_equal(outputs(d)["y"], row(2 * value, count))


def test_every_tensor_is_joined_and_split_along_its_own_axis() -> None:
    def tail(tensors: Tensors) -> dict[str, Array]:
        assert tensors["x"].shape == (3, 3)
        assert tensors["state"].shape == (2, 3)
        return {"y": tensors["x"] + 1, "next": tensors["state"] * 10}

    bench = Bench(tail, boundary=(X, STATE), output_axes={"y": 0, "next": 1})
    bench.offer(x=row(1), state=np.full((2, 1), 1, np.float32))
    bench.offer(x=row(2, 2), state=np.full((2, 2), 2, np.float32))
    with bench.running():
        first, second = outputs(bench.computed()), outputs(bench.computed())
    assert first["next"].tolist() == [[10], [10]]
    assert second["next"].tolist() == [[20, 20], [20, 20]]
    assert np.array_equal(second["y"], row(3, 2))


def test_compressed_and_raw_requests_share_a_batch() -> None:
    bench = Bench()
    bench.offer(x=row(1))
    bench.offer(x=row(2), codec="zstd")
    with bench.running():
        assert [float(outputs(bench.computed())["y"][0, 0]) for _ in range(2)] == [2, 4]
    assert bench.engine.calls == 1


def test_batches_keep_to_the_bound() -> None:
    bench = Bench(max_rows=2)
    for i in range(5):
        bench.offer(x=row(i))
    with bench.running():
        assert [bench.computed().batch_size for _ in range(5)] == [2, 2, 2, 2, 1]


def test_a_tail_without_proof_of_batching_runs_its_requests_one_by_one() -> None:
    bench = Bench(boundary=(X, SCALE), batchable=False)
    for i in range(3):
        bench.offer(x=row(i), scale=np.ones(1, np.float32))
    with bench.running():
        assert [bench.computed().batch_size for _ in range(3)] == [1, 1, 1]


def test_an_engine_with_profiles_runs_only_their_sizes_and_nobody_sees_the_padding() -> None:
    seen: list[tuple[int, ...]] = []

    def tail(tensors: Tensors) -> dict[str, Array]:
        seen.append(tensors["x"].shape + tensors["state"].shape)
        return {"y": tensors["x"] + 1, "next": tensors["state"] * 10}

    bench = Bench(tail, boundary=(X, STATE), output_axes={"y": 0, "next": 1}, sizes=(1, 4, 8))
    bench.offer(x=row(1), state=np.full((2, 1), 1, np.float32))
    bench.offer(x=row(2, 2), state=np.full((2, 2), 2, np.float32))
    with bench.running():
        first, second = bench.computed(), bench.computed()
        bench.offer(x=row(5, 3), state=np.full((2, 3), 5, np.float32))
        third = bench.computed()
    assert seen == [(4, 3, 2, 4), (4, 3, 2, 4)]
    assert [d.batch_size for d in (first, second, third)] == [3, 3, 3]
    assert outputs(first)["next"].tolist() == [[10], [10]]
    assert np.array_equal(outputs(second)["y"], row(3, 2))
    assert outputs(third)["next"].tolist() == [[50] * 3] * 2


def test_the_lane_learns_what_its_batches_cost() -> None:
    bench = Bench()
    bench.offer(x=row(1))
    assert bench.lane.curve.predict(1) == 0.0
    with bench.running():
        bench.computed()
    assert bench.lane.curve.predict(1) > 0.0


def test_work_that_comes_while_the_worker_is_idle_wakes_it() -> None:
    bench = Bench()
    with bench.running():
        bench.offer(x=row(1))
        bench.computed()
        bench.offer(x=row(2))
        assert float(outputs(bench.computed())["y"][0, 0]) == 4


# ---- trouble --------------------------------------------------------------------------------------------------------


def test_a_damaged_payload_is_refused_and_its_batch_mates_are_not() -> None:
    bench = Bench()
    good = bench.offer(x=row(1))
    bad = bench.offer(x=row(2), checksum=123)
    also_good = bench.offer(x=row(3))
    with bench.running():
        refused = bench.refused()
        done = [bench.computed() for _ in range(2)]
    assert refused.item is bad
    assert refused.code is RejectCode.BAD_REQUEST
    assert "checksum" in refused.reason
    assert [d.item for d in done] == [good, also_good]
    assert [float(outputs(d)["y"][0, 0]) for d in done] == [2, 6]
    assert [d.batch_size for d in done] == [2, 2]


def truncated(parts: list[Buffer]) -> list[Buffer]:
    return [memoryview(p)[:-1] for p in parts]


def rubbish(parts: list[Buffer]) -> list[Buffer]:
    return [b"\x00" * memoryview(p).nbytes for p in parts]


@pytest.mark.parametrize(
    ("codec", "garble"), [("raw", truncated), ("zstd", truncated), ("zstd", rubbish)], ids=["short", "cut", "rubbish"]
)
def test_bytes_that_do_not_decode_are_a_bad_request_whatever_their_checksum(
    codec: str, garble: Callable[[list[Buffer]], list[Buffer]]
) -> None:
    bench = Bench()
    bad = bench.offer(x=row(2), codec=codec, garble=garble)
    good = bench.offer(x=row(1))
    with bench.running():
        refused = bench.refused()
        assert bench.computed().item is good
    assert refused.item is bad
    assert refused.code is RejectCode.BAD_REQUEST
    assert refused.reason


def test_a_batch_of_nothing_but_damage_does_not_reach_the_engine() -> None:
    bench = Bench()
    for _ in range(2):
        bench.offer(x=row(1), checksum=123)
    with bench.running():
        assert [bench.refused().code for _ in range(2)] == [RejectCode.BAD_REQUEST] * 2
        bench.offer(x=row(1))
        bench.computed()
    assert bench.engine.calls == 1


def test_a_request_that_fails_the_engine_costs_its_batch_mates_nothing_and_the_worker_lives_on() -> None:
    def moody(tensors: Tensors) -> dict[str, Array]:
        if (tensors["x"] < 0).any():
            raise RuntimeError("index out of range")
        return twice(tensors)

    bench = Bench(moody)
    bench.offer(x=row(1))
    bad = bench.offer(x=row(-1))
    with bench.running():
        assert float(outputs(bench.computed())["y"][0, 0]) == 2
        refused = bench.refused()
        bench.offer(x=row(5))
        assert float(outputs(bench.computed())["y"][0, 0]) == 10
    assert refused.item is bad
    assert refused.code is RejectCode.INTERNAL
    assert "index out of range" in refused.reason


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_tensors_that_hold_nothing_are_joined_along_their_own_axis_too(codec: str) -> None:
    free = BoundaryTensor(TensorSpec("state", "float32", ("W", "N")), "raw", 1)
    bench = Bench(boundary=(X, free))
    for count in (1, 3):
        bench.offer(codec=codec, x=row(count, count), state=np.zeros((0, count), np.float32))
    with bench.running():
        answers = [bench.computed() for _ in range(2)]
    assert [outputs(a)["y"].tolist() for a in answers] == [row(2).tolist(), row(6, 3).tolist()]
    assert bench.engine.calls == 1


def test_a_long_complaint_of_the_engine_still_fits_a_message() -> None:
    def verbose(_: Tensors) -> dict[str, Array]:
        raise RuntimeError("x" * 5000)

    bench = Bench(verbose)
    bench.offer(x=row(1))
    with bench.running():
        assert len(bench.refused().reason) <= 1000


def test_what_can_no_longer_finish_is_refused_and_not_run() -> None:
    bench = Bench()
    late = bench.offer(x=row(1), budget_s=1.0)
    bench.lane.curve.observe(1, 5.0)  # it has become slow meanwhile
    with bench.running():
        refused = bench.refused()
    assert refused.item is late
    assert refused.code is RejectCode.DEADLINE
    assert bench.engine.calls == 0


def test_a_bug_is_posted_and_ends_the_worker() -> None:
    bench = Bench(boundary=(X, SCALE))  # claims to be batchable, with a tensor that has no batch axis
    for i in range(2):
        bench.offer(x=row(i), scale=np.ones(1, np.float32))
    with bench.running():
        post = bench.next()
    assert isinstance(post, Crashed)
    assert isinstance(post.error, InvariantViolation)


def test_an_engine_that_loses_rows_is_asked_one_by_one_and_does_not_mix_up_answers() -> None:
    bench = Bench(lambda tensors: {"y": tensors["x"][:1]})
    items = [bench.offer(x=row(i)) for i in range(2)]
    with bench.running():
        answers = [bench.computed() for _ in items]
    assert [(a.item, float(outputs(a)["y"][0, 0])) for a in answers] == [(items[0], 0.0), (items[1], 1.0)]


def test_who_has_run_a_lane_does_not_hold_on_to_it_and_its_model() -> None:
    bench = Bench()
    runner = Runner(bench.desk, bench.ledger)
    with bench.engine:
        for i in range(2):
            bench.offer(x=row(i))
        dispatch = bench.desk.take(0)
        assert dispatch is not None
        assert len(runner.run(0, dispatch)) == 2
    bench.desk.close(bench.lane)
    lane, engine = weakref.ref(bench.lane), weakref.ref(bench.engine)
    del dispatch, bench
    gc.collect()
    assert (lane(), engine()) == (None, None)


# ---- stopping -------------------------------------------------------------------------------------------------------


def test_stopping_finishes_what_was_admitted() -> None:
    bench = Bench(max_rows=1)
    items = [bench.offer(x=row(i)) for i in range(4)]
    with bench.running():
        pass
    assert [bench.computed().item for _ in items] == items


def test_joining_a_worker_that_never_started_is_no_error() -> None:
    Bench().worker.join(WAIT_S)


def test_the_ledger_hears_of_every_run_what_was_predicted_and_what_it_took() -> None:
    bench = Bench()
    for i in range(3):
        bench.offer(x=row(i))
    with bench.running():
        for _ in range(3):
            bench.computed()
    counters = bench.ledger.snapshot(now=time.monotonic()).total.counters
    assert (counters.executions, counters.rows) == (1, 3)


def test_the_gateways_own_question_is_counted_under_nobodys_name_but_not_hidden_among_others() -> None:
    bench = Bench()
    theirs = bench.segment
    bench.segment = replace(theirs, scope=OWN)
    bench.offer(x=row(1))
    bench.segment = theirs
    bench.offer(x=row(2))
    with bench.running():
        for _ in range(2):
            bench.computed()
        bench.segment = replace(theirs, scope=OWN)
        bench.offer(x=row(3))
        bench.computed()
    figures = bench.ledger.snapshot(now=time.monotonic()).scopes
    assert [(f.scope.model, f.counters.executions) for f in figures] == [("unknown", 0), ("toy", 1)]


def test_an_engine_that_hands_back_its_own_input_does_not_see_answers_overwritten() -> None:
    bench = Bench(lambda tensors: {"y": tensors["x"]}, max_rows=2)
    for i in range(4):
        bench.offer(x=row(i))
    with bench.running():
        done = [bench.computed() for _ in range(4)]
    assert [float(outputs(d)["y"][0, 0]) for d in done] == [0, 1, 2, 3]
