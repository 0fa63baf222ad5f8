"""docs/store.md says what the code does: routes, parameters, settings, reasons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from edge_agent.config import StoreSettings
from edge_agent.store import forwarder, journal, routes
from edge_agent.store.database import RESERVE_NBYTES
from edge_agent.store.pacing import Pace

TEXT = (Path(__file__).parents[2] / "docs/store.md").read_text("utf-8")


def test_the_table_of_routes_is_the_one_that_is_served(tmp_path: Path) -> None:
    told = set(re.findall(r"^\| `([A-Z]+) (\S+)` \|", TEXT, re.MULTILINE))
    made = routes.routes(journal.Journal(tmp_path), lambda model, inputs: None)
    served = {(r.method, r.path) for r in made}
    assert {(method, re.sub(r"{\w+}", "{name}", path)) for method, path in told} == served


def test_the_settings_shown_are_the_defaults() -> None:
    [block] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    shown = tomllib.loads(block)["store"]
    defaults = StoreSettings()
    assert {name: getattr(defaults, name) for name in shown} == shown | {"enabled": False}


def test_every_parameter_and_reason_is_told() -> None:
    source = "".join(Path(module.__file__ or "").read_text("utf-8") for module in (routes, forwarder))
    for name in ("store_life_s", "store_key", "POISON", "UNSTORABLE"):
        assert name in source
        assert f"`{name}`" in TEXT
    assert f"{RESERVE_NBYTES >> 20} MiB beside the file" in TEXT
    assert Pace().most_unreturned == 5
    assert "after five times" in TEXT
