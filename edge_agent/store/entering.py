"""How a request comes in: once under its key, and only where the caps leave room or one less important makes it."""

from __future__ import annotations

import sqlite3

from edge_agent.store import tables
from edge_agent.store.endings import expire, finish, forget
from edge_agent.store.payloads import Payload
from edge_agent.store.tickets import Caps, Full, Moment, State, StoreFullError, Wish

OVERHEAD_NBYTES = 512  # of a ticket besides its tensors
_STEP = 64


def enter(connection: sqlite3.Connection, wish: Wish, payload: Payload, caps: Caps, now: Moment) -> int:
    """The sequence number of the stored request (`payload` are its inputs). Raises StoreFullError, changing nothing."""
    if wish.key:
        known = connection.execute(
            "SELECT seq FROM tickets WHERE tenant = ? AND key = ?", (wish.tenant, wish.key)
        ).fetchone()
        if known is not None:
            return int(known[0])
    nbytes = payload.nbytes + len(wish.note.encode()) + OVERHEAD_NBYTES
    if nbytes > caps.most_nbytes:
        raise StoreFullError(
            f"a request of {nbytes:,} bytes, but the store holds {caps.most_nbytes:,}", "raise its most_nbytes"
        )
    _make_room(connection, nbytes, wish.priority, caps, now)
    life_s = min(caps.life_s if wish.life_s is None else wish.life_s, caps.most_life_s)
    columns = "state, model, tenant, key, note, priority, stored_wall_s, boot, since_s, wall_s, life_s, nbytes"
    values = (State.WAITING, wish.model, wish.tenant, wish.key, wish.note, wish.priority, now.wall_s)
    values_of_life = (now.boot, now.since_boot_s, now.wall_s, life_s, nbytes)
    row = connection.execute(
        f"INSERT INTO tickets ({columns}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) RETURNING seq",  # noqa: S608 - no value
        (*values, *values_of_life),
    ).fetchone()
    connection.execute(
        "INSERT INTO requests (seq, headers, checksum, data) VALUES (?,?,?,?)",
        (row[0], payload.headers, payload.checksum, payload.data),
    )
    return int(row[0])


def _make_room(connection: sqlite3.Connection, nbytes: int, priority: int, caps: Caps, now: Moment) -> None:
    if _lacks(connection, nbytes, caps) is None:
        return
    expire(connection, caps, now)  # nothing is refused for the sake of what nobody waits for any more
    forget(connection, caps, now)
    lack = _lacks(connection, nbytes, caps)
    while lack is not None and caps.full is Full.DROP_OLDEST:
        victims = connection.execute(
            "SELECT seq FROM tickets WHERE state = ? AND priority >= ? ORDER BY priority DESC, seq LIMIT ?",
            (State.WAITING, priority, _STEP),
        ).fetchall()
        if not victims:
            break
        for (victim,) in victims:
            finish(connection, victim, State.REFUSED, caps, now, code="DROPPED", reason="dropped for a newer request")
            lack = _lacks(connection, nbytes, caps)
            if lack is None:
                return
    if lack is not None:
        raise StoreFullError(f"the store is full: {lack}", "fetch answers, or come back later")


def _lacks(connection: sqlite3.Connection, nbytes: int, caps: Caps) -> str | None:
    """What is short, or None if there is room."""
    totals = tables.totals(connection)
    if totals.held + 1 > caps.most_tickets:
        return f"it holds {totals.held:,} requests and answers of at most {caps.most_tickets:,}"
    if totals.nbytes + nbytes > caps.most_nbytes:
        return f"it holds {totals.nbytes:,} bytes of at most {caps.most_nbytes:,}, and {nbytes:,} more do not fit"
    return None
