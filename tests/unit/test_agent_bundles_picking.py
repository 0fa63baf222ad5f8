"""Which offers a device takes by itself: the newest that it may, and what was refused before only when something has
changed."""

from __future__ import annotations

import pytest

from edge_agent.bundles.picking import MOST_REFUSED, Picking
from edge_agent.bundles.record import Bad, Record
from protocol import messages as m
from protocol.signers import SigningKey
from protocol.signing import Revocations, Trust

KEY, OTHER = (SigningKey.of(bytes([n]) * 32, "builder").public for n in (1, 2))
TRUST = Trust((KEY,), floors={"toy": 7})
A, B = "a" * 64, "b" * 64


def offer(digest: str = A, counter: int = 7, *, signature: bytes | None = bytes(32)) -> m.Offer:
    return m.Offer("toy", bytes(32), bytes.fromhex(digest), 10, 20, 1, signature, 5, counter)


@pytest.mark.parametrize(
    ("offered", "record", "taken"),
    [
        ([offer(counter=7)], Record(), A),
        ([offer(counter=6)], Record(), None),
        ([offer(counter=6, signature=None)], Record(), A),
        ([offer(A, 8), offer(B, 9)], Record(), B),
        ([offer(A, 8), offer(B, 9)], Record(bad=(Bad(B, "it crashed"),)), A),
        ([offer(A, 8)], Record(current=A, proven=A), None),
        # after an operator went back to B
        ([offer(A, 7)], Record(current=B, proven=B, back_to=B), None),
        ([offer(A, 8)], Record(current=B, proven=B, back_to=B), A),
        # B was gone back to, and then damaged on the disk
        ([offer(A, 7), offer(B, 3)], Record(back_to=B), B),
    ],
)
def test_each_offer_is_taken_or_not(offered: list[m.Offer], record: Record, taken: str | None) -> None:
    found = Picking().pick(offered, record, TRUST)
    assert (found.bundle.hex() if found else None) == taken


def test_what_was_refused_is_counted_and_not_taken_again_until_something_has_changed() -> None:
    picking = Picking()
    changes: list[tuple[m.Offer, Trust]] = [
        (offer(signature=b"s" * 32), TRUST),
        (offer(), Trust((KEY, OTHER), floors={"toy": 7})),
        (offer(), Trust((KEY,), floors={"toy": 7}, revocations=Revocations(1))),
        (offer(), Trust((KEY,), floors={"toy": 7}, allow_unsigned=True)),
    ]
    picking.refused(offer(), TRUST)
    for times in range(3):
        assert picking.pick([offer()], Record(), TRUST) is None
        assert picking.passed_over == times + 1
    for changed, trust in changes:
        assert picking.pick([changed], Record(), trust) == changed
    assert picking.passed_over == 3


def test_only_so_many_refusals_are_remembered() -> None:
    picking = Picking()
    for number in range(MOST_REFUSED + 1):
        picking.refused(offer(f"{number:064x}"), TRUST)
    assert picking.pick([offer(f"{0:064x}")], Record(), TRUST) is not None
    assert picking.pick([offer(f"{1:064x}")], Record(), TRUST) is None
