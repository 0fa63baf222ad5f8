"""The `partitioner` command. Results on stdout (`--json`: exactly one document), progress and errors on stderr.

Exit codes: 0 done, 2 wrong command line, 3 model or data, 4 bundle, 5 accuracy refused, 7 engine, 130 interrupted,
1 anything unexpected. Heavy libraries are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.errors import IsthmusError

app = typer.Typer(
    help="Split an ONNX model between edge and cloud, prove every part, and write a bundle.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Precision(StrEnum):
    AUTO = "auto"
    INT8 = "int8"
    FP32 = "fp32"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.", show_default=False)]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.", show_default=False)]


@app.command()
def split(
    model: ModelPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Where to write the bundle.")],
    cut: Annotated[
        list[str] | None,
        typer.Option(metavar="TENSOR[,...]", help="Tensors (or nodes) that cross; repeat it for several cuts."),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Measure a sample of cuts and keep those that win.")] = False,
    budget_s: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds that --auto may explore; loading, calibration and final timing come on top."
        ),
    ] = 60.0,
    edge_slowdown: Annotated[
        float, typer.Option(min=0.001, help="How many times slower the device is than this machine (declared).")
    ] = 8.0,
    rtt_ms: Annotated[float, typer.Option(min=0.0, help="Round trip of the link in milliseconds.")] = 10.0,
    from_mbit: Annotated[float, typer.Option(min=0.001, help="Slowest link to plan for, Mbit/s.")] = 0.1,
    to_mbit: Annotated[float, typer.Option(min=0.001, help="Fastest link to plan for, Mbit/s.")] = 1000.0,
    precision: Annotated[
        Precision, typer.Option(help="auto: INT8 where it holds, else fp32; int8: INT8 or refuse.")
    ] = Precision.AUTO,
    bound: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Loss of accuracy, agreement or cosine that is acceptable.")
    ] = 0.01,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the head, as on the device.")] = 1,
    tail_threads: Annotated[int, typer.Option(min=1, help="Threads of the tail, as at the gateway.")] = 1,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DATA.npz", help="One array per input, first axis = samples.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="KEY", help="Array of DATA.npz that holds the labels (default: labels or y).")
    ] = None,
    label_offset: Annotated[int, typer.Option(help="Added to every label, for models with a class in front.")] = 0,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME,KEY=VALUE...", help="An image input and its pre-processing."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    keep_best: Annotated[bool, typer.Option("--keep-best", help="Keep the best cut even if it never wins.")] = False,
    as_json: Json = False,
) -> None:
    """Cut MODEL into head and tail, prove that they answer like the whole, and write a bundle."""
    if bool(cut) == auto:
        raise typer.BadParameter("give either --cut TENSOR[,...] or --auto")
    if not (math.isfinite(edge_slowdown) and math.isfinite(rtt_ms)):
        raise typer.BadParameter("--edge-slowdown and --rtt-ms must be finite numbers")
    if not from_mbit < to_mbit < math.inf:
        raise typer.BadParameter("--from-mbit must be below --to-mbit")
    if labels is not None and calibration is None:
        raise typer.BadParameter("--labels needs --calibration DATA.npz")
    with _guarded():
        from partitioner.build import Order, build
        from partitioner.report import Bar, Silent, print_built
        from protocol.plan import PlanConditions

        order = Order(
            model=model,
            target=output,
            cuts=tuple(tuple(names.split(",")) for names in cut or ()),
            budget_s=budget_s,
            edge_slowdown=edge_slowdown,
            scope=PlanConditions(rtt_ms / 1e3, slowest_mbit=from_mbit, fastest_mbit=to_mbit),
            precision=precision.value,
            bound=bound,
            threads=threads,
            tail_threads=tail_threads,
            calibration=calibration,
            labels=labels,
            label_offset=label_offset,
            inputs=tuple(inputs or ()),
            force=force,
            keep_best=keep_best,
        )
        if as_json:
            built = build(order, Silent())
            _print_json(
                {
                    "bundle": str(built.target),
                    "digest": built.digest,
                    "manifest": built.manifest,
                    "measured": built.measured,
                }
            )
        else:
            with Bar() as bar:
                built = build(order, bar)
            if calibration is None:
                print(
                    "no --calibration given: inputs are random, so accuracy is agreement with the full model",
                    file=sys.stderr,
                )
            print_built(built, _console())


@app.command()
def verify(
    bundle: BundlePath,
    data: Annotated[Path | None, typer.Option(metavar="X.npz", help="Judge on this data instead of random.")] = None,
    as_json: Json = False,
) -> None:
    """Hash every file of BUNDLE again and compare every placement's answers with the full model's."""
    with _guarded():
        from partitioner.recheck import recheck
        from partitioner.report import print_verified

        verified = recheck(bundle, data)
        if as_json:
            _print_json(verified)
        else:
            print_verified(verified, _console())


@app.command()
def inspect(model: ModelPath, as_json: Json = False) -> None:
    """List MODEL's inputs, outputs and possible cuts."""
    with _guarded():
        from partitioner.inspection import inspect as look
        from partitioner.report import print_inspection

        seen = look(model)
        if as_json:
            _print_json(seen)
        else:
            print_inspection(seen, _console())


