"""Suite `chunks`: what else waits while a large payload crosses a slow link, in chunks and in one message.

Law: the same agent, gateway and emulated link, in turn: once as it is, once with an agent that believes that chunks are
never worth it. While 1.6 MB cross, an urgent request of one row (4 kB) is asked for again and again and the agent pings
as ever. The large request's own time says what the chunks cost; on a fast link none are sent. The last part asks which
link is too slow: there one message dies with its connection, whose heartbeats it holds up.

`--set mbit=1` `--set rows=100`
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.link import LinkEmulator
from benchmarks.peers.suite import listed
from benchmarks.results import Options, Result
from benchmarks.roundtrip import null_bundle
from cloud_gateway.config import from_flags, load_settings
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from protocol import messages as m
from protocol.control import chunking

ROW_NBYTES = 4096
ROWS = 400  # 1.6 MB
RTT_MS = 20.0
SLOW_MBIT_PER_S = ("5", "1")
FAST_MBIT_PER_S = 200.0
DYING_MBIT_PER_S = 0.25  # a part of 128 KiB takes 4.2 s, and heartbeats have to be answered within 3
DYING_ROWS = 100
# Three chunks of 30 ms, a round trip, and what the urgent request takes itself: 33 ms at 1 Mbit/s.
MOST_WAIT_MS = 200.0
MOST_COST = 1.05
PAUSE_S = 0.1  # between two urgent requests
LONG_S = 120.0


class Seen(NamedTuple):
    """One large request, and what waited meanwhile, in seconds."""

    large_s: float
    urgent_s: list[float]
    pings_s: list[float]
    chunks: int
    links_lost: int
    answered: bool


class Stage:
    """A gateway and an agent with a link in between. The agent may only go full-cloud."""

    def __init__(self, gateway: Gateway, bundle: Path, mbit_per_s: float, stack: contextlib.ExitStack) -> None:
        target = (gateway.endpoint.host, gateway.endpoint.port)
        link = LinkEmulator(
            target, uplink_mbit_per_s=mbit_per_s, downlink_mbit_per_s=max(4 * mbit_per_s, 10.0), rtt_ms=RTT_MS
        )
        stack.enter_context(link)
        config = AgentConfig(bundle=bundle, gateway=link.endpoint, placements=("full-cloud",), name="chunks")
        self.agent = stack.enter_context(Agent(config))
        if not self.agent.wait_ready(30):
            raise TimeoutError("the agent was not welcomed within 30 s")
        self._pings_s: list[float] = []
        self._watch_pings()
        for _ in range(5):
            self._ask(1, priority=4)

    def cross(self, rows: int, *, urgent: bool) -> Seen:
        before = self._counters()
        self._pings_s.clear()
        began = time.monotonic()
        large = self.agent.submit(_rows(rows), deadline_s=LONG_S)
        waits = []
        while urgent and not large.done():
            threading.Event().wait(PAUSE_S)
            if not large.done():
                waits.append(self._ask(1, priority=0))
        outcome = large.result(timeout=LONG_S + 10)
        large_s = time.monotonic() - began
        after = self._counters()
        return Seen(
            large_s,
            waits,
            list(self._pings_s),
            after.get("chunks", 0) - before.get("chunks", 0),
            after.get("links_lost", 0) - before.get("links_lost", 0),
            isinstance(outcome, Answer),
        )

    def _ask(self, rows: int, *, priority: int) -> float:
        began = time.monotonic()
        self.agent.submit(_rows(rows), deadline_s=LONG_S, priority=priority).result(timeout=LONG_S + 10)
        return time.monotonic() - began

    def _counters(self) -> dict[str, int]:
        return dict(self.agent.look(30.0).counters)

    def _watch_pings(self) -> None:
        """The agent tells nobody how long its pings took: look over its shoulder."""
        (link,) = self.agent.uplink.gateways.links.values()
        ponged = link.ponged

        def heard(pong: m.Pong, *, in_use: bool, now: float) -> None:
            if (out := link.out.get((-pong.number, 0))) is not None:
                self._pings_s.append(now - out.at)
            ponged(pong, in_use=in_use, now=now)

        link.ponged = heard  # type: ignore[method-assign]


def run(options: Options) -> list[Result]:
    rounds = 1 if options.quick else options.repeats
    rows = int(options.settings.get("rows", str(ROWS // 8 if options.quick else ROWS)))
    rates = [float(text) for text in listed(options.settings, "mbit", SLOW_MBIT_PER_S)]
    results = []
    with tempfile.TemporaryDirectory(prefix="isthmus-chunks-") as name, contextlib.ExitStack() as stack:
        bundle = null_bundle(Path(name), ROW_NBYTES)
        flags = from_flags(bundles=(bundle,), bind="tcp://127.0.0.1:0", http="off")
        gateway = stack.enter_context(Gateway(load_settings(env={}, overrides=flags).settings))
        for rate in rates:
            results += _slow(gateway, bundle, rate, rows, rounds)
        results += _fast(gateway, bundle, rows, rounds)
        if not options.quick:
            results += _dying(gateway, bundle, rounds)
    return results


def _slow(gateway: Gateway, bundle: Path, mbit_per_s: float, rows: int, rounds: int) -> list[Result]:
    chunked: list[Seen] = []
    whole: list[Seen] = []
    alone: list[float] = []
    with contextlib.ExitStack() as stack:
        stage = Stage(gateway, bundle, mbit_per_s, stack)
        for _ in range(rounds):
            chunked.append(stage.cross(rows, urgent=True))
            with never_chunked():
                whole.append(stage.cross(rows, urgent=True))
            in_chunks = stage.cross(rows, urgent=False).large_s
            with never_chunked():
                alone.append(in_chunks / stage.cross(rows, urgent=False).large_s)
    what = f"{rows * ROW_NBYTES / 1e6:.1f} MB at {mbit_per_s:g} Mbit/s"
    count = statistics.median(seen.chunks for seen in chunked)
    return [
        *_waits(f"{what}, urgent request", [seen.urgent_s for seen in chunked], [seen.urgent_s for seen in whole]),
        *_waits(f"{what}, Ping", [seen.pings_s for seen in chunked], [seen.pings_s for seen in whole]),
        Result.bounded(
            f"{what}: time in {count:.0f} chunks over one message, nothing else", "x", alone, at_most=MOST_COST
        ),
        Result.of(f"{what}: connections lost, in one message", "", [float(seen.links_lost) for seen in whole]),
    ]


def _waits(what: str, chunked: list[list[float]], whole: list[list[float]]) -> list[Result]:
    results = []
    for how, rounds, bound in (("in chunks", chunked, MOST_WAIT_MS), ("in one message", whole, math.inf)):
        samples = [wait * 1e3 for waits in rounds for wait in waits]
        if samples:
            name, worst = f"{what}, {how}: median", [max(waits) * 1e3 for waits in rounds if waits]
            promised = bound < math.inf
            results += [
                Result.bounded(name, "ms", samples, at_most=bound) if promised else Result.of(name, "ms", samples),
                Result.of(f"{what}, {how}: longest of a crossing", "ms", worst),
            ]
    return results


def _fast(gateway: Gateway, bundle: Path, rows: int, rounds: int) -> list[Result]:
    ratios, chunks = [], []
    with contextlib.ExitStack() as stack:
        stage = Stage(gateway, bundle, FAST_MBIT_PER_S, stack)
        for _ in range(3 * rounds):
            as_is = stage.cross(rows, urgent=False)
            with never_chunked():
                ratios.append(as_is.large_s / stage.cross(rows, urgent=False).large_s)
            chunks.append(float(as_is.chunks))
    what = f"{rows * ROW_NBYTES / 1e6:.1f} MB at {FAST_MBIT_PER_S:g} Mbit/s"
    return [
        Result.bounded(f"{what}: chunks sent", "", chunks, at_most=0.0),
        Result.of(f"{what}: time over that of an agent without chunks", "x", ratios),
    ]


def _dying(gateway: Gateway, bundle: Path, rounds: int) -> list[Result]:
    results = []
    for how, manner in (("in chunks", contextlib.nullcontext()), ("in one message", never_chunked())):
        with contextlib.ExitStack() as stack, manner:
            stage = Stage(gateway, bundle, DYING_MBIT_PER_S, stack)
            seen = [stage.cross(DYING_ROWS, urgent=False) for _ in range(min(rounds, 2))]
        what = f"{DYING_ROWS * ROW_NBYTES / 1e6:.1f} MB at {DYING_MBIT_PER_S:g} Mbit/s, {how}"
        results += [
            Result.of(f"{what}: time to an end", "s", [s.large_s for s in seen]),
            Result.of(f"{what}: answered", "", [float(s.answered) for s in seen]),
            Result.of(f"{what}: connections lost", "", [float(s.links_lost) for s in seen]),
        ]
    return results


@contextlib.contextmanager
def never_chunked() -> Iterator[None]:
    """As long as this lasts, no payload seems large enough to this process's agents."""
    usual = chunking.SLOW_TRANSFER_S
    chunking.SLOW_TRANSFER_S = math.inf
    try:
        yield
    finally:
        chunking.SLOW_TRANSFER_S = usual


def _rows(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {"x": rng.standard_normal((count, ROW_NBYTES // 4)).astype(np.float32)}
