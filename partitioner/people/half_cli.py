"""`partitioner half`: a model in half precision for gateways with a GPU, if the samples show that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from partitioner.options import Inputs, Json, LabelOffset, Labels, ModelPath
from protocol.errors import InputError
from protocol.outputs import check_output, write_output
from protocol.terminal import guarded, print_json


class Halved(msgspec.Struct, frozen=True):
    """What was written, and how it was judged."""

    file: str
    nbytes: int
    metric: str
    achieved: float
    samples: int


def half(
    model: ModelPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The model in float16 (ONNX).")],
    calibration: Annotated[
        Path, typer.Option(metavar="DATA", help=".npz or image folder to judge on.", show_default=False)
    ],
    bound: Annotated[
        float,
        typer.Option("--accuracy-bound", min=0.0, max=1.0, help="Acceptable loss of accuracy, agreement or cosine."),
    ] = 0.01,
    labels: Labels = None,
    label_offset: LabelOffset = 0,
    inputs: Inputs = None,
    as_json: Json = False,
) -> None:
    """Write MODEL with its inside in float16, for TensorRT; refuse where the samples show that it loses too much."""
    with guarded():
        from partitioner.crossing.half_tail import judged_half
        from partitioner.graph import inputs as images
        from partitioner.graph.model import load
        from partitioner.judging import data

        check_output(output)
        if output.exists() and output.samefile(model):
            raise InputError(f"{output} is the model itself, which is still needed", "write to another file")
        whole = load(model, inputs=images.parse(tuple(inputs or ())))
        samples = data.load(
            calibration, whole.inputs, labels=labels, label_offset=label_offset, classes=data.classes_of(whole.outputs)
        )
        graph, achieved, metric = judged_half(whole.data, samples, bound=bound)
        write_output(output, graph)
        found = Halved(str(output), len(graph), metric, achieved, len(samples.held_out))
        if as_json:
            print_json(found)
        else:
            print(f"{output}: {len(graph) / 1e6:.1f} MB, {metric} {achieved:.4f} on {found.samples} held-out samples")
