"""One file on its way: what to ask for next, what came, and who lies. Asked in parts, handed on in order. Pure.

At most `window` questions are open. A part that comes early waits in memory for the one before it; whatever was asked
of a connection that has died is asked again of the next. What came is believed only when the file's digest holds, which
is the caller's to see: here the sizes and checksums of parts are checked, so that a liar costs little.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol import messages as m
from protocol import wire
from protocol.errors import WireError

WINDOW = 8


@dataclass(slots=True)
class Download:
    """`have` bytes of `nbytes` are on the disk already."""

    file: bytes  # sha256
    nbytes: int
    have: int = 0
    window: int = WINDOW
    part_nbytes: int = wire.PART_NBYTES
    _next: int = field(init=False)
    _open: set[int] = field(init=False, default_factory=set)  # offsets asked for and not answered
    _again: list[int] = field(init=False, default_factory=list)  # offsets to ask for once more
    _early: dict[int, bytes] = field(init=False, default_factory=dict)
    _not_before: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._next = self.have

    @property
    def is_done(self) -> bool:
        return self.have >= self.nbytes

    def ask(self, *, now: float) -> m.FetchPart | None:
        """The next question, if one may be asked now."""
        if now < self._not_before or len(self._open) + len(self._early) >= self.window:
            return None
        if self._again:
            offset = self._again.pop(0)
        elif self._next < self.nbytes:
            offset = self._next
            self._next += self.part_nbytes
        else:
            return None
        self._open.add(offset)
        return m.FetchPart(self.file, offset, self._length(offset))

    def wake_at(self) -> float:
        """When `ask` may have something to say again though nothing came."""
        return self._not_before

    def came(self, part: m.FilePart, parts: list[wire.Buffer]) -> list[bytes]:
        """What can now be appended to the file, in order. Raises WireError for a part that is a lie."""
        if part.file != self.file or part.offset not in self._open:
            return []  # an answer to an earlier connection, or to an earlier file
        data = b"".join(parts)
        if part.total_nbytes != self.nbytes:
            raise WireError(
                f"the gateway says the file has {part.total_nbytes} bytes, the manifest {self.nbytes}",
                "ask another gateway",
            )
        if part.nbytes != self._length(part.offset) or len(data) != part.nbytes:
            raise WireError(
                f"the gateway sent {len(data)} bytes where {self._length(part.offset)} were asked for",
                "ask another gateway",
            )
        if wire.checksum((data,)) != part.checksum:
            raise WireError("a part of the file was damaged on its way", "ask for it again")
        self._open.remove(part.offset)
        self._early[part.offset] = data
        ready = []
        while self.have in self._early:
            ready.append(data := self._early.pop(self.have))
            self.have += len(data)
        return ready

    def refused(self, answer: m.NoPart, *, now: float) -> None:
        """That part does not come now. Raises WireError where it never will."""
        if answer.file != self.file or answer.offset not in self._open:
            return
        if answer.code is not m.NoPartCode.BUSY:
            raise WireError(
                f"the gateway does not send the file: {wire.printable(answer.reason)}", "ask another gateway, or later"
            )
        self._open.remove(answer.offset)
        self._again.append(answer.offset)
        self._again.sort()
        self._not_before = now + min(max(answer.retry_after_us / 1e6, 0.05), 60.0)

    def lost(self) -> None:
        """The connection is another one: what was asked for will not come."""
        self._again = sorted([*self._again, *self._open])
        self._open.clear()
        self._not_before = 0.0

    def _length(self, offset: int) -> int:
        return min(self.part_nbytes, self.nbytes - offset)
