"""What the tables say, as nouns. Ages are judged by the clock that can be trusted: see `tickets`."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Collection
from typing import Any

from edge_agent.store import tables
from edge_agent.store.payloads import Payload, unpack, unpack_made
from edge_agent.store.tickets import Moment, State, Ticket
from protocol.messages import RequestId

# How long the state has lasted; ?1 boot, ?2 seconds since boot, ?3 date.
AGE = "CASE WHEN boot = :boot THEN :since - since_s ELSE max(:wall - wall_s, 0.0) END"
_COLUMNS = f"""seq, state, model, tenant, priority, attempts, unreturned, nbytes, stored_wall_s,
    life_s - ({AGE}), code, reason, note"""


def clock_values(now: Moment) -> dict[str, object]:
    return {"boot": now.boot, "since": now.since_boot_s, "wall": now.wall_s}


def find(connection: sqlite3.Connection, sequence: int, now: Moment) -> Ticket | None:
    found = _select(connection, now, "seq = :seq", seq=sequence)
    return found[0] if found else None


def listed(connection: sqlite3.Connection, now: Moment, *, state: State | None, after: int, most: int) -> list[Ticket]:
    which = "seq > :after" if state is None else "seq > :after AND state = :state"
    return _select(connection, now, f"{which} ORDER BY seq LIMIT :most", after=after, state=state, most=most)


def next_waiting(
    connection: sqlite3.Connection, now: Moment, most: int, but: Collection[int], model: str
) -> list[Ticket]:
    passed = ",".join(str(int(sequence)) for sequence in but)
    return _select(
        connection,
        now,
        f"state = :state AND seq NOT IN ({passed}) AND life_s > ({AGE}) AND :model IN ('', model)"
        " ORDER BY priority, seq LIMIT :most",
        state=State.WAITING,
        model=model,
        most=most,
    )


def oldest_waiting_s(connection: sqlite3.Connection, now: Moment) -> float:
    query = f"SELECT max({AGE}) FROM tickets WHERE state = 'waiting'"  # noqa: S608 - no value
    (age_s,) = connection.execute(query, clock_values(now)).fetchone()
    return float(age_s or 0.0)


def request_of(connection: sqlite3.Connection, sequence: int) -> Payload | None:
    row = connection.execute("SELECT headers, data, checksum FROM requests WHERE seq = ?", (sequence,)).fetchone()
    return None if row is None else Payload(*row)


def with_answer(connection: sqlite3.Connection, ticket: Ticket) -> Ticket:
    """The ticket with its answer; refused for good if that lies damaged on the disk."""
    row = connection.execute(
        "SELECT made, headers, data, checksum FROM answers WHERE seq = ?", (ticket.sequence,)
    ).fetchone()
    outputs = None if row is None else unpack(Payload(*row[1:]))
    answer = None if outputs is None else unpack_made(row[0], outputs)
    if answer is None:
        reason = "its answer lay damaged on the disk"
        return dataclasses.replace(ticket, state=State.REFUSED, code="DAMAGED", reason=reason)
    return dataclasses.replace(ticket, answer=answer)


def _select(connection: sqlite3.Connection, now: Moment, which: str, **values: Any) -> list[Ticket]:
    begins = tables.boot(connection)
    query = f"SELECT {_COLUMNS} FROM tickets WHERE {which}"  # noqa: S608 - every value is bound
    rows = connection.execute(query, {**clock_values(now), **values}).fetchall()
    return [
        Ticket(str(RequestId(begins, seq)), seq, State(state), *rest)  # the columns stand in the noun's order
        for seq, state, *rest in rows
    ]
