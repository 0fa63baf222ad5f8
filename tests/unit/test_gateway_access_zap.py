"""Every kind of connection is answered as the table at the top of the room says."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.access import zap
from cloud_gateway.access.roster import AgentEntry, Roster, Table, add_agent, revoke
from cloud_gateway.access.zap import PlainText, Request

DOMAIN = b"isthmus"
KNOWN, REVOKED, GUEST, STRANGER = (bytes([n]) * 32 for n in (1, 2, 3, 4))


def _table(utc: float) -> Table:
    roster = Roster()
    for name, key, expires in (("known", KNOWN, None), ("revoked", REVOKED, None), ("guest", GUEST, 300)):
        roster = add_agent(roster, AgentEntry(name=name, key=key.hex(), added=100, expires=expires))
    return Table.of(revoke(roster, "revoked", utc=150), utc=utc)


TABLE = _table(200)


class Case(NamedTuple):
    why: str
    status: int
    mechanism: bytes = b"CURVE"
    credentials: tuple[bytes, ...] = (KNOWN,)
    address: str = "192.0.2.7"
    domain: bytes = DOMAIN
    plain_text: PlainText = PlainText.NOWHERE
    table: Table | None = TABLE


CASES = [
    Case("a known key", 200),
    Case("a known key, where plain text is taken too", 200, plain_text=PlainText.ANYWHERE),
    Case("a key that will expire", 200, credentials=(GUEST,)),
    Case("a stranger's key", 400, credentials=(STRANGER,)),
    Case("a stranger's key on this machine", 400, credentials=(STRANGER,), address="127.0.0.1"),
    Case("a revoked key", 400, credentials=(REVOKED,)),
    Case("no roster can be read", 300, table=None),
    Case("a stranger while no roster can be read", 300, table=None, credentials=(STRANGER,)),
    Case("no key", 500, credentials=()),
    Case("two keys", 500, credentials=(KNOWN, KNOWN)),
    Case("half a key", 500, credentials=(KNOWN[:16],)),
    Case("another domain", 500, domain=b"global"),
    Case("no domain", 500, domain=b""),
    Case("plain text", 400, b"NULL", ()),
    Case("plain text from this machine", 400, b"NULL", (), "127.0.0.1"),
    Case("allowed plain text from this machine", 200, b"NULL", (), "127.0.0.1", plain_text=PlainText.THIS_MACHINE),
    Case("the same over IPv6", 200, b"NULL", (), "::1", plain_text=PlainText.THIS_MACHINE),
    Case("and as libzmq writes mapped addresses", 200, b"NULL", (), "::ffff:127.0.0.1",
         plain_text=PlainText.THIS_MACHINE),
    Case("plain text from outside", 400, b"NULL", (), plain_text=PlainText.THIS_MACHINE),
    Case("plain text from nowhere", 400, b"NULL", (), "", plain_text=PlainText.THIS_MACHINE),
    Case("insecure", 200, b"NULL", (), plain_text=PlainText.ANYWHERE),
    Case("a password", 400, b"PLAIN", (b"known", b"secret"), "127.0.0.1", plain_text=PlainText.ANYWHERE),
    Case("a ticket", 400, b"GSSAPI", (b"known",), "127.0.0.1", plain_text=PlainText.ANYWHERE),
]  # fmt: skip


def _decide(case: Case, utc: float = 200) -> zap.Reply:
    request = Request(b"1", case.domain, case.address, case.mechanism, case.credentials)
    return zap.decide(request, case.table, domain=DOMAIN, plain_text=case.plain_text, utc=utc)


@pytest.mark.parametrize("case", CASES, ids=[case.why for case in CASES])
def test_a_connection_is_answered_as_it_should_be(case: Case) -> None:
    reply = _decide(case)
    assert reply.status == case.status, reply.text
    assert bool(reply.user_id) == (reply.status == 200 and case.mechanism == b"CURVE")


def test_a_known_agent_bears_its_name_and_its_key() -> None:
    assert _decide(CASES[0]).user_id == f"known/{KNOWN.hex()[:16]}"
    assert _decide(CASES[0]).user_id in TABLE.user_ids


def test_an_expired_key_is_refused_though_the_table_is_older() -> None:
    assert _decide(Case("", 0, credentials=(GUEST,)), utc=299).status == 200
    reply = _decide(Case("", 0, credentials=(GUEST,)), utc=300)
    assert (reply.status, reply.text) == (400, "guest's key has expired")


def test_a_strangers_key_is_told_whole_so_that_it_can_be_added() -> None:
    assert STRANGER.hex() in _decide(Case("", 0, credentials=(STRANGER,))).text


def test_a_request_is_read_and_its_reply_bears_its_number() -> None:
    request = zap.parse([b"1.0", b"77", DOMAIN, b"127.0.0.1", b"", b"CURVE", KNOWN])
    assert request == Request(b"77", DOMAIN, "127.0.0.1", b"CURVE", (KNOWN,))
    assert zap.Reply(200, "known", "known/01").frames(b"77") == [b"1.0", b"77", b"200", b"known", b"known/01", b""]


@pytest.mark.parametrize("frames", [[], [b"1.0"], [b"2.0", b"1", DOMAIN, b"", b"", b"NULL"],
                                    [b"1.0", b"1", DOMAIN, b"", b""]])  # fmt: skip
def test_another_protocol_is_not_read(frames: list[bytes]) -> None:
    assert zap.parse(frames) is None


@given(st.lists(st.binary(max_size=40), max_size=9), st.sampled_from(PlainText))
def test_whatever_asks_only_the_known_key_and_allowed_plain_text_come_in(
    frames: list[bytes], plain_text: PlainText
) -> None:
    request = zap.parse([b"1.0", *frames])
    if request is None:
        return
    reply = zap.decide(request, TABLE, domain=DOMAIN, plain_text=plain_text, utc=200)
    assert reply.status in (200, 300, 400, 500)
    if reply.status == 200:
        assert request.credentials == (KNOWN,) or request.mechanism == b"NULL"


# ---- guests ----------------------------------------------------------------------------------------------------------


def _answer(key: bytes, *, utc: float, crowded: bool = False) -> zap.Reply:
    table = Table.of(Roster(), utc=utc, guests_until=300) if key == STRANGER else TABLE
    request = Request(b"1", DOMAIN, "192.0.2.7", b"CURVE", (key,))
    return zap.decide(request, table, domain=DOMAIN, plain_text=PlainText.NOWHERE, utc=utc, crowded=crowded)


@pytest.mark.parametrize(
    ("utc", "crowded", "status"), [(299, False, 200), (299, True, 300), (300, False, 400), (300, True, 400)]
)
def test_a_stranger_is_a_guest_only_while_an_invitation_is_open(utc: float, crowded: bool, status: int) -> None:
    reply = _answer(STRANGER, utc=utc, crowded=crowded)
    assert reply.status == status
    assert zap.guest_key(reply.user_id) == (STRANGER if status == 200 else None)


@pytest.mark.parametrize(("key", "status"), [(KNOWN, 200), (REVOKED, 400), (GUEST, 400)])
def test_whoever_was_known_once_is_never_a_guest(key: bytes, status: int) -> None:
    table = Table.of(Roster(), utc=301, guests_until=400)
    both = Table(TABLE.agents, TABLE.user_ids, {}, float("inf"), table.guests_until)
    request = Request(b"1", DOMAIN, "192.0.2.7", b"CURVE", (key,))
    reply = zap.decide(request, both, domain=DOMAIN, plain_text=PlainText.NOWHERE, utc=301)
    assert reply.status == status
    assert zap.guest_key(reply.user_id) is None


def test_no_name_looks_like_a_guest_and_no_guest_like_a_name() -> None:
    assert zap.guest_key("camera-7/0011223344556677") is None
    assert all(zap.guest_key(text) is None for text in ("", "?", "?zz", f"?{'0' * 63}", f"?{'0' * 66}"))
    assert zap.guest_id(STRANGER) not in TABLE.user_ids
