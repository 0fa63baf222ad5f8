"""What the table of a benchmark shows: figures, and of what was not measured the reason instead."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks.results import Result, print_table


def test_what_was_not_measured_has_no_figures_but_a_reason_in_one_line() -> None:
    reason = "no NVIDIA driver is installed; install one, or choose an engine for the CPU [cuda]"
    out = io.StringIO()
    console = Console(file=out, width=80)
    print_table("s", [Result.of("speed", "1/s", [3.25]), Result.missing("tensorrt: not run", reason)], console)
    lines = out.getvalue().splitlines()
    (row,) = [line.split() for line in lines if line.lstrip().startswith("tensorrt: not run  ")]
    assert row[3:6] == ["-", "-", "-"]
    assert f"  tensorrt: not run: {reason}" in lines
    assert any("3.25" in line for line in lines)
