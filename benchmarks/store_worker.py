"""A process that stores, forwards and takes as fast as it can until it is killed, and says what was acknowledged to it.

    python -m benchmarks.store_worker FOLDER
    ready | put TICKET X | sent TICKET | taking TICKET | took TICKET X+1         one line each, written at once

A line is written after what it says has happened, but for `taking`, which comes before: a take that no `took` follows
is the one that the kill may have cut off between its commit and its return.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from edge_agent.outcomes import Answer, Outcome, StageTimings
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.pacing import Pace
from edge_agent.store.tickets import Caps, State, Wish
from protocol.messages import RequestId
from protocol.tensors import Array, Tensors

PUTTERS = 4
MOST_HELD = 60  # putters wait for takers, or the disk fills
X_NBYTES = 2048
CAPS = Caps(most_tickets=100_000)
# What is killed all the time is no poison.
PACE = Pace(in_flight=4, quiet_s=0.0, look_s=0.001, most_unreturned=1_000_000)


class Adder:
    """Stands for the agent: answers x + 1, a little later, on a thread of its own."""

    def __init__(self, told: Callable[[str], None] = lambda line: None) -> None:
        self._told = told

    def submit(
        self, inputs: Tensors, *, deadline_s: float, priority: int = 4, identity: RequestId | None = None
    ) -> Future[Outcome]:
        self._told(f"sent {identity}")
        future: Future[Outcome] = Future()
        threading.Timer(0.002, lambda: future.set_result(answer(int(inputs["x"][0]) + 1))).start()
        return future


def answer(value: int) -> Answer:
    outputs: dict[str, Array] = {"y": np.array([value], np.int64)}
    return Answer("", outputs, "edge-only", "edge-only", "int8", "adder", "", StageTimings(), 0, 0, 1, 1)


def wish(x: int) -> Wish:
    values = np.zeros(X_NBYTES // 8, np.int64)
    values[0] = x
    return Wish({"x": values})


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def main() -> None:
    start_s = int(time.time() * 1e3) % 10**9
    numbers = itertools.count(start_s * 1000)
    with Journal(Path(sys.argv[1]), CAPS) as journal:
        journal.totals()
        say("ready")

        def put() -> None:
            while True:
                if journal.totals().held > MOST_HELD:
                    time.sleep(0.005)
                    continue
                x = next(numbers)
                say(f"put {journal.put(wish(x))} {x}")

        def take() -> None:
            while True:
                for ticket in journal.entries(state=State.ANSWERED, most=16):
                    say(f"taking {ticket.id}")
                    found = journal.take(ticket.id)
                    if found is not None and found.answer is not None:
                        say(f"took {ticket.id} {int(found.answer.outputs['y'][0])}")

        adder = Adder(say)
        for work in (*[put] * PUTTERS, take):
            threading.Thread(target=work, daemon=True).start()
        with Forwarder(journal, lambda: adder, accepts=lambda model, inputs: None, pace=PACE):
            threading.Event().wait()


if __name__ == "__main__":
    main()
