"""A request that comes again: attached while it runs, answered again once it is done, rerun only if it was refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.doors.dedup import DedupTable
from protocol.errors import InvariantViolation
from protocol.messages import RequestId

HOME, AWAY = b"old route", b"new route"


def request(number: int, boot: bytes = b"bootboot") -> RequestId:
    return RequestId(boot, number)


def answer_all(table: DedupTable[str], numbers: range, nbytes: int = 10) -> None:
    for number in numbers:
        table.start(request(number), HOME, 1)
        table.finish(request(number), f"answer {number}", nbytes)


def test_an_unknown_request_is_neither_running_nor_done() -> None:
    table: DedupTable[str] = DedupTable()
    assert not table.attach(request(1), HOME, 1)
    assert table.finished(request(1)) is None
    assert len(table) == 0


def test_an_attempt_to_attach_to_nothing_starts_nothing() -> None:
    table: DedupTable[str] = DedupTable()
    table.attach(request(1), HOME, 1)
    assert len(table) == 0


def test_an_answer_goes_to_the_route_and_attempt_that_asked() -> None:
    table: DedupTable[str] = DedupTable()
    table.start(request(1), HOME, 1)
    assert len(table) == 1
    assert table.finish(request(1), "answer", 10) == (HOME, 1)
    assert len(table) == 0


def test_a_running_request_has_no_answer_yet() -> None:
    table: DedupTable[str] = DedupTable()
    table.start(request(1), HOME, 1)
    assert table.finished(request(1)) is None


def test_a_request_that_comes_again_while_it_runs_is_attached_and_answered_where_it_asked_last() -> None:
    table: DedupTable[str] = DedupTable()
    table.start(request(1), HOME, 1)
    assert table.attach(request(1), AWAY, 2)
    assert len(table) == 1
    assert table.finish(request(1), "answer", 10) == (AWAY, 2)


def test_a_request_that_comes_again_when_it_is_done_gets_the_same_answer() -> None:
    table: DedupTable[str] = DedupTable()
    answer_all(table, range(1))
    assert table.finished(request(0)) == "answer 0"
    assert table.finished(request(0)) == "answer 0"
    assert not table.attach(request(0), AWAY, 2)


def test_the_same_number_of_another_boot_is_another_request() -> None:
    table: DedupTable[str] = DedupTable()
    answer_all(table, range(1))
    assert table.finished(request(0, boot=b"rebooted")) is None


def test_starting_a_running_request_is_a_bug() -> None:
    table: DedupTable[str] = DedupTable()
    table.start(request(1), HOME, 1)
    with pytest.raises(InvariantViolation, match="twice"):
        table.start(request(1), HOME, 2)


def test_starting_a_request_that_is_already_answered_is_a_bug() -> None:
    table: DedupTable[str] = DedupTable()
    answer_all(table, range(1))
    with pytest.raises(InvariantViolation, match="twice"):
        table.start(request(0), HOME, 2)


def test_a_refused_request_tells_whom_and_may_run_later() -> None:
    table: DedupTable[str] = DedupTable()
    table.start(request(1), HOME, 1)
    table.attach(request(1), AWAY, 2)
    assert table.abandon(request(1)) == (AWAY, 2)
    assert len(table) == 0
    assert table.finished(request(1)) is None
    table.start(request(1), AWAY, 3)
    assert table.finish(request(1), "answer", 10) == (AWAY, 3)


def test_abandoning_what_does_not_run_says_so() -> None:
    table: DedupTable[str] = DedupTable()
    assert table.abandon(request(1)) is None


def test_stored_answers_are_bounded_by_count_and_the_oldest_go_first() -> None:
    table: DedupTable[str] = DedupTable(entries=3, nbytes=1000)
    answer_all(table, range(5))
    assert [table.finished(request(n)) for n in range(5)] == [None, None, "answer 2", "answer 3", "answer 4"]


def test_stored_answers_are_bounded_by_bytes_and_the_oldest_go_first() -> None:
    table: DedupTable[str] = DedupTable(entries=100, nbytes=25)
    answer_all(table, range(4), nbytes=10)
    assert [table.finished(request(n)) for n in range(4)] == [None, None, "answer 2", "answer 3"]


def test_an_answer_larger_than_the_store_is_still_delivered() -> None:
    table: DedupTable[str] = DedupTable(entries=100, nbytes=25)
    table.start(request(1), HOME, 1)
    assert table.finish(request(1), "huge", 26) == (HOME, 1)
    assert table.finished(request(1)) is None


def test_what_runs_is_never_forgotten_however_much_is_answered() -> None:
    table: DedupTable[str] = DedupTable(entries=2, nbytes=20)
    table.start(request(1000), HOME, 1)
    answer_all(table, range(50))
    assert table.attach(request(1000), AWAY, 2)
    assert table.finish(request(1000), "at last", 10) == (AWAY, 2)
    assert table.finished(request(1000)) == "at last"


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ask", "finish", "refuse"]), st.integers(0, 7), st.integers(0, 12)), max_size=80
    )
)
def test_no_request_runs_twice_at_once_and_the_store_keeps_its_bounds(steps: list[tuple[str, int, int]]) -> None:
    table: DedupTable[int] = DedupTable(entries=4, nbytes=20)
    running: dict[int, tuple[bytes, int]] = {}
    given_out: dict[int, tuple[int, int]] = {}  # the last answer and its size
    for at, (step, number, nbytes) in enumerate(steps):
        route = (str(at).encode(), at)
        if step == "ask":
            if table.attach(request(number), *route):
                assert number in running
                running[number] = route
            elif (stored := table.finished(request(number))) is not None:
                assert stored == given_out[number][0]
            else:
                assert number not in running
                table.start(request(number), *route)
                running[number] = route
        elif step == "finish" and number in running:
            assert table.finish(request(number), at, nbytes) == running.pop(number)
            given_out[number] = (at, nbytes)
        elif step == "refuse":
            assert table.abandon(request(number)) == running.pop(number, None)
        assert len(table) == len(running)
        kept = [n for n in given_out if n not in running and table.finished(request(n)) is not None]
        assert len(kept) <= 4
        assert sum(given_out[n][1] for n in kept) <= 20
