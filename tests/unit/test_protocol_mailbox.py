"""The mailbox: nothing posted is lost, order is kept per thread, and the owner's poll wakes up."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from protocol.mailbox import Mailbox


@pytest.fixture
def mailbox() -> Iterator[Mailbox[tuple[int, int]]]:
    box: Mailbox[tuple[int, int]] = Mailbox()
    yield box
    box.close()


def is_readable(box: Mailbox[tuple[int, int]], timeout_s: float = 0.0) -> bool:
    return bool(select.select([box.fileno()], [], [], timeout_s)[0])


def test_an_empty_mailbox_is_not_readable_and_drains_to_nothing(mailbox: Mailbox[tuple[int, int]]) -> None:
    assert not is_readable(mailbox)
    assert mailbox.drain() == []


def test_a_post_makes_it_readable_until_it_is_drained(mailbox: Mailbox[tuple[int, int]]) -> None:
    mailbox.post((0, 0))
    mailbox.post((0, 1))
    assert is_readable(mailbox)
    assert mailbox.drain() == [(0, 0), (0, 1)]
    assert not is_readable(mailbox)


def test_a_post_wakes_an_owner_that_is_already_asleep_in_poll(mailbox: Mailbox[tuple[int, int]]) -> None:
    poster = threading.Timer(0.01, mailbox.post, [(0, 0)])
    poster.start()
    assert is_readable(mailbox, timeout_s=10)
    poster.join()


def test_posts_from_many_threads_are_all_drained_in_each_threads_order(mailbox: Mailbox[tuple[int, int]]) -> None:
    threads, posts = 8, 500

    def post_all(who: int) -> None:
        for number in range(posts):
            mailbox.post((who, number))

    workers = [threading.Thread(target=post_all, args=(who,)) for who in range(threads)]
    for worker in workers:
        worker.start()
    got: list[tuple[int, int]] = []
    while len(got) < threads * posts:
        assert is_readable(mailbox, timeout_s=10), "something was posted but nobody was woken"
        got += mailbox.drain()
    for worker in workers:
        worker.join()
    assert mailbox.drain() == []
    for who in range(threads):
        assert [number for sender, number in got if sender == who] == list(range(posts))


def test_a_post_after_close_is_kept_and_closing_twice_is_no_error() -> None:
    box: Mailbox[tuple[int, int]] = Mailbox()
    box.post((0, 0))
    box.close()
    box.post((0, 1))
    box.close()
    assert box.drain() == [(0, 0), (0, 1)]
