"""Invitations: one token lets in one key, whatever is shown in whatever order, and every attempt is on record."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.access import invitations as inviting
from cloud_gateway.access import roster as rosters
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.enrolment import MOST_ASKED, PER_MINUTE, Enrolment
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.invitations import Invitation, Invitations, Refused, Welcome
from cloud_gateway.access.roster import AgentEntry, Roster, add_agent
from protocol import invitation, wire
from protocol import messages as m
from protocol.errors import InputError
from protocol.invitation import Token
from tests.waiting import PATIENCE_S

NOW = 1_000_000
NOBODY = Roster()
KEYS = tuple(bytes([n]) * 32 for n in range(17, 20))


def token(number: int) -> Token:
    return Token(bytes([number]) * 8, bytes([number]) * 32, bytes(32))


def entry(number: int, *, name: str = "", expires: int = NOW + 100) -> Invitation:
    shown = token(number)
    digest = invitation.digest_of(shown.id, shown.secret)
    return Invitation(name=name or f"camera-{number}", id=shown.id.hex(), digest=digest, made=NOW, expires=expires)


def judged(known: Invitations, shown: Token, key: bytes, *, roster: Roster = NOBODY, utc: int = NOW) -> str:
    verdict = inviting.judge(known, roster, id_=shown.id, secret=shown.secret, key=key, utc=utc)
    return verdict.reason if isinstance(verdict, Refused) else "again" if verdict.again else "welcome"


def known_as(name: str, key: bytes) -> Roster:
    return add_agent(Roster(), AgentEntry(name=name, key=key.hex(), added=NOW))


OPEN = Invitations(known=(entry(1),))
USED = inviting.use(OPEN, token(1).id, key=KEYS[0], utc=NOW)


# ---- one token -------------------------------------------------------------------------------------------------------


def test_an_open_token_lets_in_a_new_key() -> None:
    assert judged(OPEN, token(1), KEYS[0]) == "welcome"


@pytest.mark.parametrize("shown", [token(2), token(1)._replace(secret=bytes(32)), token(1)._replace(id=bytes(8))])
def test_a_wrong_token_is_refused_without_telling_whom_it_is_for(shown: Token) -> None:
    assert judged(OPEN, shown, KEYS[0]) == "this token is not known here"


def test_an_expired_and_a_withdrawn_token_are_refused_by_name() -> None:
    assert judged(OPEN, token(1), KEYS[0], utc=NOW + 100) == "the invitation of camera-1 has expired"
    withdrawn = inviting.withdraw(OPEN, "camera-1", utc=NOW + 1)
    assert judged(withdrawn, token(1), KEYS[0], utc=NOW + 2) == "the invitation of camera-1 was withdrawn"


def test_a_used_token_is_good_again_only_for_the_key_that_has_used_it() -> None:
    roster = known_as("camera-1", KEYS[0])
    assert judged(USED, token(1), KEYS[0], roster=roster) == "again"
    assert judged(USED, token(1), KEYS[0], roster=roster, utc=NOW + 1000) == "again"
    assert "was used already" in judged(USED, token(1), KEYS[1], roster=roster)
    revoked = rosters.revoke(roster, "camera-1", utc=NOW)
    assert "was used already" in judged(USED, token(1), KEYS[0], roster=revoked)


def test_a_key_that_is_known_gets_no_second_name() -> None:
    reason = judged(OPEN, token(1), KEYS[0], roster=known_as("camera-9", KEYS[0]))
    assert "known as camera-9 already: two devices must not share one" in reason


steps = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(KEYS), st.integers(0, 60)), max_size=12)


@given(steps)
def test_whatever_is_shown_in_whatever_order_no_token_lets_in_two_keys_and_no_key_gets_two_names(
    shown: list[tuple[int, bytes, int]],
) -> None:
    known, roster, utc = Invitations(known=(entry(1), entry(2))), Roster(), NOW
    for number, key, later in shown:
        utc += later
        one = token(number)
        verdict = inviting.judge(known, roster, id_=one.id, secret=one.secret, key=key, utc=utc)
        if isinstance(verdict, Welcome) and not verdict.again:
            roster = add_agent(roster, AgentEntry(name=verdict.name, key=key.hex(), added=utc))
            known = inviting.use(known, one.id, key=key, utc=utc)
    names = [agent.name for agent in roster.agents]
    assert len(names) == len(set(names)) == len({agent.key for agent in roster.agents}) <= 2
    assert all(i.by == a.key for i in known.known for a in roster.agents if i.name == a.name)


# ---- inviting --------------------------------------------------------------------------------------------------------


def test_guests_may_come_only_while_an_invitation_is_open() -> None:
    assert inviting.guests_until(Invitations(), utc=NOW) == 0
    both = inviting.invite(OPEN, Roster(), entry(2, expires=NOW + 50))
    assert inviting.guests_until(both, utc=NOW) == NOW + 100
    assert inviting.guests_until(inviting.withdraw(both, "camera-1", utc=NOW), utc=NOW) == NOW + 50
    assert inviting.guests_until(both, utc=NOW + 100) == 0
    assert inviting.guests_until(USED, utc=NOW) == 0


def test_a_name_is_invited_once_and_only_if_it_is_free() -> None:
    with pytest.raises(InputError, match="camera-1 was invited already"):
        inviting.invite(OPEN, Roster(), entry(2, name="camera-1"))
    with pytest.raises(InputError, match="the name camera-1 is taken"):
        inviting.invite(Invitations(), known_as("camera-1", KEYS[0]), entry(1))
    again = inviting.invite(inviting.withdraw(OPEN, "camera-1", utc=NOW), Roster(), entry(2, name="camera-1"))
    assert judged(again, token(2), KEYS[0]) == "welcome"


def test_what_is_kept_does_not_hold_the_secret_and_is_read_as_it_was_written() -> None:
    data = inviting.encode(USED)
    assert token(1).secret.hex().encode() not in data
    assert inviting.decode(data, name="it") == USED
    with pytest.raises(InputError, match="does not parse"):
        inviting.decode(b"{}", name="it")


# ---- the thread ------------------------------------------------------------------------------------------------------


class Desk:
    """An enrolment of a real folder, and what it has answered."""

    def __init__(self, path: Path) -> None:
        self.folder = KeyFolder(path)
        self.folder.make()
        with self.folder.locked():
            self.folder.create("gateway")
        self.answers: list[tuple[bytes, m.Enrolled]] = []
        self.changes = 0
        self.told: list[str] = []
        self._more = threading.Condition()
        self.enrolment = Enrolment(
            self.folder,
            AuditLog(self.folder.audit_log),
            answer=self._on_answer,
            changed=self._on_change,
            told=lambda event, text: self.told.append(f"{event}: {text}"),
        )

    def invite(self, number: int) -> None:
        expires = int(time.time()) + 1000
        with self.folder.locked():
            self.folder.change_invitations(lambda i: inviting.invite(i, Roster(), entry(number, expires=expires)))

    def ask(self, shown: Token, key: bytes) -> m.Enrolled:
        before = len(self.answers)
        assert self.enrolment.take(b"route", key, m.Enroll(shown.id, shown.secret, "test"))
        with self._more:
            assert self._more.wait_for(lambda: len(self.answers) > before, PATIENCE_S)
        return self.answers[-1][1]

    def _on_answer(self, route: bytes, enrolled: m.Enrolled) -> None:
        with self._more:
            self.answers.append((route, enrolled))
            self._more.notify_all()

    def _on_change(self) -> None:
        self.changes += 1


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "keys")
    made.enrolment.start()
    yield made
    made.enrolment.stop()


def test_a_device_is_known_afterwards_told_the_gateways_keys_and_on_record(desk: Desk) -> None:
    desk.invite(1)
    with desk.folder.locked():
        desk.folder.begin_rotation(7448)
    enrolled = desk.ask(token(1), KEYS[0])
    assert (enrolled.name, enrolled.refusal) == ("camera-1", "")
    server = desk.folder.server_keys()
    assert server.next is not None
    assert enrolled.server == (
        m.ServerKey(server.current.public.data),
        m.ServerKey(server.next.public.data, 7448),
    )
    assert [(a.name, a.key) for a in desk.folder.roster().agents] == [("camera-1", KEYS[0].hex())]
    assert desk.changes == 1
    again = desk.ask(token(1), KEYS[0])
    assert again == enrolled
    assert desk.changes == 2
    records = list(AuditLog(desk.folder.audit_log).records())
    assert [(r.action, r.outcome) for r in records] == [("keys.enroll", "begun"), ("keys.enroll", "done")]
    assert records[0].target.startswith("camera-1 invitation 0101")


def test_every_refusal_is_one_sentence_to_the_device_and_on_record(desk: Desk) -> None:
    desk.invite(1)
    assert desk.ask(token(1), KEYS[0]).refusal == ""
    for shown, key, part in (
        (token(2), KEYS[1], "not known here"),
        (token(1), KEYS[1], "was used already"),
    ):
        refused = desk.ask(shown, key)
        assert part in refused.refusal
        assert (refused.name, refused.server) == ("", ())
        assert part in list(AuditLog(desk.folder.audit_log).records())[-1].outcome
        assert part in desk.told[-1]
    desk.invite(2)
    assert "known as camera-1 already" in desk.ask(token(2), KEYS[0]).refusal
    assert len(desk.folder.roster().agents) == 1


def test_a_folder_that_cannot_be_written_enrols_nobody_and_says_why(desk: Desk) -> None:
    desk.invite(1)
    desk.folder.audit_log.mkdir()  # the act cannot be recorded, so it is not done
    assert "its log says why" in desk.ask(token(1), KEYS[0]).refusal
    assert "audit.log cannot be written" in desk.told[-1]
    assert desk.folder.roster().agents == ()
    desk.folder.audit_log.rmdir()
    assert desk.ask(token(1), KEYS[0]).name == "camera-1"


def test_a_guest_that_asks_too_often_is_not_looked_at(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "keys")  # not started: only what is taken counts
    enroll = m.Enroll(bytes(8), bytes(32), "")
    taken = [desk.enrolment.take(b"", KEYS[0], enroll) for _ in range(MOST_ASKED + 2)]
    assert taken == [True] * MOST_ASKED + [False] * 2


def test_strangers_together_are_looked_at_no_more_than_so_often(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "keys")
    desk.enrolment.start()
    enroll = m.Enroll(bytes(8), bytes(32), "")
    taken = sum(desk.enrolment.take(b"", n.to_bytes(32), enroll) for n in range(10 * PER_MINUTE))
    desk.enrolment.stop()
    assert 1 <= taken <= PER_MINUTE + 2  # a slow machine has seen a second or two pass


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x01", wire.pack_header(m.Ping(1)), wire.pack_header(m.Hello(bytes(8), "a", "b", bytes(32))),
     bytes((wire.VERSION, 16)) + b"\x93", b"\x07\x10"],
)  # fmt: skip
def test_whatever_a_guest_says_besides_enroll_ends_its_connection(tmp_path: Path, frame: bytes) -> None:
    assert not Desk(tmp_path / "keys").enrolment.take_frame(b"", KEYS[0], frame)


def test_without_keys_nobody_is_enrolled() -> None:
    enrolment = Enrolment(None, None, answer=lambda route, enrolled: None)
    enrolment.start()
    assert not enrolment.take(b"", KEYS[0], m.Enroll(bytes(8), bytes(32), ""))
    enrolment.stop()


def test_an_invitation_survives_the_document_as_it_is(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    folder.make()
    before = folder.stamp()
    with folder.locked():
        folder.change_invitations(lambda _: USED)
    assert folder.invitations() == USED
    assert folder.stamp() != before
    assert (tmp_path / "invitations.json").stat().st_mode & 0o777 == 0o600
    assert msgspec.json.decode((tmp_path / "invitations.json").read_bytes())["known"][0]["by"] == KEYS[0].hex()
