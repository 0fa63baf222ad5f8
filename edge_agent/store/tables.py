"""The tables of the store, and the sums of them that the caps are compared with: kept by triggers, whoever writes."""

from __future__ import annotations

import os
import sqlite3

from edge_agent.store.tickets import State, Totals

_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # A state lasts `life_s` from the moment (boot, since_s, wall_s); then a waiting ticket expires, an ended one goes.
    """CREATE TABLE tickets (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        state TEXT NOT NULL, model TEXT NOT NULL, tenant TEXT NOT NULL, key TEXT NOT NULL, note TEXT NOT NULL,
        priority INTEGER NOT NULL, stored_wall_s REAL NOT NULL,
        boot TEXT NOT NULL, since_s REAL NOT NULL, wall_s REAL NOT NULL, life_s REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, unreturned INTEGER NOT NULL DEFAULT 0,
        nbytes INTEGER NOT NULL, code TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '')""",
    "CREATE INDEX by_turn ON tickets (state, priority, seq)",
    "CREATE UNIQUE INDEX by_key ON tickets (tenant, key) WHERE key <> ''",
    """CREATE TABLE requests (
        seq INTEGER PRIMARY KEY REFERENCES tickets ON DELETE CASCADE,
        headers BLOB NOT NULL, checksum INTEGER NOT NULL, data BLOB NOT NULL)""",
    """CREATE TABLE answers (
        seq INTEGER PRIMARY KEY REFERENCES tickets ON DELETE CASCADE,
        made BLOB NOT NULL, headers BLOB NOT NULL, checksum INTEGER NOT NULL, data BLOB NOT NULL)""",
    "CREATE TABLE totals (state TEXT PRIMARY KEY, tickets INTEGER NOT NULL, nbytes INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TRIGGER counted_in AFTER INSERT ON tickets BEGIN
        UPDATE totals SET tickets = tickets + 1, nbytes = nbytes + new.nbytes WHERE state = new.state; END""",
    """CREATE TRIGGER counted_out AFTER DELETE ON tickets BEGIN
        UPDATE totals SET tickets = tickets - 1, nbytes = nbytes - old.nbytes WHERE state = old.state; END""",
    """CREATE TRIGGER counted_over AFTER UPDATE OF state, nbytes ON tickets BEGIN
        UPDATE totals SET tickets = tickets - 1, nbytes = nbytes - old.nbytes WHERE state = old.state;
        UPDATE totals SET tickets = tickets + 1, nbytes = nbytes + new.nbytes WHERE state = new.state; END""",
)


def make(connection: sqlite3.Connection) -> None:
    """All tables of an empty file, and the random boot id under which all of its requests are known."""
    for statement in _TABLES:
        connection.execute(statement)
    connection.executemany("INSERT INTO totals VALUES (?, 0, 0)", [(state.value,) for state in State])
    connection.execute("INSERT INTO meta VALUES ('boot', ?)", (os.urandom(8),))


def boot(connection: sqlite3.Connection) -> bytes:
    (value,) = connection.execute("SELECT value FROM meta WHERE name = 'boot'").fetchone()
    return bytes(value)


def totals(connection: sqlite3.Connection) -> Totals:
    rows = connection.execute("SELECT state, tickets, nbytes FROM totals").fetchall()
    counts = {state: count for state, count, _ in rows}
    return Totals({state: counts[state] for state in State}, sum(nbytes for *_, nbytes in rows))
