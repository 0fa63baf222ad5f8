"""ARCHITECTURE.md names every module, and no module that is gone."""

from __future__ import annotations

import re

import pytest

from tests.processes import ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGES = ("protocol", "edge_agent", "cloud_gateway", "partitioner")


def part(package: str) -> str:
    """What the page says of one package."""
    (found,) = re.findall(rf"^### {package}: .*?(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_line_and_every_line_its_module(package: str) -> None:
    folder = ROOT / package
    modules = {path.relative_to(folder) for path in folder.rglob("*.py") if path.stem not in ("__init__", "__main__")}
    named = {name.rpartition("/")[2] for name in re.findall(r"`([\w/.]+\.(?:py|proto))`", part(package))}
    assert {str(path) for path in modules if path.name not in named and path.parent.name != "page"} == set()
    there = {path.name for path in folder.rglob("*") if path.suffix in (".py", ".proto")}
    elsewhere = {path.name for path in (ROOT / "protocol").rglob("*.py")}  # a row may say whom it uses
    assert named - there - elsewhere == set()
