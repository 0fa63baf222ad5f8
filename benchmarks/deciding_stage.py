"""Several agents that live through the same trace at the same time, each over an emulated link of its own.

Law: one agent is free, each of the others may use a single placement; that is the only difference. They ask at the same
moments of the trace, by clocks that are shifted against each other so that they meet neither on this machine's cores
nor in the gateway's queue. What became of each request is written down as the simulator does, so that both are judged
by the same code.
"""

from __future__ import annotations

import heapq
import math
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.link_process import LinkProcess
from benchmarks.peers.catalogue import gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from edge_agent.outcomes import Outcome as Ended
from partitioner.people.traces import BYTES_PER_MBIT, Trace
from partitioner.people.world import Outcome
from protocol.bundle import Bundle
from protocol.latency import PlacementCost
from protocol.sockets import parse_endpoint
from protocol.tensors import Array

FREE = "isthmus"
READY_S = 20.0
FIRST_MBIT = 20.0
DEADLINE_S = 2.0
P95_PER_QUARTILES = 1.645 / (2 * 0.6745)  # of a normal distribution: 95th percentile over interquartile distance


class Player:
    """One agent behind its link. `placement` "" leaves it the choice."""

    def __init__(self, bundle: Path, target: tuple[str, int], placement: str, *, rtt_s: float, slowdown: float) -> None:
        self.name = placement or FREE
        self.answers: list[Answer] = []
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._link = stack.enter_context(LinkProcess(target, rate_mbit_per_s=FIRST_MBIT, rtt_ms=rtt_s * 1e3))
            config = AgentConfig(
                bundle=bundle,
                gateway=self._link.endpoint,
                name=self.name,
                placements=(placement,) if placement else (),
                edge_slowdown=slowdown,
                seed=1,
            )
            self.agent = stack.enter_context(Agent(config))
            self._stack = stack.pop_all()

    def play(
        self, trace: Trace, moments: Sequence[float], inputs: Sequence[Array], name: str, *, start: float
    ) -> list[Outcome]:
        """Live through `trace` from monotonic second `start` on; ask at `moments` of it, in seconds."""
        outcomes: dict[int, Outcome] = {}
        done = threading.Event()

        def ended(number: int, asked: float, future: Future[Ended]) -> None:
            outcome = future.result()
            seconds = time.monotonic() - asked
            if isinstance(outcome, Answer):
                self.answers.append(outcome)
                decided = "" if outcome.degraded else outcome.placement
                outcomes[number] = Outcome(moments[number], decided, outcome.placement, seconds, False)
            else:
                outcomes[number] = Outcome(moments[number], "", "", DEADLINE_S, True)
            if len(outcomes) == len(moments):
                done.set()

        rates = zip(trace.starts_s, trace.bytes_per_s, strict=True)
        events: Iterable[tuple[float, int, float]] = heapq.merge(
            ((at, -1, rate) for at, rate in rates), ((at, i, 0.0) for i, at in enumerate(moments))
        )
        for at, number, rate in events:
            time.sleep(max(start + at - time.monotonic(), 0.0))
            if number < 0:
                self._set_rate(rate)
                continue
            feed = {name: inputs[number % len(inputs)]}
            asked = time.monotonic()
            self.agent.submit(feed, deadline_s=DEADLINE_S).add_done_callback(partial(ended, number, asked))
        if not done.wait(DEADLINE_S + READY_S):
            raise RuntimeError(f"{self.name}: {len(moments) - len(outcomes)} requests have not ended")
        return [outcomes[i] for i in range(len(moments))]

    def _set_rate(self, rate_bytes_per_s: float) -> None:
        if rate_bytes_per_s > 0:
            self._link.control(rate_mbit=rate_bytes_per_s / BYTES_PER_MBIT, blackhole=False)
        else:
            self._link.control(blackhole=True)

    def close(self) -> None:
        self._stack.close()


class Stage:
    """A gateway process and the players before it, between `__enter__` and `__exit__`."""

    def __init__(self, bundle: Path, folder: Path, inputs: Sequence[Array], *, rtt_s: float, slowdown: float) -> None:
        self._bundle, self._folder, self._inputs = bundle, folder, inputs
        self._rtt_s, self._slowdown = rtt_s, slowdown
        manifest = Bundle.open(bundle).manifest
        self.placements = tuple(p.id for p in manifest.placements)
        self.files = {p.id: (p.head or "", p.tail or "") for p in manifest.placements}
        self.input_name = manifest.model.inputs[0].name
        self.players: list[Player] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            server = stack.enter_context(gateway(self._bundle, core=None, log=self._folder / "gateway.log"))
            endpoint = parse_endpoint(server.ready_line())
            for placement in ("", *self.placements):
                player = Player(
                    self._bundle,
                    (endpoint.host, endpoint.port),
                    placement,
                    rtt_s=self._rtt_s,
                    slowdown=self._slowdown,
                )
                stack.callback(player.close)
                self.players.append(player)
            for player in self.players:
                if not player.agent.wait_ready(READY_S):
                    raise RuntimeError(f"{player.name} was not welcomed within {READY_S:g} s")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def play(self, trace: Trace, per_s: float) -> dict[str, list[Outcome]]:
        """Every player's outcomes, by its name. Takes as long as the trace."""
        moments = [i / per_s for i in range(int(trace.length_s * per_s))]
        start, shift_s = time.monotonic() + 0.1, 1 / per_s / len(self.players)
        found: dict[str, list[Outcome]] = {}

        def one(number: int, player: Player) -> None:
            found[player.name] = player.play(
                trace, moments, self._inputs, self.input_name, start=start + number * shift_s
            )

        threads = [threading.Thread(target=one, args=(i, p), daemon=True) for i, p in enumerate(self.players)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(found) < len(self.players):
            raise RuntimeError("a player has failed; its reason is on standard error")
        return found

    @property
    def free(self) -> Agent:
        """The agent that chooses."""
        return self.players[0].agent

    def costs(self) -> Mapping[str, PlacementCost]:
        """What each placement took, in the median of what has been answered so far: the simulator's prior and truth."""
        return {p.name: _cost(p.answers) for p in self.players[1:] if p.answers}


def _cost(answers: Sequence[Answer]) -> PlacementCost:
    timings = [a.timings for a in answers]
    local = [t.edge_s + t.encode_s for t in timings]
    remote = [t.decode_s + t.compute_s for t in timings]
    return PlacementCost(
        edge_s=statistics.median(t.edge_s for t in timings) if any(t.edge_s > 1e-4 for t in timings) else 0.0,
        encode_s=statistics.median(t.encode_s for t in timings),
        up_nbytes=statistics.median(a.up_nbytes for a in answers),
        decode_s=statistics.median(t.decode_s for t in timings),
        tail_s=statistics.median(t.compute_s for t in timings),
        down_nbytes=statistics.median(a.down_nbytes for a in answers),
        edge_spread=_spread(local),
        tail_spread=_spread(remote),
    )


def _spread(seconds: Sequence[float]) -> float:
    """How far the 95th percentile lies above the median: from the quartiles, as if log-normal, because a busy machine's
    outliers are not what times usually do."""
    if len(seconds) < 4 or min(seconds) <= 0:
        return 0.0
    low, _, high = statistics.quantiles(seconds, n=4)
    return math.exp(P95_PER_QUARTILES * math.log(high / low)) - 1
