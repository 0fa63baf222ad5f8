"""A lane's engine in order of preference: what serves, what stands by, and what becomes of a batch that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from cloud_gateway.config import EnginesSettings
from cloud_gateway.models import making
from cloud_gateway.models.agreement import disagreement
from cloud_gateway.models.asking import answered, room_of, what_ran
from cloud_gateway.models.making import Making
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rows import BatchRows
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.served import open_model
from cloud_gateway.models.settings import Wanted
from cloud_gateway.models.trial import TryAnotherError
from cloud_gateway.models.workshop import MIB, GpuMemory, Workshop
from protocol import codecs
from protocol.engines.catalogue import KINDS
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_options import GpuError
from protocol.errors import BundleError, EngineError
from protocol.tensors import Array, Tensors
from tests import models
from tests.scripted_engines import ONE, Scripted, X
from tests.waiting import until


class Room:
    """An engine of scripted ones, and all that it told. The workshop's thread runs unless `by_hand`."""

    def __init__(self, *engines: Scripted, by_hand: bool = True, absent: dict[str, str] | None = None) -> None:
        self.told: list[str] = []
        self.workshop = Workshop(told=lambda _, text: self.told.append(text))
        if by_hand:
            self.workshop.enter = lambda engine: None  # type: ignore[method-assign]
        self.engine = PreferredEngine(
            [
                Offer(e.label, lambda e=e: e, absent=(absent or {}).get(e.label, ""), is_built=e.is_built)  # type: ignore[misc]
                for e in engines
            ],
            label="cut-1/tail",
            workshop=self.workshop,
        )

    def states(self) -> dict[str, str]:
        return {look.kind: look.state for look in self.engine.look()}


def test_the_best_engine_serves_and_those_behind_it_stand_by() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    room = Room(gpu, cpu)
    with room.engine as engine:
        engine.activate()
        assert engine.infer(X)["y"].tolist() == [[2.0]]
        assert (engine.kind, engine.description, what_ran(engine)) == ("gpu", "scripted gpu", "scripted gpu")
        assert (gpu.is_active, cpu.is_active) == (True, True)
        assert [spec.name for spec in (*engine.inputs, *engine.outputs)] == ["x", "y"]
    assert (gpu.is_active, cpu.is_active) == (False, False)
    assert room.told == []


def test_what_is_not_here_is_told_once_however_many_lanes_ask_for_it() -> None:
    told: list[tuple[str, str]] = []
    workshop = Workshop(told=lambda event, text: told.append((event, text)))
    for _ in range(3):
        workshop.absent("gpu", "no driver; install one")
    assert told == [("engine_absent", "gpu was asked for and is not here: no driver; install one")]


def test_what_is_not_here_is_told_and_the_next_serves() -> None:
    room = Room(Scripted("gpu"), Scripted("cpu"), absent={"gpu": "no driver; install one"})
    with room.engine as engine:
        assert engine.kind == "cpu"
        assert room.states() == {"gpu": "absent", "cpu": "ready"}
    assert room.told == ["gpu was asked for and is not here: no driver; install one"]


def test_what_does_not_load_rests_and_the_next_serves() -> None:
    room = Room(Scripted("gpu", loads=[EngineError("no room", "")]), Scripted("cpu"))
    with room.engine as engine:
        assert engine.kind == "cpu"
        assert room.states() == {"gpu": "resting", "cpu": "ready"}
    assert "gpu does not run it: no room" in room.told[0]
    assert room.workshop.counts().loads == {("gpu", False): 1, ("cpu", True): 1}


def test_where_none_loads_every_reason_is_raised() -> None:
    room = Room(Scripted("gpu", loads=[EngineError("no room", "")]), Scripted("cpu", loads=[EngineError("torn", "")]))
    with pytest.raises(EngineError, match=r"gpu: no room; cpu: torn"):
        room.engine.activate()
    with pytest.raises(EngineError, match="not active"):
        room.engine.infer(X)
    assert (room.engine.inputs, room.engine.outputs, room.engine.kind) == ((), (), "")


def test_a_damaged_file_is_an_error_of_its_own_and_no_engines() -> None:
    def damaged() -> Scripted:
        raise BundleError("tail.onnx is damaged", "copy it again")

    engine = PreferredEngine([Offer("cpu", damaged)], label="t", workshop=Workshop())
    with pytest.raises(BundleError, match="damaged"):
        engine.activate()


