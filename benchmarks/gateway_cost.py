"""Suite `gateway`: what the gateway costs beyond ZeroMQ and ONNX Runtime themselves.

Law: both servers answer the same requests in the same minute, in turn, from the same client; only ratios are reported
as such. Processor time is the server process's own (user + system), so that the client's does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq

from benchmarks import tails
from benchmarks.results import Options, Result
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from protocol import codecs, sockets, wire
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.messages import PlacementKind

CONCURRENCIES = (1, 8, 32)
WINDOW_S = 1.5
CPU_TARGET = 1.25  # at concurrency 32 on the light tail
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PARTS = wire.PART_NBYTES


@dataclass(frozen=True, slots=True)
class Load:
    """One measured stretch: requests per second, milliseconds of server time per request, median milliseconds."""

    per_s: float
    cpu_ms: float
    p50_ms: float


def run(options: Options) -> list[Result]:
    """Measure both servers on two tails at three concurrencies, interleaved `options.repeats` times."""
    repeats = 2 if options.quick else options.repeats
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for tail in ("tail_light", "tail_fc"):
            model = tails.build(tail, Path(folder))
            order = Order(
                model=model, target=Path(folder) / f"{tail}-bundle", cuts=(("squeeze",),), precision="fp32", bound=1.0
            )
            bundle = build(order, Silent()).target
            results += _compare(tail, model, bundle, repeats)
    return results


def _compare(tail: str, model: Path, bundle: Path, repeats: int) -> list[Result]:
    results = []
    with (
        _server([sys.executable, "-m", "benchmarks.bare_gateway", str(model)]) as bare,
        _server(
            [
                sys.executable,
                "-m",
                "cloud_gateway",
                "serve",
                str(bundle),
                "--bind",
                "tcp://127.0.0.1:0",
                "--http",
                "off",
            ]
        ) as ours,
    ):
        bare_client, our_client = _BareClient(bare[0]), _OurClient(ours[0], Bundle.open(bundle))
        for concurrency in CONCURRENCIES:
            pairs = []
            for _ in range(repeats):
                one = _drive(bare_client, bare[1], concurrency)
                pairs.append((one, _drive(our_client, ours[1], concurrency)))
            results += _results(f"{tail}, c={concurrency}", pairs, bounded=tail == "tail_light" and concurrency == 32)
        bare_client.close()
        our_client.close()
    return results


def _results(label: str, pairs: list[tuple[Load, Load]], *, bounded: bool) -> list[Result]:
    ratios = [ours.cpu_ms / bare.cpu_ms for bare, ours in pairs]
    name = f"{label}: server CPU over bare"
    cpu = Result.bounded(name, "x", ratios, at_most=CPU_TARGET) if bounded else Result.of(name, "x", ratios)
    return [
        cpu,
        Result.of(f"{label}: server CPU", "ms/request", [o.cpu_ms for _, o in pairs]),
        Result.of(f"{label}: server CPU, bare", "ms/request", [b.cpu_ms for b, _ in pairs]),
        Result.of(f"{label}: throughput over bare", "x", [o.per_s / b.per_s for b, o in pairs]),
        Result.of(f"{label}: p50 over bare", "x", [o.p50_ms / b.p50_ms for b, o in pairs]),
    ]


class _Client:
    """A DEALER that keeps requests in flight. Everything that can be made beforehand is."""

    def __init__(self, endpoint: str) -> None:
        self._context = sockets.make_context()
        self.socket = sockets.dealer(self._context, sockets.parse_endpoint(endpoint))
        self.socket.poll(5000, zmq.POLLOUT)
        rng = np.random.default_rng(3)
        self.tensor = rng.standard_normal((1, *tails.INPUT), dtype=np.float32)

    def send(self, number: int) -> None:
        raise NotImplementedError

    def receive(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()


class _BareClient(_Client):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        raw = memoryview(self.tensor.tobytes())
        self._parts = [raw[at : at + PARTS] for at in range(0, raw.nbytes, PARTS)]

    def send(self, number: int) -> None:
        self.socket.send_multipart([number.to_bytes(8, "little"), *self._parts], copy=False)

    def receive(self) -> int:
        return int.from_bytes(self.socket.recv_multipart()[0], "little")


class _OurClient(_Client):
    def __init__(self, endpoint: str, bundle: Bundle) -> None:
        super().__init__(endpoint)
        entry = bundle.manifest.placement(PlacementKind.FULL_CLOUD)
        if entry is None or entry.segment is None:
            raise RuntimeError("the benchmark's bundle has no full-cloud placement")
        self._segment = bytes.fromhex(entry.segment)
        self._boot = os.urandom(8)
        header, data = codecs.encode("x", self.tensor, "raw")
        self._headers, self._payload, self._checksum = (header,), (data,), wire.checksum([data])
        self.socket.send_multipart(wire.pack(m.Hello(self._boot, "benchmark", "benchmark", bytes(32))))
        self.socket.recv_multipart()

    def send(self, number: int) -> None:
        request = m.RequestId(self._boot, number)
        infer = m.Infer(request, self._segment, 1, 10_000_000, 4, self._headers, self._checksum)
        self.socket.send_multipart(wire.pack(infer, self._payload), copy=False)

    def receive(self) -> int:
        message = wire.unpack_header(self.socket.recv_multipart()[0])
        if not isinstance(message, m.Result):
            raise RuntimeError(f"the gateway answered {message}")
        return message.request.sequence


_numbers = iter(range(1, 2**40))


def _drive(client: _Client, pid: int, concurrency: int) -> Load:
    """Keep `concurrency` requests in flight for a while, after a short lead-in that is not counted."""
    _stretch(client, concurrency, WINDOW_S / 5)
    before = _cpu_s(pid)
    count, elapsed_s, latencies = _stretch(client, concurrency, WINDOW_S)
    return Load(count / elapsed_s, (_cpu_s(pid) - before) / count * 1e3, float(np.median(latencies)) * 1e3)


def _stretch(client: _Client, concurrency: int, seconds: float) -> tuple[int, float, deque[float]]:
    sent_at: dict[int, float] = {}
    latencies: deque[float] = deque()
    clock: Callable[[], float] = time.perf_counter

    def send() -> None:
        number = next(_numbers)
        sent_at[number] = clock()
        client.send(number)

    start = clock()
    for _ in range(concurrency):
        send()
    while sent_at:
        number = client.receive()
        now = clock()
        latencies.append(now - sent_at.pop(number))
        if now - start < seconds:
            send()
    return len(latencies), clock() - start, latencies


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextmanager
def _server(command: list[str]) -> Iterator[tuple[str, int]]:
    """A server process; yields its endpoint and process id."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line.startswith("ready "):
            raise RuntimeError(f"{' '.join(command)} did not become ready")
        yield line.split()[1], process.pid
    finally:
        process.terminate()
        process.wait(15)
