"""The device side: a daemon that answers applications, wherever that is best right now, and what one asks of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_agent import cli_ask, cli_config
from edge_agent.bundles.cli import app as bundles_app
from edge_agent.cli_infer import infer
from edge_agent.cli_run import run
from edge_agent.doctor.cli import doctor
from edge_agent.store.cli import app as store_app
from edge_agent.trust import cli as trust_cli
from protocol.terminal import print_json

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.command()(run)
app.command()(infer)
app.command()(cli_ask.status)
app.command()(cli_ask.explain)
app.command()(doctor)
app.command()(trust_cli.enroll)
app.add_typer(trust_cli.keys_app, name="keys")
app.add_typer(bundles_app, name="bundles")
app.add_typer(store_app, name="store")
app.add_typer(cli_config.app, name="config")


@app.callback()
def _root() -> None:
    """The device side of split inference."""


@app.command()
def profile(
    kit: Annotated[Path, typer.Argument(help="A kit of `partitioner profile --kit`.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write the profile (JSON).")],
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads of the heads.")] = 1,
    budget_s: Annotated[float, typer.Option(min=0, help="Seconds for timing; kernels and memory come on top.")] = 60.0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in fresh processes.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the profile too, as one JSON line.")] = False,
) -> None:
    """Measure the segments of KIT on this device, for `partitioner` to plan with."""
    from edge_agent import profiling
    from protocol.kit import KitRun

    made = profiling.profile(kit, output, KitRun(budget_s=budget_s, threads=threads, memory=memory))
    if json:
        print_json(made)
    else:
        whole = made.anchors[0].time
        print(f"{output}: {made.model} takes {whole.median_s * 1e3:.3f} ms here; {len(made.anchors) - 1} segments")
