"""What an engine must show before it may serve, and what becomes of one that breaks the contract in any other way."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from cloud_gateway.models.asking import answered
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.trial import TryAnotherError, compare, failure, unlike
from cloud_gateway.models.workshop import Workshop
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError, InvariantViolation
from protocol.tensors import Array, Tensors, TensorSpec
from tests.scripted_engines import ONE, Scripted, X
from tests.waiting import until

WITHIN_S = 30.0


def active(*engines: Scripted) -> None:
    for engine in engines:
        engine.activate()


class Mixing(Scripted):
    """Right for one row, and wrong for the second of several."""

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        y = super().infer(tensors)["y"]
        return {"y": np.concatenate([y[:1]] * len(y))}


class Order:
    """Engines in order, each offered on a GPU of 100 bytes of which each takes 40. The workshop runs by hand."""

    def __init__(self, *engines: Scripted, total: int = 100, by_hand: bool = True) -> None:
        self.told: list[str] = []
        self.crashes: list[BaseException] = []
        self.workshop = Workshop(
            told=lambda _, text: self.told.append(text), crashed=self.crashes.append, gpu_memory=lambda: total
        )
        if by_hand:
            self.workshop.enter = lambda engine: None  # type: ignore[method-assign]
        offers = [Offer(e.label, lambda e=e: e, is_built=e.is_built, gpu_nbytes=40) for e in engines]  # type: ignore[misc]
        self.engine = PreferredEngine(offers, label="tail", workshop=self.workshop, first_rest_s=0.001)

    @property
    def reserved(self) -> int:
        return self.workshop.gpu_memory()[0]


# ---- before it may serve --------------------------------------------------------------------------------------------


def test_an_engine_that_mixes_up_the_rows_of_a_batch_may_not_serve() -> None:
    order = Order(Mixing("gpu"), Scripted("cpu"))
    with order.engine as engine:
        assert engine.kind == "cpu"
    assert "gpu differs by" in order.told[0]


def test_a_batch_that_one_of_the_two_does_not_take_is_not_compared() -> None:
    gpu, cpu = Mixing("gpu"), Scripted("cpu")
    active(gpu, cpu)

    def one_row(error: EngineError) -> Callable[[Tensors], None]:
        def check(tensors: Tensors) -> None:
            if len(tensors["x"]) > 1:
                raise error

        return check

    cpu.before_run = one_row(EngineError("a baked Reshape", ""))
    assert compare(gpu, cpu, 0.02) == ""
    cpu.before_run, gpu.before_run = lambda _: None, one_row(GpuError("one row at most", cause="bad-input"))
    assert compare(gpu, cpu, 0.02) == ""
    gpu.before_run = one_row(EngineError("no kernel", ""))
    with pytest.raises(EngineError, match="no kernel"):
        compare(gpu, cpu, 0.02)


def test_a_fixed_batch_is_compared_with_one_row_alone() -> None:
    spec = (TensorSpec("x", "float32", (1, 1)),)
    gpu, cpu = Scripted("gpu", inputs=spec), Scripted("cpu", inputs=spec)
    active(gpu, cpu)
    assert compare(gpu, cpu, 0.02) == ""
    assert (gpu.runs, cpu.runs) == (1, 1)


def test_what_cannot_be_compared_for_want_of_memory_does_not_serve_unseen() -> None:
    gpu, cpu = Scripted("gpu", factor=3.0), Scripted("cpu")
    cpu.fails.append(EngineError("out of memory", ""))
    order = Order(gpu, cpu)
    with order.engine as engine:
        assert engine.kind == "cpu"
        assert "nothing to compare it with: out of memory" in engine.look()[0].reason


# ---- what it answers afterwards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({}, "it answered nothing, without y"),
        ({"z": ONE}, "it answered z, without y"),
        ({"y": ONE.astype(np.float64)}, "it answered y as float64 instead of float32"),
        ({"y": ONE, "also": ONE}, ""),
    ],
)
def test_an_answer_of_other_names_or_types_is_none(answer: Tensors, says: str) -> None:
    assert unlike(answer, (TensorSpec("y", "float32", (None, 7)),)) == says


def test_an_engine_that_answers_something_else_in_service_is_convicted_by_the_next() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    order = Order(gpu, cpu)
    with order.engine as engine:
        gpu.outputs = (TensorSpec("y", "float16", ("N", 1)),)
        assert answered(engine, X)["y"].tolist() == [[2.0]]
        assert engine.kind == "cpu"
    assert "gpu failed (other): tail failed on gpu: it answered y as float32 instead of float16" in order.told[0]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error 2"), ValueError("?"), MemoryError(), KeyError("y")])
def test_whatever_a_library_raises_is_its_engines_failure_and_no_bug_of_ours(error: Exception) -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    order = Order(gpu, cpu)

    def fall(tensors: Tensors) -> None:
        raise error

    with order.engine as engine:
        gpu.before_run = fall
        assert answered(engine, X)["y"].tolist() == [[2.0]]
        assert engine.kind == "cpu"
        assert type(error).__name__ in engine.look()[0].reason
        cpu.before_run = fall
        with pytest.raises(EngineError, match=type(error).__name__):
            answered(engine, X)


def test_a_bug_of_ours_stays_one() -> None:
    with pytest.raises(InvariantViolation):
        failure(InvariantViolation("?"), "gpu")


# ---- loading and giving back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("bad magic"), ImportError("libfoo.so"), MemoryError(), OSError("?")])
def test_an_engine_that_falls_over_while_it_loads_rests_and_the_next_serves(error: Exception) -> None:
    def fall() -> None:
        raise error

    built = Scripted("built", is_built=True, while_loading=fall)
    order = Order(Scripted("gpu", while_loading=fall), built, Scripted("cpu"))
    with order.engine as engine:
        while engine.turn():
            pass
        assert (engine.kind, order.reserved) == ("cpu", 40)
        assert {look.kind: look.state for look in engine.look()} == {
            "gpu": "resting", "built": "resting", "cpu": "ready",
        }  # fmt: skip
    assert order.reserved == 0


class Clinging(Scripted):
    """One that cannot be given back."""

    def deactivate(self) -> None:
        super().deactivate()
        raise RuntimeError("invalid device context")


def test_an_engine_that_cannot_be_given_back_ends_neither_the_workshop_nor_the_unloading() -> None:
    gpu, cpu = Clinging("gpu"), Scripted("cpu")
    order = Order(gpu, cpu, by_hand=False)
    with order.engine as engine:
        assert order.reserved == 80
        gpu.loads.append(GpuError("gone for good", cause="device-lost"))
        gpu.fails.append(GpuError("lost", cause="device-lost"))
        assert answered(engine, X)["y"].tolist() == [[2.0]]
        until(lambda: order.reserved == 40, "the memory to be given back", within_s=WITHIN_S)
        until(lambda: engine.look()[0].state == "absent", "it to be tried again in vain", within_s=WITHIN_S)
    assert (order.reserved, cpu.is_active, order.crashes) == (0, False, [])
    assert any("gpu is not given back whole: gpu: RuntimeError: invalid device context" in text for text in order.told)
    assert order.workshop.stop()


def test_memory_stays_reserved_for_what_is_being_loaded_until_that_is_over() -> None:
    """Unloading does not end a load at once: another lane must not be given the same memory meanwhile."""
    seen: list[int] = []

    def unload() -> None:
        order.engine.deactivate()
        seen.append(order.reserved)

    late, cpu = Scripted("late", is_built=True, while_loading=unload), Scripted("cpu")
    order = Order(late, cpu)
    order.engine.activate()
    order.engine.turn()
    assert (seen, order.reserved, late.is_active) == ([40], 0, False)


def test_what_was_unloaded_while_its_graph_was_read_is_not_built_any_more() -> None:
    late, cpu = Scripted("late", is_built=True), Scripted("cpu")
    order = Order(late, cpu)
    reading = order.engine._offers["late"]

    def read() -> Scripted:
        order.engine.deactivate()
        return late

    order.engine._offers["late"] = reading.__class__("late", read, is_built=True, gpu_nbytes=40)
    order.engine.activate()
    assert order.engine.turn()
    assert (late.was_active, order.reserved) == (False, 0)


def test_no_room_on_the_gpu_is_counted_as_such() -> None:
    order = Order(Scripted("gpu"), Scripted("cpu"), total=60)
    with order.engine as engine:
        assert (engine.kind, order.reserved) == ("cpu", 40)
        assert order.workshop.counts().failures == {("gpu", "out-of-memory"): 1}


def test_a_part_of_a_lane_that_fails_while_another_is_tried_is_the_one_that_is_convicted() -> None:
    """A merged lane is measured as a whole: what fails then need not be what stands on trial."""
    bridge = Order(Scripted("a"), Scripted("b"))
    suffix = Order(late := Scripted("late", is_built=True), Scripted("cpu"))
    with bridge.engine, suffix.engine:
        engines = bridge.engine._engines
        assert isinstance(engines["a"], Scripted)

        def measured() -> None:
            bridge.engine.infer(X)
            suffix.engine.infer(X)

        suffix.engine.fit = measured
        engines["a"].fails.append(GpuError("lost", cause="run-failed"))
        suffix.engine.turn()
        assert late.is_active
        assert (bridge.engine.kind, suffix.engine.kind) == ("b", "late")
        assert suffix.workshop.counts().failures == {}


def test_two_threads_whose_batches_the_same_engine_fails_convict_it_once() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    order = Order(gpu, cpu)
    both = threading.Barrier(2)
    moved: list[str] = []

    def fall(tensors: Tensors) -> None:
        both.wait(WITHIN_S)
        raise EngineError("who knows", "")

    def run() -> None:
        try:
            engine.infer(X)
        except TryAnotherError as error:
            with engine.using(error.instead):
                results.append(engine.infer(X)["y"].tolist())
            engine.convict(error)

    results: list[object] = []
    with order.engine as engine:
        engine.moved = lambda: moved.append(engine.serving)
        gpu.before_run = fall
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WITHIN_S)
        counts = order.workshop.counts()
    assert (results, moved) == ([[[2.0]]] * 2, ["cpu"])
    assert (counts.failures, counts.reruns) == ({("gpu", "other"): 1}, {"cpu": 2})
    assert counts.moves == {("gpu", "cpu"): 1}


def test_one_that_fails_while_it_is_measured_rests_and_is_not_asked_for_ever() -> None:
    late = Scripted("late", is_built=True)
    order = Order(late, Scripted("cpu"))
    with order.engine as engine:

        def measured() -> None:
            late.fails.append(GpuError("too large", cause="out-of-memory"))
            engine.infer(X)

        engine.fit = measured
        engine.turn()
        assert [(look.kind, look.state) for look in engine.look()] == [("late", "resting"), ("cpu", "ready")]
        assert order.workshop.counts().failures == {("late", "out-of-memory"): 1}
    assert order.reserved == 0


def test_the_workshop_keeps_nothing_of_a_lane_that_was_unloaded() -> None:
    order = Order(Scripted("gpu"), Scripted("cpu"), by_hand=False)
    with order.engine:
        assert order.workshop._engines == [order.engine]
    assert order.workshop._engines == []
    assert order.workshop.stop()


def test_what_was_convicted_and_not_yet_given_back_goes_with_its_lane() -> None:
    gpu = Scripted("gpu")
    order = Order(gpu, Scripted("cpu"))
    with order.engine as engine:
        gpu.fails.append(GpuError("it refused", cause="run-failed"))
        answered(engine, X)
        assert (gpu.is_active, order.reserved) == (True, 80)
    assert (gpu.is_active, order.reserved) == (False, 0)


def test_a_lane_that_comes_back_builds_once_what_it_had_left_undone() -> None:
    built = Scripted("built", is_built=True)
    order = Order(built, Scripted("cpu"))
    for _ in range(2):
        order.engine.activate()
        order.engine.deactivate()
    with order.engine as engine:
        while engine.turn():
            pass
        assert (engine.kind, built.activations) == ("built", 1)
    assert order.reserved == 0


def test_one_that_was_loaded_again_since_is_not_convicted_of_what_the_one_before_it_failed() -> None:
    """The second run of a batch may take longer than the first engine rests."""
    made: list[Scripted] = []

    def gpu() -> Scripted:
        made.append(Scripted("gpu"))
        return made[-1]

    workshop = Workshop()
    workshop.enter = lambda engine: None  # type: ignore[method-assign]
    offers = [Offer("gpu", gpu), Offer("cpu", lambda: Scripted("cpu"))]
    with PreferredEngine(offers, label="tail", workshop=workshop, first_rest_s=0.0) as engine:
        made[0].fails.extend([EngineError("?", "")] * 2)
        errors = []
        for _ in range(2):
            with pytest.raises(TryAnotherError) as caught, engine.using("gpu"):
                engine.infer(X)
            errors.append(caught.value)
        engine.convict(errors[0])
        assert engine.kind == "cpu"
        engine.turn()
        assert (engine.kind, len(made)) == ("gpu", 2)
        engine.convict(errors[1])
        assert engine.kind == "gpu"
        assert sum(workshop.counts().failures.values()) == 1


def test_the_one_to_trust_is_the_last_of_the_order_and_it_is_compared_with_none_above_it() -> None:
    built, gpu = Scripted("built", is_built=True), Scripted("gpu")
    cpu = Scripted("cpu", loads=[EngineError("busy", "")], factor=3.0)
    order = Order(built, gpu, cpu, total=1000)
    with order.engine as engine:
        engine._todo.clear()
        assert engine._room is not None
        engine._room.rungs["cpu"].rests_until = 0.0
        while engine.turn():
            pass
        assert engine.ready() == ["gpu", "cpu"], "nobody below it says otherwise"
        before = gpu.runs
        engine._load("built")
        assert engine.look()[0].state == "resting", "it says what the gpu says, and not what the last one says"
        assert gpu.runs == before


def test_one_that_stands_by_and_fails_moves_nobody_and_the_workshop_gives_it_back_at_once() -> None:
    cpu, moved = Scripted("cpu"), []
    order = Order(Scripted("gpu"), cpu)
    with order.engine as engine:
        engine.moved = lambda: moved.append(engine.serving)
        engine.reject("cpu", EngineError("torn", ""))
        assert (engine.kind, moved, engine.next_wake()) == ("gpu", [], 0.0)
        engine.turn()
        assert not cpu.is_active
        assert engine.next_wake() != 0.0


def test_a_move_wakes_the_workshop_which_gives_back_what_failed_and_has_the_rest_settled() -> None:
    gpu, settled = Scripted("gpu"), threading.Event()
    order = Order(gpu, Scripted("cpu"), by_hand=False)
    order.engine._rests_s = 1000.0, 1000.0
    with order.engine as engine:
        engine.settled = settled.set
        gpu.fails.append(GpuError("it refused", cause="run-failed"))
        answered(engine, X)
        assert settled.wait(WITHIN_S)
        until(lambda: not gpu.is_active, "it to be given back", within_s=WITHIN_S)
    assert order.workshop.stop()


def test_all_of_the_gpu_may_be_reserved_and_a_lane_that_wants_none_asks_no_driver() -> None:
    asked: list[int] = []

    def total() -> int:
        asked.append(1)
        return 100

    workshop = Workshop(gpu_memory=total)
    assert (workshop.take_memory("cpu", 0), asked) == ("", [])
    assert workshop.take_memory("gpu", 100) == ""
    assert "needs 0 MiB" in workshop.take_memory("other", 1)
    assert len(asked) == 1
