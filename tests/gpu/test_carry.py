"""The scripts that carry wheels to a GPU machine refuse what they do not understand before they fetch anything."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

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


def test_what_our_packages_want_is_carried_with_all_that_it_wants() -> None:
    script = CARRY.read_text()
    listed = re.search(r"for package in (numpy .*?); do fetch", script, re.DOTALL)
    assert listed is not None
    carried = set(listed[1].replace("\\\n", " ").split())
    lock = tomllib.loads((CARRY.parents[2] / "uv.lock").read_text())
    packages: dict[str, Any] = {package["name"]: package for package in lock["package"]}
    ours = packages["isthmus"]
    wanted = [*ours["dependencies"], *(d for e in ("gateway", "partition") for d in ours["optional-dependencies"][e])]
    wanted += [{"name": name} for name in ("pytest", "pytest-timeout", "hypothesis")]
    seen: set[str] = set()
    while wanted:
        dependency = wanted.pop()
        name, marker = dependency["name"], dependency.get("marker", "")
        elsewhere = ("win32" in marker and "!=" not in marker) or "python_full_version < '3.12'" in marker
        if elsewhere or name in seen:
            continue
        seen.add(name)
        wanted += packages[name].get("dependencies", [])
    assert seen - carried - {"onnxruntime"} == set()  # its GPU build is carried instead
