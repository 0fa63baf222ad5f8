"""Suite `link`: how far the emulated link is from the link it claims to be.

Law: the receiver is the witness. Rates are taken between the first and the last arrival at the far end, never from what
a sender could push into a buffer. The emulator runs in its own process, as it does under every other suite.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.link import Address
from benchmarks.link_process import LinkProcess
from benchmarks.results import Options, Result
from benchmarks.shaping import BITS_PER_BYTE

RATES_MBIT_PER_S = (1.0, 2.0, 10.0, 100.0)
RTTS_MS = (2.0, 20.0, 100.0)
STEPS_MBIT_PER_S = (100.0, 10.0, 2.0)
TRANSFER_S = 1.1
PINGS = 10
PING_NBYTES = 32
STEP_S = 0.7
SETTLE_S = 0.1  # from a rate's change until the chunk that was being serialised and the wire behind it are through
RATE_ERROR_PERCENT = 2.0
RTT_ERROR_MS = 1.0
CPU_PERCENT = 30.0
READ_NBYTES = 1 << 16
TIMEOUT_S = 20.0

Arrivals = list[tuple[float, int]]  # (monotonic seconds, bytes so far)


def run(options: Options) -> list[Result]:
    """Measure rates, round trips, a rate that steps down in mid-stream, and the emulator's CPU share."""
    repeats = min(options.repeats, 2) if options.quick else options.repeats
    results = []
    cpu_percent: list[float] = []
    for rate in RATES_MBIT_PER_S:
        samples = [_throughput(rate, TRANSFER_S) for _ in range(repeats)]
        errors = [100 * (measured / rate - 1) for measured, _ in samples]
        results.append(Result.bounded(f"throughput error, {rate:g} Mbit/s", "%", errors, at_most=RATE_ERROR_PERCENT))
        cpu_percent = [share for _, share in samples]
    for rtt_ms in RTTS_MS:
        errors = [_round_trip_ms(rtt_ms) - rtt_ms for _ in range(repeats)]
        note = f"median of {PINGS} pings of {PING_NBYTES} B each"
        results.append(
            Result.bounded(f"round trip error, {rtt_ms:g} ms", "ms", errors, at_most=RTT_ERROR_MS, note=note)
        )
    results += _steps(repeats)
    note = "of one core, sending at 100 Mbit/s"
    return [*results, Result.bounded("emulator CPU, 100 Mbit/s", "%", cpu_percent, at_most=CPU_PERCENT, note=note)]


def _throughput(rate_mbit_per_s: float, transfer_s: float) -> tuple[float, float]:
    """Send for about `transfer_s`; return the rate seen by the receiver in Mbit/s and the emulator's CPU share in %."""
    nbytes = round(rate_mbit_per_s * 1e6 / BITS_PER_BYTE * transfer_s)
    with _sink() as (address, arrivals, drained), LinkProcess(address, rate_mbit_per_s=rate_mbit_per_s) as link:
        before, began_s = link.stats()["cpu_s"], time.monotonic()
        with _client(link.address) as client:
            client.sendall(bytes(nbytes))
            client.shutdown(socket.SHUT_WR)
            _wait(drained)
        cpu_s, wall_s = link.stats()["cpu_s"] - before, time.monotonic() - began_s
    return _rate_mbit_per_s(arrivals), 100 * cpu_s / wall_s


def _round_trip_ms(rtt_ms: float) -> float:
    """Return the median round trip of small messages in ms; the loopback's own 0.05-0.1 ms are part of it."""
    with (
        _echo() as address,
        LinkProcess(address, rate_mbit_per_s=100, rtt_ms=rtt_ms) as link,
        _client(link.address) as client,
    ):
        _ping_s(client)  # the first one pays for the connection
        return statistics.median(_ping_s(client) for _ in range(PINGS)) * 1e3


