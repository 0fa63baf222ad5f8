"""A closed loop: so many clients, each asking again once it has its answer. Latency under a load that gives way."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.peers.catalogue import Client, Running
from benchmarks.peers.processes import Cores, pinned
from benchmarks.peers.questions import COUNT, Questions

LEAD_IN = 0.25  # of the window, before it: not counted
CHECK_EVERY = 16
SILENCE_LIMIT_S = 8.0


@dataclass(frozen=True, slots=True)
class Load:
    """One measured stretch. `wrong` counts answers that were checked and differ from ONNX Runtime's."""

    per_s: float
    cpu_ms: float  # of the server's whole tree, per request
    p50_ms: float
    p99_ms: float
    wrong: int
    client_cores: float  # near 1: the client, not the server, was the bottleneck


def drive(running: Running, questions: Questions, cores: Cores, *, concurrency: int, window_s: float) -> Load:
    """Measure one server for one window, alone: it is resumed for it and paused afterwards.

    Raises AnswerError, OSError if it answers wrongly or not at all.
    """
    running.server.resume()
    try:
        with pinned(cores.client):
            client = running.connect(concurrency)
            try:
                return _measured(client, running, questions, concurrency, window_s)
            finally:
                client.close()
    finally:
        running.server.pause()


def _measured(client: Client, running: Running, questions: Questions, concurrency: int, window_s: float) -> Load:
    loop = _Loop(client, questions, concurrency)
    loop.until(time.perf_counter() + window_s * LEAD_IN)
    loop.forget()
    cpu_s, own_s, began = running.server.cpu_s(), time.process_time(), time.perf_counter()
    loop.until(began + window_s)
    elapsed_s = time.perf_counter() - began
    cpu_s, own_s = running.server.cpu_s() - cpu_s, time.process_time() - own_s
    latencies = np.array(loop.latencies_s)
    loop.drain()
    if not len(latencies):
        raise TimeoutError(f"no answer within a window of {window_s:.1f} s, though all came afterwards")
    p50, p99 = np.percentile(latencies, (50, 99)) * 1e3
    count = len(latencies)
    return Load(count / elapsed_s, cpu_s / count * 1e3, float(p50), float(p99), loop.wrong, own_s / elapsed_s)


class _Loop:
    def __init__(self, client: Client, questions: Questions, concurrency: int) -> None:
        self._client = client
        self._questions = questions
        self._asked: dict[int, tuple[int, float]] = {}
        self._answers = 0
        self.latencies_s: list[float] = []
        self.wrong = 0
        for slot in range(concurrency):
            self._ask(slot, slot % COUNT)

    def until(self, end: float) -> None:
        while (now := time.perf_counter()) < end:
            self._step(end - now, again=True)

    def forget(self) -> None:
        self.latencies_s.clear()

    def drain(self) -> None:
        """Take the answers that are still out."""
        while self._asked:
            self._step(SILENCE_LIMIT_S, again=False)

    def _step(self, wait_s: float, *, again: bool) -> None:
        arrived = self._client.arrived(wait_s)
        now = time.perf_counter()
        if not arrived and wait_s >= SILENCE_LIMIT_S:
            raise TimeoutError(f"{len(self._asked)} requests were never answered")
        for slot, answer in arrived:
            which, asked_at = self._asked.pop(slot)
            self.latencies_s.append(now - asked_at)
            self._answers += 1
            if self._answers % CHECK_EVERY == 0:
                self.wrong += not self._questions.is_right(which, answer)
            if again:
                self._ask(slot, (which + 1) % COUNT)

    def _ask(self, slot: int, which: int) -> None:
        self._asked[slot] = (which, time.perf_counter())
        self._client.send(slot, which)
