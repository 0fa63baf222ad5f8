"""The one SQLite file: opened for durability, mended when it is damaged, and its disk given back.

WAL with synchronous=FULL: what is committed is on the disk. Pages of what was deleted are given back to the file system
in small steps while nothing else is to be done. A damaged file is put aside (the newest such is kept), never repaired
in place, and an empty one begun, with a sentence to whoever listens: a store that cannot be read must not keep the
daemon from serving.

To remove something, SQLite has to write: a disk that others have filled would leave a store that can neither be filled
nor emptied. A reserve of a few MiB lies beside the file for that; it is given up when something that makes room does
not fit otherwise, and laid aside again when there is space.

SQLite's errors become three: StoreError (the disk is full, or failed: try again later), DamagedError (the file is not
what was written), and everything else, which is a bug.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge_agent.store.tickets import StoreError
from protocol.errors import InputError

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x49535448  # "ISTH"
_PAGE_NBYTES = 4096
_SLACK_PAGES = 128  # kept free in the file: giving back what is needed again at once would only wear the flash
_STEP_PAGES = 512
_WAL_NBYTES = 4 << 20
_CHECKPOINT_PAGES = 256  # what lies in the log takes its space twice: on a full disk the log must fit the reserve
RESERVE_NBYTES = 4 << 20
_BUSY_S = 5.0
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TROUBLE = {
    sqlite3.SQLITE_IOERR: "the disk failed",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened",
    sqlite3.SQLITE_READONLY: "its file cannot be written",
    sqlite3.SQLITE_PERM: "its file may not be opened",
    sqlite3.SQLITE_AUTH: "its file may not be opened",
    sqlite3.SQLITE_BUSY: "another process holds it",
    sqlite3.SQLITE_LOCKED: "another process holds it",
    sqlite3.SQLITE_NOMEM: "memory is short",
}

Say = Callable[[str], None]


class DamagedError(Exception):
    """The file is not what was written into it."""


class DiskFullError(StoreError):
    """No space on the disk."""


class Database:
    """Opened by `open`, then used by one thread at a time. `schema` makes the tables of an empty file.

    Its owner (one process) may put a damaged file aside; another one only looks and raises StoreError.
    """

    def __init__(
        self, path: Path, schema: Callable[[sqlite3.Connection], None], *, most_nbytes: int, owner: bool, say: Say
    ) -> None:
        self.path = path
        self._schema = schema
        self._most_pages = most_nbytes // _PAGE_NBYTES
        self._owner = owner
        self._say = say
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._gave_back = False
        self._has_reserve = False

    @property
    def connection(self) -> sqlite3.Connection:
        assert self._connection is not None, "open it first"
        return self._connection

    def open(self) -> None:
        """Raises StoreError if it cannot be had, InputError if a newer version wrote it."""
        if self._owner:
            self._own()
        elif not self.path.exists():
            raise StoreError(f"there is no store {self.path}", "name the folder that the daemon's state is in")
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._connect(check=self._owner)
        except DamagedError as error:
            self.replace(str(error))
        except DiskFullError:
            if not self._give_up_reserve():
                raise
            self._connect(check=self._owner)

    def replace(self, why: str) -> None:
        """Put the damaged file aside and begin an empty one. Raises StoreError where we do not own it."""
        self._disconnect()
        if not self._owner:
            raise StoreError(f"the store {self.path} is damaged ({why})", "its daemon puts it aside when it starts")
        try:
            aside = self._put_aside()
            self._own_file()
        except OSError as error:
            fact = f"the store {self.path} is damaged ({why}) and cannot be put aside ({error.strerror})"
            raise StoreError(fact, "mend the disk, or move the file away") from None
        self._say(f"the store {self.path} is damaged ({why}): it lies in {aside} now, and an empty one was begun")
        try:
            self._connect(check=False)
        except DamagedError as error:
            raise StoreError(f"an empty store {self.path} is damaged at once ({error})", "check the disk") from None

    def _put_aside(self) -> Path:
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        for old in self.path.parent.glob(f"{self.path.name}.damaged-*"):
            old.unlink(missing_ok=True)  # one is kept to be looked at; more would fill the disk
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{ending}", f"{aside}{ending}")
        return aside

    def reconnect(self) -> None:
        """After the disk failed, a connection's own idea of the file may be wrong."""
        self._disconnect()
        self._connect(check=False)

    def begin(self) -> None:
        if self._connection is None:  # the disk failed, and it could not be opened again then
            self._connect(check=False)
        self.run("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """What was done since `begin` is on the disk when this returns."""
        self.run("COMMIT")

    def rollback(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def run(self, statement: str) -> None:
        with translated(self.path):
            self.connection.execute(statement).fetchall()

    def relieve(self) -> bool:
        """The disk is full: give up the reserve, for something that makes room; whether there was one."""
        if not self._give_up_reserve():
            return False
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return True

    def tidy(self) -> bool:
        """Give some free pages back to the file system; whether there is more to give. Takes milliseconds."""
        self._lay_reserve_aside()
        if self._connection is None:
            return False
        with translated(self.path):
            (free,) = self.connection.execute("PRAGMA freelist_count").fetchone()
            if free > _SLACK_PAGES:
                step = min(free - _SLACK_PAGES, _STEP_PAGES)
                # One page for each row, and its rows have no columns: only a script steps through them.
                self.connection.executescript(f"PRAGMA incremental_vacuum({step})")
                self._gave_back = True
                return True
            with contextlib.suppress(OSError):
                # A small log stays as long as it is: on a full disk it is the room in which requests can be deleted.
                is_long = os.path.getsize(f"{self.path}-wal") > _WAL_NBYTES
                if is_long or self._gave_back:  # only then does the file itself become shorter
                    how = "TRUNCATE" if is_long else "RESTART"
                    self.connection.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
                    self._gave_back = False
            return False

    def close(self) -> None:
        self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _reserve(self) -> Path:
        return self.path.with_name("reserve")

    def _give_up_reserve(self) -> bool:
        self._has_reserve = False
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def _lay_reserve_aside(self) -> None:
        """Where there is plenty of space; without it, the store works as long as the disk is not full."""
        if self._has_reserve or not self._owner:
            return
        with contextlib.suppress(OSError):
            if self._reserve.exists() and self._reserve.stat().st_size == RESERVE_NBYTES:
                self._has_reserve = True
                return
            space = os.statvfs(self.path.parent)
            if space.f_bavail * space.f_frsize < 4 * RESERVE_NBYTES:
                return
            file = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, RESERVE_NBYTES)
            finally:
                os.close(file)
            self._has_reserve = True

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _own(self) -> None:
        """One process at a time: two would send every request twice."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path.with_name("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._own_file()
        except BlockingIOError:
            self.close()
            raise StoreError(f"another process runs the store {self.path.parent}", "give each agent its own") from None
        except OSError as error:
            self.close()
            raise StoreError(f"the store {self.path.parent} cannot be written ({error.strerror})", "") from None

    def _own_file(self) -> None:
        """For its owner alone: tensors may be anything. SQLite gives its other files the same mode."""
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _connect(self, *, check: bool) -> None:
        with translated(self.path), contextlib.ExitStack() as undo:
            made = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            undo.callback(made.close)
            for pragma in (
                f"page_size={_PAGE_NBYTES}",
                "auto_vacuum=INCREMENTAL",  # counts for an empty file only
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "secure_delete=OFF",
                "trusted_schema=OFF",
                f"journal_size_limit={_WAL_NBYTES}",
                f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
                f"max_page_count={max(self._most_pages, 64)}",
            ):
                made.execute(f"PRAGMA {pragma}").fetchall()
            self._require_schema(made)
            if check:
                found: Sequence[str] = made.execute("PRAGMA quick_check(1)").fetchone()
                if found[0] != "ok":
                    raise DamagedError(found[0].splitlines()[0])
            undo.pop_all()
            self._connection = made

    def _require_schema(self, made: sqlite3.Connection) -> None:
        (version,) = made.execute("PRAGMA user_version").fetchone()
        (application,) = made.execute("PRAGMA application_id").fetchone()
        (tables,) = made.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == SCHEMA_VERSION and application == _APPLICATION_ID:
            return
        if version > SCHEMA_VERSION and application == _APPLICATION_ID:
            raise InputError(
                f"the store {self.path} was written by a newer version (schema {version}, this one knows "
                f"{SCHEMA_VERSION})",
                "go back to that version, or move the file away to begin an empty store",
            )
        if tables:
            raise DamagedError("it holds other tables than a store's")
        made.execute("BEGIN IMMEDIATE")
        self._schema(made)
        made.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        made.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        made.execute("COMMIT")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours; what is neither trouble with the disk nor damage stays what it is: a bug."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise DamagedError(str(error)) from None
        if code == sqlite3.SQLITE_FULL:
            raise DiskFullError(f"the store {path}: the disk is full ({error})", "make room on it") from None
        if code in _TROUBLE:
            raise StoreError(f"the store {path}: {_TROUBLE[code]} ({error})", "make room or mend the disk") from None
        raise
