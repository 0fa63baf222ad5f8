"""Suite `roundtrip`: what the gateway adds to one request on its way, when nobody else is asking.

Law: the reference is a raw ZeroMQ echo of the same bytes in the same minute, and where a model computes, that echo plus
ONNX Runtime called directly. The engine of the first part is as good as none: it hands back sixteen numbers of what it
was given, so its own call (about 10 us) counts against us. `--set tails=tail_fc` `--set sizes=1024,1600000`
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import tails
from benchmarks.peers.catalogue import Client, gateway
from benchmarks.peers.processes import Cores, ServerProcess, pinned, python
from benchmarks.peers.questions import Array, Questions, session_of
from benchmarks.peers.suite import listed, prepare
from benchmarks.peers.zmq_client import AgentClient, BareClient, ZmqClient
from benchmarks.results import Options, Result
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from protocol.bundle import Bundle

SIZES = ("1024", "16384", "102400", "409600", "1600000")
NULL_TARGET = 1.5
MODEL_TARGET = 1.3
KEPT = 16
WAIT_S = 10.0


def run(options: Options) -> list[Result]:
    """Measure both parts, in turn with their references."""
    rounds = 2 if options.quick else options.repeats
    count = int(options.settings.get("count", "50" if options.quick else "300"))
    cores = Cores.of_this_machine()
    with tempfile.TemporaryDirectory(prefix="isthmus-roundtrip-") as name:
        folder = Path(name)
        echo = ServerProcess(python("-m", "benchmarks.echo"), core=cores.server, log=folder / "echo", says_ready=True)
        with echo:
            endpoint = echo.ready_line()
            sizes = [int(text) for text in listed(options.settings, "sizes", SIZES)]
            results = _null(folder, endpoint, cores, sizes, rounds, count)
            for tail in listed(options.settings, "tails", tails.NAMES, known=tails.NAMES):
                (folder / tail).mkdir()
                results += _model(tail, folder / tail, endpoint, cores, rounds, count)
    return results


class EchoClient(ZmqClient):
    """Sends the tensor's bytes in one frame, gets 64 back."""

    def __init__(self, endpoint: str, tensors: Sequence[Array]) -> None:
        super().__init__(endpoint, 1)
        self._raw = [tensor.tobytes() for tensor in tensors]

    def send(self, slot: int, which: int) -> None:
        self.sockets[slot].send_multipart([b"0", self._raw[which]], copy=False)

    def arrived(self, timeout_s: float) -> list[tuple[int, bytes]]:
        return [(slot, self.sockets[slot].recv_multipart()[1]) for slot in self.ready(timeout_s)]


def _null(
    folder: Path, echo_endpoint: str, cores: Cores, sizes: Sequence[int], rounds: int, count: int
) -> list[Result]:
    bundles = [null_bundle(folder, nbytes) for nbytes in sizes]
    results = []
    with gateway(*bundles, core=cores.server, log=folder / "null") as server:
        endpoint = server.ready_line()
        for nbytes, bundle in zip(sizes, bundles, strict=True):
            tensor = np.zeros((1, nbytes // 4), np.float32)
            echoes, ours = [], []
            with (
                contextlib.closing(EchoClient(echo_endpoint, [tensor])) as echo,
                contextlib.closing(AgentClient(endpoint, Bundle.open(bundle), [tensor], 1)) as agent,
            ):
                for _ in range(rounds):
                    echoes.append(_p50_s(echo, cores, count))
                    ours.append(_p50_s(agent, cores, count))
            results += _compared(f"null engine, {nbytes} B", ours, echoes, "raw echo", NULL_TARGET)
    return results


def _model(tail: str, folder: Path, echo_endpoint: str, cores: Cores, rounds: int, count: int) -> list[Result]:
    model, bundle = prepare(tail, folder)
    tensors, session = Questions.of(model).tensors, session_of(model)
    turn = itertools.cycle(tensors)  # not always the same one, hot in the nearest cache
    references, bares, ours = [], [], []
    command = python("-m", "benchmarks.bare_gateway", str(model))
    with (
        gateway(bundle, core=cores.server, log=folder / "log") as server,
        ServerProcess(command, core=cores.server, log=folder / "bare", says_ready=True) as weekend,
        contextlib.closing(EchoClient(echo_endpoint, tensors[:1])) as echo,
        contextlib.closing(BareClient(weekend.ready_line(), tensors[:1], 1)) as bare,
        contextlib.closing(AgentClient(server.ready_line(), Bundle.open(bundle), tensors[:1], 1)) as agent,
    ):
        for _ in range(rounds):
            with pinned(cores.server):
                direct_s = _median_s(lambda: session.run(None, {"x": next(turn)}), count)
            references.append(direct_s + _p50_s(echo, cores, count))
            bares.append(_p50_s(bare, cores, count))
            ours.append(_p50_s(agent, cores, count))
    ratios = [one / other for one, other in zip(bares, references, strict=True)]
    return [
        *_compared(f"{tail}, one client", ours, references, "direct ORT + raw echo", MODEL_TARGET),
        Result.of(f"{tail}, one client: p50 of the bare gateway over the same", "x", ratios),
    ]


def _compared(label: str, ours: Sequence[float], reference: Sequence[float], what: str, bound: float) -> list[Result]:
    ratios = [one / other for one, other in zip(ours, reference, strict=True)]
    return [
        Result.bounded(f"{label}: p50 over {what}", "x", ratios, at_most=bound),
        Result.of(f"{label}: p50", "us", [seconds * 1e6 for seconds in ours]),
        Result.of(f"{label}: p50 of {what}", "us", [seconds * 1e6 for seconds in reference]),
    ]


def _p50_s(client: Client, cores: Cores, count: int) -> float:
    def ask() -> None:
        client.send(0, 0)
        if not client.arrived(WAIT_S):
            raise TimeoutError(f"no answer within {WAIT_S:.0f} s")

    with pinned(cores.client):
        return _median_s(ask, count)


def _median_s(work: Callable[[], object], count: int) -> float:
    for _ in range(max(count // 10, 3)):
        work()
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def null_bundle(folder: Path, nbytes: int) -> Path:
    """A bundle whose model takes `x` float32 [N, nbytes / 4] and hands back its first sixteen numbers."""
    bounds = {"first": [0], "last": [KEPT], "axis": [1]}
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", *bounds], ["kept"], name="keep"),
            helper.make_node("Relu", ["kept"], ["y"], name="answer"),
        ],
        f"null_{nbytes}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", nbytes // 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", KEPT])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in bounds.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / f"null_{nbytes}.onnx"
    onnx.save(model, path)
    order = Order(model=path, target=folder / f"bundle_{nbytes}", cuts=(("kept",),), precision="fp32", bound=1.0)
    return build(order, Silent()).target
