"""What was tried to make the model INT8 and what each layer costs, as rows for terminal and page alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from protocol.bundle import LayerLoss, Manifest, TriedRecipe


class Grid(NamedTuple):
    """A table in words. Headings that begin with # are columns of figures."""

    title: str
    about: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: frozenset[int]  # rows that stand out


def grids(manifest: Manifest, *, most_layers: int | None = None) -> list[Grid]:
    """The recipes and the layers, where a search was made; of the layers the `most_layers` that cost most."""
    made = []
    if manifest.recipes:
        made.append(_recipes(manifest.recipes, is_timed=manifest.conditions.head_engine == "onnxruntime"))
    if manifest.layers:
        made.append(_layers(manifest.layers, most_layers, found=any(r.chosen for r in manifest.recipes)))
    return made


def _recipes(tried: Sequence[TriedRecipe], *, is_timed: bool) -> Grid:
    time = "on this machine" if is_timed else "by estimate, for TensorRT"
    rows = tuple(
        (
            t.recipe,
            _figure(t.metric),
            "yes" if t.holds else "no",
            _figure(t.ratio, ".2f"),
            _figure(t.held_out),
            _fate(t),
        )
        for t in tried
    )
    return _grid(
        "Eight-bit recipes tried on the whole model",
        f"metric and bound on calibration samples; time is over fp32's {time}; few are shown held-out samples",
        ("recipe", "#metric", "holds", "#time", "#held out", "remark"),
        rows,
        {i for i, t in enumerate(tried) if t.chosen},
    )


def _fate(tried: TriedRecipe) -> str:
    return "chosen" if tried.chosen else tried.problem


def _layers(layers: Sequence[LayerLoss], most: int | None, *, found: bool) -> Grid:
    worst = sorted(layers, key=lambda layer: float("inf") if layer.outputs_db is None else layer.outputs_db)[:most]
    left = len(layers) - len(worst)
    title = "What eight bits cost each layer, worst first" if found else "Layers that prevent eight bits, worst first"
    return _grid(
        title,
        "signal over noise in dB, when this layer alone is quantised: at the model's outputs, and of its own values; "
        f"saved is its estimated share of fp32's time{f'; {left} quieter ones are in the manifest' if left else ''}",
        ("layer", "operator", "#at outputs", "#own", "#saved", "remark"),
        tuple(
            (
                layer.layer,
                layer.op,
                _figure(layer.outputs_db, ".1f"),
                _figure(layer.own_db, ".1f"),
                f"{layer.saved:.1%}",
                _remark(layer),
            )
            for layer in worst
        ),
        {i for i, layer in enumerate(worst) if layer.left_float},
    )


def _remark(layer: LayerLoss) -> str:
    if layer.left_float:
        return "left float"
    return "not measured" if layer.own_db is None and layer.outputs_db is None else ""


def _grid(title: str, about: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], chosen: set[int]) -> Grid:
    """Without the last column, the remarks, where there are none."""
    keep = len(headings) if any(row[-1] for row in rows) else -1
    return Grid(title, about, headings[:keep], tuple(row[:keep] for row in rows), frozenset(chosen))


def _figure(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
