"""A whole gateway whose better engines are scripted: they are built, fail, come back, and nobody loses a request.

In place of a GPU's engines stand ones that run the graph on the processor and fail when they are told to. What is
tested is the gateway: lanes, scheduler, engine threads, the workshop and the wire are real.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cloud_gateway.config import load_settings
from cloud_gateway.gateway import Gateway
from protocol import codecs, wire
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.engines.catalogue import CPU, KINDS, EngineOptions, Kind
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_options import Cause, GpuError
from protocol.errors import EngineError
from protocol.tensors import Tensors
from tests.gateways import gateway_of
from tests.waiting import until
from tests.wire_client import WireClient, placement

Floats = npt.NDArray[Any]
BUILT, QUICK = "tensorrt", "onnxruntime-cuda"
WITHIN_S = 60.0


class Stage:
    """What the scripted engines of one gateway are told."""

    def __init__(self) -> None:
        self.may_build = threading.Event()
        self.fails: dict[str, Cause | None] = {BUILT: None, QUICK: None}
        self.may_load = True
        self.hangs = ""  # the next run of the tail of this label hangs
        self.hung, self.may_end = threading.Event(), threading.Event()
        self.runs: dict[str, int] = {BUILT: 0, QUICK: 0}

    def kinds(self) -> dict[str, Kind]:
        return {
            BUILT: Kind(BUILT, lambda: "", lambda graph, options: OnStage(BUILT, self, graph, options), is_built=True),
            QUICK: Kind(QUICK, lambda: "", lambda graph, options: OnStage(QUICK, self, graph, options)),
            CPU: KINDS[CPU],
        }


class OnStage(OrtEngine):
    """ONNX Runtime on the processor under another name."""

    def __init__(self, name: str, stage: Stage, graph: bytes, options: EngineOptions) -> None:
        super().__init__(graph, label=options.label)
        self._name, self._stage = name, stage

    @property
    def description(self) -> str:
        return f"{self._name} (scripted)"

    def activate(self) -> None:
        if self._name == BUILT:
            assert self._stage.may_build.wait(WITHIN_S)
        if not self._stage.may_load:
            raise GpuError("no room on the GPU", cause="out-of-memory")
        super().activate()

    def infer(self, tensors: Tensors) -> dict[str, Floats]:
        cause = self._stage.fails[self._name]
        if cause is not None:
            raise GpuError(f"{self._name} fell over", cause=cause)
        if self._name == QUICK and self._stage.hangs == self.label:
            self._stage.hangs = ""
            self._stage.hung.set()
            assert self._stage.may_end.wait(WITHIN_S)
            raise GpuError("it has not answered", cause="device-lost")
        self._stage.runs[self._name] += 1
        return super().infer(tensors)


class House:
    """A gateway with three engines, and a client of it."""

    def __init__(self, bundle: Path, samples: Floats, reference: Floats) -> None:
        self.stage = Stage()
        settings = load_settings(
            env={},
            overrides={
                "models.bundles": [str(bundle)], "zmq.bind": "tcp://127.0.0.1:0", "http.enabled": False,
                "engines.order": [BUILT, QUICK, CPU], "engines.retry_s": 0.05, "models.warm_up_s": 0.05,
                "scheduling.merge": "never", "scheduling.workers": 2,
            },
        ).settings  # fmt: skip
        self.gateway = Gateway(settings, kinds=self.stage.kinds())
        self.entry = placement(Bundle.open(bundle), "full-cloud")
        self.cut = next(p for p in Bundle.open(bundle).manifest.placements if p.id.startswith("cut-1"))
        self.samples, self.reference = samples, reference
        self.asked = 0

    @property
    def lane(self) -> Any:
        return self.gateway.catalogue.segments[bytes.fromhex(self.entry.segment or "")].lane

    @property
    def engine(self) -> Any:
        return self.lane.engine

    def ask(self, client: WireClient, count: int) -> list[str]:
        """Send `count` requests at once; every one must be answered, and rightly. What ran each of them."""
        first = self.asked + 1
        self.asked += count
        for number in range(first, first + count):
            row = self.samples[number % 32 : number % 32 + 1]
            client.send(*client.infer(self.entry, {"x": row}, number, budget_us=60_000_000))
        engines: dict[int, str] = {}
        for _ in range(count):
            result, parts = client.receive_all()
            assert isinstance(result, m.Result), result
            number = result.request.sequence
            assert number not in engines, "answered twice"
            buffers = wire.join_parts(result.tensors, parts)
            (logits,) = [codecs.decode(h, b) for h, b in zip(result.tensors, buffers, strict=True)]
            np.testing.assert_allclose(logits, self.reference[number % 32 : number % 32 + 1], atol=1e-4)
            engines[number] = result.engine
        assert sorted(engines) == list(range(first, first + count))
        return list(engines.values())

    def looks(self) -> dict[str, str]:
        return {look.kind: look.state for look in self.engine.look()}


@pytest.fixture
def house(toy_bundle: Path, toy_samples: Floats, toy_reference: Floats) -> Iterator[House]:
    house = House(toy_bundle, toy_samples, toy_reference)
    with house.gateway:
        try:
            yield house
        finally:
            house.stage.may_build.set()
            house.stage.may_end.set()


def test_while_an_engine_is_built_the_next_one_serves_and_afterwards_the_better_one_does(house: House) -> None:
    with WireClient(str(house.gateway.endpoint)) as client:
        client.greet()
        assert set(house.ask(client, 8)) == {f"{QUICK} (scripted)"}
        assert house.looks() == {BUILT: "loading", QUICK: "ready", CPU: "ready"}
        house.stage.may_build.set()
        until(lambda: house.engine.kind == BUILT, "the built engine to serve", within_s=WITHIN_S)
        assert set(house.ask(client, 8)) == {f"{BUILT} (scripted)"}
        assert house.lane.curve.is_known, "it was measured before it served"


@pytest.mark.parametrize("cause", ["out-of-memory", "device-lost", "run-failed"])
def test_an_engine_that_fails_under_load_costs_nobody_an_answer_and_comes_back(house: House, cause: Cause) -> None:
    with WireClient(str(house.gateway.endpoint)) as client:
        client.greet()
        house.stage.may_load = False  # not before we say so
        house.stage.fails[QUICK] = cause
        before = house.lane.curve
        ran = house.ask(client, 24)
        assert all("CPUExecutionProvider" in engine for engine in ran)
        assert house.looks()[QUICK] in ("resting", "loading")
        assert house.lane.curve is not before, "the processor's cost is its own"
        scene = house.gateway.observer.scene()
        assert scene.standing.engines.failures[QUICK, cause] >= 1
        assert scene.standing.engines.moves[QUICK, CPU] >= 1
        house.stage.fails[QUICK], house.stage.may_load = None, True
        house.stage.may_build.set()
        until(lambda: house.engine.kind in (QUICK, BUILT), "a better engine to come back", within_s=WITHIN_S)
        assert not any("CPUExecutionProvider" in engine for engine in house.ask(client, 8))
    assert house.gateway.fatal is None


def test_a_run_that_hangs_on_the_gpu_holds_up_nobody_elses_request(house: House, toy_samples: Floats) -> None:
    """Light batches are run by the thread that owns the socket, but never on what may hang."""
    row, full = {"x": toy_samples[:1]}, house.entry
    with WireClient(str(house.gateway.endpoint)) as client:
        client.greet()
        house.stage.hangs = house.engine.label
        client.send(*client.infer(full, row, 1, budget_us=60_000_000))
        assert house.stage.hung.wait(WITHIN_S)
        other = house.cut
        tensors: Tensors = {
            b.spec.name: np.zeros([1, *(d for d in b.spec.shape[1:] if isinstance(d, int))], b.spec.numpy_dtype)
            for b in other.boundary
        }
        for number in range(2, 6):
            client.send(*client.infer(other, tensors, number, budget_us=60_000_000))
            result, _ = client.receive_all()
            assert isinstance(result, m.Result), result
            assert result.request.sequence == number
        house.stage.may_end.set()
        result, _ = client.receive_all()
        assert isinstance(result, m.Result), result
        assert result.request.sequence == 1
        assert "CPUExecutionProvider" in result.engine


def test_whoever_waits_for_a_run_that_hangs_is_told_by_the_deadline_and_may_ask_again(
    house: House, toy_samples: Floats
) -> None:
    row = {"x": toy_samples[:1]}
    with WireClient(str(house.gateway.endpoint)) as client:
        client.greet()
        house.stage.hangs = house.engine.label
        client.send(*client.infer(house.entry, row, 1, budget_us=1_000_000))
        assert house.stage.hung.wait(WITHIN_S)
        refused, _ = client.receive_all()
        assert isinstance(refused, m.Reject), refused
        assert (refused.request.sequence, refused.code) == (1, m.RejectCode.DEADLINE)
        house.stage.may_end.set()
        client.send(*client.infer(house.entry, row, 1, attempt=2, budget_us=60_000_000))
        result, _ = client.receive_all()
        assert isinstance(result, m.Result), result
        assert (result.request.sequence, result.attempt) == (1, 2)
        assert client.silent()


def test_requests_that_cross_many_changes_of_engines_are_answered_once_each(house: House) -> None:
    """Engines fail and return while requests are in flight; the answers are counted and compared one by one."""
    stop = threading.Event()

    def unrest() -> None:
        """Both fail until the processor serves, and are well until one of them has served again."""
        causes: tuple[Cause, Cause] = ("run-failed", "out-of-memory")
        while not stop.is_set():
            house.stage.fails[QUICK], house.stage.fails[BUILT] = causes
            while house.engine.kind != CPU and not stop.wait(0.002):
                pass
            house.stage.fails[QUICK] = house.stage.fails[BUILT] = None
            while house.engine.kind == CPU and not stop.wait(0.002):
                pass
            before = sum(house.stage.runs.values())
            while sum(house.stage.runs.values()) < before + 20 and not stop.wait(0.002):
                pass  # it has answered somebody, however slow this machine is

    house.stage.may_build.set()
    trouble = threading.Thread(target=unrest)
    trouble.start()
    try:
        with WireClient(str(house.gateway.endpoint)) as client:
            client.greet()
            seen: set[str] = set()
            rounds = 0
            end = time.monotonic() + WITHIN_S
            while rounds < 20 or (len(seen) < 2 and time.monotonic() < end):
                seen.update(house.ask(client, 16))
                rounds += 1
    finally:
        stop.set()
        trouble.join()
    assert len(seen) >= 2, f"only {seen} ran"
    assert house.gateway.fatal is None


def test_the_status_document_and_the_log_say_what_runs_and_what_does_not(house: House) -> None:
    house.stage.may_load = False
    house.stage.may_build.set()
    until(lambda: house.looks()[BUILT] == "resting", "the build to fail", within_s=WITHIN_S)
    (lane,) = [lane for lane in house.gateway.observer.standing().lanes if lane.key == house.lane.key[:12]]
    shown = {engine.kind: engine for engine in lane.engines}
    assert shown[QUICK].serves
    assert "no room on the GPU" in shown[BUILT].reason
    assert shown[BUILT].failures >= 1


def test_what_the_order_names_and_this_machine_lacks_is_shown_with_its_reason_and_the_next_serves(
    toy_bundle: Path,
) -> None:
    reason = KINDS[QUICK].absent()
    if not reason:
        pytest.skip("this machine has a GPU")
    with gateway_of(toy_bundle, settings={"engines.order": [QUICK, CPU], "models.warm_up_s": 0.05}) as gateway:
        lanes = gateway.observer.standing().lanes
        assert lanes
        for lane in lanes:
            absent, serving = lane.engines
            assert (absent.kind, absent.state, absent.reason) == (QUICK, "absent", reason)
            assert (serving.kind, serving.serves) == (CPU, True)
            assert lane.engine.endswith("CPUExecutionProvider")


def test_an_order_of_which_nothing_is_here_serves_nothing_and_says_why(toy_bundle: Path) -> None:
    if not KINDS[QUICK].absent():
        pytest.skip("this machine has a GPU")
    with (
        pytest.raises(EngineError, match=r"runs on none of its engines \(onnxruntime-cuda: "),
        gateway_of(toy_bundle, settings={"engines.order": [QUICK]}),
    ):
        pass
