"""The durable store of requests and answers: what `put` has returned survives a kill, a crash and a power cut.

    with Journal(folder) as journal:
        ticket = journal.put(Wish({"image": frame}, life_s=3600))      # on the disk when it returns
        ...
        journal.take(ticket)                                           # its end: removed from the disk, then returned

When the agent itself is killed, only what is stored here survives: a request that was handed to `Agent.submit` and not
to the store is gone with the process. `take` gives an answer at most once: whoever is killed between its commit and
the return has lost that answer; whoever cannot afford that calls `look`, keeps the answer, and then `drop`.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from edge_agent.outcomes import Answer
from edge_agent.store import tables
from edge_agent.store.commits import Commits, Work
from edge_agent.store.database import Database
from edge_agent.store.endings import end_overdue, expire, finish, forget, remove
from edge_agent.store.entering import enter
from edge_agent.store.payloads import Payload, pack, pack_made, unpack
from edge_agent.store.reading import find, listed, next_waiting, oldest_waiting_s, request_of, with_answer
from edge_agent.store.tickets import (
    MOST_KEY_LENGTH,
    MOST_PRIORITY,
    Caps,
    Moment,
    State,
    Ticket,
    Totals,
    Wish,
    identity,
    moment,
)
from protocol.errors import InputError
from protocol.messages import RequestId
from protocol.tensors import Array

FILE = "journal.sqlite3"
_DAMAGED = "DAMAGED"

T = TypeVar("T")


class Journal:
    """One folder with one file. Safe for several threads; constructing touches nothing.

    `owner` is the one process that runs the store; others (commands) may look and drop beside it. `say` hears one
    sentence when a damaged file was put aside, `crashed` of a bug in the thread that writes.
    """

    def __init__(
        self,
        folder: Path,
        caps: Caps | None = None,
        *,
        owner: bool = True,
        clock: Callable[[], Moment] = moment,
        say: Callable[[str], None] = lambda sentence: print(sentence, file=sys.stderr),
        crashed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.folder = folder
        self.caps = caps or Caps()
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        # Pages that are partly filled, indices and what is being moved: a quarter more than what the caps count.
        most_nbytes = self.caps.most_nbytes * 5 // 4 + self.caps.most_tickets * 1024 + (4 << 20)
        self._database = Database(folder / FILE, tables.make, most_nbytes=most_nbytes, owner=owner, say=say)
        self._commits = Commits(self._database, changed=self._changed, crashed=crashed)

    def open(self) -> None:
        """Raises StoreError if the folder cannot be had, InputError if a newer version wrote it."""
        self._database.open()
        self._commits.start()

    def close(self) -> None:
        """Finish what was handed in. Safe to call twice."""
        self._commits.close()
        self._database.close()

    def listen(self, callback: Callable[[], None]) -> None:
        """Call back after every change, on the thread that writes: keep it short."""
        self._listeners.append(callback)

    # ---- for callers ------------------------------------------------------------------------------------------------

    def put(self, wish: Wish) -> str:
        """Store a request; its ticket. It is on the disk when this returns.

        Raises InputError for what cannot be stored, StoreFullError without room, StoreError if the disk fails.
        """
        return self.offer(wish).result()

    def offer(self, wish: Wish) -> Future[str]:
        """The same without waiting: the future resolves when the request is on the disk."""
        if not 0 <= wish.priority <= MOST_PRIORITY:
            raise InputError(f"priority {wish.priority}", f"give 0 (first) to {MOST_PRIORITY}")
        if wish.life_s is not None and not wish.life_s > 0:
            raise InputError(f"a life of {wish.life_s} s", "give the seconds for which an answer is of use")
        if len(wish.key) > MOST_KEY_LENGTH:
            raise InputError(f"a key of {len(wish.key)} characters", f"use at most {MOST_KEY_LENGTH}")
        if not wish.inputs:
            raise InputError("a request without tensors", "give the model's inputs")
        payload = pack(wish.inputs)
        light = dataclasses.replace(wish, inputs={})

        def work(connection: sqlite3.Connection) -> str:
            sequence = enter(connection, light, payload, self.caps, self._clock())
            return str(RequestId(tables.boot(connection), sequence))

        return self._commits.submit(work, nbytes=payload.nbytes, makes_room=False)

    def look(self, ticket: str, *, tenant: str | None = None) -> Ticket | None:
        """What a ticket stands for, with its answer if there is one; None if it is not, or no longer, known here.

        A `tenant` sees only its own. Raises InputError for what is no ticket at all, StoreError if the disk fails.
        """
        return self.looking(ticket, tenant=tenant).result()

    def looking(self, ticket: str, *, tenant: str | None = None) -> Future[Ticket | None]:
        return self._commits.submit(self._found(ticket, tenant, remove_if=()))

    def take(self, ticket: str, *, tenant: str | None = None) -> Ticket | None:
        """The same, and a ticket that has ended is removed before this returns: nobody gets its answer again."""
        ended = (State.ANSWERED, State.EXPIRED, State.REFUSED)
        return self._commits.submit(self._found(ticket, tenant, remove_if=ended)).result()

    def drop(self, ticket: str, *, tenant: str | None = None) -> Ticket | None:
        """Remove a ticket in any state; what it stood for, with its answer if there was one."""
        return self.dropping(ticket, tenant=tenant).result()

    def dropping(self, ticket: str, *, tenant: str | None = None) -> Future[Ticket | None]:
        return self._commits.submit(self._found(ticket, tenant, remove_if=tuple(State)))

    def entries(self, *, state: State | None = None, after: int = 0, most: int = 1000) -> list[Ticket]:
        """Tickets in the order they were stored, beginning behind sequence number `after`."""
        return self._do(lambda connection: listed(connection, self._clock(), state=state, after=after, most=most))

    def inputs(self, ticket: str) -> dict[str, Array] | None:
        """A waiting ticket's tensors (read-only); None if there are none, or none that are whole."""
        sequence = identity(ticket).sequence
        return self._do(lambda connection: _whole(request_of(connection, sequence)))

    def totals(self) -> Totals:
        return self._do(tables.totals)

    def oldest_s(self) -> float:
        """How long the oldest waiting request has waited; 0 if none does."""
        return self._do(lambda connection: oldest_waiting_s(connection, self._clock()))

    @property
    def boot(self) -> bytes:
        """Eight bytes that begin the id of every request of this store; an empty store begun anew has others."""
        return self._do(tables.boot)

    # ---- for the forwarder ------------------------------------------------------------------------------------------

    def waiting(self, most: int, *, but: Collection[int] = (), model: str = "") -> list[Ticket]:
        """Who is next: the most important first, then the oldest; `but` are passed over.

        A `model` leaves out requests for others.
        """
        return self._do(lambda connection: next_waiting(connection, self._clock(), most, but, model))

    def begin(self, ticket: str) -> tuple[RequestId, dict[str, Array]] | None:
        """Count an attempt, durably, before it is made; the request's id and tensors, or None if it is gone.

        One that lies damaged on the disk is refused for good here.
        """
        request = identity(ticket)

        def work(connection: sqlite3.Connection) -> Payload | None:
            counted = connection.execute(
                "UPDATE tickets SET attempts = attempts + 1, unreturned = unreturned + 1 WHERE seq = ? AND state = ?",
                (request.sequence, State.WAITING),
            )
            return request_of(connection, request.sequence) if counted.rowcount else None

        payload = self._do(work)
        if payload is None:
            return None
        tensors = unpack(payload)
        if tensors is None:
            self.refuse(ticket, _DAMAGED, "its tensors lay damaged on the disk")
            return None
        return request, tensors

    def came_back(self, ticket: str) -> None:
        """An attempt has ended without an answer, and the request waits again."""
        sequence = identity(ticket).sequence
        self._do(
            lambda connection: (
                connection.execute(
                    "UPDATE tickets SET unreturned = max(unreturned - 1, 0) WHERE seq = ?", (sequence,)
                ).rowcount
            )
        )

    def answer(self, ticket: str, answer: Answer) -> bool:
        """Keep an answer for its caller; False if the ticket has ended otherwise meanwhile."""
        sequence, payload, made = identity(ticket).sequence, pack(answer.outputs), pack_made(answer)

        def work(connection: sqlite3.Connection) -> bool:
            size = payload.nbytes + len(made)
            if not finish(connection, sequence, State.ANSWERED, self.caps, self._clock(), nbytes=size):
                return False
            values = (sequence, made, payload.headers, payload.checksum, payload.data)
            connection.execute("INSERT INTO answers (seq, made, headers, checksum, data) VALUES (?,?,?,?,?)", values)
            return True

        return self._commits.submit(work, nbytes=payload.nbytes).result()

    def refuse(self, ticket: str, code: str, reason: str) -> bool:
        """End a ticket for good without an answer; False if it has ended otherwise meanwhile."""
        sequence = identity(ticket).sequence

        def work(connection: sqlite3.Connection) -> bool:
            return finish(connection, sequence, State.REFUSED, self.caps, self._clock(), code=code, reason=reason)

        return self._do(work)

    def sweep(self) -> int:
        """Expire what has waited for too long, forget what has ended long ago; how many tickets that were."""

        def work(connection: sqlite3.Connection) -> int:
            now = self._clock()
            return expire(connection, self.caps, now) + forget(connection, self.caps, now)

        return self._do(work)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _do(self, work: Work[T]) -> T:
        return self._commits.submit(work).result()

    def _found(self, ticket: str, tenant: str | None, *, remove_if: Collection[State]) -> Work[Ticket | None]:
        request = identity(ticket)

        def work(connection: sqlite3.Connection) -> Ticket | None:
            if request.boot != tables.boot(connection):
                return None
            now = self._clock()
            found = find(connection, request.sequence, now)
            if found is not None and found.left_s <= 0:
                end_overdue(connection, found, self.caps, now)
                found = find(connection, request.sequence, now)
            if found is None or (tenant is not None and found.tenant != tenant):
                return None
            if found.state is State.ANSWERED:
                found = with_answer(connection, found)
            if found.state in remove_if:
                remove(connection, request.sequence)
            return found

        return work

    def _changed(self) -> None:
        for callback in self._listeners:
            callback()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _whole(payload: Payload | None) -> dict[str, Array] | None:
    return None if payload is None else unpack(payload)
