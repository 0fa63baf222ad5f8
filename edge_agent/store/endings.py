"""How a ticket ends, exactly once, and how it goes. What has ended gives its request's bytes back at once."""

from __future__ import annotations

import sqlite3

from edge_agent.store.reading import AGE, clock_values
from edge_agent.store.tickets import Caps, Moment, State, Ticket

_TOO_LATE = "nobody answered it while an answer was of use"
_STEP = 500  # of one sweep, so that nobody waits long behind it


def finish(
    connection: sqlite3.Connection,
    sequence: int,
    state: State,
    caps: Caps,
    now: Moment,
    *,
    nbytes: int = 0,
    code: str = "",
    reason: str = "",
) -> bool:
    """Waiting becomes `state`; False if it was not waiting any more. `nbytes` is what its answer adds."""
    ended = connection.execute(
        """UPDATE tickets SET state = :state, boot = :boot, since_s = :since, wall_s = :wall, life_s = :keep,
           nbytes = :nbytes, code = :code, reason = :reason, unreturned = 0
           WHERE seq = :seq AND state = 'waiting'""",
        {
            **clock_values(now),
            "state": state,
            "keep": caps.keep_s,
            "nbytes": nbytes,
            "code": code,
            "reason": reason[:1000],
            "seq": sequence,
        },
    )
    if not ended.rowcount:
        return False
    connection.execute("DELETE FROM requests WHERE seq = ?", (sequence,))
    return True


def expire(connection: sqlite3.Connection, caps: Caps, now: Moment) -> int:
    """End what waits longer than it may; how many."""
    late = _overdue(connection, now, "state = 'waiting'")
    for sequence in late:
        finish(connection, sequence, State.EXPIRED, caps, now, code="EXPIRED", reason=_TOO_LATE)
    return len(late)


def end_overdue(connection: sqlite3.Connection, ticket: Ticket, caps: Caps, now: Moment) -> None:
    """The same for one ticket whose time has come: it expires, or is forgotten."""
    if ticket.state is State.WAITING:
        finish(connection, ticket.sequence, State.EXPIRED, caps, now, code="EXPIRED", reason=_TOO_LATE)
    else:
        remove(connection, ticket.sequence)


def forget(connection: sqlite3.Connection, caps: Caps, now: Moment) -> int:
    """Remove what ended longer than `keep_s` ago, and the oldest of too many that ended without an answer; how many."""
    old = _overdue(connection, now, "state <> 'waiting'")
    (ended,) = connection.execute("SELECT sum(tickets) FROM totals WHERE state IN ('expired', 'refused')").fetchone()
    if ended > caps.most_tickets:
        rows = connection.execute(
            "SELECT seq FROM tickets WHERE state IN ('expired', 'refused') ORDER BY seq LIMIT ?",
            (min(ended - caps.most_tickets, _STEP),),
        ).fetchall()
        old = list({*old, *(sequence for (sequence,) in rows)})
    for sequence in old:
        remove(connection, sequence)
    return len(old)


def remove(connection: sqlite3.Connection, sequence: int) -> None:
    connection.execute("DELETE FROM tickets WHERE seq = ?", (sequence,))


def _overdue(connection: sqlite3.Connection, now: Moment, which: str) -> list[int]:
    query = f"SELECT seq FROM tickets WHERE {which} AND life_s <= ({AGE}) LIMIT {_STEP}"  # noqa: S608 - no value
    return [sequence for (sequence,) in connection.execute(query, clock_values(now)).fetchall()]
