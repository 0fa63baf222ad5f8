"""Suite `gpu`: what the gateway leaves of an engine's speed, for every engine that this machine has.

Law: the same engine, made by the same catalogue, is driven by a bare loop in this process and through the gateway in
its own, in turn, in the same minute. What a machine lacks is a row that says so and why; nothing is implied. What fails
is a row too, and takes no other with it; each is told as soon as it is known, so that a run that is cut off has shown
what it measured. Absolute times count on a GPU alone, and so do the targets; the processor's rows prove that the suite
itself works.

    python -m benchmarks gpu [--set kinds=onnxruntime-cuda,tensorrt] [--set tails=tail_fc] [--set rows=8]

Of each engine and tail: how far its answers lie from ONNX Runtime's on the processor, rows a second of the bare loop at
its best batch, rows a second through the gateway, the median of one request both ways, and what a second thread of the
bare loop adds (copies of one batch while the other computes). Of ONNX Runtime also what binding gains over `run`; of
TensorRT what a profile of their own gains single rows, what it costs batches, and what it adds to the GPU's memory.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks import tails
from benchmarks.peers.catalogue import Client
from benchmarks.peers.processes import READY_LIMIT_S, Cores, ServerProcess, pinned, python
from benchmarks.peers.questions import Array
from benchmarks.peers.suite import listed, prepare
from benchmarks.peers.zmq_client import AgentClient
from benchmarks.results import Options, Result
from protocol.bundle import Bundle
from protocol.engines.base import Engine
from protocol.engines.catalogue import CPU, KINDS, EngineOptions
from protocol.engines.driver import probe
from protocol.engines.ort import OrtEngine
from protocol.engines.ort_cuda import CUDA, BoundOrtEngine
from protocol.engines.trt_options import GpuError

LEAST_THROUGHPUT = 0.95  # of the bare loop
MOST_LATENCY = 1.1  # of the bare loop
MOST_APART = 0.01  # of the largest value
MOST_ROWS = 32
# What there is to learn of each: where time is short, the first are the ones that were measured.
ORDER = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", CPU)
BY_PROFILE = ("tensorrt",)  # whose kernels are chosen for one size of each profile
IN_FLIGHT = 64  # rows, twice the largest batch
SEED = 11
WAIT_S = 30.0
BUILD_S = 1200.0  # until a gateway is ready that builds plans first, others than the bare loop's


@dataclass(frozen=True, slots=True)
class Stage:
    """What one engine is measured on."""

    kind: str
    tail: str
    model: Path
    bundle: Path
    folder: Path
    rows: int  # of one request, where throughput is measured
    window_s: float
    cores: Cores


def run(options: Options) -> list[Result]:
    """Measure every engine on every tail, `options.repeats` times in turn."""
    kinds = listed(options.settings, "kinds", ORDER, known=tuple(KINDS))
    wanted = listed(options.settings, "tails", ("tail_fc",) if options.quick else tails.NAMES, known=tails.NAMES)
    absent = {kind: reason for kind in kinds if (reason := KINDS[kind].absent())}
    window_s = float(options.settings.get("window_s", "0.3" if options.quick else "2.0"))
    repeats = 2 if options.quick else options.repeats
    here = [kind for kind in kinds if kind not in absent]
    results = told([_machine(), *(not_run(kind, reason) for kind, reason in absent.items())])
    with tempfile.TemporaryDirectory(prefix="isthmus-gpu-") as name:
        for tail in wanted if here else ():
            folder = Path(name) / tail
            folder.mkdir()
            model, bundle = prepare(tail, folder)
            for kind in here:
                rows = int(options.settings.get("rows", "8" if KINDS[kind].on_gpu else "1"))
                stage = Stage(kind, tail, model, bundle, folder, rows, window_s, Cores.of_this_machine())
                label, make = f"{tail}, {kind}", functools.partial(_made, stage)
                results += told(attempted(label, functools.partial(measured, stage, repeats)))
                if kind in BY_PROFILE:
                    results += told(attempted(label, functools.partial(profiles, stage, make, repeats)))
            for where in [kind for kind in ("onnxruntime-cuda", CPU) if kind in here][:1]:
                bind = functools.partial(_binding, tail, model, window_s, repeats, on_gpu=where != CPU)
                results += told(attempted(f"{tail}, {where}: binding", bind))
    return results


def attempted(label: str, work: Callable[[], list[Result]]) -> list[Result]:
    """What `work` measures; a failed row with the reason where it cannot. What a library refuses did not run."""
    try:
        return work()
    except GpuError as error:
        refused = error.cause in ("build-failed", "unsupported-graph")
        return [not_run(label, str(error)) if refused else Result.missing(label, f"failed: {error}", ok=False)]
    except Exception as error:
        return [Result.missing(label, f"failed: {type(error).__name__}: {error}", ok=False)]


def told(results: Iterable[Result]) -> list[Result]:
    """The same, said on standard error: whoever cuts a long run off has at least the log."""
    known = list(results)
    for row in known:
        figures = f"{row.median:.4g} {row.unit} ({row.low:.4g} to {row.high:.4g})" if row.n else ""
        print(f"{row.name}: {figures} {row.note}".rstrip(), file=sys.stderr, flush=True)
    return known


def _machine() -> Result:
    found = probe()
    if isinstance(found, str):
        return Result.missing("GPU", found)
    each = ", ".join(
        f"{d.name} (compute capability {d.capability[0]}.{d.capability[1]}, {d.memory_nbytes / 2**30:.1f} GiB)"
        for d in found.devices
    )
    return Result.missing("GPU", f"{each}, driver for CUDA {found.cuda // 1000}.{found.cuda % 1000 // 10}")


def not_run(name: str, reason: str) -> Result:
    """A row without a figure."""
    return Result.missing(name, f"not run: {reason}")


def measured(stage: Stage, repeats: int) -> list[Result]:
    """One engine on one tail."""
    label, on_gpu = f"{stage.tail}, {stage.kind}", KINDS[stage.kind].on_gpu
    bare_per_s: list[float] = []
    ours_per_s: list[float] = []
    pair_per_s: list[float] = []
    changing: list[float] = []
    bare_s: list[float] = []
    ours_s: list[float] = []
    with _bare(stage) as engine, _gateway(stage) as (one, many):
        apart = apart_by(engine, stage.model)
        batch = best_batch(engine, stage.window_s / 4)
        for _ in range(repeats):
            with pinned(None if on_gpu else stage.cores.server):
                bare_per_s.append(per_s(engine, batch, stage.window_s))
                pair_per_s.append(per_s(engine, batch, stage.window_s, threads=2))
                changing.append(_changing_over_same(engine, stage.window_s / 2))
                bare_s.append(_median_s(lambda: engine.infer(inputs(1)), stage.window_s / 4))
            with pinned(None if on_gpu else stage.cores.client):
                ours_per_s.append(_through(many, IN_FLIGHT // stage.rows, stage.window_s) * stage.rows)
                ours_s.append(_median_s(lambda: _ask(one), stage.window_s / 4))
        description = engine.description
    share = [mine / bare for mine, bare in zip(ours_per_s, bare_per_s, strict=True)]
    slower = [mine / bare for mine, bare in zip(ours_s, bare_s, strict=True)]
    second = [two / bare for two, bare in zip(pair_per_s, bare_per_s, strict=True)]
    note = f"{description}; batch {batch}"
    return [
        Result.bounded(f"{label}: apart from the processor", "of max", [apart], at_most=MOST_APART),
        at_least(f"{label}: throughput over a bare loop", share, LEAST_THROUGHPUT if on_gpu else None, note),
        at_most(f"{label}: p50 of one over a bare loop", slower, MOST_LATENCY if on_gpu else None),
        Result.of(f"{label}: two threads over one, bare", "x", second),
        Result.of(
            f"{label}: batches of 4 and 8 in turn over each by itself, bare", "x", changing, note="costs above 1"
        ),
        Result.of(f"{label}: rows through the gateway", "1/s", ours_per_s),
        Result.of(f"{label}: rows of a bare loop", "1/s", bare_per_s),
        Result.of(f"{label}: p50 of one through the gateway", "us", [s * 1e6 for s in ours_s]),
        Result.of(f"{label}: p50 of one, bare", "us", [s * 1e6 for s in bare_s]),
    ]


def at_least(name: str, samples: Sequence[float], bound: float | None, note: str = "") -> Result:
    """A ratio that must reach `bound`, where one was promised."""
    plain = Result.of(name, "x", samples, note=note)
    if bound is None:
        return plain
    ok = plain.median >= bound
    return Result(name, "x", plain.median, plain.low, plain.high, plain.n, f">= {bound:g} x", ok, note)


def at_most(name: str, samples: Sequence[float], bound: float | None) -> Result:
    return Result.of(name, "x", samples) if bound is None else Result.bounded(name, "x", samples, at_most=bound)


# ---- the bare loop --------------------------------------------------------------------------------------------------


@contextmanager
def _bare(stage: Stage) -> Iterator[Engine]:
    engine = _made(stage, several=True)
    engine.activate()
    try:
        yield engine
    finally:
        engine.deactivate()


def _made(stage: Stage, *, several: bool) -> Engine:
    options = EngineOptions(
        stage.tail, max_rows=MOST_ROWS, batch_axes={"x": 0}, cache_dir=stage.folder / "plans", several=several
    )
    return KINDS[stage.kind].make(stage.model.read_bytes(), options)


def inputs(rows: int) -> dict[str, Array]:
    """The same numbers each time."""
    return {"x": np.random.default_rng(SEED).standard_normal((rows, *tails.INPUT), dtype=np.float32)}


def apart_by(engine: Engine, model: Path) -> float:
    """The farthest that an answer lies from ONNX Runtime's on the processor, as a share of the largest value."""
    asked = inputs(4)
    with OrtEngine(model.read_bytes(), label="reference") as reference:
        wanted = reference.infer(asked)["logits"]
    return float(np.max(np.abs(engine.infer(asked)["logits"] - wanted)) / np.max(np.abs(wanted)))


