"""Connections without a known agent behind them: how long they may stay, and who is never hung up on."""

from __future__ import annotations

from cloud_gateway.doors.newcomers import Newcomers


def test_who_says_nothing_must_go_and_is_told_once() -> None:
    newcomers = Newcomers(patience_s=60)
    newcomers.accepted(7, "a:1", now=0.0)
    newcomers.accepted(8, "b:1", now=30.0)
    assert newcomers.overdue(now=59.9) == []
    assert newcomers.overdue(now=60.0) == [(7, "a:1")]
    assert newcomers.overdue(now=89.9) == []
    assert newcomers.overdue(now=90.0) == [(8, "b:1")]
    assert len(newcomers) == 0


def test_who_is_known_stays_even_if_the_news_of_its_connection_comes_after_its_greeting() -> None:
    newcomers = Newcomers(patience_s=60)
    newcomers.accepted(7, "a:1", now=0.0)
    newcomers.known(7)
    newcomers.known(8)
    newcomers.accepted(8, "b:1", now=0.0)
    assert newcomers.overdue(now=1000.0) == []


def test_a_stranger_who_gets_the_descriptor_of_a_known_agent_between_two_looks_must_go() -> None:
    newcomers = Newcomers(patience_s=60)
    newcomers.known(7)  # before the news of its connection, as of all that follows, is told
    newcomers.accepted(7, "a:1", now=1.0)
    newcomers.ended(7)
    newcomers.accepted(7, "b:1", now=1.0)
    newcomers.accepted(8, "c:1", now=1.0)
    newcomers.known(8)
    newcomers.known(8)
    newcomers.ended(8)
    newcomers.accepted(8, "d:1", now=2.0)
    assert newcomers.overdue(now=62.0) == [(7, "b:1"), (8, "d:1")]


def test_a_descriptor_that_is_used_again_is_another_connection() -> None:
    newcomers = Newcomers(patience_s=60)
    newcomers.known(7)
    assert newcomers.overdue(now=1.0) == []
    newcomers.ended(7)
    newcomers.accepted(7, "b:1", now=10.0)
    newcomers.accepted(9, "c:1", now=10.0)
    newcomers.ended(9)
    assert newcomers.overdue(now=70.0) == [(7, "b:1")]
