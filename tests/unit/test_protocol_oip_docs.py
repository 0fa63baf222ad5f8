"""docs/oip.md says what the code does: its tables are compared with the routes and the refusals."""

from __future__ import annotations

import re
from pathlib import Path

from protocol.oip.app import OipApp
from protocol.oip.contract import contract
from protocol.oip.service import OpenGuard, Refusal
from tests.oip import ToyService

TEXT = (Path(__file__).parents[2] / "docs/oip.md").read_text("utf-8")
NOT_SPOKEN = ("logging", "trace", "sharedmemory")


def rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return found[2:]


def test_the_table_of_routes_is_the_one_that_is_served() -> None:
    told = set()
    for routes, _, role, _ in rows("Routes"):
        for method, path in re.findall(r"`(GET|POST) (\S+)`", routes):
            for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
                told.add((method, re.sub(r"^M(?=/|$)", model, path), role))
    routes = OipApp(ToyService(), OpenGuard()).router.routes
    served = {(r.method, r.path, r.role) for r in routes if not any(word in r.path for word in NOT_SPOKEN)}
    assert told == served


def test_every_grpc_call_stands_in_the_table() -> None:
    told = {name for _, calls, _, _ in rows("Routes") for name in re.findall(r"`(\w+)`", calls)}
    assert told == {call.name for call in contract.calls}


def test_the_table_of_refusals_is_the_one_in_the_code() -> None:
    told = {code: (int(status), grpc) for code, status, grpc, *_ in rows("Refusals")}
    assert told == {refusal.name: (refusal.status, refusal.grpc_code) for refusal in Refusal}
