"""The door: every bound, its code and its words, and the count of what is inside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.scheduling.admission import Admission, Limits, Verdict
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode

SMALL = Limits(pending_requests=3, pending_nbytes=1000)


def ask(
    door: Admission,
    *,
    tenant: str = "one",
    nbytes: int = 100,
    budget_s: float = 1.0,
    wait_s: float = 0.0,
    service_s: float = 0.01,
) -> Verdict | None:
    return door.decide(tenant=tenant, nbytes=nbytes, budget_s=budget_s, wait_s=wait_s, service_s=service_s)


def test_what_fits_is_admitted() -> None:
    assert ask(Admission(SMALL)) is None


def test_deciding_admits_nobody_by_itself() -> None:
    door = Admission(SMALL)
    for _ in range(10):
        assert ask(door) is None
    assert (door.requests, door.nbytes) == (0, 0)


def test_a_request_that_exactly_fits_its_budget_is_admitted() -> None:
    assert ask(Admission(SMALL), budget_s=0.75, wait_s=0.5, service_s=0.25) is None


def test_a_request_that_cannot_finish_in_time_is_refused_with_the_numbers() -> None:
    verdict = ask(Admission(SMALL), budget_s=0.050, wait_s=0.045, service_s=0.010)
    assert verdict is not None
    assert verdict.code is RejectCode.DEADLINE
    assert "45.0 ms" in verdict.reason
    assert "10.0 ms" in verdict.reason
    assert "50.0 ms" in verdict.reason
    assert verdict.retry_after_s == pytest.approx(0.045)


def test_no_budget_at_all_is_refused_as_soon_as_a_cost_is_known() -> None:
    verdict = ask(Admission(SMALL), budget_s=0.0, service_s=0.001)
    assert verdict is not None
    assert verdict.code is RejectCode.DEADLINE


def test_pending_requests_are_bounded() -> None:
    door = Admission(SMALL)
    for _ in range(3):
        assert ask(door) is None
        door.enter("one", 100)
    verdict = ask(door, wait_s=0.2)
    assert verdict == Verdict(RejectCode.BUSY, "3 requests are pending", 0.2, 29)


def test_pending_bytes_are_bounded() -> None:
    door = Admission(SMALL)
    door.enter("one", 900)
    assert ask(door, nbytes=100) is None
    verdict = ask(door, nbytes=101, wait_s=0.3)
    assert verdict == Verdict(RejectCode.BUSY, "900 bytes are pending", 0.3, 31)


def test_a_busy_gateway_never_invites_back_at_once() -> None:
    door = Admission(SMALL)
    for _ in range(3):
        door.enter("one", 0)
    verdict = ask(door, wait_s=0.0)
    assert verdict is not None
    assert verdict.retry_after_s > 0.0


def test_a_request_larger_than_the_gateway_is_too_large_and_not_busy() -> None:
    verdict = ask(Admission(SMALL), nbytes=1001)
    assert verdict is not None
    assert verdict.code is RejectCode.TOO_LARGE
    assert "1001 bytes" in verdict.reason
    assert "1000" in verdict.reason


def test_a_request_as_large_as_the_gateway_may_enter_an_empty_one() -> None:
    assert ask(Admission(SMALL), nbytes=1000) is None


def test_a_draining_gateway_admits_nobody_and_says_so() -> None:
    door = Admission(SMALL)
    door.draining = True
    verdict = ask(door)
    assert verdict is not None
    assert verdict.code is RejectCode.DRAINING
    assert "shutting down" in verdict.reason
    assert verdict.retry_after_s > 0.0


def test_a_tenants_credit_bounds_its_own_requests_and_nobody_elses() -> None:
    door = Admission(Limits(credit_requests=2))
    for _ in range(2):
        door.enter("greedy", 10)
    verdict = ask(door, tenant="greedy", wait_s=0.3)
    assert verdict == Verdict(RejectCode.BUSY, "your credit of 2 requests is used up", 0.3, 0)
    assert ask(door, tenant="modest") is None
    assert (door.credit("greedy"), door.credit("modest")) == (0, 2)


def test_a_tenants_bytes_are_bounded_but_a_single_large_request_may_enter() -> None:
    door = Admission(Limits(credit_nbytes=100))
    assert ask(door, tenant="one", nbytes=150) is None
    door.enter("one", 60)
    verdict = ask(door, tenant="one", nbytes=50)
    assert verdict is not None
    assert (verdict.code, verdict.credit) == (RejectCode.BUSY, 31)
    assert ask(door, tenant="other", nbytes=50) is None


def test_whoever_leaves_makes_room() -> None:
    door = Admission(SMALL)
    for _ in range(3):
        door.enter("one", 300)
    assert ask(door) is not None
    door.leave("one", 300)
    assert ask(door) is None
    assert (door.requests, door.nbytes) == (2, 600)


def test_more_leaving_than_entered_is_a_bug() -> None:
    door = Admission(SMALL)
    door.enter("one", 10)
    door.leave("one", 10)
    with pytest.raises(InvariantViolation, match="more of 'one' left than entered"):
        door.leave("one", 10)


def test_more_bytes_leaving_than_entered_is_a_bug() -> None:
    door = Admission(SMALL)
    door.enter("one", 10)
    with pytest.raises(InvariantViolation, match="more of 'one' left than entered"):
        door.leave("one", 11)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400)), max_size=60))
def test_what_is_pending_stays_within_both_bounds_and_is_the_sum_of_who_is_inside(
    steps: list[tuple[bool, int]],
) -> None:
    door = Admission(SMALL)
    inside: list[int] = []
    for coming, nbytes in steps:
        if coming:
            if ask(door, nbytes=nbytes) is None:
                door.enter("one", nbytes)
                inside.append(nbytes)
        elif inside:
            door.leave("one", inside.pop(0))
        assert (door.requests, door.nbytes) == (len(inside), sum(inside))
        assert door.requests <= SMALL.pending_requests
        assert door.nbytes <= SMALL.pending_nbytes
    for nbytes in inside:
        door.leave("one", nbytes)
    assert (door.requests, door.nbytes) == (0, 0)
