"""The benchmark runner: `python -m benchmarks SUITE [--json out.json]`, `python -m benchmarks --list`.

Law: the runner knows names and the schema, never what is measured.
Exit codes: 0 every promise was kept, 1 a target was missed, 2 the command line makes no sense.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from benchmarks import SUITES
from benchmarks.results import Options, Result, machine, print_table, report, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run one suite as the command line says; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.list:
        print("\n".join(f"{name:<12} {suite.summary}" for name, suite in sorted(SUITES.items())))
        return 0
    if asked.suite not in SUITES:
        parser.error(f"suite is {asked.suite!r} but the known suites are: {', '.join(sorted(SUITES))}")
    return _run(asked, command=shlex.join(["python", "-m", "benchmarks", *arguments]))


def load(name: str) -> Callable[[Options], list[Result]]:
    """Import a suite and return its function.

    Raises:
        KeyError: if no suite has this name.
        ImportError: if the suite needs a package that is not installed.
    """
    suite = SUITES[name]
    return cast("Callable[[Options], list[Result]]", getattr(importlib.import_module(suite.module), suite.function))


def _run(asked: argparse.Namespace, *, command: str) -> int:
    started_utc = datetime.now(UTC).isoformat(timespec="seconds")
    host = machine()  # before the suite: its own load is not the machine's
    results = load(asked.suite)(Options(asked.repeats, asked.quick, dict(asked.set)))
    print_table(asked.suite, results)
    if asked.json is not None:
        write_json(asked.json, report(asked.suite, results, machine=host, started_utc=started_utc, command=command))
    return 1 if any(result.ok is False for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run one benchmark suite.")
    parser.add_argument("suite", nargs="?", help="name of the suite (see --list)")
    parser.add_argument("--list", action="store_true", help="list the suites and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.add_argument("--repeats", type=_positive, default=5, help="samples of each quantity (default 5)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: short, and not to be quoted")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="a setting of the suite's own"
    )
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