def test_what_must_be_built_is_built_while_the_next_one_serves() -> None:
    built, cpu = Scripted("built", is_built=True), Scripted("cpu")
    room = Room(built, cpu)
    measured: list[str] = []
    moved: list[str] = []
    with room.engine as engine:
        engine.fit = lambda: measured.append(engine.kind)
        engine.moved = lambda: moved.append(engine.kind)
        engine.settled = lambda: moved.append("settled")
        assert (engine.kind, built.is_active) == ("cpu", False)
        assert engine.next_wake() == 0.0
        while engine.turn():
            pass
        assert (engine.kind, measured) == ("built", ["built"]), "it was measured before it served"
        engine.turn()
        assert moved == ["built", "settled"]
        assert cpu.is_active, "the one that served stands by"
    assert room.told == ["cut-1/tail: built is ready and serves now instead of cpu"]


def test_what_must_be_built_is_waited_for_where_nothing_else_can_serve() -> None:
    room = Room(Scripted("built", is_built=True), Scripted("cpu", loads=[EngineError("torn", "")]))
    with room.engine as engine:
        assert engine.kind == "built"


def test_the_workshop_builds_by_itself_and_a_lane_that_is_gone_by_then_keeps_nothing() -> None:
    built = Scripted("built", is_built=True)
    room = Room(built, Scripted("cpu"), by_hand=False)
    room.engine.activate()
    until(lambda: room.engine.kind == "built", "the build to end")
    room.engine.deactivate()
    assert not built.is_active
    late = Scripted("late", is_built=True, while_loading=lambda: gone.engine.deactivate())
    gone = Room(late, Scripted("cpu"), by_hand=False)
    gone.engine.activate()
    until(lambda: late.was_active and not late.is_active, "the engine to be given back")
    assert room.workshop.stop()
    assert gone.workshop.stop()


def test_an_engine_that_computes_something_else_may_not_serve() -> None:
    room = Room(Scripted("gpu", factor=3.0), Scripted("cpu"))
    with room.engine as engine:
        assert engine.kind == "cpu"
    assert "gpu differs by 50.0% of the largest value in y, as cpu computes it" in room.told[0]
    assert room.workshop.counts().failures == {("gpu", "disagrees"): 1}


# ---- a batch that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["out-of-memory", "device-lost", "run-failed"])
def test_an_engines_own_trouble_moves_the_lane_at_once(cause: str) -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    room = Room(gpu, cpu)
    moved: list[str] = []
    with room.engine as engine:
        engine.moved = lambda: moved.append(engine.kind)
        gpu.fails.append(GpuError("it fell over", cause=cause))  # type: ignore[arg-type]
        with pytest.raises(TryAnotherError, match="it fell over") as caught:
            engine.infer(X)
        assert (engine.kind, moved, caught.value.instead) == ("cpu", ["cpu"], "cpu")
        with engine.using("cpu"):
            assert engine.infer(X)["y"].tolist() == [[2.0]]
        engine.convict(caught.value)
        assert moved == ["cpu"], "it is convicted once"
        assert room.states() == {"gpu": "resting", "cpu": "ready"}
        counts = room.workshop.counts()
        assert (counts.failures, counts.reruns) == ({("gpu", cause): 1}, {"cpu": 1})
        assert counts.moves == {("gpu", "cpu"): 1}
        engine.turn()
        assert not gpu.is_active, "it is given back while it rests"


def test_a_failure_that_may_be_the_requests_moves_the_lane_only_when_another_engine_ran_the_batch() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    with Room(gpu, cpu).engine as engine:
        gpu.fails.append(EngineError("index out of bounds", ""))
        cpu.fails.append(EngineError("index out of bounds", ""))
        with pytest.raises(EngineError, match="out of bounds"):
            answered(engine, X)
        assert engine.kind == "gpu", "both refused: the values were at fault"
        gpu.fails.append(EngineError("no such kernel", ""))
        assert answered(engine, X)["y"].tolist() == [[2.0]]
        assert engine.kind == "cpu"


def test_tensors_that_do_not_fit_one_engine_are_run_by_the_next_and_are_no_engines_fault() -> None:
    """A plan takes batches up to a bound, the processor any: what it answered before the plan came, it answers now."""
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    room = Room(gpu, cpu)
    with room.engine as engine:
        gpu.fails.append(GpuError("a row too many", cause="bad-input"))
        assert answered(engine, X)["y"].tolist() == [[2.0]]
        assert (engine.kind, what_ran(engine)) == ("gpu", "scripted cpu")
        assert room.workshop.counts().failures == {}
        for each in (gpu, cpu):
            each.fails.append(GpuError("no such shape", cause="bad-input"))
        with pytest.raises(GpuError, match="no such shape"):
            answered(engine, X)
        assert engine.ready() == ["gpu", "cpu"]


