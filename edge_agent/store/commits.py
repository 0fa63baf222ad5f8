"""Group commit: one thread owns the file, and whoever changes it waits for the commit of its group.

While one group is being written, the next one gathers: a single caller pays one write to the disk (some 3 ms), and
sixty-four callers at once pay one together. An errand's future resolves after the commit, never before: what was
acknowledged is on the disk. An errand that is refused undoes only itself; if the disk refuses a group, each errand is
tried alone, so that small ones still pass, and those that make room with the help of the database's reserve.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from edge_agent.store.database import DamagedError, Database, DiskFullError, translated
from edge_agent.store.tickets import StoreError, StoreFullError
from protocol.errors import IsthmusError

MOST_ERRANDS = 256  # of one group: 64 already come to 30 times the speed of one
MOST_GROUP_NBYTES = 4 << 20
MOST_QUEUED_NBYTES = 64 << 20

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


@dataclass(frozen=True, slots=True)
class _Errand:
    work: Work[Any]
    future: Future[Any]
    nbytes: int
    makes_room: bool


class Commits:
    """`submit` from any thread. `changed` is called by the thread after a group that changed something.

    `crashed` is called when the thread has a bug and ends; what waits then is told so.
    """

    def __init__(
        self,
        database: Database,
        *,
        changed: Callable[[], None] = lambda: None,
        crashed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._database = database
        self._changed = changed
        self._has_changed = False
        self._crashed = crashed
        self._queue: deque[_Errand] = deque()
        self._queued_nbytes = 0
        self._wanted = threading.Condition()
        self._closed = True  # until it is started: nobody may wait for a thread that is not there
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        self._closed = False
        self._thread.start()

    def submit(self, work: Work[T], *, nbytes: int = 0, makes_room: bool = True) -> Future[T]:
        """Have `work` done within a transaction; the future resolves when it is on the disk.

        `nbytes` is what it writes; one that `makes_room` may use the reserve of a full disk. The future raises what
        `work` raises, and StoreError if the disk does not take it.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        with self._wanted:
            if self._closed:
                future.set_exception(StoreError("the store is closed", "the log says why, if it should be open"))
            elif self._queue and self._queued_nbytes + nbytes > MOST_QUEUED_NBYTES:
                why = f"{self._queued_nbytes:,} bytes are already waiting for the disk"
                future.set_exception(StoreFullError(why, "send fewer at once"))
            else:
                self._queue.append(_Errand(work, future, nbytes, makes_room))
                self._queued_nbytes += nbytes
                self._wanted.notify()
        return future

    def close(self) -> None:
        """Finish what was handed in, and end the thread."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        group: list[_Errand] = []
        try:
            while group := self._next():
                self._has_changed = False
                self._write(group)
                if self._has_changed:
                    self._changed()
        except BaseException as error:  # the top of the thread: a bug
            with self._wanted:
                self._closed = True
                left = [*group, *self._queue]
                self._queue.clear()
            for errand in left:
                if not errand.future.done():
                    errand.future.set_exception(StoreError(f"internal error: {error}", ""))
            traceback.print_exception(error, file=sys.stderr)
            self._crashed(error)

    def _next(self) -> list[_Errand]:
        """The next group, or nothing at the end. While there is none, disk is given back."""
        more = True
        while True:
            with self._wanted:
                if not more:
                    self._wanted.wait_for(lambda: self._queue or self._closed)
                if self._queue:
                    return self._taken()
                if self._closed:
                    return []
            more = self._tidy()

    def _taken(self) -> list[_Errand]:
        group: list[_Errand] = []
        nbytes = 0
        while self._queue and len(group) < MOST_ERRANDS and (not group or nbytes < MOST_GROUP_NBYTES):
            group.append(self._queue.popleft())
            nbytes += group[-1].nbytes
        self._queued_nbytes -= nbytes
        return group

    def _tidy(self) -> bool:
        try:
            return self._database.tidy()
        except (StoreError, DamagedError):  # whoever writes next will hear of it
            return False

    def _write(self, group: Sequence[_Errand], *, again: bool = True) -> None:
        results: list[tuple[_Errand, Any, IsthmusError | None]] = []
        try:
            self._database.begin()
            before = self._database.connection.total_changes
            results.extend(self._done(errand) for errand in group)
            self._has_changed |= self._database.connection.total_changes != before
            self._database.commit()
        except StoreError as error:
            self._database.rollback()
            if len(group) > 1:
                for errand in group:
                    self._write([errand])
            elif again and self._mend(error, group[0]):
                self._write(group, again=False)
            else:
                group[0].future.set_exception(error)
            return
        except DamagedError as error:
            if not again:
                raise
            try:
                self._database.replace(str(error))
            except StoreError as hopeless:
                for errand in group:
                    errand.future.set_exception(hopeless)
                return
            self._write(group, again=False)
            return
        for errand, result, refused in results:
            if refused is None:
                errand.future.set_result(result)
            else:
                errand.future.set_exception(refused)

    def _done(self, errand: _Errand) -> tuple[_Errand, Any, IsthmusError | None]:
        """The errand's result, or its refusal, which has undone what it did. Trouble with the disk is raised."""
        connection = self._database.connection
        with translated(self._database.path):
            connection.execute("SAVEPOINT errand")
            try:
                result, refused = errand.work(connection), None
            except IsthmusError as error:
                result, refused = None, error
                connection.execute("ROLLBACK TO errand")
            connection.execute("RELEASE errand")
        return errand, result, refused

    def _mend(self, error: StoreError, errand: _Errand) -> bool:
        """Whether it may be of use to try the errand again."""
        if isinstance(error, DiskFullError):
            return errand.makes_room and self._database.relieve()
        with contextlib.suppress(StoreError, DamagedError):
            self._database.reconnect()  # a connection that the disk failed under is not trusted any more
        return False