def best_batch(engine: Engine, window_s: float) -> int:
    """The batch of at most MOST_ROWS that gives most rows a second."""
    sizes = [1 << n for n in range(MOST_ROWS.bit_length()) if 1 << n <= MOST_ROWS]
    return max(sizes, key=lambda size: per_s(engine, size, window_s))


def per_s(engine: Engine, rows: int, window_s: float, *, threads: int = 1) -> float:
    """Rows a second of a loop that does nothing but run the engine, on so many threads."""
    asked = inputs(rows)
    engine.infer(asked)
    counts = [0] * threads
    until = time.perf_counter() + window_s

    def loop(mine: int) -> None:
        while time.perf_counter() < until:
            engine.infer(asked)
            counts[mine] += rows

    began = time.perf_counter()
    others = [threading.Thread(target=loop, args=(n,)) for n in range(1, threads)]
    for other in others:
        other.start()
    loop(0)
    for other in others:
        other.join()
    return sum(counts) / (time.perf_counter() - began)


def _changing_over_same(engine: Engine, window_s: float) -> float:
    """How much longer a batch takes that is of another size than the one before: some engines then prepare anew."""
    small, large = inputs(4), inputs(8)
    same_s = [_median_s(functools.partial(engine.infer, asked), window_s / 3) for asked in (small, large)]

    def both() -> None:
        engine.infer(small)
        engine.infer(large)

    return _median_s(both, window_s / 3) / sum(same_s)