def test_the_last_engine_that_works_is_never_given_up() -> None:
    gpu, cpu = Scripted("gpu", loads=[EngineError("no room", "")]), Scripted("cpu")
    with Room(gpu, cpu).engine as engine:
        cpu.fails.append(GpuError("out of memory", cause="out-of-memory"))
        with pytest.raises(GpuError):
            engine.infer(X)
        assert engine.infer(X)["y"].tolist() == [[2.0]]


def test_three_engines_fail_one_after_another_and_the_batch_is_run_by_the_third() -> None:
    one, two, three = Scripted("one"), Scripted("two"), Scripted("three")
    with Room(one, two, three).engine as engine:
        for broken in (one, two):
            broken.fails.append(GpuError("lost", cause="device-lost"))
        assert answered(engine, X)["y"].tolist() == [[2.0]]
        assert (engine.kind, engine.ready()) == ("three", ["three"])


def test_an_engine_that_rested_is_loaded_again_measured_and_serves() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    room = Room(gpu, cpu)
    with room.engine as engine:
        measured: list[str] = []
        engine.fit = lambda: measured.append(engine.kind)
        gpu.fails.append(GpuError("lost", cause="run-failed"))
        answered(engine, X)
        engine.turn()
        due = engine.next_wake()
        assert due is not None
        assert due > time.monotonic() - 1
        assert engine._room is not None
        engine._room.rungs["gpu"].rests_until = 0.0  # its rest is over
        engine.turn()
        assert (engine.kind, measured, gpu.activations) == ("gpu", ["gpu"], 2)


def test_an_engine_that_cannot_come_back_in_this_process_is_not_asked_again() -> None:
    gpu, cpu = Scripted("gpu", loads=[GpuError("the device is lost", cause="device-lost")]), Scripted("cpu")
    room = Room(gpu, cpu)
    with room.engine as engine:
        assert room.states() == {"gpu": "absent", "cpu": "ready"}
        assert engine.next_wake() is None


# ---- how it is made -------------------------------------------------------------------------------------------------


def test_memory_of_the_gpu_is_shared_out_and_the_sentence_says_what_is_left() -> None:
    memory = GpuMemory(lambda: 1000 << 20)
    assert memory.take("a", 600 << 20) == ""
    assert memory.take("a", 700 << 20) == "", "its own is no obstacle"
    assert "needs 400 MiB of the GPU, and 300 of 1000 are left" in memory.take("b", 400 << 20)
    memory.give_back("a")
    assert memory.take("b", 400 << 20) == ""


def test_a_lane_without_room_on_the_gpu_is_served_by_the_processor_until_there_is_some() -> None:
    workshop = Workshop(gpu_memory=lambda: 100)

    def lane() -> PreferredEngine:
        offers = [Offer("gpu", lambda: Scripted("gpu"), gpu_nbytes=80), Offer("cpu", lambda: Scripted("cpu"))]
        return PreferredEngine(offers, label="t", workshop=workshop)

    first, second = lane(), lane()
    workshop.enter = lambda engine: None  # type: ignore[method-assign]
    first.activate()
    second.activate()
    assert (first.kind, second.kind, workshop.gpu_memory()) == ("gpu", "cpu", (80, 100))
    first.deactivate()
    assert workshop.gpu_memory() == (0, 100)
    assert second._room is not None
    second._room.rungs["gpu"].rests_until = 0.0
    second.turn()
    assert second.kind == "gpu"


def engine_for(tmp_path: Path, order: tuple[str, ...], told: Callable[[str, str], None]) -> object:
    (tail,) = open_model(models.write(models.residual(), tmp_path)).tails
    settings = EnginesSettings(order=order)  # type: ignore[arg-type]
    return Making(settings, Workshop(told=told))(tail, Wanted())


def test_the_processor_alone_needs_no_choice(tmp_path: Path) -> None:
    assert isinstance(engine_for(tmp_path, ("onnxruntime-cpu",), lambda *_: None), OrtEngine)


def test_onnx_runtime_on_the_processor_serves_where_there_is_no_gpu_and_that_is_told(tmp_path: Path) -> None:
    absent = KINDS["onnxruntime-cuda"].absent()
    told: list[str] = []
    engine = engine_for(tmp_path, ("onnxruntime-cuda", "onnxruntime-cpu"), lambda _, text: told.append(text))
    assert isinstance(engine, PreferredEngine)
    with engine:
        assert [spec.name for spec in engine.inputs] == ["x"]
        assert engine.kind == ("onnxruntime-cpu" if absent else "onnxruntime-cuda")
    assert any("onnxruntime-cuda was asked for and is not here" in text for text in told) == bool(absent)


