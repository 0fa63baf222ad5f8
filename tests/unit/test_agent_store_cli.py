"""`edge-agent store` as an operator types it, beside the daemon that owns the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_agent.store.cli import app
from edge_agent.store.journal import Journal
from edge_agent.store.tickets import StoreError, Wish
from protocol.errors import InputError, IsthmusError
from tests.toy_agent import answer

IMAGE = np.arange(6, dtype=np.uint8).reshape(2, 3)


class Operator:
    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def types(self, *words: str) -> str:
        """What `store WORDS` prints. Raises what it is refused with."""
        result = CliRunner().invoke(app, [*words, "--state-dir", str(self._state_dir)])
        if isinstance(result.exception, IsthmusError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.types(*words, "--json"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def wish(**options: Any) -> Wish:
    return Wish({"image": IMAGE}, model="digits", **options)


def test_the_list_shows_every_ticket_and_the_sums(journal: Journal, operator: Operator) -> None:
    waiting, answered = journal.put(wish(priority=2)), journal.put(wish())
    journal.answer(answered, answer(7))
    shown = operator.json("list")
    assert [(t["id"], t["state"], t["model"]) for t in shown["tickets"]] == [
        (waiting, "waiting", "digits"),
        (answered, "answered", "digits"),
    ]
    assert shown["totals"]["tickets"] == {"waiting": 1, "answered": 1, "expired": 0, "refused": 0}
    text = operator.types("list")
    assert waiting in text
    assert "1 waiting, 1 answered" in text
    assert [t["id"] for t in operator.json("list", "--state", "answered")["tickets"]] == [answered]
    assert [t["id"] for t in operator.json("list", "--most", "1")["tickets"]] == [waiting]


def test_show_tells_of_tensors_and_of_where_an_answer_was_made(journal: Journal, operator: Operator) -> None:
    ticket = journal.put(wish())
    assert operator.json("show", ticket)["inputs"] == {"image": {"dtype": "uint8", "shape": [2, 3]}}
    assert "input  image: uint8 [2, 3]" in operator.types("show", ticket)
    journal.answer(ticket, answer(7))
    shown = operator.json("show", ticket)
    assert shown["answer"]["placement"] == "cut-1"
    assert shown["answer"]["outputs"] == {"y": {"dtype": "int64", "shape": [1]}}
    assert "placement cut-1" in operator.types("show", ticket)
    assert journal.look(ticket) is not None


def test_drop_forgets_and_says_how_many(journal: Journal, operator: Operator) -> None:
    one, two = journal.put(wish()), journal.put(wish())
    assert operator.types("drop", one, one).strip() == "1 of 2 dropped"
    assert [t["id"] for t in operator.json("drop", two)["dropped"]] == [two]
    assert journal.entries() == []


def test_export_writes_inputs_while_it_waits_and_outputs_when_it_is_answered(
    journal: Journal, operator: Operator, tmp_path: Path
) -> None:
    ticket, file = journal.put(wish()), tmp_path / "out.npz"
    operator.types("export", ticket, "-o", str(file))
    with np.load(file) as stored:
        assert np.array_equal(stored["image"], IMAGE)
    journal.answer(ticket, answer(7))
    assert operator.json("export", ticket, "-o", str(file))["tensors"] == {"y": {"dtype": "int64", "shape": [1]}}
    with np.load(file) as stored:
        assert stored["y"].tolist() == [7]


def test_a_ticket_without_tensors_is_not_exported(journal: Journal, operator: Operator, tmp_path: Path) -> None:
    ticket = journal.put(wish())
    journal.refuse(ticket, "BAD_REQUEST", "no")
    with pytest.raises(InputError, match="has no tensors"):
        operator.types("export", ticket, "-o", str(tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()


def test_an_unknown_ticket_is_said_to_be_unknown(journal: Journal, operator: Operator) -> None:
    with pytest.raises(InputError, match="not known"):
        operator.types("show", f"{journal.boot.hex()}-99")
    with pytest.raises(InputError, match="no ticket"):
        operator.types("show", "x")


def test_where_there_is_no_store_none_is_made(operator: Operator, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        operator.types("list")
    assert list(tmp_path.iterdir()) == []
