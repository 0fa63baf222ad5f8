"""Causes: every code of a refusal has one, and what is noted of a flight says each cause and each sentence once."""

from __future__ import annotations

import msgspec
import pytest

from protocol.control.causes import Cause, Why, causes, sentences
from protocol.control.flights import Flight, RefusalCode
from protocol.messages import RejectCode

LOST = Why(Cause.LINK, "no gateway has answered yet")
FULL = Why.refused(RejectCode.BUSY, "the queue is full")


@pytest.mark.parametrize("code", RejectCode)
def test_a_gateways_refusal_is_told_by_its_code(code: RejectCode) -> None:
    why = Why.refused(code, "because")
    assert (str(why.cause), why.sentence) == (f"gateway_{code.lower()}", f"gateway {code}: because")


def test_no_cause_of_a_gateway_is_without_a_code() -> None:
    told = {Why.refused(code, "").cause for code in RejectCode}
    assert {cause for cause in Cause if cause.startswith("gateway_")} == told


def test_a_cause_of_another_release_is_another_one() -> None:
    """In an answer that was stored before a downgrade, or comes from a newer daemon: it must still be read."""
    assert Cause("solar_flare") is Cause.OTHER
    assert msgspec.convert(["link", "solar_flare"], tuple[Cause, ...]) == (Cause.LINK, Cause.OTHER)


def test_a_placement_is_named_in_front_once() -> None:
    assert LOST.about("cut-1") == Why(Cause.LINK, "cut-1: no gateway has answered yet")
    assert LOST.about("cut-1").about("cut-1") == LOST.about("cut-1")


def test_each_cause_and_each_sentence_is_told_once_in_order() -> None:
    noted = (LOST, FULL, LOST.about("cut-1"), LOST)
    assert causes(noted) == (Cause.LINK, Cause.GATEWAY_BUSY)
    assert sentences(noted) == (LOST.sentence, FULL.sentence, "cut-1: no gateway has answered yet")
    assert (causes(()), sentences(())) == ((), ())


def test_a_flight_ends_with_the_causes_of_what_was_noted() -> None:
    flight = Flight(1, deadline=1.0, placement="edge-only")
    flight.note(LOST)
    flight.note(Why.refused(RejectCode.BUSY, "full"))
    flight.note(Why.refused(RejectCode.BUSY, "fuller"))
    for finish in (flight.finish(""), flight.refusal(RefusalCode.DEADLINE, "the budget ran out")):
        assert finish.causes == (Cause.LINK, Cause.GATEWAY_BUSY)
        assert finish.degraded == ("no gateway has answered yet", "gateway BUSY: full")
