"""What the connections of a front hold of its memory, and which of them must go. Pure.

libzmq hands a message over only when its last part is there, and bounds neither the number nor the sum of the parts: a
peer that never ends its message fills the memory unseen. The kernel, though, counts what every connection has brought.
What came since a connection's last complete message is an unfinished one, or waits in libzmq to be taken:

    held = bytes received - bytes received when it last delivered

Whoever holds more than a message may have is to be hung up on; and while the process has taken more memory than it
should, whoever holds most (parts of no bytes cost 2 on the wire and 64 in memory: bytes alone would not tell in time).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LEAST_NBYTES = 1 << 20  # who holds less is not what fills the memory
MOVING_NBYTES = 1 << 16


@dataclass(slots=True)
class _Connection:
    base: int = 0  # bytes received when it last delivered
    held: int = 0
    delivered: bool = False  # since it was last looked at


class Holdings:
    """Connections by their file descriptors; used by one thread."""

    def __init__(self, *, most_nbytes: int) -> None:
        self.moving = False  # whether somebody brought much since the last look
        self._most_nbytes = most_nbytes
        self._connections: dict[int, _Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    def accepted(self, descriptor: int) -> None:
        """A connection was made. The system uses a number again only after it is closed: what was known is void."""
        self._connections[descriptor] = _Connection()

    def ended(self, descriptor: int) -> None:
        self._connections.pop(descriptor, None)

    def delivered(self, descriptor: int) -> None:
        """A complete message came from there."""
        connection = self._connections.get(descriptor)
        if connection is not None:
            connection.delivered = True

    def inspect(self, received_nbytes: Callable[[int], int | None], *, pressed: bool) -> list[int]:
        """Whom to hang up on, given what each has brought; `pressed` while there is too little memory.

        Under pressure it is one at a time, so that the next look sees what that has freed.
        """
        self.moving = False
        for descriptor, connection in self._connections.items():
            received = received_nbytes(descriptor)
            if received is None:
                continue  # its end has not been told yet
            self.moving |= received - connection.base - connection.held >= MOVING_NBYTES
            if connection.delivered or received < connection.base:
                connection.base, connection.delivered = received, False
            connection.held = received - connection.base
        doomed = [d for d, c in self._connections.items() if c.held > self._most_nbytes]
        if pressed and not doomed and self._connections:
            most = max(self._connections, key=lambda d: self._connections[d].held)
            if self._connections[most].held >= LEAST_NBYTES:
                doomed = [most]
        for descriptor in doomed:
            del self._connections[descriptor]
        return doomed


class Window:
    """How much is under way to a reader who tells now and then how far he has read.

    `open` while more may be sent. After `sent` has returned a number, a mark with that number is to follow what was
    sent; when it comes back, all before it has been read.
    """

    def __init__(self, *, nbytes: int, messages: int) -> None:
        self._nbytes = nbytes
        self._messages = messages
        self._unmarked = [0, 0]  # bytes and messages since the last mark
        self._marked: dict[int, tuple[int, int]] = {}  # not read yet as far as we know, in order
        self._under_way = [0, 0]
        self._number = 0

    @property
    def open(self) -> bool:
        return self._under_way[0] < self._nbytes and self._under_way[1] < self._messages

    @property
    def under_way_nbytes(self) -> int:
        return self._under_way[0]

    def sent(self, nbytes: int) -> int | None:
        """A message of so many bytes went out; the number of the mark that should follow it, if one should."""
        for tally in (self._unmarked, self._under_way):
            tally[0] += nbytes
            tally[1] += 1
        # Four marks to a window: the reader's news is at most a quarter of it old.
        if self._unmarked[0] * 4 < self._nbytes and self._unmarked[1] * 4 < self._messages:
            return None
        self._number += 1
        self._marked[self._number] = (self._unmarked[0], self._unmarked[1])
        self._unmarked = [0, 0]
        return self._number

    def read_up_to(self, number: int) -> None:
        """The mark `number` came back. One that is unknown says nothing."""
        if number not in self._marked:
            return
        for mark in [m for m in self._marked if m <= number]:
            nbytes, messages = self._marked.pop(mark)
            self._under_way[0] -= nbytes
            self._under_way[1] -= messages
