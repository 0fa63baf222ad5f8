"""The agent's page promises that each kind of wrong input has a test: those that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "agent.md").read_text("utf-8")))
    assert len(named) >= 15
    files = (ROOT / "tests").rglob("test_*.py")
    written = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)}
    assert named <= written, f"no such tests: {', '.join(sorted(named - written))}"
