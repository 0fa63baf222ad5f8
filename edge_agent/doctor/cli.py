"""`edge-agent doctor`: every check as a line, what is to be done below it. Exit code 0 unless something fails.

0    nothing fails (warnings and skipped checks included)
3    a setting, a flag or a check's name that cannot be understood, as everywhere
11   at least one check fails
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.terminal import print_json

if TYPE_CHECKING:
    from edge_agent.doctor.case import Case
    from edge_agent.doctor.examination import Check
    from edge_agent.doctor.verdicts import Finding

SOMETHING_FAILS = 11
SCHEMA = 1
_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red"), "skip": ("skip", "dim")}
_SUMS = {"ok": "ok", "warn": "to look at", "fail": "failed", "skip": "skipped"}
_PIPED_COLUMNS = 160


def doctor(
    config: Annotated[Path | None, typer.Option(help="The daemon's settings (TOML).")] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="ID", help="A check or a group; may be repeated.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Look at this bundle instead of the configured one.")] = None,
    gateway: Annotated[list[str] | None, typer.Option(help="tcp://HOST:PORT; may be repeated.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Folder with agent.key and server.pub.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The folder that the daemon writes to.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting.")] = None,
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder of secrets, one file each.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Ask a gateway elsewhere in plain text.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the checks and make none.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Look at the installation, the machine, the bundle and the gateways; say what is wrong and what to do about it."""
    from edge_agent.doctor.case import Case
    from edge_agent.doctor.examination import examine
    from edge_agent.doctor.registry import chosen

    checks = chosen(tuple(only or ()))
    if listed:
        rows = [{"id": check.id, "title": check.title} for check in checks]
        print_json(rows) if json else print("\n".join(f"{row['id']:<28}{row['title']}" for row in rows))
        return
    overrides = _overrides(bundle, gateway or [], keys, state_dir, set_ or [], insecure)
    case = Case(file=config, secrets_dir=secrets_dir, env=os.environ, overrides=overrides)
    try:
        findings = examine(case, checks) if json else _told(case, checks)
    finally:
        case.close()
    counts = Counter(str(finding.status) for finding in findings)
    if json:
        print_json({"schema": SCHEMA, "counts": counts, "checks": findings})
    if counts["fail"]:
        raise typer.Exit(SOMETHING_FAILS)


def _overrides(
    bundle: Path | None,
    gateways: list[str],
    keys: Path | None,
    state_dir: Path | None,
    given: list[str],
    insecure: bool,
) -> dict[str, object]:
    from edge_agent.config import from_flags
    from protocol.settings import parse_set

    flags = from_flags(
        bundle=bundle, gateways=gateways, keys=keys, state_dir=state_dir, insecure=True if insecure else None
    )
    return {**flags, **parse_set(given)}


def _told(case: Case, checks: Sequence[Check]) -> list[Finding]:
    """For people: what runs now while it runs, then the table and a sentence."""
    from rich import box  # slow to import, and every command of edge-agent imports this file
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edge_agent.doctor.examination import examine

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPED_COLUMNS)
    with console.status("examining") as status:
        findings = examine(case, checks, lambda finding: status.update(f"{finding.group}: after {finding.id}"))
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "check", "found, and what to do"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "check")
    for finding in findings:
        word, style = _MARKS[finding.status]
        said = Text(finding.fact)
        if finding.remedy:
            said.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(word, style=style), finding.id, said)
    console.print(table)
    counts = Counter(str(finding.status) for finding in findings)
    told = [f"{counts[word]} {words}" for word, words in _SUMS.items() if counts[word]]
    console.print(f"{len(findings)} checks: {', '.join(told)}", highlight=False)
    return findings
