"""A store whose process is killed in the middle of puts, attempts and takes: what was acknowledged is answered once."""

from __future__ import annotations

from pathlib import Path

from benchmarks.store_kills import kill_again_and_again


def test_kills_lose_nothing_that_was_acknowledged_and_give_nothing_out_twice(tmp_path: Path) -> None:
    account = kill_again_and_again(tmp_path / "store", 5, seed=5)
    assert len(account.acknowledged) > 50
    assert len(account.taken) > 50
    assert account.lost == []
    assert account.twice == []
    assert account.wrong == []
    assert account.ended_otherwise == 0
    assert len(account.cut_off) <= 5