def _steps(repeats: int) -> list[Result]:
    runs = [_stepped_mbit_per_s() for _ in range(repeats)]
    results = []
    for index, rate in enumerate(STEPS_MBIT_PER_S):
        errors = [100 * (run[index] / rate - 1) for run in runs]
        name = f"rate step {'->'.join(f'{step:g}' for step in STEPS_MBIT_PER_S)}, at {rate:g} Mbit/s"
        note = f"from {SETTLE_S * 1e3:.0f} ms after the step, full queue"
        results.append(Result.bounded(name, "%", errors, at_most=RATE_ERROR_PERCENT, note=note))
    return results


def _stepped_mbit_per_s() -> list[float]:
    """Keep the uplink full while its rate steps down; return the rate seen by the receiver after each step."""
    with (
        _sink() as (address, arrivals, drained),
        LinkProcess(address, rate_mbit_per_s=100, rtt_ms=10) as link,
        _client(link.address) as client,
    ):
        stop = threading.Event()
        sender = threading.Thread(target=_send_until, args=(client, stop), daemon=True)
        sender.start()
        spans = []
        for rate in STEPS_MBIT_PER_S:
            link.control(rate_mbit=rate)
            link.stats()  # by its answer the rate is in force
            began_s = time.monotonic()
            stop.wait(STEP_S)
            spans.append((began_s + SETTLE_S, time.monotonic()))
        stop.set()
        link.control(rate_mbit=None)  # nobody measures the rest of the queue
        sender.join(TIMEOUT_S)
        client.shutdown(socket.SHUT_WR)
        _wait(drained)
    return [_rate_mbit_per_s([a for a in arrivals if begin <= a[0] <= end]) for begin, end in spans]


def _send_until(client: socket.socket, stop: threading.Event) -> None:
    chunk = bytes(READ_NBYTES)
    while not stop.is_set():
        client.sendall(chunk)


def _rate_mbit_per_s(arrivals: Sequence[tuple[float, int]]) -> float:
    (first_s, first_nbytes), (last_s, last_nbytes) = arrivals[0], arrivals[-1]
    return (last_nbytes - first_nbytes) * BITS_PER_BYTE / (last_s - first_s) / 1e6


def _ping_s(client: socket.socket) -> float:
    began_s = time.perf_counter()
    client.sendall(bytes(PING_NBYTES))
    missing = PING_NBYTES
    while missing:
        if not (part := client.recv(missing)):
            raise ConnectionError("the echo server closed the connection")
        missing -= len(part)
    return time.perf_counter() - began_s


def _wait(drained: threading.Event) -> None:
    if not drained.wait(TIMEOUT_S):
        raise TimeoutError(f"the link did not deliver the stream within {TIMEOUT_S:g} s")


@contextmanager
def _client(address: Address) -> Iterator[socket.socket]:
    with socket.create_connection(address, TIMEOUT_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


@contextmanager
def _sink() -> Iterator[tuple[Address, Arrivals, threading.Event]]:
    """Swallow one connection's bytes and note when they came; the event is set at the end of the stream."""
    arrivals: Arrivals = []
    drained = threading.Event()

    def swallow(end: socket.socket) -> None:
        total_nbytes = 0
        while part := end.recv(READ_NBYTES):
            total_nbytes += len(part)
            arrivals.append((time.monotonic(), total_nbytes))
        drained.set()

    with _served(swallow) as address:
        yield address, arrivals, drained


@contextmanager
def _echo() -> Iterator[Address]:
    def echo(end: socket.socket) -> None:
        while part := end.recv(READ_NBYTES):
            end.sendall(part)

    with _served(echo) as address:
        yield address


@contextmanager
def _served(serve: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Accept one connection on loopback and serve it in a thread."""

    def work() -> None:
        with contextlib.suppress(OSError):  # the link may end with a reset
            end, _ = listener.accept()
            with end:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                serve(end)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        server = threading.Thread(target=work, name="benchmark-server", daemon=True)
        server.start()
        yield listener.getsockname()[:2]
        server.join(TIMEOUT_S)
