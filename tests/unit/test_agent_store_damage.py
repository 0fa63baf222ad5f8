"""A disk that is full and a file that is damaged: what was acknowledged is kept, or it is said that it is not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.store import forwarder as forwarders
from edge_agent.store.database import SCHEMA_VERSION
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import FILE, Journal
from edge_agent.store.pacing import Pace
from edge_agent.store.tickets import Caps, State, StoreError, Wish
from protocol.errors import InputError
from tests.toy_agent import ToyAgent, accepts, answer
from tests.waiting import until


def wish(nbytes: int = 64) -> Wish:
    return Wish({"x": np.arange(nbytes, dtype=np.uint8)})


def filled(folder: Path, count: int = 20, nbytes: int = 64) -> list[str]:
    with Journal(folder) as journal:
        return [future.result() for future in [journal.offer(wish(nbytes)) for _ in range(count)]]


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: overwrite(path, 0, b"this is no database at all, or not any more"),
        lambda path: overwrite(path, 4096, os.urandom(8192)),
        truncate,
        lambda path: path.write_bytes(os.urandom(100_000)),
    ],
    ids=["head", "pages", "truncated", "random"],
)
def test_a_damaged_file_is_put_aside_and_an_empty_store_begun(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder, told = tmp_path / "store", list[str]()
    [first, *_] = filled(folder)
    damage(folder / FILE)
    with Journal(folder, say=told.append) as journal:
        assert journal.entries() == []
        assert journal.look(first) is None
        again = journal.put(wish())
        assert again.partition("-")[0] != first.partition("-")[0]  # its ids are other ones
    [sentence] = told
    assert "damaged" in sentence
    [aside] = folder.glob("*.damaged-*")
    assert str(aside) in sentence


def test_only_the_newest_damaged_file_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    for _ in range(3):
        filled(folder)
        overwrite(folder / FILE, 0, b"x" * 100)
        with Journal(folder, say=lambda sentence: None):
            pass
    assert len(list(folder.glob("*.damaged-*"))) == 1


def test_an_empty_file_is_an_empty_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / FILE).touch()
    with Journal(tmp_path / "store", say=pytest.fail) as journal:
        journal.put(wish())


def test_damage_that_shows_while_it_runs_ends_no_thread(tmp_path: Path) -> None:
    folder, told = tmp_path / "store", list[str]()
    with Journal(folder, say=told.append) as journal:
        tickets = [journal.put(wish(100_000)) for _ in range(4)]
        with sqlite3.connect(folder / FILE) as beside:
            beside.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        beside.close()
        size = (folder / FILE).stat().st_size
        overwrite(folder / FILE, 4096, b"\xff" * (size - 4096))
        journal._database.reconnect()  # without what it remembers of the file
        journal.put(wish())
        assert told
        assert journal.look(tickets[0]) is None
        assert journal.totals().held == 1


def test_a_tensor_that_was_changed_on_the_disk_is_never_sent(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    needle = np.arange(200, dtype=np.uint8).tobytes()
    with Journal(folder) as journal:
        ticket = journal.put(wish(200))
    content = (folder / FILE).read_bytes()
    assert content.count(needle) == 1
    overwrite(folder / FILE, content.index(needle) + 100, b"\x00\x00")
    with Journal(folder, say=pytest.fail) as journal:
        assert journal.begin(ticket) is None
        found = journal.look(ticket)
        assert found is not None
        assert (found.state, found.code) == (State.REFUSED, "DAMAGED")


def test_an_answer_that_was_changed_on_the_disk_is_never_given_out(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with Journal(folder) as journal:
        ticket = journal.put(wish())
        journal.answer(ticket, answer(0x0123456789ABCDEF))
    content = (folder / FILE).read_bytes()
    overwrite(folder / FILE, content.index((0x0123456789ABCDEF).to_bytes(8, "little")), b"\x00")
    with Journal(folder, say=pytest.fail) as journal:
        found = journal.take(ticket)
        assert found is not None
        assert (found.state, found.code, found.answer) == (State.REFUSED, "DAMAGED", None)


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "store", 1)
    beside = sqlite3.connect(tmp_path / "store" / FILE)
    beside.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    beside.close()
    with pytest.raises(InputError, match="newer version"):
        Journal(tmp_path / "store").open()
    assert not list((tmp_path / "store").glob("*.damaged-*"))


def test_another_programs_database_is_put_aside_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    foreign = sqlite3.connect(tmp_path / "store" / FILE)
    foreign.execute("CREATE TABLE theirs (x)")
    foreign.commit()
    foreign.close()
    with Journal(tmp_path / "store", say=lambda sentence: None) as journal:
        journal.put(wish())
    [aside] = (tmp_path / "store").glob("*.damaged-*")
    kept = sqlite3.connect(aside)
    assert kept.execute("SELECT count(*) FROM theirs").fetchone() == (0,)
    kept.close()


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        Journal(tmp_path / "store").open()


def test_a_bug_in_the_thread_that_writes_is_told_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    crashed: list[BaseException] = []
    journal = Journal(tmp_path / "store", crashed=crashed.append)
    journal.open()
    with pytest.raises(StoreError, match="internal error"):
        journal._commits.submit(lambda connection: 1 // 0).result()
    until(lambda: crashed)
    with pytest.raises(StoreError, match="closed"):
        journal.put(wish())
    journal.close()


def test_a_store_that_could_not_be_opened_can_be_once_it_is_mended(tmp_path: Path) -> None:
    filled(tmp_path / "store", 1)
    with sqlite3.connect(tmp_path / "store" / FILE) as beside:
        beside.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    beside.close()
    journal = Journal(tmp_path / "store")
    with pytest.raises(InputError):
        journal.open()
    with sqlite3.connect(tmp_path / "store" / FILE) as beside:
        beside.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    beside.close()
    with journal:
        assert len(journal.entries()) == 1


def test_a_full_disk_refuses_what_does_not_fit_and_keeps_what_is_there(tmp_path: Path) -> None:
    """SQLite's own bound on the file's pages, which fails like a disk that is full."""
    with Journal(tmp_path / "store", Caps(most_nbytes=1 << 30)) as journal:
        kept = [journal.put(wish(50_000)) for _ in range(4)]
        (pages,) = journal._database.connection.execute("PRAGMA page_count").fetchone()
        journal._database.run(f"PRAGMA max_page_count={pages + 8}")
        with pytest.raises(StoreError, match="the disk is full"):
            journal.put(wish(500_000))
        assert [ticket.id for ticket in journal.entries()] == kept


def test_of_a_group_that_does_not_fit_together_what_fits_alone_is_stored(tmp_path: Path) -> None:
    with Journal(tmp_path / "store") as journal:
        victim = journal.put(wish(200_000))
        (pages,) = journal._database.connection.execute("PRAGMA page_count").fetchone()
        journal._database.run(f"PRAGMA max_page_count={pages + 4}")
        small, large, room = journal.offer(wish()), journal.offer(wish(900_000)), journal.dropping(victim)
        assert small.result()
        with pytest.raises(StoreError, match="the disk is full"):
            large.result()
        assert room.result() is not None
        assert journal.totals().held == 1


def test_the_forwarder_goes_on_when_the_disk_has_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarders, "_TROUBLE_S", 0.01)
    told: list[str] = []
    agent = ToyAgent(held=True)
    journal = Journal(tmp_path / "store")
    with journal, Forwarder(journal, lambda: agent, accepts=accepts, pace=Pace(quiet_s=0.0), said=told.append):
        journal.put(Wish({"x": np.array([1], np.int64)}))
        until(lambda: agent.asked)
        journal._database.run("PRAGMA query_only=ON")  # every write fails, as on a disk that became read-only
        agent.release()
        until(lambda: told)
        journal._commits.submit(lambda connection: connection.execute("PRAGMA query_only=OFF").fetchall()).result()
        until(lambda: journal.totals().tickets[State.ANSWERED] == 1)
    assert "cannot be written" in told[0]


def test_nothing_of_sqlite_is_loaded_by_the_agent_itself() -> None:
    code = "import edge_agent.agent, sys; print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
