"""The scripts that carry wheels to a GPU machine refuse what they do not understand before they fetch anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CARRY = Path(__file__).parent / "carry.sh"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "many"], "wants a number of MiB, not many"),
        (["--parts", "0"], "wants a number of MiB, not 0"),
        (["--to"], "--to wants a value"),
        (["--loads", "some"], "--loads wants a number of MiB, not some"),
        (["--there", "/nowhere/at/all"], "/nowhere/at/all cannot be read"),
        (["3.12"], "unknown option 3.12"),
    ],
)
def test_a_wrong_option_ends_it_before_anything_is_fetched(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        ["bash", CARRY, "--to", tmp_path / "wheels", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "wheels").exists()