def test_an_engine_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine 'abacus'; known are tensorrt"):
        engine_for(tmp_path, ("abacus",), lambda *_: None)


# ---- agreement ------------------------------------------------------------------------------------------------------


def y(*values: float, dtype: str = "float32") -> Tensors:
    return {"y": np.array(values, dtype)}


@pytest.mark.parametrize(
    ("given", "wanted", "says"),
    [
        (y(1.0, 100.0), y(2.0, 100.0), ""),
        (y(1.0, 90.0), y(1.0, 100.0), "differs by 10.0% of the largest value in y"),
        (y(float("nan")), y(float("nan")), ""),
        (y(float("nan")), y(1.0), "differs by"),
        (y(1, dtype="int64"), y(2, dtype="int64"), ""),
        (y(1, dtype="int64"), y(1.0), "answers y as int64 [1] instead of float32 [1]"),
        ({"z": ONE}, {"y": ONE}, "answers z instead of y"),
        ({}, {"y": ONE}, "answers nothing instead of y"),
        (y(), y(), ""),
    ],
)
def test_two_answers_agree_within_a_share_of_the_largest_value(given: Tensors, wanted: Tensors, says: str) -> None:
    found = disagreement(given, wanted, 0.02)
    assert found.startswith(says)
    assert bool(found) == bool(says)


# ---- unloading while something is built -----------------------------------------------------------------------------


class Patient(Scripted):
    """One whose build goes on until it is given up."""

    def __init__(self) -> None:
        super().__init__("built", is_built=True)
        self.began = threading.Event()
        self.given_up = threading.Event()

    def activate(self) -> None:
        self.began.set()
        assert self.given_up.wait(30.0)
        raise GpuError("the build was given up", cause="build-failed")

    def deactivate(self) -> None:
        self.given_up.set()


@pytest.mark.parametrize("ends", ["the lane is unloaded", "the gateway stops"])
def test_a_build_that_nobody_wants_any_more_is_given_up_and_nothing_is_told(ends: str) -> None:
    built = Patient()
    room = Room(built, Scripted("cpu"), by_hand=False)
    room.engine.activate()
    assert built.began.wait(30.0)
    if ends == "the lane is unloaded":
        room.engine.deactivate()
    assert room.workshop.stop()
    assert built.given_up.is_set()
    if ends == "the lane is unloaded":
        assert room.told == []
    room.engine.deactivate()


# ---- memory that an engine reads faster -----------------------------------------------------------------------------


def test_a_batch_lies_where_the_engine_that_serves_wants_it() -> None:
    gpu, cpu = Scripted("gpu"), Scripted("cpu")
    made: list[int] = []

    def rows(nbytes: int) -> Array:
        made.append(nbytes)
        return np.zeros(nbytes, np.uint8)

    gpu.rows = rows  # type: ignore[attr-defined]
    with Room(gpu, cpu).engine as engine:
        assert room_of(engine) == ("gpu 1", rows)
        with engine.using("cpu"):
            assert room_of(engine) is None
        gpu.fails.append(GpuError("it refused", cause="run-failed"))
        answered(engine, X)
        assert engine._room is not None
        engine.turn()
        engine._room.rungs["gpu"].rests_until = 0.0
        engine.turn()
        assert room_of(engine) == ("gpu 2", rows), "what was pinned for the engine before is pinned no longer"
    assert room_of(cpu) is None
    kept = BatchRows()
    header, data = codecs.encode("x", ONE, "raw")
    for owner in ("lane", "lane", "other"):
        assert kept.join(owner, header, [[data]], 0, rows).tolist() == [[1.0]]
    assert made == [4, 4], "kept for the next batch of the same lane"


@pytest.mark.parametrize(
    ("asked", "has", "share", "words"),
    [
        ("auto", (1000, False), 900, ""),
        ("auto", (1000, True), 450, ""),
        ("auto", None, None, ""),
        (800, (1000, False), 800, ""),
        (800, (1000, True), 800, ""),
        (1000, (1000, False), 1000, ""),
        (800, None, 800, ""),
        (2000, (1000, False), 900, "engines.gpu_memory_mib is 2000, and GPU 0 has 1000 MiB: lanes share 900"),
    ],
)
def test_lanes_share_what_was_asked_for_and_never_more_than_the_gpu_has(
    asked: int | Literal["auto"],
    has: tuple[int, bool] | None,
    share: int | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(making, "gpu_memory", lambda device: None if has is None else (has[0] * MIB, has[1]))
    found = making.gpu_memory_for_lanes(EnginesSettings(gpu_memory_mib=asked), lambda _, text: told.append(text))
    assert found == (None if share is None else share * MIB)
    assert told == ([words] if words else [])
