"""How a thread hands things to the one thread that owns a socket: a deque and one eventfd write.

Cheaper than an inproc socket or a queue with a condition (the receiver is asleep in poll(), which a condition cannot
wake), and lossless: what was posted before the wake-up is drained by it.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Any thread posts; one thread polls `fileno()` for reading and drains."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False

    def fileno(self) -> int:
        return self._fd

    def post(self, item: T) -> None:
        """Hand over `item` and wake the owner. After `close` the item is kept but nobody is woken."""
        self.post_all((item,))

    def post_all(self, items: Iterable[T]) -> None:
        """Hand over several items with one wake-up: each costs a system call and often a context switch."""
        self._items.extend(items)
        if not self._closed:
            with contextlib.suppress(OSError):  # closed by the owner in this very moment
                os.eventfd_write(self._fd, 1)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits; a hint, without a system call."""
        return not self._items

    def drain(self) -> list[T]:
        """Everything posted so far, oldest first. Clears the wake-up first, so that no later post can be missed."""
        if not self._closed:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        items: list[T] = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)
