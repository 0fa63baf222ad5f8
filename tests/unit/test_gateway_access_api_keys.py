"""Who is let in over HTTP and gRPC: every route with every credential, and nobody faster than allowed."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.access import api_keys
from cloud_gateway.access.api_keys import Denial, Role, Rules
from cloud_gateway.access.guard import ApiGuard
from cloud_gateway.access.limits import Bucket, Failures, Meter
from cloud_gateway.access.roster import (
    ANONYMOUS,
    AgentEntry,
    Allowance,
    ApiKeyEntry,
    ApiRole,
    Roster,
    Table,
    add_agent,
    add_api_key,
    revoke,
)
from protocol.errors import InputError
from protocol.oip.service import AccessDenied, Guard
from tests.access import CREDENTIALS, KEYS, ROSTER, UTC, expected_status

ROLES: tuple[Role, ...] = get_args(Role)
TABLE = Table.of(ROSTER, utc=UTC)
ADMIN_ON = Rules(admin=True)
HERE, AWAY = "127.0.0.1", "192.0.2.9"


def decide(
    role: Role,
    credential: str | None,
    *,
    table: Table | None = TABLE,
    rules: Rules = ADMIN_ON,
    address: str = AWAY,
    nbytes: int = 100,
    meter: Meter | None = None,
    failures: Failures | None = None,
    now: float = 0.0,
) -> str | Denial:
    return api_keys.decide(
        table,
        rules,
        Meter() if meter is None else meter,
        Failures(per_minute=10) if failures is None else failures,
        role=role,
        credential=credential,
        address=address,
        nbytes=nbytes,
        now=now,
        utc=UTC,
    )


def status(verdict: str | Denial) -> int:
    return verdict.status if isinstance(verdict, Denial) else 200


@pytest.mark.parametrize(("role", "credential"), list(itertools.product(ROLES, CREDENTIALS)))
@pytest.mark.parametrize("address", [HERE, AWAY])
def test_every_role_with_every_credential_is_answered_as_the_table_says(
    role: Role, credential: str, address: str
) -> None:
    verdict = decide(role, CREDENTIALS[credential], address=address)
    assert status(verdict) == expected_status(role, credential), verdict


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_administration_is_off_unless_it_is_configured(credential: str) -> None:
    verdict = decide("admin", CREDENTIALS[credential], rules=Rules(), address=HERE)
    assert status(verdict) == 403
    assert "access.admin" in str(verdict)


@pytest.mark.parametrize(("table", "insecure", "address", "role", "want"), [
    (None, False, HERE, "infer", 200), (None, False, "::1", "metrics", 200), (None, False, "unix", "infer", 200),
    (None, False, "::ffff:127.0.0.1", "infer", 200), (None, False, AWAY, "infer", 401), (None, False, "", "infer", 401),
    (None, False, HERE, "admin", 401), (None, True, AWAY, "infer", 200), (None, True, AWAY, "metrics", 200),
    (None, True, HERE, "admin", 401), (Table.of(Roster(), utc=UTC), False, HERE, "infer", 200),
    (TABLE, False, HERE, "infer", 401), (TABLE, True, AWAY, "infer", 401), (TABLE, True, HERE, "metrics", 401),
])  # fmt: skip
def test_without_any_api_key_this_machine_may_infer_and_look(
    table: Table | None, insecure: bool, address: str, role: Role, want: int
) -> None:
    assert status(decide(role, None, table=table, rules=Rules(True, insecure), address=address)) == want


def test_when_all_keys_are_revoked_the_door_does_not_open_again() -> None:
    roster = ROSTER
    for entry in ROSTER.api_keys:
        if entry.revoked is None:
            roster = revoke(roster, entry.id, utc=UTC)
    table = Table.of(roster, utc=UTC)
    assert status(decide("infer", None, table=table, address=HERE)) == 401


def test_agents_without_api_keys_leave_this_machines_programs_in() -> None:
    roster = add_agent(Roster(), AgentEntry(name="camera-7", key="1" * 64, added=0))
    assert decide("infer", None, table=Table.of(roster, utc=UTC), address=HERE) == ANONYMOUS


def test_a_key_is_256_random_bits_and_only_its_digest_is_kept() -> None:
    key = api_keys.make_key(bytes(range(40)))
    assert key.text == f"isthmus_{bytes(range(8)).hex()}_{bytes(range(8, 40)).hex()}"
    assert key.text[-64:] not in key.digest
    assert len(key.digest) == 64
    with pytest.raises(ValueError, match="random bytes"):
        api_keys.make_key(bytes(39))


def test_equal_secrets_of_two_ids_have_different_digests() -> None:
    assert api_keys.digest_of("0" * 16, "a" * 64) != api_keys.digest_of("1" * 16, "a" * 64)


@given(st.sampled_from(sorted(KEYS)), st.integers(0, 88), st.characters(codec="ascii"))
def test_no_key_with_a_changed_character_is_known(name: str, at: int, character: str) -> None:
    text = KEYS[name]
    changed = text[:at] + character + text[at + 1 :]
    found = api_keys.find(TABLE, changed)
    assert (found is not None) == (changed == text)


@given(st.text(max_size=120))
def test_no_text_is_a_key_by_accident(text: str) -> None:
    assert api_keys.find(TABLE, text) is None


@pytest.mark.parametrize("text", ["", "isthmus_", KEYS["infer"] + "\n", KEYS["infer"].upper(), " " + KEYS["infer"]])
def test_what_only_resembles_a_key_is_none(text: str) -> None:
    assert api_keys.find(TABLE, text) is None


def test_nobody_may_be_called_anonymous() -> None:
    entry = ApiKeyEntry(name=ANONYMOUS, id="0" * 16, digest="0" * 64, roles=("infer",), added=0)
    with pytest.raises(InputError, match="without a key"):
        add_api_key(Roster(), entry)


# ---- wrong attempts --------------------------------------------------------------------------------------------------


def test_too_many_wrong_keys_from_one_address_are_slowed_and_forgiven_with_time() -> None:
    failures = Failures(per_minute=3)
    wrong = CREDENTIALS["wrong"]
    assert [status(decide("infer", wrong, failures=failures)) for _ in range(4)] == [401, 401, 401, 429]
    denial = decide("infer", wrong, failures=failures)
    assert isinstance(denial, Denial)
    assert denial.retry_after_s == pytest.approx(20)
    assert status(decide("infer", wrong, failures=failures, address="192.0.2.10")) == 401
    assert status(decide("infer", wrong, failures=failures, now=20.0)) == 401
    assert status(decide("infer", wrong, failures=failures, now=20.1)) == 429


def test_wrong_keys_lock_out_no_right_one_behind_the_same_address() -> None:
    failures = Failures(per_minute=1)
    for _ in range(5):
        decide("infer", CREDENTIALS["wrong"], failures=failures)
    assert decide("infer", CREDENTIALS["infer"], failures=failures) == "infer"


def test_whoever_has_one_ipv6_address_has_many_and_they_count_as_one() -> None:
    failures = Failures(per_minute=1)
    wrong = CREDENTIALS["wrong"]
    assert status(decide("infer", wrong, failures=failures, address="2001:db8::1")) == 401
    assert status(decide("infer", wrong, failures=failures, address="2001:db8::ffff")) == 429
    assert status(decide("infer", wrong, failures=failures, address="2001:db8:0:1::1")) == 401


def test_only_so_many_addresses_are_remembered() -> None:
    failures = Failures(per_minute=1, most_addresses=10)
    for number in range(1000):
        failures.failed(f"192.0.2.{number}", now=0.0)
    assert len(failures) == 10


# ---- allowances ------------------------------------------------------------------------------------------------------


def test_requests_are_let_in_at_the_allowed_rate() -> None:
    meter, allowance = Meter(), Allowance(requests_per_s=2)
    assert [meter.enter("a", allowance, nbytes=0, now=0.0) for _ in range(2)] == [None, None]
    excess = meter.enter("a", allowance, nbytes=0, now=0.0)
    assert excess is not None
    assert excess.retry_after_s == pytest.approx(0.5)
    assert meter.enter("b", allowance, nbytes=0, now=0.0) is None
    assert meter.enter("a", allowance, nbytes=0, now=0.5) is None


def test_a_large_body_is_let_in_and_paid_off_by_waiting() -> None:
    meter, allowance = Meter(), Allowance(bytes_per_s=1000)
    assert meter.enter("a", allowance, nbytes=5000, now=0.0) is None
    excess = meter.enter("a", allowance, nbytes=1000, now=1.0)
    assert excess is not None
    assert excess.retry_after_s == pytest.approx(4.0)
    assert meter.enter("a", allowance, nbytes=1000, now=5.0) is None


def test_a_body_over_the_keys_limit_is_refused_for_good() -> None:
    assert status(decide("infer", CREDENTIALS["infer"], nbytes=10_001)) == 403
    assert status(decide("infer", CREDENTIALS["infer"], nbytes=10_000)) == 200


def test_only_so_many_are_in_flight_and_whoever_leaves_makes_room() -> None:
    meter, allowance = Meter(), Allowance(concurrent=2)
    assert [meter.enter("a", allowance, nbytes=0, now=0.0) for _ in range(2)] == [None, None]
    assert meter.enter("a", allowance, nbytes=0, now=0.0) is not None
    meter.leave("a")
    assert meter.enter("a", allowance, nbytes=0, now=0.0) is None
    assert meter.in_flight("a") == 2


def test_what_is_refused_uses_nothing_up() -> None:
    meter, allowance = Meter(), Allowance(requests_per_s=1, bytes_per_s=10, body_nbytes=100)
    for _ in range(5):
        assert meter.enter("a", allowance, nbytes=101, now=0.0) is not None
    assert meter.enter("a", allowance, nbytes=10, now=0.0) is None


@given(
    st.floats(0.1, 1000),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 50)), max_size=60),
)
def test_a_bucket_never_gives_more_than_flows_in(rate: float, asks: list[tuple[float, float]]) -> None:
    size = max(rate, 1.0)
    bucket, now, given_, largest = Bucket.full(rate, size=size, now=0.0), 0.0, 0.0, 0.0
    for pause, amount in asks:
        now += pause
        if bucket.wait_s(amount, now=now) == 0:
            bucket.take(amount, now=now)
            given_, largest = given_ + amount, max(largest, amount)
        else:
            later = now + bucket.wait_s(amount, now=now)
            assert bucket.wait_s(amount, now=later + 1e-6) == pytest.approx(0, abs=1e-6)
            now = later + 1e-6
    assert given_ <= size + largest + rate * now + 1e-6


# ---- the guard -------------------------------------------------------------------------------------------------------


def test_the_guard_is_what_the_doors_ask_for() -> None:
    guard: Guard = ApiGuard(lambda: TABLE, Rules(admin=True), clock=lambda: UTC)
    tenant = guard.check(role="infer", credential=CREDENTIALS["infer"], address=AWAY, nbytes=0)
    assert tenant == "infer"
    guard.release(tenant)


def test_the_guard_counts_and_tells_what_it_denies() -> None:
    told: list[tuple[str, str]] = []
    guard = ApiGuard(lambda: TABLE, Rules(), clock=lambda: UTC, told=lambda event, text: told.append((event, text)))
    with pytest.raises(AccessDenied) as denied:
        guard.check(role="infer", credential=None, address=AWAY, nbytes=0)
    assert denied.value.status == 401
    assert guard.stats == {"denied_401": 1}
    assert told == [("request_denied", f"{AWAY}: {denied.value.reason}")]


def test_the_guard_frees_what_was_in_flight() -> None:
    one: tuple[ApiRole, ...] = ("infer",)
    key = api_keys.make_key(bytes(40))
    entry = ApiKeyEntry(name="one", id=key.id, digest=key.digest, roles=one, added=0, allowance=Allowance(concurrent=1))
    table = Table.of(add_api_key(Roster(), entry), utc=UTC)
    guard = ApiGuard(lambda: table, Rules(), clock=lambda: UTC)
    for _ in range(3):
        tenant = guard.check(role="infer", credential=key.text, address=AWAY, nbytes=0)
        with pytest.raises(AccessDenied):
            guard.check(role="infer", credential=key.text, address=AWAY, nbytes=0)
        guard.release(tenant)
    for _ in range(3):
        guard.release(guard.check(role="open", credential=key.text, address=AWAY, nbytes=0))
    assert guard.check(role="infer", credential=key.text, address=AWAY, nbytes=0) == "one"
    with pytest.raises(AccessDenied):
        guard.check(role="infer", credential=key.text, address=AWAY, nbytes=0)
