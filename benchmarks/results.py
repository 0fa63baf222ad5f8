"""What a benchmark says, and how it is written down.

Law: every suite reports in one schema, together with the machine it ran on. A number without its spread, its count
and its machine is an anecdote.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SCHEMA = 1
PIPED_COLUMNS = 140
REPORTED_PACKAGES = (
    "cuda-python", "msgspec", "numpy", "onnxruntime", "onnxruntime-gpu", "pycuda", "pyzmq", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of any suite; `settings` carries `--set key=value` for one suite's own needs."""

    repeats: int = 5
    quick: bool = False  # shorter transfers and fewer repeats: a smoke test, not a measurement
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """One measured quantity; `low` and `high` are the smallest and the largest of `n` samples, in `unit`.

    `target` is the bound in words and `ok` whether it was met; both are None where nothing was promised.
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    n: int
    target: str | None = None
    ok: bool | None = None
    note: str = ""

    @classmethod
    def of(cls, name: str, unit: str, samples: Sequence[float], *, note: str = "") -> Result:
        """Summarise samples for which nothing is promised.

        Raises:
            ValueError: if there are no samples.
        """
        if not samples:
            raise ValueError(f"benchmark '{name}' produced no samples; a result needs at least one")
        return cls(name, unit, statistics.median(samples), min(samples), max(samples), len(samples), note=note)

    @classmethod
    def missing(cls, name: str, reason: str = "", *, ok: bool | None = None) -> Result:
        """A row without a figure (`n` is 0), and why there is none."""
        return cls(name, "", 0.0, 0.0, 0.0, 0, ok=ok, note=reason)

    @classmethod
    def bounded(cls, name: str, unit: str, samples: Sequence[float], *, at_most: float, note: str = "") -> Result:
        """Summarise samples whose median must not exceed `at_most` in absolute value (errors have a sign).

        Raises:
            ValueError: if there are no samples.
        """
        plain = cls.of(name, unit, samples)
        target = f"<= {at_most:g} {unit}"
        ok = abs(plain.median) <= at_most
        return cls(name, unit, plain.median, plain.low, plain.high, plain.n, target, ok, note)


class Machine(TypedDict):
    """Where the numbers come from; `load_average` is over 1, 5 and 15 minutes, taken when the suite began."""

    cpu: str
    cores: int
    kernel: str
    python: str
    load_average: list[float]
    tcp_congestion_control: str


class Report(TypedDict):
    """The JSON document, version `SCHEMA`."""

    schema: int
    suite: str
    started_utc: str
    machine: Machine
    versions: dict[str, str]
    command: str
    results: list[dict[str, object]]


def report(suite: str, results: Sequence[Result], *, machine: Machine, started_utc: str, command: str) -> Report:
    """Put the results of one suite into the schema."""
    return Report(
        schema=SCHEMA,
        suite=suite,
        started_utc=started_utc,
        machine=machine,
        versions=versions(),
        command=command,
        results=[asdict(result) for result in results],
    )


def machine() -> Machine:
    """Describe this machine; what the platform does not tell is an empty string."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 0,
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        load_average=[round(load, 2) for load in os.getloadavg()],
        # The kernel's default decides between cubic and BBR, which differ by a factor of three on a lossy link.
        tcp_congestion_control=_first_line("/proc/sys/net/ipv4/tcp_congestion_control"),
    )


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that can move a number."""
    found = {}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, document: Report) -> None:
    """Write the report as indented JSON.

    Raises:
        OSError: if the file cannot be written.
    """
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_table(suite: str, results: Sequence[Result], console: Console | None = None) -> None:
    """Print the results as a table on `console`, by default standard output; below it why some have no figures."""
    console = console or Console()
    if not console.is_terminal:
        console.width = PIPED_COLUMNS  # rich would cut at 80, and a log has no edge
    table = Table(title=f"benchmark: {suite}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("quantity", "median", "low", "high"):
        table.add_column(heading, justify="left" if heading == "quantity" else "right", no_wrap=True)
    for heading in ("unit", "n", "target", "", "note"):
        table.add_column(heading, no_wrap=heading != "note")
    for result in results:
        numbers = (f"{value:.3g}" if result.n else "-" for value in (result.median, result.low, result.high))
        verdict = {True: "ok", False: "MISS", None: ""}[result.ok]
        note = escape(result.note) if result.n else ""
        table.add_row(result.name, *numbers, result.unit, str(result.n), result.target or "", verdict, note)
    console.print(table)
    for result in results:
        if not result.n and result.note:
            console.print(f"  {escape(result.name)}: {escape(result.note)}", soft_wrap=True, highlight=False)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return ""
