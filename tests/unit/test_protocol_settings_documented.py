"""The settings of both daemons and the page about each: complete, in plain sentences, with examples that load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloud_gateway import config as gateway
from edge_agent import config as agent
from protocol.settings import Section, documented
from protocol.settings_cli import as_markdown

DOCS = Path(__file__).parents[2] / "docs"


class Documented(NamedTuple):
    command: str
    page: str
    kind: type[Section]
    load_settings: Any

    def __str__(self) -> str:
        return self.command

    @property
    def text(self) -> str:
        return (DOCS / self.page).read_text("utf-8")


DAEMONS = [
    Documented("edge-agent", "agent-configuration.md", agent.AgentSettings, agent.load_settings),
    Documented("cloud-gateway", "configuration.md", gateway.GatewaySettings, gateway.load_settings),
]
each = pytest.mark.parametrize("daemon", DAEMONS, ids=str)


@each
def test_the_reference_in_the_documentation_is_what_the_code_says(daemon: Documented) -> None:
    start = f"<!-- reference: {daemon.command} config schema --markdown -->\n"
    reference = daemon.text.partition(start)[2].partition("\n<!-- end of reference -->")[0]
    assert reference.strip() == as_markdown(daemon.kind)


@each
def test_every_example_in_the_documentation_is_accepted(daemon: Documented, tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", daemon.text, re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.toml"
        file.write_text(example)
        daemon.load_settings(file=file, env={})


@each
def test_every_field_is_documented_by_one_plain_sentence(daemon: Documented) -> None:
    for key, leaf in documented(daemon.kind):
        assert re.fullmatch(r"[A-Z].*\.", leaf.text), key
        assert "\n" not in leaf.text, key
