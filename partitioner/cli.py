"""The `partitioner` command. Results on stdout (`--json`: exactly one document), progress and errors on stderr.

Exit codes: 0 done, 2 wrong command line, 3 model or data, 4 bundle, 5 accuracy refused, 7 engine, 130 interrupted,
1 anything unexpected. Heavy libraries are imported inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from partitioner.options import (
    AskedMbit,
    AskedRttMs,
    AskedSlowdown,
    BundlePath,
    Inputs,
    Json,
    ModelPath,
    PlanFlags,
    Role,
    with_plan_flags,
)
from partitioner.people import half_cli, sign_cli
from protocol.outputs import check_output
from protocol.terminal import guarded, print_json

app = typer.Typer(
    help="Split an ONNX model between edge and cloud, prove every part, and write a bundle.",
    epilog="First: `split MODEL --auto --calibration DATA.npz -o BUNDLE`, then `explain BUNDLE` and `report BUNDLE -o "
    "PAGE.html`. Exit codes: 2 command line, 3 model or data, 4 bundle, 5 accuracy refused, 7 engine, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(sign_cli.keys_app, name="keys")


def _traces(incomplete: str) -> list[str]:
    from partitioner.people.traces import BUILT_IN

    return [name for name in BUILT_IN if name.startswith(incomplete)]  # where none does, the shell offers files


def _objectives(incomplete: str) -> list[str]:
    from protocol.plan import OBJECTIVES

    done, comma, begun = incomplete.rpartition(",")
    return [f"{done}{comma}{name}" for name in (*OBJECTIVES, "accuracy") if name.startswith(begun)]


@app.command()
def inspect(model: ModelPath, inputs: Inputs = None, as_json: Json = False) -> None:
    """List MODEL's inputs, outputs and possible cuts."""
    with guarded():
        from partitioner.people.inspection import inspect as look
        from partitioner.people.report import print_inspection

        seen = look(model, inputs or ())
        if as_json:
            print_json(seen)
        else:
            print_inspection(seen, _console())


@app.command()
def profile(
    model: ModelPath,
    role: Annotated[Role, typer.Option(help="edge: heads are measured; cloud: tails, and how they take batches.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The profile (JSON), or the kit.")],
    kit: Annotated[
        bool,
        typer.Option("--kit", help="Measure nothing but write a folder for `edge-agent profile`."),
    ] = False,
    budget_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds for timing; kernels and memory come on top.")
    ] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads, as in service.")] = 1,
    int8: Annotated[bool, typer.Option("--int8", help="Heads in INT8 as well (role edge).")] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in fresh processes.")] = True,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DATA", help=".npz or image folder to run on (default: random).")
    ] = None,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Measure MODEL on this machine: whole, and cut at a few places from which all others are predicted."""
    if int8 and role is not Role.EDGE:
        raise typer.BadParameter("--int8 is for heads: use --role edge")
    with guarded():
        from partitioner.measuring import kit as kits
        from partitioner.measuring import profile as profiling
        from partitioner.people.report import Bar, Silent

        if not kit:
            check_output(output)
        order = profiling.ProfileOrder(
            model=model,
            role=role.value,
            budget_s=budget_s,
            threads=threads,
            precisions=("fp32", "int8") if int8 else ("fp32",),
            calibration=calibration,
            memory=memory,
            inputs=tuple(inputs or ()),
        )
        with contextlib.nullcontext(Silent()) if as_json else Bar() as reporter:
            if kit:
                exported = kits.export(order, output, reporter)
                summary = (
                    f"{output}: {len(exported.manifest.segments)} segments; run `edge-agent profile {output} -o FILE`"
                )
                document: object = exported.manifest
            else:
                made = profiling.profile(order, reporter)
                profiling.write(output, made)
                summary, document = f"{output}: {profiling.describe(made)}", made
        if as_json:
            print_json(document)
        else:
            print(summary)


@app.command()
@with_plan_flags
def plan(
    flags: PlanFlags,
    model: ModelPath,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PLAN.json", help="Write the plan, for `split --plan`.")
    ] = None,
    pareto: Annotated[
        str,
        typer.Option(
            metavar="OBJECTIVE,...",
            help="Also list the rows that no other beats in all of these.",
            autocompletion=_objectives,
        ),
    ] = "",
    mbit: Annotated[float, typer.Option(min=0.001, help="The uplink that --pareto is about.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Find every placement of MODEL that is best at some bandwidth, within the constraints; write no bundle."""
    with guarded():
        from partitioner.people.report import Bar, Silent
        from partitioner.people.tables import print_plan
        from partitioner.planning.plans import make_plan, write_plan

        if output is not None:
            check_output(output)
        order = flags.order(model, Path())
        objectives = tuple(o.strip() for o in pareto.split(",") if o.strip())
        if as_json:
            made = make_plan(order, objectives, mbit, Silent())
        else:
            with Bar() as bar:
                made = make_plan(order, objectives, mbit, bar)
        if output is not None:
            write_plan(output, made)
        if as_json:
            print_json(made)
        else:
            _warn_of_random_inputs(flags)
            print_plan(made, _console())


