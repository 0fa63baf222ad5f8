"""The audit log as a chain: every record holds the hash of the one before it, so that none can be changed unnoticed.

A record is one line of JSON in one canonical form; its `hash` is the SHA-256 of that line with an empty `hash`. Edited,
removed, inserted and exchanged records break the chain where they stand. Records cut off at the *end* leave a sound but
shorter chain: that shows only to whoever knows a hash that was there (an anchor, see `audit`). And whoever can rewrite
the whole file can forge a whole chain: keep the head's hash elsewhere too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

GENESIS = "0" * 64
MOST_TEXT = 300  # characters of a field: what is attacked must not fill the disk with what attackers write
MOST_LINE_NBYTES = 16_384


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`outcome` is begun, done or failed, with the reason; `of` is the record that began what this one ends, or 0."""

    seq: int
    utc: str
    actor: str
    action: str
    target: str
    outcome: str
    of: int
    previous: str
    hash: str = ""


class Head(NamedTuple):
    """Where a chain ends."""

    seq: int = 0
    hash: str = GENESIS


class Verdict(NamedTuple):
    """`broken` is the first line that does not hold (file name and number from 1) and `why`; empty if all hold."""

    records: int
    first_seq: int
    head: Head
    broken: str = ""
    why: str = ""

    @property
    def ok(self) -> bool:
        return not self.why


def link(
    head: Head, *, utc: str, actor: str, action: str, target: str = "", outcome: str = "done", of: int = 0
) -> Record:
    """The record that follows `head`. Texts are shortened to MOST_TEXT characters."""
    record = Record(
        seq=head.seq + 1,
        utc=utc,
        actor=_shortened(actor),
        action=_shortened(action),
        target=_shortened(target),
        outcome=_shortened(outcome),
        of=of,
        previous=head.hash,
    )
    return msgspec.structs.replace(record, hash=_hash(record))


def encode(record: Record) -> bytes:
    """One line, with its newline."""
    return msgspec.json.encode(record) + b"\n"


def decode(line: bytes) -> Record:
    """The record of a line without its newline. Raises ValueError if it is none, or if its hash is not its own."""
    try:
        record = msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no record ({error})") from None
    if msgspec.json.encode(record) != line:
        raise ValueError("it is not written as this program writes")
    if record.hash != _hash(record):
        raise ValueError("it was changed: its hash is not its own")
    return record


def verify(lines: Iterable[tuple[str, bytes]], *, expect: Iterable[Head] = ()) -> Verdict:
    """Check a chain, line by line; `lines` are (where it stands, the line with its newline).

    The first record may have any number: what was archived is not at hand. Every head of `expect` must be on the chain;
    one with `seq` 0 may stand anywhere. Takes as much memory for many lines as for one.
    """
    missing = set(expect)
    head: Head | None = None
    first, count = 0, 0
    for where, line in lines:
        why = ""
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it is torn: the end of the line is missing")
            record = decode(line[:-1])
            if head is None:
                first = record.seq
                if record.seq < 1 or (record.seq == 1) != (record.previous == GENESIS):
                    raise ValueError("no chain begins like that")
            elif record.seq != head.seq + 1:
                raise ValueError(f"record {head.seq + 1} should stand here, and {record.seq} does")
            elif record.previous != head.hash:
                raise ValueError("it does not follow from the record before it")
        except ValueError as error:
            why = str(error)
        if why:
            return Verdict(count, first, head or Head(), where, why)
        head = Head(record.seq, record.hash)
        count += 1
        missing -= {head, Head(0, head.hash)}
    end = head or Head()
    for wanted in sorted(missing):
        if wanted == Head(0, GENESIS):
            continue  # the beginning is always there
        number = f"record {wanted.seq} with " if wanted.seq else ""
        why = f"{number}hash {wanted.hash} is not there: records were removed, or all was written anew"
        return Verdict(count, first, end, "the end", why)
    return Verdict(count, first, end)


def _shortened(text: str) -> str:
    return text[:MOST_TEXT].encode("utf-8", "replace").decode()


def _hash(record: Record) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(record, hash=""))).hexdigest()
