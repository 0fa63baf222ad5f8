"""The thread that hands stored requests to the agent, and its answers to the store.

    wait until it may -> count the attempt, on the disk -> agent.submit -> outcome -> answered | refused | waits again

An outcome is written down before the next attempt of the same request can begin, and a request that ended meanwhile
(dropped, expired) stays ended. Requests that were in hand when the process last ended go alone: if one of them is what
ended it, it takes nobody with it, and after `most_unreturned` times it is refused for good.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol, Self

from edge_agent.outcomes import Answer, Outcome, Refusal
from edge_agent.store.journal import Journal
from edge_agent.store.pacing import FOR_GOOD, Pace, Pacing
from edge_agent.store.tickets import Accepts, State, StoreError, Ticket
from protocol.control.flights import RefusalCode
from protocol.errors import InputError, WireError
from protocol.messages import RequestId
from protocol.tensors import Tensors

SWEEP_S = 30.0
_PRIORITY = 9  # whatever its turn in the store, it is behind every live request at the agent and the gateway
_NO_MODEL_S = 5.0  # look again then, unless woken
_TROUBLE_S = 5.0  # the disk failed: look again then


class Carrier(Protocol):
    """What of an agent this room needs. `identity` is the request's id over restarts of the process."""

    def submit(
        self, inputs: Tensors, *, deadline_s: float, priority: int = 4, identity: RequestId | None = None
    ) -> Future[Outcome]: ...


