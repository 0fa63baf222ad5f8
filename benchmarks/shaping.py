"""The clock of one direction of an access link: when may which byte arrive? No sockets, no clock of its own.

Law: chunks leave in the order they came, never faster than the rate, never sooner than the delay after their last
byte was serialised. Time is an argument (monotonic seconds), so a test can live an hour in a microsecond.

    push --> [ queue, serialised at the rate ] --> [ on the wire for the delay ] --> pop
               backlog: bytes still in here

Because the queue is one FIFO served at one rate, the bytes that wait at any moment are `(end - now) * rate`: the
backlog is a product, not a sum over the queue, and a new rate merely stretches the time that is still to come.
"""

from __future__ import annotations

import math
from collections import deque

BITS_PER_BYTE = 8
QUEUE_S = 0.1  # a choice: long enough to bridge a late wake-up, short enough that a rate step is felt at once
QUEUE_MIN_NBYTES = 30_000  # 20 full packets: 100 ms of a 1 Mbit/s link would be only 8
HELD_MAX_NBYTES = 4 << 20  # an unlimited link with a delay must not hold gigabytes "on the wire"
CHUNK_S = 0.001  # one wake-up a millisecond bounds both the CPU share and the burst
CHUNK_MIN_NBYTES = 1448  # a full Ethernet TCP segment is what a slow link moves at once
CHUNK_MAX_NBYTES = 65536


def bytes_per_s(mbit_per_s: float | None) -> float | None:
    """Convert a rate from Mbit/s (10**6 bit/s) to bytes/s; None stays None and means unlimited."""
    return None if mbit_per_s is None else mbit_per_s * 1e6 / BITS_PER_BYTE


