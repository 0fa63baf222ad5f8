"""Suite `merging-live`: cuts of one model in one lane or in lanes of their own, with real engines and threads.

Law: both ways serve the same bundle and get the same requests at the same times, one after the other in every round.
The model's convolutions are light and its two dense layers wide, so that batching pays on what the cuts share. Requests
are decoded, batched, run and encoded as in a gateway and come straight from one thread: no socket is measured. Rates
are shares of what the joined lane gets done in the same round when everything waits; times count from when a request
was due.
`--set cuts=2,4` `--set loads=0.3,0.6` `--set seconds=4` `--set hidden=4096`: a narrow layer leaves nothing to gain
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.open_loop import poisson
from benchmarks.results import Options, Result
from benchmarks.tails import INPUT, Graph
from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.joining import JoinedLane
from cloud_gateway.models.lanes import Segment
from cloud_gateway.models.served import open_bundle
from cloud_gateway.models.worker import Worker
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Computed, Item, Outcome
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol import codecs, wire
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from protocol.tensors import TensorHeader
from protocol.wire import Buffer

HIDDEN, CLASSES = 4096, 1000
SAMPLES = 24
BURST = 256
PATIENCE_S = 60.0
SWITCH_S = 0.0005  # between threads, as in a gateway
WAYS = {"separate": False, "joined": True}


def make_bundle(folder: Path, cuts: int, hidden: int = HIDDEN) -> Path:
    """x [N,256,14,14] -> 1x1 conv 64 -> 3x3 convs 64 -> pool -> 3136 -> `hidden` -> 1000; a cut after each conv."""
    graph = Graph()
    at = [graph.conv("x", "conv_1", (64, 256, 1))]
    for number in range(2, cuts + 1):
        at.append(graph.conv(at[-1], f"conv_{number}", (64, 64, 3)))
    graph.add("MaxPool", [at[-1]], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    wide = graph.dense(graph.add("Flatten", ["pooled"], "flat"), "hidden", 3136, hidden)
    graph.dense(graph.add("Relu", [wide], "active"), "logits", hidden, CLASSES)
    made = helper.make_graph(
        graph.nodes,
        "cuts",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *INPUT])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        graph.weights,
    )
    model = folder / f"cuts-{cuts}.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    data = folder / "samples.npz"
    np.savez(data, x=np.random.default_rng(3).standard_normal((SAMPLES, *INPUT), np.float32))
    order = Order(
        model,
        folder / f"bundle-{cuts}",
        cuts=tuple((name,) for name in at),
        search=Search(memory=False),
        precision="fp32",
        bound=1.0,
        calibration=data,
        common_suffix=True,
    )
    return build(order, Silent()).target


@dataclass(frozen=True, slots=True)
class Question:
    """What one device sends under one cut."""

    digest: bytes
    headers: tuple[TensorHeader, ...]
    parts: tuple[Buffer, ...]
    checksum: int


def questions(bundle: Bundle) -> list[Question]:
    """One of every cut, in its lossless coding."""
    x = np.random.default_rng(5).standard_normal((1, *INPUT), np.float32)
    found = []
    for entry in bundle.remote_segments():
        if entry.head is None or entry.segment is None or "." in entry.id:
            continue
        with OrtEngine(bundle.graph(entry.head), label=entry.id) as head:
            made = head.infer({"x": x})
        encoded = [codecs.encode(b.spec.name, made[b.spec.name], b.codec) for b in entry.boundary]
        parts = tuple(data for _, data in encoded)
        headers = tuple(header for header, _ in encoded)
        found.append(Question(bytes.fromhex(entry.segment), headers, parts, wire.checksum(parts)))
    return found


class Serving:
    """A bundle behind a desk and one engine thread, and the times of what was answered."""

    def __init__(self, bundle: Path, *, merge: bool) -> None:
        self.desk = Desk(Limits(1 << 20, 1 << 40, 1 << 20, 1 << 40), threads=1)
        self.catalogue = Catalogue(self.desk, Defaults(max_rows=32, merge=merge), orphaned=lambda _: None)
        version = open_bundle(bundle)
        self.catalogue.load(version)
        self.catalogue.warm_up(version)
        self.catalogue.publish(version)
        self._worker = Worker(0, self.desk, Ledger(now=time.monotonic()), crashed=self._crashed)
        self._worker.start()
        self._done = threading.Semaphore(0)
        self.answered: list[tuple[float, Item]] = []
        self.rows: list[int] = []

    def segments(self, asked: Iterable[Question]) -> list[Segment]:
        return [self.catalogue.segments[question.digest] for question in asked]

    def close(self) -> None:
        self.desk.stop()
        self._worker.join(PATIENCE_S)
        self.catalogue.close()

    def post_all(self, outcomes: Iterable[Outcome], /) -> None:
        now = time.monotonic()
        for outcome in outcomes:
            if not isinstance(outcome, Computed):
                raise SystemExit(f"a request was not computed: {outcome}")
            self.answered.append((now, outcome.item))
            self.rows.append(outcome.batch_size)
            self._done.release()

    def latencies(self, asked: Sequence[Question], due: Sequence[float], order: Sequence[int]) -> list[float]:
        """Seconds from when each request was due; `order` says which question each is."""
        self.answered, self.rows = [], []
        segments = self.segments(asked)
        begun = time.monotonic() + 0.01
        for at, which in zip(due, order, strict=True):
            while (pause_s := begun + at - time.monotonic()) > 0:
                time.sleep(pause_s)
            self._ask(segments[which], asked[which], begun + at)
        for _ in due:
            if not self._done.acquire(timeout=PATIENCE_S):
                raise SystemExit("requests were not answered")
        return [now - item.arrived for now, item in self.answered]

    def capacity_per_s(self, asked: Sequence[Question]) -> float:
        """Answers a second when all requests are there from the beginning, the cuts in turn."""
        taken = self.latencies(asked, [0.0] * BURST, [i % len(asked) for i in range(BURST)])
        return BURST / max(taken)

    def _ask(self, segment: Segment, question: Question, at: float) -> None:
        rows, layout = segment.fit(question.headers)
        nbytes = sum(header.nbytes for header in question.headers)
        item = Item(
            segment, question.headers, question.parts, [1] * len(question.parts), question.checksum, rows, layout,
            nbytes, at, at + PATIENCE_S, 4, segment.placement, self, None,
        )  # fmt: skip
        verdict = self.desk.submit(item)
        if verdict is not None:
            raise SystemExit(f"a request was refused: {verdict}")

    def _crashed(self, error: BaseException) -> None:
        raise SystemExit(f"the engine thread ended: {error!r}")


def run(options: Options) -> list[Result]:
    """Mean and 99 % latency of both ways, for every number of cuts and every load."""
    sys.setswitchinterval(SWITCH_S)
    settings = options.settings
    window_s = float(settings.get("seconds", "1" if options.quick else "4"))
    loads = [float(text) for text in settings.get("loads", "0.3,0.6").split(",")]
    results: list[Result] = []
    for cuts in [int(text) for text in settings.get("cuts", "2,4").split(",")]:
        with tempfile.TemporaryDirectory(prefix="isthmus-merging-") as folder, ExitStack() as stack:
            bundle = make_bundle(Path(folder), cuts, int(settings.get("hidden", HIDDEN)))
            asked, serving = questions(Bundle.open(bundle)), {}
            for way, merge in WAYS.items():
                serving[way] = Serving(bundle, merge=merge)
                stack.callback(serving[way].close)
            lane = serving["joined"].segments(asked)[0].lane
            if not isinstance(lane, JoinedLane):
                results.append(Result.missing(f"{cuts} cuts: the gateway found joining not worth it"))
                continue
            for load in loads:
                results += _compare(options, serving, asked, load, window_s, f"{cuts} cuts, {load:.0%} load")
    return results


def _compare(
    options: Options, serving: dict[str, Serving], asked: Sequence[Question], load: float, window_s: float, name: str
) -> list[Result]:
    means: dict[str, list[float]] = {way: [] for way in serving}
    tails: dict[str, list[float]] = {way: [] for way in serving}
    rows: dict[str, list[float]] = {way: [] for way in serving}
    rates: list[float] = []
    for number in range(2 if options.quick else options.repeats):
        rates.append(load * serving["joined"].capacity_per_s(asked))
        due = poisson(rates[-1], window_s, seed=f"{number} {name}")
        rng = random.Random(number)
        order = [rng.randrange(len(asked)) for _ in due]
        for way in serving if number % 2 else reversed(serving):
            taken = serving[way].latencies(asked, due, order)
            means[way].append(float(np.mean(taken)) * 1e3)
            tails[way].append(float(np.percentile(taken, 99)) * 1e3)
            rows[way].append(float(np.mean(serving[way].rows)))
    ratios = [apart / joined for apart, joined in zip(means["separate"], means["joined"], strict=True)]
    results = []
    for way in serving:
        note = f"p99 {np.median(tails[way]):.1f} ms, a request in a batch of {np.median(rows[way]):.1f}"
        results.append(
            Result.of(f"{name}, {way}: mean", "ms", means[way], note=f"{note}, {np.median(rates):.0f} requests/s")
        )
    return [*results, Result.of(f"{name}: separate over joined, mean", "x", ratios)]