class Forwarder:
    """`start` and `close`; `wake` when a gateway has come back, or another agent answers.

    `current` gives the agent that answers now, and `accepts` tells what its model takes from what it does not; `live`
    says how many requests of others are unanswered, `serves` the name of the model (requests for others wait), or None
    while there is none (all wait). `said` hears what a log should hold.
    """

    def __init__(
        self,
        journal: Journal,
        current: Callable[[], Carrier],
        *,
        accepts: Accepts,
        live: Callable[[], int] = lambda: 0,
        serves: Callable[[], str | None] = lambda: "",
        pace: Pace | None = None,
        seed: int | None = None,
        said: Callable[[str], None] = lambda sentence: None,
        crashed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._journal = journal
        self._current = current
        self._accepts = accepts
        self._live = live
        self._serves = serves
        self._pace = pace or Pace()
        self._pacing = Pacing(self._pace, random.Random(seed).random)
        self._said = said
        self._crashed = crashed
        self._flying: dict[str, Ticket] = {}
        self._landed: deque[tuple[str, Outcome | BaseException]] = deque()
        self._changed = threading.Event()
        self._better = False
        self._closing = False
        self._until = -math.inf
        self._sweep_at = -math.inf
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self.why = ""  # nothing is being sent because of this; for people

    @property
    def in_flight(self) -> int:
        """Stored requests in the agent's hands."""
        return len(self._flying)

    def start(self) -> None:
        self._journal.listen(self._changed.set)
        self._thread.start()

    def wake(self) -> None:
        """Something has changed for the better: try at once what waits for it."""
        self._better = True
        self._changed.set()

    def close(self, grace_s: float = 0.0) -> None:
        """Send nothing new; what the agent has not answered in `grace_s` waits again.

        Close this first, then the agent, the journal last.
        """
        self._until = time.monotonic() + grace_s
        self._closing = True
        self._changed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._changed.wait(self._turn())
                self._changed.clear()
            self._land()
            while self._flying and (left_s := self._until - time.monotonic()) > 0:
                self._changed.wait(left_s)
                self._changed.clear()
                self._land()
            for ticket in self._flying:
                self._journal.came_back(ticket)
        except StoreError as error:  # only at the end: nothing was lost, these count as unreturned
            self._said(str(error))
        except BaseException as error:  # the top of the thread: a bug
            self._crashed(error)
            raise

    def _turn(self) -> float | None:
        """One look at everything; the seconds until the next, None if only a change matters."""
        try:
            self._land()
            if self._better:
                self._better = False
                self._pacing.begin_anew()
            now = time.monotonic()
            if now >= self._sweep_at:
                self._journal.sweep()
                self._sweep_at = now + SWEEP_S
            wait_s = self._send(now)
        except StoreError as error:
            self._said(str(error))
            wait_s = _TROUBLE_S
        return None if math.isinf(wait_s) else wait_s

    def _send(self, now: float) -> float:
        """Seconds until it is worth looking again."""
        held = self._journal.totals().tickets
        if not held[State.WAITING]:
            self.why = ""
            return SWEEP_S if any(held.values()) else math.inf
        verdict = self._pacing.decide(live=self._live(), in_flight=len(self._flying), now=now)
        self.why = verdict.why
        if not verdict.room or any(ticket.unreturned for ticket in self._flying.values()):
            return min(verdict.wait_s, SWEEP_S)
        model = self._serves()
        if model is None:
            self.why = "no model is served"
            return _NO_MODEL_S
        resting = self._pacing.resting(now=now)
        flying = {ticket.sequence for ticket in self._flying.values()}
        found = self._journal.waiting(verdict.room, but=flying | resting.keys(), model=model)
        for ticket in found:
            if ticket.unreturned >= self._pace.most_unreturned:
                reason = f"the agent ended {ticket.unreturned} times while it was at work on this"
                self._journal.refuse(ticket.id, "POISON", reason)
                continue
            if ticket.unreturned and self._flying:
                break  # alone, when the others are back
            self._begin(ticket)
            if ticket.unreturned:
                break
        if self._landed:
            return 0.0
        return min([SWEEP_S, *resting.values()])

    def _begin(self, ticket: Ticket) -> None:
        begun = self._journal.begin(ticket.id)
        if begun is None:  # dropped this very moment, or damaged
            self._changed.set()
            return
        identity, inputs = begun
        self._flying[ticket.id] = ticket
        try:
            budget_s = self._pacing.budget_s(ticket.attempts - ticket.unreturned, ticket.left_s)
            future = self._current().submit(inputs, deadline_s=budget_s, priority=_PRIORITY, identity=identity)
        except InputError as error:
            self._landed.append((ticket.id, self._unfit(ticket, inputs, error)))
            self._changed.set()
            return
        future.add_done_callback(lambda done: self._on_outcome(ticket.id, done))

    def _unfit(self, ticket: Ticket, inputs: Tensors, error: InputError) -> Outcome | BaseException:
        """Only what the model does not take ends for good; an agent that cannot be asked may be able to later."""
        try:
            self._accepts(ticket.model, inputs)
        except InputError as unfit:
            if self._serves() is not None:
                return unfit
        return Refusal(ticket.id, RefusalCode.CLOSED, str(error), 0.0)

    def _on_outcome(self, ticket: str, done: Future[Outcome]) -> None:
        """On the agent's thread: it must not wait for the disk."""
        error = done.exception()
        self._landed.append((ticket, done.result() if error is None else error))
        self._changed.set()

    def _land(self) -> None:
        while self._landed:
            id_, outcome = self._landed[0]
            self._write_down(id_, outcome)
            self._landed.popleft()  # only now: a disk that fails is asked again
            del self._flying[id_]

    def _write_down(self, id_: str, outcome: Outcome | BaseException) -> None:
        if isinstance(outcome, Answer):
            self._keep(id_, outcome)
            self._pacing.answered()
        elif isinstance(outcome, InputError):
            self._journal.refuse(id_, RefusalCode.BAD_REQUEST, str(outcome))
        elif isinstance(outcome, Refusal) and outcome.code in FOR_GOOD:
            self._journal.refuse(id_, outcome.code, outcome.reason)
        elif isinstance(outcome, Refusal):
            self._journal.came_back(id_)
            wait_s = self._pacing.refused(self._flying[id_].sequence, outcome.code, now=time.monotonic())
            self._said(f"stored request {id_} was refused ({outcome.reason}): the next attempt in {wait_s:.1f} s")
        else:
            raise outcome  # a bug of the agent's

    def _keep(self, id_: str, answer: Answer) -> None:
        try:
            self._journal.answer(id_, answer)
        except WireError as error:
            self._journal.refuse(id_, "UNSTORABLE", str(error))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()