def _median_s(work: Callable[[], object], window_s: float) -> float:
    work()
    seconds: list[float] = []
    until = time.perf_counter() + window_s
    while not seconds or time.perf_counter() < until:
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


# ---- through the gateway --------------------------------------------------------------------------------------------


@contextmanager
def _gateway(stage: Stage) -> Iterator[tuple[AgentClient, AgentClient]]:
    """A gateway that serves by this engine alone: a client of one request at a time, and one that fills it."""
    on_gpu = KINDS[stage.kind].on_gpu
    env = {
        "ISTHMUS_GATEWAY__HTTP__ENABLED": "false",
        "ISTHMUS_GATEWAY__SCHEDULING__WORKERS": "2" if on_gpu else "1",
        "ISTHMUS_GATEWAY__SCHEDULING__MAX_BATCH_SIZE": str(MOST_ROWS),
        "ISTHMUS_GATEWAY__LIMITS__PENDING_MIB": "4096",
        "ISTHMUS_GATEWAY__ENGINES__ORDER": stage.kind,
        "ISTHMUS_GATEWAY__ENGINES__PLANS_DIR": str(stage.folder / "plans"),
    }
    command = python("-m", "cloud_gateway", "serve", str(stage.bundle), "--bind", "tcp://127.0.0.1:0")
    log = stage.folder / f"gateway-{stage.kind}.log"
    core = None if on_gpu else stage.cores.server
    with ServerProcess(command, core=core, log=log, env=env, says_ready=True) as server:
        endpoint = server.ready_line(BUILD_S if KINDS[stage.kind].is_built else READY_LIMIT_S)
        bundle = Bundle.open(stage.bundle)
        with (
            contextlib.closing(AgentClient(endpoint, bundle, [inputs(1)["x"]], 1)) as one,
            contextlib.closing(
                AgentClient(endpoint, bundle, [inputs(stage.rows)["x"]], IN_FLIGHT // stage.rows)
            ) as many,
        ):
            yield one, many


def _ask(client: Client) -> None:
    client.send(0, 0)
    if not client.arrived(WAIT_S):
        raise TimeoutError(f"no answer within {WAIT_S:.0f} s")


def _through(client: Client, slots: int, window_s: float) -> float:
    """Requests a second, every slot asking again once it has its answer."""
    for slot in range(slots):
        client.send(slot, 0)
    count, out = 0, slots
    began = time.perf_counter()
    while out:
        arrived = client.arrived(WAIT_S)
        if not arrived:
            raise TimeoutError(f"no answer within {WAIT_S:.0f} s")
        if time.perf_counter() - began < window_s:
            count += len(arrived)
            for slot, _ in arrived:
                client.send(slot, 0)
        else:
            out -= len(arrived)
    return count / window_s


# ---- profiles -------------------------------------------------------------------------------------------------------


class Making(Protocol):
    """Makes the engine to be measured, with a profile of single rows' own or without."""

    def __call__(self, *, several: bool) -> Engine: ...


def profiles(stage: Stage, make: Making, repeats: int) -> list[Result]:
    """What a profile of their own gains single rows, and what it costs the others; both engines in turn."""
    gains: list[float] = []
    costs: list[float] = []
    with contextlib.ExitStack() as stack:
        several, one = (_active(stack, make(several=wanted)) for wanted in (True, False))
        for _ in range(repeats):
            singles = [_median_s(lambda e=e: e.infer(inputs(1)), stage.window_s / 4) for e in (several, one)]  # type: ignore[misc]
            gains.append(singles[1] / singles[0])
            batches = [per_s(e, MOST_ROWS, stage.window_s / 2) for e in (several, one)]
            costs.append(batches[0] / batches[1])
        nbytes = [getattr(e, "gpu_nbytes", None) or 0 for e in (several, one)]
    label = f"{stage.tail}, {stage.kind}: a profile for single rows"
    results = [
        Result.of(f"{label}: p50 of one row without it over with it", "x", gains, note="pays above 1"),
        Result.of(f"{label}: rows of batches of {MOST_ROWS} with it over without it", "x", costs, note="costs below 1"),
    ]
    if nbytes[1]:
        results.append(Result.of(f"{label}: the GPU's memory with it over without it", "x", [nbytes[0] / nbytes[1]]))
    return results


def _active(stack: contextlib.ExitStack, engine: Engine) -> Engine:
    engine.activate()
    stack.callback(engine.deactivate)
    return engine


# ---- binding --------------------------------------------------------------------------------------------------------


def _binding(tail: str, model: Path, window_s: float, repeats: int, *, on_gpu: bool) -> list[Result]:
    """What a binding gains over handing arrays over, on the GPU if there is one, else on the processor."""
    graph = model.read_bytes()
    plain = OrtEngine(graph, label="run")
    if on_gpu:  # with the options of the other
        chosen = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        plain = OrtEngine(graph, label="run", providers=(CUDA,), provider_options=(chosen,))
    gains = []
    with plain, BoundOrtEngine(graph, label="bound", on="cuda" if on_gpu else "cpu") as bound:
        for _ in range(repeats):
            before = per_s(plain, MOST_ROWS, window_s / 2)
            gains.append(per_s(bound, MOST_ROWS, window_s / 2) / before)
    where = "onnxruntime-cuda" if on_gpu else CPU
    return [Result.of(f"{tail}, {where}: binding over run, batch {MOST_ROWS}", "x", gains)]
