"""An agent that can be killed: a process of its own, and in it a caller who asks and says what came of it.

    python -m benchmarks.faults.device_process BUNDLE --gateway tcp://127.0.0.1:7447 --first 1 [--store DIR]
    ready | ask NUMBER AT DEADLINE | end NUMBER AT BY ECHO ATTEMPTS HEDGED | stood SINCE UNTIL | sent COUNT HEDGES
    put TICKET NUMBER | refused | taking TICKET | took TICKET ECHO                                with a store

A line is written before what it announces and after what it tells, so a kill can only cut off what it says itself.
End of input: ask no more, and end when everything has ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.faults.account import Ask, End
from benchmarks.faults.load import Load
from benchmarks.faults.numbering import WIDTHS, numbers_in, question
from benchmarks.faults.tun import enter_namespace
from edge_agent.agent import Agent, AgentConfig
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.pacing import Pace
from edge_agent.store.tickets import State, StoreError, Wish
from protocol.tensors import Tensors, check_inputs

FIND_S = 60.0
PUT_EVERY_S = 0.1
MOST_HELD = 20
LAST_S = 60.0
# What is killed all the time is no poison, and there is always somebody who asks.
PACE = Pace(quiet_s=0.0, look_s=0.01, attempt_s=2.0, most_unreturned=1_000_000)


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def tell(event: Ask | End) -> None:
    if isinstance(event, Ask):
        say("ask", event.number, event.at, event.deadline)
    else:
        say("end", event.number, event.at, event.by, event.echo, event.attempts, int(event.hedged))


class Storing:
    """Puts a request into the store now and then, and takes what is answered."""

    def __init__(self, agent: Agent, folder: Path, first: int, rows: int) -> None:
        self._agent, self._next, self._rows = agent, first, rows
        self.journal = Journal(folder)
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._put, self._take)]

    def run(self, stack: ExitStack) -> None:
        """Until the stack is closed."""
        stack.enter_context(self.journal)
        inputs = self._agent.bundle.manifest.model.inputs
        stack.enter_context(
            Forwarder(
                self.journal, lambda: self._agent, accepts=lambda _, tensors: check_inputs(inputs, tensors), pace=PACE
            )
        )
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Put nothing more; return when all has been taken, or nobody would wait longer."""
        self._enough.set()
        until = time.monotonic() + LAST_S
        while self.journal.totals().held and time.monotonic() < until:
            time.sleep(0.02)

    def _put(self) -> None:
        while not self._enough.wait(PUT_EVERY_S):
            if self.journal.totals().held > MOST_HELD:
                continue
            try:
                say("put", self.journal.put(Wish(self._question())), self._next)
            except StoreError:
                say("refused")
            self._next += 1

    def _question(self) -> Tensors:
        """The rows behind the first bear no number: they only take room."""
        x = np.zeros((self._rows, WIDTHS[0]), np.float32)
        x[:1] = question(self._next)["x"]
        return {"x": x}

    def _take(self) -> None:
        while True:
            for ticket in self.journal.entries(state=State.ANSWERED, most=16):
                say("taking", ticket.id)
                found = self.journal.take(ticket.id)
                if found is not None and found.answer is not None:
                    echo = numbers_in(found.answer.outputs)
                    say("took", ticket.id, echo[0] if len(echo) == 1 else 0)
            time.sleep(0.02)


def main(argv: Sequence[str] | None = None) -> None:
    """Ask until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gateway", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--per-s", type=float, required=True)
    parser.add_argument("--deadline-s", type=float, required=True)
    parser.add_argument("--slowdown", type=float, required=True)
    parser.add_argument("--placements", required=True)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--first-stored", type=int, default=1 << 23)
    parser.add_argument("--stored-rows", type=int, default=1)
    parser.add_argument("--namespace", type=int)
    asked = parser.parse_args(argv)
    if asked.namespace is not None:
        enter_namespace(asked.namespace)
    config = AgentConfig(
        asked.bundle, asked.gateway, edge_slowdown=asked.slowdown, placements=tuple(asked.placements.split(",")),
        insecure=asked.namespace is not None, seed=1,
    )  # fmt: skip
    with ExitStack() as stack:
        agent = stack.enter_context(Agent(config))
        load = Load(
            agent, tell, lambda since, until: say("stood", since, until),
            per_s=asked.per_s, deadline_s=asked.deadline_s, first=asked.first,
        )  # fmt: skip
        storing = None if asked.store is None else Storing(agent, asked.store, asked.first_stored, asked.stored_rows)
        if storing is not None:
            storing.run(stack)
        load.start()
        say("ready")
        sys.stdin.read()
        load.stop()
        if storing is not None:
            storing.finish()
        time.sleep(asked.deadline_s)
        counters = agent.look(10.0).counters
        say("sent", counters.get("sent", 0), counters.get("hedges", 0))


if __name__ == "__main__":
    main()
