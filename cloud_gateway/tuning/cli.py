"""`cloud-gateway tune MODEL --slo-ms 50`: measures, simulates, and writes the settings that it recommends."""

from __future__ import annotations

import enum
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import InputError
from protocol.terminal import print_json

if TYPE_CHECKING:
    from cloud_gateway.tuning.search import Scored

MEASURING_SHARE = 0.7  # of the budget; the rest is for the simulation


class Search(enum.StrEnum):
    GRID = "grid"
    OPTUNA = "optuna"


def tune(
    model: Annotated[
        Path, typer.Argument(help="An ONNX file, a bundle, a version's folder or a model's.", show_default=False)
    ],
    slo_ms: Annotated[float, typer.Option(min=0.001, max=3_600_000, help="Every request's budget at the gateway.")],
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second to expect; without it, as many as possible.")
    ] = None,
    placement: Annotated[str | None, typer.Option(help="Which graph of a bundle; else the whole model.")] = None,
    budget_s: Annotated[float, typer.Option(min=0.1, max=86_400, help="How long it may take, by and large.")] = 60.0,
    processors: Annotated[
        int | None, typer.Option(min=1, max=1024, help="For engines; else all but the one that the doors need.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Largest batch to try.")] = 64,
    search: Annotated[Search, typer.Option(help="Optuna also tries bounds in between and delays.")] = Search.GRID,
    output: Annotated[Path | None, typer.Option(help="Write the recommended TOML here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Find batch bound, instances and threads for MODEL on this machine, and say why."""
    from cloud_gateway.tuning.measure import measure
    from cloud_gateway.tuning.optuna_search import search_jointly
    from cloud_gateway.tuning.search import Goal, as_toml, best_of, grid, pairs, why
    from cloud_gateway.tuning.search import search as search_grid
    from cloud_gateway.tuning.subject import loaded, open_subject
    from protocol.outputs import check_output, write_output

    if output is not None:
        check_output(output)
    usable = processors or max(len(os.sched_getaffinity(0)) - 1, 1)
    subject = open_subject(model, placement)
    goal = Goal(slo_ms / 1e3, rate)
    ends = time.monotonic() + budget_s
    to_measure = pairs(usable)
    with loaded(subject, sorted({threads for threads, _ in to_measure}), largest=max_batch_size) as lanes:
        measurements = measure(
            lanes, to_measure, largest=max_batch_size, slo_s=goal.slo_s, budget_s=budget_s * MEASURING_SHARE
        )
    out_of_time = lambda: time.monotonic() >= ends  # noqa: E731 - a name for the argument
    if search is Search.OPTUNA:
        found = search_jointly(measurements, goal, out_of_time=out_of_time)
    else:
        found = search_grid(measurements, grid(measurements), goal, out_of_time=out_of_time)
    best = best_of(found, goal)
    if best is None:
        fastest = min(measured.median_s(1) for measured in measurements.values())
        raise InputError(
            f"no setting answers within {slo_ms:g} ms: one row takes {fastest * 1e3:.2f} ms on this machine",
            "allow more time, or choose a smaller model",
        )
    reasons = why(best, found, measurements, goal)
    toml = as_toml(subject.name, best)
    if output is not None:
        heading = [f"cloud-gateway tune {model} --slo-ms {slo_ms:g}", *reasons]
        write_output(output, "".join(f"# {line}\n" for line in heading).encode() + toml.encode())
    if json:
        print_json({
            "model": subject.name, "placement": subject.tails[0].placement, "slo_ms": slo_ms, "rate_per_s": rate,
            "measured": [
                {"threads": pair[0], "instances": pair[1], "batch": size, "runs": len(runs),
                 "median_ms": round(measured.median_s(size) * 1e3, 4)}
                for pair, measured in measurements.items() for size, runs in measured.runs.items()
            ],
            "tried": [_row(each) for each in found], "recommended": _row(best), "why": reasons, "toml": toml,
        })  # fmt: skip
        return
    _print_table(found, best)
    print("\n".join(reasons), file=sys.stderr)
    print(toml, end="")


def _row(each: Scored) -> dict[str, float | None]:
    outcome = each.outcome
    return {
        "threads": each.setting.threads,
        "instances": each.setting.instances,
        "max_batch_size": each.setting.max_batch_size,
        "efficiency_delay_ms": each.setting.delay_ms,
        "sustained_per_s": round(each.sustained_per_s, 2),
        "p50_ms": None if outcome is None else round(outcome.p50_s * 1e3, 3),
        "p99_ms": None if outcome is None else round(outcome.p99_s * 1e3, 3),
    }


def _print_table(found: list[Scored], best: Scored) -> None:
    print("  threads  instances  batch  delay_ms  in time/s   p50 ms   p99 ms", file=sys.stderr)
    for each in sorted(found, key=lambda e: (e.setting.threads, e.setting.instances, e.setting.max_batch_size)):
        s, o = each.setting, each.outcome
        times = f"{o.p50_s * 1e3:9.2f}{o.p99_s * 1e3:9.2f}" if o else f"{'-':>9}{'-':>9}"
        mark = "*" if each is best else " "
        what = f"{mark} {s.threads:7}{s.instances:11}{s.max_batch_size:7}{s.delay_ms:10g}"
        print(f"{what}{each.sustained_per_s:11.1f}{times}", file=sys.stderr)
