"""A caller who asks at a steady pace, whatever becomes of what was asked before, and writes everything down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from benchmarks.faults.account import Ask, End
from benchmarks.faults.numbering import numbers_in, question
from edge_agent.agent import Agent
from edge_agent.outcomes import Outcome, Refusal
from protocol.errors import IsthmusError

Tell = Callable[[Ask | End], None]
StoodStill = Callable[[float, float], None]  # from, to: monotonic seconds
NOTICED_S = 0.05  # woken up so late, the process was not running


class Load:
    """Asks an agent `per_s` times a second, each with `deadline_s`, from `start` to `stop`. `first` is its number.

    It notices when its process did not run although it should have: nobody can be told anything then.
    """

    def __init__(
        self, agent: Agent, tell: Tell, stood_still: StoodStill, *, per_s: float, deadline_s: float, first: int = 1
    ) -> None:
        self._agent, self._tell, self._stood_still = agent, tell, stood_still
        self._every_s, self._deadline_s = 1 / per_s, deadline_s
        self._next = first
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; what was asked may still be open. Safe to call twice."""
        self._enough.set()
        self._thread.join()

    def _main(self) -> None:
        due = time.monotonic()
        while not self._enough.wait(max(0.0, due - time.monotonic())):
            if (now := time.monotonic()) - due > NOTICED_S:
                self._stood_still(due, now)
            self._ask(self._next)
            self._next += 1
            due = max(due + self._every_s, time.monotonic())  # after a pause no burst

    def _ask(self, number: int) -> None:
        now = time.monotonic()
        self._tell(Ask(number, now, now + self._deadline_s))
        try:
            future = self._agent.submit(question(number), deadline_s=self._deadline_s)
        except IsthmusError:
            self._tell(End(number, time.monotonic(), "raised", 0))
            return

        def told(future: Future[Outcome]) -> None:
            self._tell(end_of(number, future.result(), at=time.monotonic()))

        future.add_done_callback(told)


def end_of(number: int, outcome: Outcome, *, at: float) -> End:
    if isinstance(outcome, Refusal):
        return End(number, at, str(outcome.code), 0)
    echo = numbers_in(outcome.outputs)
    by = "gateway" if outcome.gateway else "device"
    return End(number, at, by, echo[0] if len(echo) == 1 else 0, outcome.attempts, outcome.hedged)
