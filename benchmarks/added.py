"""Suite `added`: what the agent adds to one request over calling head and socket directly, and its local API over it.

Law: request by request in turn, in one process, with the same bundle, head and gateway; the agent may use one placement
only. What is compared with is what somebody would write without an agent: the session, the codec, one DEALER, a checked
answer. One request at a time: every hand-over between threads shows in full. The model is light, that microseconds do.

    edge-only    session.run                                          | agent.submit(...).result()
    cut-1        session.run of the head, encode, DEALER, decode      | the same
    full-cloud   encode, DEALER, decode                               | the same
    local API    agent.submit in this process                         | the daemon over HTTP, TCP and Unix socket

`--set count=400` requests of a kind in each round
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import zmq

from benchmarks import tails
from benchmarks.deciding_model import seeded
from benchmarks.peers.catalogue import gateway
from benchmarks.peers.processes import ServerProcess, free_ports, python
from benchmarks.results import Options, Result
from edge_agent import local_messages
from edge_agent.agent import Agent, AgentConfig
from edge_agent.local_client import LocalClient
from edge_agent.outcomes import Answer
from edge_agent.results import outputs_of
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol import codecs, sockets, wire
from protocol import messages as m
from protocol.bundle import Bundle, PlacementEntry
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array

DEADLINE_S = 10.0
READY_S = 30.0
CUT = "mix"  # of tail_light: half of its work, a few kilobytes
Call = Callable[[Array], object]


class Direct:
    """One placement by hand. Called with an input, returns the outputs."""

    def __init__(self, bundle: Bundle, entry: PlacementEntry, endpoint: str) -> None:
        self._entry = entry
        self._stack = ExitStack()
        self._engine: OrtEngine | None = None
        if entry.head is not None:
            self._engine = self._stack.enter_context(OrtEngine(bundle.graph(entry.head), label=entry.id, threads=1))
        self._boot, self._numbers = os.urandom(8), itertools.count(1)
        if entry.segment is not None:
            self._context = sockets.make_context()
            self._stack.callback(self._context.term)
            self._socket = sockets.dealer(self._context, sockets.parse_endpoint(endpoint))
            self._stack.callback(self._socket.close, 0)
            self._socket.poll(int(READY_S * 1e3), zmq.POLLOUT)
            hello = m.Hello(self._boot, "direct", "benchmark", bytes.fromhex(bundle.manifest.model.digest))
            self._socket.send_multipart(wire.pack(hello))
            if not self._socket.poll(int(READY_S * 1e3)):
                raise RuntimeError("the gateway does not welcome us")
            self._socket.recv_multipart()

    def __call__(self, x: Array) -> Mapping[str, Array]:
        values: Mapping[str, Array] = {"x": x}
        if self._engine is not None:
            values = self._engine.infer(values)
        if self._entry.segment is None:
            return values
        encoded = [codecs.encode(b.spec.name, values[b.spec.name], b.codec, b.levels) for b in self._entry.boundary]
        parts = [data for _, data in encoded]
        infer = m.Infer(
            m.RequestId(self._boot, next(self._numbers)),
            bytes.fromhex(self._entry.segment),
            1,
            int(DEADLINE_S * 1e6),
            4,
            tuple(header for header, _ in encoded),
            wire.checksum(parts),
        )
        self._socket.send_multipart(wire.pack(infer, parts), copy=False)
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        result = wire.unpack_header(frames[0])
        if not isinstance(result, m.Result):
            raise RuntimeError(f"the gateway answered {result}")
        return outputs_of(result, frames[1:])

    def close(self) -> None:
        self._stack.close()


def run(options: Options) -> list[Result]:
    """The suite."""
    count = int(options.settings.get("count", 100 if options.quick else 400))
    rounds = 2 if options.quick else options.repeats
    with tempfile.TemporaryDirectory(prefix="isthmus-added-") as name, ExitStack() as stack:
        folder = Path(name)
        path = make_bundle(folder)
        bundle = Bundle.open(path)
        endpoint = stack.enter_context(gateway(path, core=None, log=folder / "gateway.log")).ready_line()
        inputs = seeded(8, tails.INPUT)
        results: list[Result] = []
        for entry in bundle.manifest.placements:
            if "." not in entry.id:  # a sibling under another codec adds the same
                results += _over_direct(bundle, entry, endpoint, inputs, rounds, count)
        (port,) = free_ports(1)
        daemon = stack.enter_context(_daemon(path, folder, port))
        return [*results, *_over_submit(bundle, daemon, port, folder, inputs, rounds, count)]


def make_bundle(folder: Path) -> Path:
    """The light tail as a bundle with one cut in its middle; some seconds."""
    model = tails.build("tail_light", folder)
    order = Order(model, folder / "bundle", cuts=((CUT,),), precision="fp32", bound=1.0, search=Search(memory=False))
    return build(order, Silent()).target


def _over_direct(
    bundle: Bundle, entry: PlacementEntry, endpoint: str, inputs: Sequence[Array], rounds: int, count: int
) -> Iterable[Result]:
    with contextlib.closing(Direct(bundle, entry, endpoint)) as direct, _agent(bundle, entry.id, endpoint) as agent:
        seconds = _in_turn({"direct": direct, "agent": partial_submit(agent)}, inputs, rounds, count)
    yield from _added(f"{entry.id}: agent", seconds["agent"], seconds["direct"], "direct")


def _over_submit(
    bundle: Bundle, daemon: ServerProcess, port: int, folder: Path, inputs: Sequence[Array], rounds: int, count: int
) -> Iterable[Result]:
    unix = folder / "state" / "run" / "agent.sock"
    with ExitStack() as stack:
        client = stack.enter_context(LocalClient(unix))
        _until_ready(client, daemon)
        tcp = http.client.HTTPConnection("127.0.0.1", port)
        over_unix = _OverUnix(unix)
        for connection in (tcp, over_unix):
            stack.callback(connection.close)
        agent = stack.enter_context(_agent(bundle, "edge-only", None))
        name = bundle.manifest.model.name
        calls: dict[str, Call] = {
            "submit": partial_submit(agent),
            "HTTP": _curl(tcp, name),
            "HTTP over a Unix socket": _curl(over_unix, name),
            "LocalClient over a Unix socket": lambda x: client.infer({"x": x}, deadline_s=DEADLINE_S),
        }
        seconds = _in_turn(calls, inputs, rounds, count)
    for what in list(calls)[1:]:
        yield from _added(f"edge-only: {what}", seconds[what], seconds["submit"], "submit")


def partial_submit(agent: Agent) -> Call:
    """Submit and wait."""

    def call(x: Array) -> Answer:
        outcome = agent.submit({"x": x}, deadline_s=DEADLINE_S).result()
        if not isinstance(outcome, Answer):
            raise RuntimeError(f"refused: {outcome}")
        return outcome

    return call


@contextlib.contextmanager
def _agent(bundle: Bundle, placement: str, endpoint: str | None) -> Iterator[Agent]:
    where = None if placement == "edge-only" else endpoint
    with Agent(AgentConfig(bundle=bundle.root, gateway=where, placements=(placement,), seed=1)) as agent:
        if where is not None and not agent.wait_ready(READY_S):
            raise RuntimeError("the gateway does not welcome the agent")
        yield agent


@contextlib.contextmanager
def _daemon(bundle: Path, folder: Path, port: int) -> Iterator[ServerProcess]:
    options = ("--bundle", str(bundle), "--state-dir", str(folder / "state"), "--http", f"127.0.0.1:{port}")
    command = python("-m", "edge_agent", "run", *options, "--set", "bundle.signatures=unsigned")
    with ServerProcess(command, core=None, log=folder / "agent.log") as server:
        yield server


def _until_ready(client: LocalClient, server: ServerProcess) -> None:
    give_up = time.monotonic() + READY_S
    while not client.is_ready():
        if time.monotonic() > give_up or not server.running:
            raise RuntimeError(f"the daemon is not ready: {server.tail_of_log()}")
        time.sleep(0.05)


class _OverUnix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def _curl(connection: http.client.HTTPConnection, model: str) -> Call:
    """A kept connection; bodies are made beforehand, answers read and no more."""
    bodies: dict[int, tuple[bytes, str]] = {}

    def call(x: Array) -> bytes:
        if id(x) not in bodies:
            request = local_messages.encode({"x": x}, deadline_s=DEADLINE_S, priority=None)
            bodies[id(x)] = b"".join(request.parts), str(request.json_nbytes)
        body, json_nbytes = bodies[id(x)]
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Inference-Header-Content-Length": json_nbytes})
        answer = connection.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {found[:200]!r}")
        return found

    return call


def _in_turn(
    calls: Mapping[str, Call], inputs: Sequence[Array], rounds: int, count: int
) -> dict[str, list[list[float]]]:
    """Seconds of each call, by round."""
    before = sys.getswitchinterval()
    found: dict[str, list[list[float]]] = {name: [] for name in calls}
    for call in calls.values():
        for x in inputs:
            call(x)
    for _ in range(rounds):
        for name in calls:
            found[name].append([])
        for i in range(count):
            for name, call in calls.items():
                x = inputs[i % len(inputs)]
                began = time.perf_counter()
                call(x)
                found[name][-1].append(time.perf_counter() - began)
    sys.setswitchinterval(before)
    return found


def _added(
    label: str, ours: Sequence[Sequence[float]], others: Sequence[Sequence[float]], what: str
) -> Iterable[Result]:
    for figure, share in (("p50", 0.5), ("p99", 0.99)):
        pairs = [(_quantile(one, share), _quantile(other, share)) for one, other in zip(ours, others, strict=True)]
        note = f"{what} {1e6 * statistics.median(other for _, other in pairs):.0f} us"
        yield Result.of(
            f"{label} over {what}, {figure}", "us", [1e6 * (one - other) for one, other in pairs], note=note
        )


def _quantile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)]
