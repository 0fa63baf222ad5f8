"""`edge-agent doctor` as people and machines call it: exit codes, the table, the document."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from edge_agent.cli import app
from edge_agent.doctor.cli import SOMETHING_FAILS
from edge_agent.doctor.registry import CHECKS
from protocol import errors


def doctor(tmp_path: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--state-dir", str(tmp_path / "state"), *words])


def test_a_failure_has_an_exit_code_of_its_own_and_warnings_have_none(tmp_path: Path) -> None:
    sound = doctor(tmp_path, "--only", "storage.root", "--only", "machine.clock", "--json")
    assert sound.exit_code == 0, sound.output
    broken = doctor(tmp_path, "--only", "bundle.opens", "--json")
    assert broken.exit_code == SOMETHING_FAILS
    codes = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.IsthmusError)}
    assert SOMETHING_FAILS not in codes | {9, 12}  # refused; the store


def test_the_document_holds_every_finding_and_the_counts(tmp_path: Path) -> None:
    document = json.loads(doctor(tmp_path, "--only", "bundle", "--json").output)
    assert document["schema"] == 1
    assert [c["id"] for c in document["checks"]] == [c.id for c in CHECKS if c.group == "bundle"]
    assert sum(document["counts"].values()) == len(document["checks"])
    (opens,) = [c for c in document["checks"] if c["id"] == "bundle.opens"]
    assert opens["status"] == "fail"
    assert opens["remedy"]
    assert set(opens) == {"id", "group", "title", "status", "fact", "remedy", "seconds"}


def test_people_see_a_table_with_remedies_and_a_sum(tmp_path: Path) -> None:
    said = doctor(tmp_path, "--only", "bundle.opens", "--only", "storage.root").output
    assert "FAIL" in said
    assert "-> `edge-agent bundles install DIR`" in said
    assert "2 checks: 1 ok, 1 failed" in said


def test_every_check_can_be_listed_without_being_made(tmp_path: Path) -> None:
    lines = doctor(tmp_path, "--list").output.splitlines()
    assert [line.split()[0] for line in lines] == [check.id for check in CHECKS]
    assert [row["id"] for row in json.loads(doctor(tmp_path, "--list", "--json").output)] == [c.id for c in CHECKS]


def test_an_unknown_check_or_flag_value_is_an_input_error(tmp_path: Path) -> None:
    assert isinstance(doctor(tmp_path, "--only", "nothing").exception, errors.InputError)
    assert isinstance(doctor(tmp_path, "--set", "nothing").exception, errors.InputError)
