"""Who holds a front's memory is found by what the kernel counts, and what is under way by marks that come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.doors.holdings import LEAST_NBYTES, Holdings, Window

MIB = 1 << 20


def inspect(holdings: Holdings, received: dict[int, int], *, pressed: bool = False) -> list[int]:
    return holdings.inspect(received.get, pressed=pressed)


def holding(*descriptors: int) -> Holdings:
    holdings = Holdings(most_nbytes=10 * MIB)
    for descriptor in descriptors:
        holdings.accepted(descriptor)
    return holdings


def test_a_message_that_does_not_end_is_cut_off_once_it_is_larger_than_a_message_may_be() -> None:
    holdings = holding(5, 6)
    assert inspect(holdings, {5: 10 * MIB, 6: 100}) == []
    assert inspect(holdings, {5: 10 * MIB + 1, 6: 100}) == [5]
    assert inspect(holdings, {5: 99 * MIB, 6: 100}) == [], "it is hung up on once"


def test_whoever_delivers_may_bring_as_much_as_he_likes() -> None:
    holdings = holding(5)
    for turn in range(1, 50):
        holdings.delivered(5)
        assert inspect(holdings, {5: turn * 9 * MIB}) == []


def test_what_came_before_the_last_delivery_does_not_count() -> None:
    holdings = holding(5)
    holdings.delivered(5)
    inspect(holdings, {5: 500 * MIB})
    assert inspect(holdings, {5: 510 * MIB}) == []
    assert inspect(holdings, {5: 511 * MIB}) == [5]


def test_under_pressure_the_one_who_holds_most_goes_and_nobody_who_holds_little() -> None:
    holdings = holding(5, 6, 7)
    received = {5: 2 * MIB, 6: 3 * MIB, 7: LEAST_NBYTES - 1}
    assert inspect(holdings, received, pressed=False) == []
    assert inspect(holdings, received, pressed=True) == [6]
    assert inspect(holdings, received, pressed=True) == [5]
    assert inspect(holdings, received, pressed=True) == []
    assert inspect(holding(), {}, pressed=True) == []


def test_a_number_that_the_system_gives_out_again_begins_anew() -> None:
    holdings = holding(5)
    holdings.delivered(5)
    inspect(holdings, {5: 500 * MIB})
    holdings.ended(5)
    assert len(holdings) == 0
    holdings.accepted(5)
    assert inspect(holdings, {5: 10 * MIB}) == []
    assert inspect(holdings, {5: 11 * MIB}) == [5]


def test_news_of_connections_that_are_gone_or_were_never_told_of_is_no_trouble() -> None:
    holdings = holding(5)
    holdings.delivered(9)
    holdings.ended(9)
    assert inspect(holdings, {}) == []
    assert len(holdings) == 1


def test_it_says_whether_much_is_moving_so_that_an_idle_front_need_not_look_often() -> None:
    holdings, seen = holding(5), []
    for received in (100, 200, MIB, MIB + 100, 2 * MIB):
        inspect(holdings, {5: received})
        seen.append(holdings.moving)
    assert seen == [False, False, True, False, True]


# ---- the window -----------------------------------------------------------------------------------------------------


def test_the_window_shuts_when_too_much_is_under_way_and_opens_when_it_was_read() -> None:
    window = Window(nbytes=400, messages=100)
    assert window.sent(99) is None
    assert window.sent(1) == 1
    assert [window.sent(100) for _ in range(3)] == [2, 3, 4]
    assert (window.open, window.under_way_nbytes) == (False, 400)
    window.read_up_to(1)
    assert (window.open, window.under_way_nbytes) == (True, 300)
    window.read_up_to(4)  # news of 2 and 3 may be lost: a later mark stands for them
    assert window.under_way_nbytes == 0


def test_many_small_messages_shut_it_too() -> None:
    window = Window(nbytes=1 << 30, messages=8)
    marks = [window.sent(0) for _ in range(8)]
    assert marks == [None, 1, None, 2, None, 3, None, 4]
    assert not window.open


def test_a_mark_that_was_never_set_or_came_back_already_says_nothing() -> None:
    window = Window(nbytes=400, messages=100)
    window.sent(200)
    window.read_up_to(1)
    window.read_up_to(1)
    window.read_up_to(77)
    assert window.under_way_nbytes == 0
    assert window.open


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=200))
def test_a_reader_who_reads_everything_always_opens_it_again(steps: list[tuple[int, bool]]) -> None:
    window, marks = Window(nbytes=400, messages=20), []
    for nbytes, reads in steps:
        if window.open:
            mark = window.sent(nbytes)
            marks += [] if mark is None else [mark]
            assert window.under_way_nbytes <= 400 + nbytes
        if reads and marks:
            window.read_up_to(marks.pop(0))
    for mark in marks:
        window.read_up_to(mark)
    assert window.open
    assert window.under_way_nbytes < 400 / 4 + 300
