"""The journal: what is put in is found again, ends once, is taken once, and stays within its caps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.outcomes import Answer, StageTimings
from edge_agent.store.journal import FILE, Journal
from edge_agent.store.tickets import Caps, Full, Moment, State, StoreError, StoreFullError, Wish
from protocol.control.causes import Cause
from protocol.errors import InputError, WireError
from protocol.tensors import Array
from tests.waiting import until

IMAGE: dict[str, Array] = {"image": np.arange(12, dtype=np.float32).reshape(3, 4), "count": np.array([7], np.int64)}


class Clock:
    """Time that moves when it is told to; `reboot` begins another count since boot, `set_date` leaves it alone."""

    def __init__(self) -> None:
        self.now = Moment("boot-1", 100.0, 1_700_000_000.0)

    def __call__(self) -> Moment:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now = Moment(self.now.boot, self.now.since_boot_s + seconds, self.now.wall_s + seconds)

    def set_date(self, seconds_later: float) -> None:
        self.now = replace(self.now, wall_s=self.now.wall_s + seconds_later)

    def reboot(self, off_s: float) -> None:
        self.now = Moment(self.now.boot + "'", 1.0, self.now.wall_s + off_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    with Journal(tmp_path / "store", clock=clock) as opened:
        yield opened


def an_answer(value: float = 1.0, size: int = 10) -> Answer:
    return Answer(
        request="r",
        outputs={"logits": np.full((1, size), value, np.float32)},
        placement="cut-1",
        kind="cut",
        precision="int8",
        engine="ort",
        bundle="b" * 64,
        timings=StageTimings(edge_s=0.25, total_s=1.0),
        up_nbytes=100,
        down_nbytes=40,
        attempts=2,
        batch_size=4,
        degraded=("the link was down",),
        causes=(Cause.LINK,),
    )


def wish(nbytes: int = 64, **options: Any) -> Wish:
    return replace(Wish({"x": np.zeros(nbytes, np.uint8)}), **options)


# ---- in and out -----------------------------------------------------------------------------------------------------


def test_what_was_put_in_is_found_after_the_store_was_opened_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "store") as journal:
        ticket = journal.put(Wish(IMAGE, model="digits", priority=2, note="n"))
    with Journal(tmp_path / "store") as journal:
        found = journal.look(ticket)
        assert found is not None
        assert (found.state, found.model, found.priority, found.note) == (State.WAITING, "digits", 2, "n")
        tensors = journal.inputs(ticket)
        assert tensors is not None
        assert list(tensors) == list(IMAGE)
        for name, array in IMAGE.items():
            assert tensors[name].dtype == array.dtype
            assert np.array_equal(tensors[name], array)


def test_a_request_keeps_its_identity_over_a_restart_and_no_number_is_given_twice(tmp_path: Path) -> None:
    with Journal(tmp_path / "store") as journal:
        first, second = journal.put(wish()), journal.put(wish())
        begun = journal.begin(first)
        journal.drop(second)
    with Journal(tmp_path / "store") as journal:
        again, third = journal.begin(first), journal.put(wish())
        assert begun is not None
        assert again is not None
        assert begun[0] == again[0]
        assert str(again[0]) == first
        assert third not in (first, second)
        assert third.startswith(journal.boot.hex())


def test_an_answer_comes_back_whole_with_where_it_was_made(journal: Journal) -> None:
    ticket = journal.put(wish())
    told = an_answer(3.5)
    assert journal.answer(ticket, told)
    found = journal.take(ticket)
    assert found is not None
    assert found.answer is not None
    assert np.array_equal(found.answer.outputs["logits"], told.outputs["logits"])
    assert replace(found.answer, outputs={}) == replace(told, outputs={})


def test_an_answer_is_taken_once_and_looked_at_as_often_as_one_likes(journal: Journal) -> None:
    ticket = journal.put(wish())
    assert journal.answer(ticket, an_answer())
    for _ in range(2):
        found = journal.look(ticket)
        assert found is not None
        assert found.answer is not None
    assert journal.take(ticket) is not None
    assert journal.take(ticket) is None
    assert journal.look(ticket) is None


def test_of_many_takers_one_gets_the_answer(journal: Journal) -> None:
    ticket = journal.put(wish())
    journal.answer(ticket, an_answer())
    got: list[object] = []
    takers = [threading.Thread(target=lambda: got.append(journal.take(ticket))) for _ in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert len([one for one in got if one is not None]) == 1


def test_a_waiting_ticket_is_not_taken_but_can_be_dropped(journal: Journal) -> None:
    ticket = journal.put(wish())
    taken = journal.take(ticket)
    assert taken is not None
    assert taken.state is State.WAITING
    dropped = journal.drop(ticket)
    assert dropped is not None
    assert journal.look(ticket) is None
    assert journal.begin(ticket) is None


def test_a_ticket_ends_once_and_the_second_end_is_told_so(journal: Journal) -> None:
    ticket = journal.put(wish())
    assert journal.answer(ticket, an_answer(1.0))
    assert not journal.answer(ticket, an_answer(2.0))
    assert not journal.refuse(ticket, "BAD_REQUEST", "late")
    found = journal.take(ticket)
    assert found is not None
    assert found.answer is not None
    assert found.answer.outputs["logits"][0, 0] == 1.0
    assert not journal.answer(ticket, an_answer())


def test_a_key_stores_once_for_each_tenant(journal: Journal) -> None:
    one = journal.put(wish(key="k", tenant="a"))
    assert journal.put(wish(key="k", tenant="a")) == one
    assert journal.put(wish(key="k", tenant="b")) != one
    assert journal.totals().held == 2


def test_a_tenant_sees_takes_and_drops_only_its_own(journal: Journal) -> None:
    ticket = journal.put(wish(tenant="a"))
    journal.answer(ticket, an_answer())
    for act in (journal.look, journal.take, journal.drop):
        assert act(ticket, tenant="b") is None
    assert journal.take(ticket, tenant="a") is not None


def test_a_ticket_of_another_store_is_not_known_here(journal: Journal) -> None:
    ticket = journal.put(wish())
    assert journal.look(f"{'0' * 16}-{ticket.partition('-')[2]}") is None


@pytest.mark.parametrize(
    "text", ["", "x", "0123456789abcdef", "0123456789abcdef-", "0123456789abcdeg-1", "a-1", "٣" * 9]
)
def test_what_is_no_ticket_is_said_to_be_none(journal: Journal, text: str) -> None:
    with pytest.raises(InputError, match="no ticket"):
        journal.look(text)


def test_what_cannot_be_stored_is_refused_before_it_is_written(journal: Journal) -> None:
    with pytest.raises(InputError):
        journal.put(wish(priority=10))
    with pytest.raises(InputError):
        journal.put(wish(life_s=0.0))
    with pytest.raises(InputError):
        journal.put(wish(key="k" * 300))
    with pytest.raises(InputError):
        journal.put(Wish({}))
    with pytest.raises(WireError):
        journal.put(Wish({"x": np.array(["text"])}))
    assert journal.totals().held == 0


# ---- whose turn -----------------------------------------------------------------------------------------------------


def test_the_most_important_comes_first_and_then_the_oldest(journal: Journal) -> None:
    late, urgent, later = (journal.put(wish(priority=p)) for p in (5, 0, 5))
    assert [t.id for t in journal.waiting(9)] == [urgent, late, later]
    assert [t.id for t in journal.waiting(1, but=[journal.waiting(1)[0].sequence])] == [late]


def test_it_is_known_who_was_in_hand_when_the_process_ended(tmp_path: Path) -> None:
    with Journal(tmp_path / "store") as journal:
        suspect, other = journal.put(wish(priority=0)), journal.put(wish())
        journal.begin(suspect)
    with Journal(tmp_path / "store") as journal:
        assert [(t.id, t.attempts, t.unreturned) for t in journal.waiting(9)] == [(suspect, 1, 1), (other, 0, 0)]
        journal.begin(suspect)
        journal.came_back(suspect)
        journal.came_back(suspect)
        assert [(t.id, t.attempts, t.unreturned) for t in journal.waiting(9)] == [(suspect, 2, 0), (other, 0, 0)]


# ---- time -----------------------------------------------------------------------------------------------------------


def test_a_request_expires_when_an_answer_is_of_no_use_any_more(journal: Journal, clock: Clock) -> None:
    ticket = journal.put(wish(life_s=10.0))
    clock.advance(9.0)
    assert journal.sweep() == 0
    clock.advance(1.0)
    assert journal.waiting(9) == []
    found = journal.look(ticket)
    assert found is not None
    assert found.state is State.EXPIRED
    assert found.reason
    assert not journal.answer(ticket, an_answer())


def test_an_answer_that_nobody_takes_is_forgotten_after_its_time(journal: Journal, clock: Clock) -> None:
    ticket = journal.put(wish())
    clock.advance(1000.0)
    journal.answer(ticket, an_answer())
    clock.advance(journal.caps.keep_s - 1)
    assert journal.look(ticket) is not None
    clock.advance(1.0)
    assert journal.look(ticket) is None
    assert journal.totals().nbytes == 0


def test_a_date_that_jumps_ages_nothing_while_the_machine_is_up(journal: Journal, clock: Clock) -> None:
    ticket = journal.put(wish(life_s=10.0))
    for jump in (1e9, -2e9):
        clock.set_date(jump)
        assert journal.sweep() == 0
        found = journal.look(ticket)
        assert found is not None
        assert found.left_s == 10.0


def test_over_a_reboot_the_date_counts_and_never_backwards(journal: Journal, clock: Clock) -> None:
    ticket = journal.put(wish(life_s=100.0))
    clock.reboot(-1000.0)
    found = journal.look(ticket)
    assert found is not None
    assert found.left_s == 100.0
    clock.reboot(1000.0 + 101.0)
    found = journal.look(ticket)
    assert found is not None
    assert found.state is State.EXPIRED


def test_it_is_known_how_long_the_oldest_has_waited(journal: Journal, clock: Clock) -> None:
    assert journal.oldest_s() == 0.0
    first = journal.put(wish())
    clock.advance(7.0)
    journal.put(wish())
    clock.advance(1.0)
    assert journal.oldest_s() == 8.0
    journal.drop(first)
    assert journal.oldest_s() == 1.0


def test_no_life_is_longer_than_the_store_allows(tmp_path: Path) -> None:
    with Journal(tmp_path / "store", Caps(most_life_s=50.0)) as journal:
        found = journal.look(journal.put(wish(life_s=1e9)))
        assert found is not None
        assert found.left_s <= 50.0


# ---- caps -----------------------------------------------------------------------------------------------------------


def test_a_full_store_refuses_and_says_what_is_short(tmp_path: Path) -> None:
    with Journal(tmp_path / "store", Caps(most_tickets=2)) as journal:
        kept = [journal.put(wish()), journal.put(wish())]
        with pytest.raises(StoreFullError, match="2 requests and answers of at most 2"):
            journal.put(wish())
        assert [t.id for t in journal.entries()] == kept
        journal.refuse(kept[0], "BAD_REQUEST", "no")
        journal.put(wish())


def test_the_cap_on_bytes_counts_requests_and_answers(tmp_path: Path) -> None:
    with Journal(tmp_path / "store", Caps(most_nbytes=10_000)) as journal:
        ticket = journal.put(wish(100))
        assert journal.answer(ticket, an_answer(size=2000))
        with pytest.raises(StoreFullError, match="bytes"):
            journal.put(wish(2000))
        journal.take(ticket)
        journal.put(wish(2000))
        with pytest.raises(StoreFullError, match="holds 10,000"):
            journal.put(wish(20_000))


def test_the_oldest_of_the_least_important_makes_room_where_that_is_the_policy(tmp_path: Path) -> None:
    with Journal(tmp_path / "store", Caps(most_tickets=3, full=Full.DROP_OLDEST)) as journal:
        important, old, young = (journal.put(wish(priority=p)) for p in (1, 7, 7))
        newest = journal.put(wish(priority=7))
        assert [t.id for t in journal.entries(state=State.WAITING)] == [important, young, newest]
        dropped = journal.look(old)
        assert dropped is not None
        assert (dropped.state, dropped.code) == (State.REFUSED, "DROPPED")
        with pytest.raises(StoreFullError):
            journal.put(wish(priority=9))
        assert len(journal.entries(state=State.WAITING)) == 3


def test_what_is_refused_has_dropped_nobody(tmp_path: Path) -> None:
    with Journal(tmp_path / "store", Caps(most_nbytes=8_000, full=Full.DROP_OLDEST)) as journal:
        answered = journal.put(wish())
        journal.answer(answered, an_answer(size=1500))
        waiting = journal.put(wish())
        with pytest.raises(StoreFullError):
            journal.put(wish(5_000))
        assert [t.id for t in journal.entries(state=State.WAITING)] == [waiting]


def test_what_expired_makes_room_by_itself(tmp_path: Path, clock: Clock) -> None:
    with Journal(tmp_path / "store", Caps(most_tickets=1), clock=clock) as journal:
        journal.put(wish(life_s=1.0))
        clock.advance(2.0)
        journal.put(wish())


def test_of_those_that_ended_without_an_answer_only_so_many_are_remembered(tmp_path: Path) -> None:
    with Journal(tmp_path / "store", Caps(most_tickets=2)) as journal:
        for _ in range(5):
            journal.refuse(journal.put(wish()), "BAD_REQUEST", "no")
        journal.sweep()
        assert len(journal.entries()) == 2


def test_the_sums_that_the_caps_look_at_are_those_of_the_rows(journal: Journal) -> None:
    tickets = [journal.put(wish(100 * i + 1)) for i in range(6)]
    journal.answer(tickets[0], an_answer())
    journal.refuse(tickets[1], "X", "")
    journal.drop(tickets[2])
    journal.take(tickets[0])
    rows, totals = journal.entries(), journal.totals()
    assert totals.nbytes == sum(t.nbytes for t in rows)
    assert totals.tickets == {s: sum(t.state is s for t in rows) for s in State}


def test_the_file_shrinks_when_what_lay_in_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "store" / FILE

    def size() -> int:
        return sum(p.stat().st_size for p in path.parent.glob(f"{FILE}*"))

    with Journal(tmp_path / "store") as journal:
        futures = [journal.offer(wish(500_000)) for _ in range(8)]
        tickets = [future.result() for future in futures]
        assert size() > 4_000_000
        for ticket in tickets:
            journal.drop(ticket)
        until(lambda: path.stat().st_size < 1_000_000, "the file did not shrink")
    assert size() < 1_000_000


# ---- one owner ------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_turned_away_and_a_command_may_look_and_drop(journal: Journal) -> None:
    ticket = journal.put(wish())
    with pytest.raises(StoreError, match="another process runs"):
        Journal(journal.folder).open()
    with Journal(journal.folder, owner=False) as beside:
        assert [t.id for t in beside.entries()] == [ticket]
        assert beside.drop(ticket) is not None
    assert journal.look(ticket) is None


def test_a_command_makes_no_store_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        Journal(tmp_path / "store", owner=False).open()
    assert not (tmp_path / "store").exists()


def test_the_file_is_its_owners_alone(journal: Journal) -> None:
    journal.put(wish())
    modes = {path.name: path.stat().st_mode & 0o777 for path in journal.folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert journal.folder.stat().st_mode & 0o777 == 0o700


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "store")
    with pytest.raises(StoreError, match="closed"):
        journal.put(wish())
    journal.open()
    journal.close()
    journal.close()
    with pytest.raises(StoreError, match="closed"):
        journal.put(wish())