@app.command()
@with_plan_flags
def split(
    flags: PlanFlags,
    model: ModelPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Where to write the bundle.")],
    cut: Annotated[
        list[str] | None,
        typer.Option(metavar="TENSOR[,...]", help="Tensors (or nodes) that cross; repeat it for several cuts."),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Solve for every bandwidth and keep the cuts that win.")] = False,
    planned: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN.json", help="Build the cuts of a plan (`partitioner plan`).")
    ] = None,
    common_suffix: Annotated[
        bool, typer.Option("--common-suffix", help="Let a gateway batch several cuts where their tails end alike.")
    ] = False,
    half_tails: Annotated[
        bool, typer.Option("--half-tails", help="Ship tails in float16 too, for gateways with a GPU, where they hold.")
    ] = False,
    no_sample: Annotated[
        bool, typer.Option("--no-sample", help="Ship no sample with its answers, which devices try the bundle with.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: Json = False,
) -> None:
    """Cut MODEL into head and tail, prove that they answer like the whole, and write a bundle."""
    if bool(cut) + auto + (planned is not None) != 1:
        raise typer.BadParameter("give one of --cut TENSOR[,...], --auto and --plan PLAN.json")
    with guarded():
        from partitioner.people.report import Bar, Silent, print_built
        from partitioner.planning.build import build
        from partitioner.planning.plans import followed, to_build

        order = replace(
            flags.order(model, output),
            common_suffix=common_suffix,
            half_tails=half_tails,
            known_answer=not no_sample,
            force=force,
        )
        if planned is None:
            order = replace(order, cuts=tuple(tuple(names.split(",")) for names in cut or ()))
        else:
            order = followed(order, to_build(planned))
        if as_json:
            built = build(order, Silent())
            print_json({"bundle": str(built.target), "digest": built.digest, "manifest": built.manifest})
        else:
            with Bar() as bar:
                built = build(order, bar)
            _warn_of_random_inputs(flags)
            print_built(built, _console())


@app.command()
def verify(
    bundle: BundlePath,
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Judge on this .npz or image folder instead of random inputs.")
    ] = None,
    trusted: sign_cli.Trusted = None,
    as_json: Json = False,
) -> None:
    """Check BUNDLE's signature, hash every file again and compare every placement's answers with the full model's."""
    with guarded():
        from partitioner.people.report import print_verified
        from partitioner.planning.recheck import recheck
        from protocol import signers

        verified = recheck(
            bundle, data, tuple(key for text in trusted or () for key in signers.given_verify_keys(text))
        )
        if as_json:
            print_json(verified)
        else:
            print_verified(verified, _console())


app.command()(half_cli.half)
app.command()(sign_cli.sign)
app.command()(sign_cli.revoke)


@app.command()
def explain(
    bundle: BundlePath,
    mbit: AskedMbit = 10.0,
    rtt_ms: AskedRttMs = None,
    edge_slowdown: AskedSlowdown = None,
    cloud_load: Annotated[float, typer.Option(help="Share of the time the gateway is busy with others.")] = 0.0,
    quantile: Annotated[float, typer.Option(help="Of the machines' times; 0.5 is the median.")] = 0.5,
    as_json: Json = False,
) -> None:
    """Say in sentences why this placement, and what would have to change for another one."""
    with guarded():
        from partitioner.people.explain import Question
        from partitioner.people.explain import explain as explained
        from protocol.bundle import Bundle

        question = Question(mbit, None if rtt_ms is None else rtt_ms / 1e3, edge_slowdown, cloud_load, quantile)
        seen = explained(Bundle.open(bundle).manifest, question)
        if as_json:
            print_json(seen)
        else:
            from partitioner.people.tables import print_explained

            print_explained(seen, _console())


@app.command()
def simulate(
    bundle: BundlePath,
    trace: Annotated[
        str,
        typer.Option(
            metavar="step|lte|outage|FILE",
            help="A built-in trace, or `t_s,mbit` lines, or mahimahi.",
            autocompletion=_traces,
        ),
    ] = "step",
    seed: Annotated[int, typer.Option(min=0, help="Chance in the trace and in the machines' times.")] = 1,
    rtt_ms: AskedRttMs = None,
    requests_per_s: Annotated[float, typer.Option(min=0.001, help="How often a request comes.")] = 5.0,
    deadline_ms: Annotated[float, typer.Option(min=1.0, help="Every request's budget in milliseconds.")] = 1000.0,
    as_json: Json = False,
) -> None:
    """Replay a bandwidth trace through the agent's own decisions, beside an oracle and every fixed placement."""
    with guarded():
        from partitioner.people.replay import Drive, simulate_bundle
        from partitioner.people.tables import print_simulated

        rtt_s = None if rtt_ms is None else rtt_ms / 1e3
        seen = simulate_bundle(bundle, Drive(trace, seed, rtt_s, requests_per_s, deadline_ms / 1e3))
        if as_json:
            print_json(seen)
        else:
            print_simulated(seen, _console())


@app.command()
def report(
    bundle: BundlePath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PAGE.html", help="Where to write the page.")],
    mbit: AskedMbit = 10.0,
    rtt_ms: AskedRttMs = None,
    edge_slowdown: AskedSlowdown = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about BUNDLE: where time goes, who wins where, what was proven."""
    with guarded():
        from partitioner.people.explain import Question
        from partitioner.people.page.write import write_page
        from partitioner.people.sentences import headline

        question = Question(mbit, None if rtt_ms is None else rtt_ms / 1e3, edge_slowdown)
        seen = write_page(bundle, output, question)
        if as_json:
            print_json({"page": str(output), "nbytes": output.stat().st_size, "explanation": seen})
        else:
            print(f"{headline(seen)}; wrote {output}")


def _warn_of_random_inputs(flags: PlanFlags) -> None:
    if flags.calibration is None:
        print(
            "no --calibration given: inputs are random, so accuracy is agreement with the full model", file=sys.stderr
        )


def _console() -> Any:
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with 1

    # Piped output keeps its tables readable instead of folding them at 80 columns.
    console = Screen()
    return console if console.is_terminal else Screen(width=160)
