"""Who is known: names are unique among the living, what was revoked stays revoked, and a table holds at its moment."""

from __future__ import annotations

import msgspec
import pytest

from cloud_gateway.access import roster as rosters
from cloud_gateway.access.roster import AgentEntry, ApiKeyEntry, Roster, Table
from protocol.errors import InputError


def agent(name: str, number: int, *, expires: int | None = None) -> AgentEntry:
    return AgentEntry(name=name, key=f"{number:064x}", added=100, expires=expires)


def api_key(name: str, number: int, *, roles: tuple[rosters.ApiRole, ...] = ("infer",)) -> ApiKeyEntry:
    return ApiKeyEntry(name=name, id=f"{number:016x}", digest="0" * 64, roles=roles, added=100)


@pytest.fixture
def roster() -> Roster:
    return rosters.add_api_key(rosters.add_agent(Roster(), agent("camera-7", 1)), api_key("shop", 2))


def test_a_name_is_taken_until_whoever_bears_it_is_revoked(roster: Roster) -> None:
    for add in (
        lambda r: rosters.add_agent(r, agent("camera-7", 3)),
        lambda r: rosters.add_agent(r, agent("shop", 3)),
        lambda r: rosters.add_api_key(r, api_key("shop", 3)),
        lambda r: rosters.add_api_key(r, api_key("camera-7", 3)),
    ):
        with pytest.raises(InputError, match="is taken"):
            add(roster)
    after = rosters.revoke(roster, "camera-7", utc=200)
    assert rosters.add_agent(after, agent("camera-7", 3)).agents[1].revoked is None


def test_a_name_is_free_again_when_its_key_has_expired() -> None:
    roster = rosters.add_agent(Roster(), agent("camera-7", 1, expires=50))
    assert len(rosters.add_agent(roster, agent("camera-7", 2)).agents) == 2  # added at 100


def test_a_key_that_was_given_up_is_never_let_in_again(roster: Roster) -> None:
    after = rosters.revoke(roster, "camera-7", utc=200)
    with pytest.raises(InputError, match="was revoked before"):
        rosters.add_agent(after, agent("camera-8", 1))
    with pytest.raises(InputError, match="already that of camera-7"):
        rosters.add_agent(roster, agent("camera-8", 1))


def test_only_what_is_valid_now_can_be_revoked_by_name_or_id(roster: Roster) -> None:
    for name in ("shop", f"{2:016x}"):
        after = rosters.revoke(roster, name, utc=200)
        assert [key.revoked for key in after.api_keys] == [200]
        assert [a.revoked for a in after.agents] == [None]
        with pytest.raises(InputError, match="nobody is called"):
            rosters.revoke(after, name, utc=201)


def test_an_api_key_without_a_role_is_refused() -> None:
    with pytest.raises(InputError, match="--role"):
        rosters.add_api_key(Roster(), api_key("shop", 2, roles=()))


def test_what_is_written_is_read_again(roster: Roster) -> None:
    after = rosters.revoke(roster, "shop", utc=200)
    assert rosters.decode(rosters.encode(after), name="roster.json") == after


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"agents": [{"name": "a b", "key": "0" * 64, "added": 1}]},
                                    {"agents": [{"name": "a", "key": "0" * 63, "added": 1}]}, {"agnets": []},
                                    {"api_keys": [{"name": "a", "id": "0" * 16, "digest": "0" * 64,
                                                   "roles": ["root"], "added": 1}]}])  # fmt: skip
def test_a_roster_that_was_spoilt_lets_nobody_in(roster: Roster, change: dict[str, object]) -> None:
    document = msgspec.json.decode(rosters.encode(roster)) | change
    with pytest.raises(InputError, match=r"roster\.json"):
        rosters.decode(msgspec.json.encode(document), name="roster.json")


def test_a_table_holds_at_its_moment(roster: Roster) -> None:
    roster = rosters.add_agent(roster, agent("guest", 5, expires=300))
    roster = rosters.revoke(roster, "camera-7", utc=200)
    early, late = Table.of(roster, utc=299.9), Table.of(roster, utc=300)
    assert early.user_ids == {agent("guest", 5).user_id}
    assert early.stands_until == 300
    assert late.user_ids == frozenset()
    assert late.stands_until == float("inf")
    assert set(late.agents) == {bytes.fromhex(f"{n:064x}") for n in (1, 5)}  # known, to be refused by name


def test_a_new_key_under_an_old_name_does_not_let_the_old_connection_in_again(roster: Roster) -> None:
    before = next(iter(Table.of(roster, utc=150).user_ids))
    other = AgentEntry(name="camera-7", key="f" * 64, added=250)
    after = rosters.add_agent(rosters.revoke(roster, "camera-7", utc=200), other)
    assert before not in Table.of(after, utc=250).user_ids
    assert Table.of(after, utc=250).user_ids == {other.user_id}
