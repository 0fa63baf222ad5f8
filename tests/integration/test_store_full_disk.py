"""A file system that is really full: what was acknowledged stays, and the store can be emptied without help."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent.store.database import RESERVE_NBYTES
from edge_agent.store.journal import Journal
from edge_agent.store.tickets import State, StoreError, Wish
from tests.toy_agent import answer
from tests.waiting import until


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """24 MiB, of which the store needs four times its reserve before it lays it aside."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def wish(nbytes: int) -> Wish:
    return Wish({"x": np.ones(nbytes, np.uint8)})


def put_until_full(journal: Journal, nbytes: int) -> list[str]:
    tickets = []
    while True:
        try:
            tickets.append(journal.put(wish(nbytes)))
        except StoreError as error:
            assert "the disk is full" in str(error)  # noqa: PT017 - as many as fit
            return tickets


def fill(path: Path) -> None:
    """To the last block."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_full_disk_takes_nothing_loses_nothing_and_can_be_emptied(small_disk: Path) -> None:
    folder = small_disk / "store"
    with Journal(folder, say=pytest.fail) as journal:
        kept = [journal.put(wish(50_000))]
        until(lambda: (folder / "reserve").exists(), "no reserve was laid aside")
        kept += put_until_full(journal, 50_000)
        fill(small_disk / "theirs")
        kept += put_until_full(journal, 500)
        assert [ticket.id for ticket in journal.entries()] == kept
        assert journal.answer(kept[0], answer(1))
        for ticket in kept[1:40]:
            assert journal.drop(ticket) is not None
        found = journal.take(kept[0])
        assert found is not None
        assert found.answer is not None
    with Journal(folder, say=pytest.fail) as journal:
        left = journal.entries()
        assert [ticket.id for ticket in left] == kept[40:]
        assert {ticket.state for ticket in left} == {State.WAITING}
        os.unlink(small_disk / "theirs")
        for ticket in kept[40:]:
            journal.drop(ticket)
        until(lambda: (folder / "reserve").exists(), "the reserve did not come back")
        assert (folder / "reserve").stat().st_size == RESERVE_NBYTES
        journal.put(wish(50_000))