@app.command()
def explain(
    bundle: BundlePath,
    mbit: Annotated[float, typer.Option(help="Uplink in Mbit/s; the downlink counts as equal.")] = 10.0,
    rtt_ms: Annotated[
        float | None, typer.Option(help="Round trip in milliseconds (default: the bundle's).", show_default=False)
    ] = None,
    edge_slowdown: Annotated[
        float | None,
        typer.Option(help="How many times slower the device is (default: the bundle's).", show_default=False),
    ] = None,
    cloud_load: Annotated[float, typer.Option(help="Share of the time the gateway is busy with others.")] = 0.0,
    quantile: Annotated[float, typer.Option(help="Of the machines' times; 0.5 is the median.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Say in sentences why this placement, and what would have to change for another one."""
    with _guarded():
        from partitioner.explain import Question
        from partitioner.explain import explain as explained
        from protocol.bundle import Bundle

        question = Question(mbit, None if rtt_ms is None else rtt_ms / 1e3, edge_slowdown, cloud_load, quantile)
        seen = explained(Bundle.open(bundle).manifest, question)
        if as_json:
            _print_json(seen)
        else:
            from partitioner.tables import print_explained

            print_explained(seen, _console())


@app.command()
def report(
    bundle: BundlePath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PAGE.html", help="Where to write the page.")],
    mbit: Annotated[float, typer.Option(help="Uplink in Mbit/s that the page is about.")] = 10.0,
    rtt_ms: Annotated[
        float | None, typer.Option(help="Round trip in milliseconds (default: the bundle's).", show_default=False)
    ] = None,
    edge_slowdown: Annotated[
        float | None,
        typer.Option(help="How many times slower the device is (default: the bundle's).", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about BUNDLE: where time goes, who wins where, what was proven."""
    with _guarded():
        from partitioner.explain import Question
        from partitioner.page.write import write_page
        from partitioner.sentences import headline

        question = Question(mbit, None if rtt_ms is None else rtt_ms / 1e3, edge_slowdown)
        seen = write_page(bundle, output, question)
        if as_json:
            _print_json({"page": str(output), "nbytes": output.stat().st_size, "explanation": seen})
        else:
            print(f"{headline(seen)}; wrote {output}")


@app.command()
def simulate(
    bundle: BundlePath,
    trace: Annotated[
        str, typer.Option(metavar="step|lte|outage|FILE", help="A built-in trace, or `t_s,mbit` lines, or mahimahi.")
    ] = "step",
    seed: Annotated[int, typer.Option(min=0, help="Chance in the trace and in the machines' times.")] = 1,
    rtt_ms: Annotated[
        float | None, typer.Option(min=0.0, help="Round trip in milliseconds (default: the bundle's).")
    ] = None,
    requests_per_s: Annotated[float, typer.Option(min=0.001, help="How often a request comes.")] = 5.0,
    deadline_ms: Annotated[float, typer.Option(min=1.0, help="Every request's budget in milliseconds.")] = 1000.0,
    as_json: Json = False,
) -> None:
    """Replay a bandwidth trace through the agent's own planner, beside an oracle and every fixed placement."""
    with _guarded():
        from partitioner.replay import Drive, simulate_bundle
        from partitioner.tables import print_simulated

        rtt_s = None if rtt_ms is None else rtt_ms / 1e3
        seen = simulate_bundle(bundle, Drive(trace, seed, rtt_s, requests_per_s, deadline_ms / 1e3))
        if as_json:
            _print_json(seen)
        else:
            print_simulated(seen, _console())


@contextmanager
def _guarded() -> Iterator[None]:
    """Expected trouble becomes one sentence and its exit code; a bug keeps its traceback."""
    try:
        yield
    except IsthmusError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted: no bundle was written", file=sys.stderr)
        raise typer.Exit(130) from None


def _console() -> Any:
    from rich.console import Console

    # Piped output keeps its tables readable instead of folding them at 80 columns.
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _print_json(document: object) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
