"""A split model with float16 tails at a whole gateway: its better engine runs those, the processor runs float32.

In place of a GPU's engine stands one that runs the graph on the processor; gateway, lanes and wire are real.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cloud_gateway.config import load_settings
from cloud_gateway.gateway import Gateway
from edge_agent.bundles.shelf import needed
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol import codecs, wire
from protocol import messages as m
from protocol.bundle import Bundle, PlacementEntry
from protocol.engines.catalogue import CPU, KINDS, EngineOptions, Kind
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_options import GpuError
from protocol.tensors import Tensors
from tests import models
from tests.waiting import until
from tests.wire_client import WireClient

GPU = "onnxruntime-cuda"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("halves")
    np.savez(folder / "data.npz", x=models.image_samples(24))
    order = Order(
        models.write(models.residual(), folder),
        folder / "bundle",
        cuts=(("r3",),),
        calibration=folder / "data.npz",
        search=Search(memory=False),
        precision="fp32",
        bound=0.2,
        half_tails=True,
    )
    return Bundle.open(build(order, Silent()).target)


class InPlaceOfAGpu(OrtEngine):
    """ONNX Runtime on the processor; it fails while it is told to, and keeps what it was given."""

    fails = threading.Event()
    given: set[bytes] = set()  # noqa: RUF012 - what all of them were given

    def __init__(self, graph: bytes, options: EngineOptions) -> None:
        super().__init__(graph, label=options.label)
        self.given.add(bytes(graph))

    @property
    def description(self) -> str:
        return "scripted GPU"

    def infer(self, tensors: Tensors) -> dict[str, np.ndarray[Any, Any]]:
        if self.fails.is_set():
            raise GpuError("it fell over", cause="run-failed")
        return super().infer(tensors)


@pytest.fixture
def gateway(bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    InPlaceOfAGpu.fails.clear()
    InPlaceOfAGpu.given.clear()
    overrides: dict[str, object] = {
        "models.bundles": [str(bundle.root)], "zmq.bind": "tcp://127.0.0.1:0", "http.enabled": False,
        "engines.order": [GPU, CPU], "engines.retry_s": 0.05, "models.warm_up_s": 0.05,
    }  # fmt: skip
    settings = load_settings(env={}, overrides=overrides | getattr(request, "param", {})).settings
    kinds = {GPU: Kind(GPU, lambda: "", InPlaceOfAGpu, takes_half=True), CPU: KINDS[CPU]}
    with Gateway(settings, kinds=kinds) as running:
        yield running


def ask(client: WireClient, bundle: Bundle, entry: PlacementEntry, number: int) -> tuple[m.Result, Any]:
    """The result for the first sample, and its logits."""
    tensors: Any = {"x": models.image_samples()[:1]}
    if entry.head is not None:
        with OrtEngine(bundle.graph(entry.head), label="head") as head:
            tensors = head.infer(tensors)
    client.send(*client.infer(entry, tensors, number, budget_us=60_000_000))
    result, parts = client.receive_all()
    assert isinstance(result, m.Result), result
    (header,), (buffer,) = result.tensors, wire.join_parts(result.tensors, parts)
    return result, codecs.decode(header, buffer)


def answer(bundle: Bundle, file: str, entry: PlacementEntry) -> Any:
    """What the graph in `file` answers to the first sample."""
    tensors: Any = {"x": models.image_samples()[:1]}
    if entry.head is not None:
        with OrtEngine(bundle.graph(entry.head), label="head") as head:
            tensors = {name: head.infer(tensors)[name] for name in entry.cut}
    with OrtEngine(bundle.graph(file), label=file) as engine:
        return engine.infer(tensors)["logits"]


def plain(bundle: Bundle) -> list[PlacementEntry]:
    return [p for p in bundle.remote_segments() if p.id in ("full-cloud", "cut-1")]


def test_the_better_engine_runs_float16_and_the_processor_float32_and_answers_say_which(
    gateway: Gateway, bundle: Bundle
) -> None:
    assert InPlaceOfAGpu.given == {bundle.read("full.fp16.onnx"), bundle.read("cut-1/tail.fp16.onnx")}
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        for number, entry in enumerate(plain(bundle), 1):
            assert entry.half is not None
            assert entry.tail is not None
            half, exact = (answer(bundle, file, entry) for file in (entry.half.file, entry.tail))
            assert not np.array_equal(half, exact)
            result, logits = ask(client, bundle, entry, number)
            assert (result.engine, result.precision) == ("scripted GPU, float16", entry.precision)
            np.testing.assert_array_equal(logits, half)
        InPlaceOfAGpu.fails.set()
        for number, entry in enumerate(plain(bundle), 11):
            result, logits = ask(client, bundle, entry, number)
            assert "CPUExecutionProvider" in result.engine
            assert "float16" not in result.engine
            np.testing.assert_allclose(logits, answer(bundle, entry.tail or "", entry), atol=1e-5)
        InPlaceOfAGpu.fails.clear()
        numbers = iter(range(21, 10_000))
        entry = plain(bundle)[1]
        until(
            lambda: ask(client, bundle, entry, next(numbers))[0].engine.endswith("float16"),
            "float16 to come back",
            within_s=60,
        )


def test_status_and_metrics_say_what_runs_in_float16(gateway: Gateway) -> None:
    for lane in gateway.observer.standing().lanes:
        assert [(engine.kind, engine.precision) for engine in lane.engines] == [(GPU, "float16"), (CPU, "")]
        assert lane.engine == "scripted GPU, float16"


@pytest.mark.parametrize("gateway", [{"engines.half": "never"}], indirect=True)
def test_a_gateway_that_is_told_never_runs_float32_everywhere(gateway: Gateway, bundle: Bundle) -> None:
    assert InPlaceOfAGpu.given == {bundle.read("full.onnx"), bundle.read("cut-1/tail.onnx")}
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        assert ask(client, bundle, plain(bundle)[0], 1)[0].engine == "scripted GPU"


@pytest.mark.parametrize("gateway", [{"engines.half_tolerance": 1e-9}], indirect=True)
def test_one_that_lies_further_from_float32_than_it_may_does_not_serve(gateway: Gateway, bundle: Bundle) -> None:
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        assert "CPUExecutionProvider" in ask(client, bundle, plain(bundle)[0], 1)[0].engine
    (lane, *_) = gateway.observer.standing().lanes
    assert "of the largest value in logits" in lane.engines[0].reason


def test_a_device_fetches_no_tails_in_any_precision(bundle: Bundle) -> None:
    files = needed(bundle, whole=False)
    assert sorted(files) == ["cut-1/head.onnx", "edge.onnx", "full.onnx", "known.npz"]
    assert {name for name in needed(bundle, whole=True) if "fp16" in name} == {"full.fp16.onnx", "cut-1/tail.fp16.onnx"}
