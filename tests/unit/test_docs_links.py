"""Pages lead somewhere: every link, every page and command that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def heading_anchors(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_of_pages_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in heading_anchors(target)):
            wrong.append(link)
    wrong += [name for name in re.findall(r"\bdocs/[a-z0-9-]+\.md\b", text_of(page)) if not (ROOT / name).exists()]
    assert wrong == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\(docs/([a-z0-9-]+\.md)\)", text_of(ROOT / "README.md")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == set()


@pytest.mark.parametrize(
    ("program", "loaded"),
    [("edge-agent", "edge_agent.cli"), ("cloud-gateway", "cloud_gateway.cli"), ("partitioner", "partitioner.cli")],
)
def test_every_command_that_a_page_shows_is_there(program: str, loaded: str) -> None:
    """Its verbs, two deep; what they do is tried elsewhere."""
    import importlib

    import typer.main

    group = typer.main.get_command(importlib.import_module(loaded).app)
    verbs: dict[str, set[str]] = {
        name: set(getattr(command, "commands", {})) for name, command in getattr(group, "commands", {}).items()
    }
    wrong = []
    for page in PAGES:
        for first, second in re.findall(rf"`?\b{program} ([a-z][a-z-]+)(?: ([a-z][a-z-]+))?", "\n".join(code_of(page))):
            if first not in verbs or (verbs[first] and second and second not in verbs[first]):
                wrong.append(f"{page.name}: {program} {first} {second}".strip())
    assert wrong == []


def code_of(page: Path) -> list[str]:
    """What is set as code, in blocks and within sentences."""
    text = text_of(page)
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", rest)