class Shaper:
    """One direction of a link: a serialiser with a bounded queue, then a fixed delay.

    The owner keeps the data itself in a FIFO of its own; `pop` says how many chunks from its front are due.

    Args:
        rate_bytes_per_s: the serialiser's rate; None is unlimited.
        delay_s: one-way propagation delay.

    Raises:
        ValueError: if the rate is not positive and finite, or the delay negative or not finite.
    """

    def __init__(self, rate_bytes_per_s: float | None = None, delay_s: float = 0.0) -> None:
        self._rate_bytes_per_s = _checked_rate(rate_bytes_per_s)
        self._delay_s = _checked_delay(delay_s)
        # All times below are link time: monotonic time less what the link has spent paused.
        self._ends_s: deque[tuple[float, int]] = deque()  # (end of serialisation, nbytes), oldest first
        self._free_s = -math.inf  # when the serialiser has nothing left to do
        self._held_nbytes = 0
        self._lost_s = 0.0  # total length of past pauses
        self._paused_s: float | None = None

    @property
    def rate_bytes_per_s(self) -> float | None:
        return self._rate_bytes_per_s

    @property
    def delay_s(self) -> float:
        return self._delay_s

    @property
    def held_nbytes(self) -> int:
        """Bytes pushed but not yet popped: the backlog plus what is on the wire."""
        return self._held_nbytes

    @property
    def queue_nbytes(self) -> int:
        """Backlog from which on the owner must stop pushing: 100 ms of the rate, at least 30 kB."""
        if self._rate_bytes_per_s is None:
            return HELD_MAX_NBYTES
        return max(QUEUE_MIN_NBYTES, round(self._rate_bytes_per_s * QUEUE_S))

    @property
    def chunk_nbytes(self) -> int:
        """How much to push at once: about 1 ms of link time, between one segment and 64 KiB."""
        if self._rate_bytes_per_s is None:
            return CHUNK_MAX_NBYTES
        return min(CHUNK_MAX_NBYTES, max(CHUNK_MIN_NBYTES, round(self._rate_bytes_per_s * CHUNK_S)))

    @property
    def is_paused(self) -> bool:
        """Between `pause` and `resume`."""
        return self._paused_s is not None

    def push(self, nbytes: int, *, now: float) -> float:
        """Queue a chunk and return when it is due at the far end, as things stand; infinity while paused.

        A chunk of 0 bytes is a marker (an end of stream) that keeps its place in the order. The queue bound is advice
        (`room_at`), not enforced here: refusing a chunk that was already read from a socket would lose it.
        """
        start_s = max(self._free_s, self._link_time(now))
        self._free_s = start_s + (0.0 if self._rate_bytes_per_s is None else nbytes / self._rate_bytes_per_s)
        self._ends_s.append((self._free_s, nbytes))
        self._held_nbytes += nbytes
        return math.inf if self._paused_s is not None else self._free_s + self._delay_s + self._lost_s

    def pop(self, *, now: float) -> int:
        """Return how many chunks, counted from the oldest, are due by `now`, and forget them."""
        count = 0
        while (due_s := self.next_release()) is not None and due_s <= now:
            self._held_nbytes -= self._ends_s.popleft()[1]
            count += 1
        return count

    def next_release(self) -> float | None:
        """Return when the oldest chunk is due (monotonic seconds); None if nothing is held or the link is paused."""
        if not self._ends_s or self._paused_s is not None:
            return None
        return self._ends_s[0][0] + self._delay_s + self._lost_s

    def backlog(self, now: float) -> int:
        """Return the bytes that still wait for the serialiser, rounded up; bytes on the wire do not count."""
        if self._rate_bytes_per_s is None:
            return 0
        waiting_nbytes = max(0.0, self._free_s - self._link_time(now)) * self._rate_bytes_per_s
        # A clock of seconds since boot resolves about 1e-9 s: without the slack rounding up would invent a byte.
        return math.ceil(waiting_nbytes - 0.01)

    def room_at(self, now: float) -> float:
        """Return when the owner may push next: `now` if at once, infinity while paused."""
        if self._paused_s is not None:
            return math.inf
        if self._rate_bytes_per_s is None:
            oldest_s = self.next_release()
            return now if oldest_s is None or self._held_nbytes < HELD_MAX_NBYTES else max(now, oldest_s)
        return max(now, self._free_s + self._lost_s - self.queue_nbytes / self._rate_bytes_per_s)

    def set_rate(self, rate_bytes_per_s: float | None, *, now: float) -> None:
        """Change the rate from `now` on: what is serialised stays so, what still waits is served at the new rate.

        Raises:
            ValueError: if the rate is not positive and finite.
        """
        new, old, t = _checked_rate(rate_bytes_per_s), self._rate_bytes_per_s, self._link_time(now)
        stretch = 0.0 if new is None or old is None else old / new
        self._ends_s = deque((_stretched(end_s, t, stretch), nbytes) for end_s, nbytes in self._ends_s)
        self._free_s = _stretched(self._free_s, t, stretch)
        self._rate_bytes_per_s = new

    def set_delay(self, delay_s: float) -> None:
        """Change the one-way delay, also for what is already on the wire: so the order is kept without bookkeeping.

        Raises:
            ValueError: if the delay is negative or not finite.
        """
        self._delay_s = _checked_delay(delay_s)

    def pause(self, *, now: float) -> None:
        """Stop the link's clock: nothing is serialised and nothing arrives until `resume`. Twice is once."""
        if self._paused_s is None:
            self._paused_s = now

    def resume(self, *, now: float) -> None:
        """Let the clock run on where it stopped: a healed link has no burst, as retransmissions also pay the rate."""
        if self._paused_s is not None:
            self._lost_s += max(0.0, now - self._paused_s)
            self._paused_s = None

    def _link_time(self, now: float) -> float:
        return (now if self._paused_s is None else self._paused_s) - self._lost_s


def _stretched(end_s: float, t: float, stretch: float) -> float:
    return end_s if end_s <= t else t + (end_s - t) * stretch


def _checked_rate(rate_bytes_per_s: float | None) -> float | None:
    if rate_bytes_per_s is not None and not 0 < rate_bytes_per_s < math.inf:
        raise ValueError(
            f"link rate is {rate_bytes_per_s} bytes/s but must be positive and finite; "
            "use None for unlimited, or blackhole for a link that carries nothing"
        )
    return rate_bytes_per_s


def _checked_delay(delay_s: float) -> float:
    if not 0 <= delay_s < math.inf:
        raise ValueError(f"link delay is {delay_s} s but must be finite and not negative")
    return delay_s
