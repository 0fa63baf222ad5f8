"""The picture: when each answer came and where it was made, and what each placement cost against its prediction.

Law: every answer is drawn; nothing is averaged in the timeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from examples.demo.phases import Slot
from examples.demo.record import Measured, Record

INK, MUTED, FAINT, BAND = "#222222", "#666666", "#D8D8D8", "#F5F6F8"
MARGINS = {"left": 0.075, "right": 0.975, "top": 0.92, "bottom": 0.1}
SIZE_INCHES, DPI = (14.0, 10.0), 110
STAGE_NAMES = ("edge compute", "encode", "transfer + rtt", "gateway queue", "tail compute")
# How a stage is told apart within its placement's colour: (opacity, hatch).
STAGE_STYLES = ((1.0, ""), (0.75, "...."), (0.16, "////"), (0.4, "xxxx"), (0.55, ""))
REST_STYLE = (0.06, "")


@dataclass(frozen=True)
class Picture:
    """What is drawn. `slots` are the phases as they were played, `predicted` ms by link rate and placement."""

    title: str
    slots: Sequence[Slot]
    record: Record
    colours: Mapping[str, str]
    measured: Sequence[Measured]
    predicted: Mapping[float, Mapping[str, float]]


def draw(picture: Picture, path: Path) -> None:
    """Write the picture to `path` as a PNG."""
    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": FAINT,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "hatch.linewidth": 0.6,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
        outer = figure.add_gridspec(2, 1, height_ratios=[1.75, 1], hspace=0.3, **MARGINS)
        upper = outer[0].subgridspec(2, 1, height_ratios=[1.35, 4.6], hspace=0.04)
        link = figure.add_subplot(upper[0])
        timeline = figure.add_subplot(upper[1], sharex=link)
        _link(link, picture)
        _timeline(timeline, picture)
        lower = outer[1].subgridspec(1, len(picture.predicted), wspace=0.08)
        panels = [figure.add_subplot(lower[0, i]) for i in range(len(picture.predicted))]
        for number, (panel, rate) in enumerate(zip(panels, picture.predicted, strict=True)):
            _costs(panel, picture, rate, named=number == 0)
        _stage_legend(figure, panels[0])
        figure.suptitle(picture.title, x=0.075, y=0.972, ha="left", fontsize=15, fontweight="bold")
        figure.savefig(path)
        plt.close(figure)


def _bare(axes: Any, *kept: str) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in kept)
    axes.tick_params(length=0)


def _bands(axes: Any, slots: Sequence[Slot]) -> None:
    for number, slot in enumerate(slots):
        if number % 2:
            axes.axvspan(slot.from_s, slot.to_s, color=BAND, lw=0, zorder=0)
        if number:
            axes.axvline(slot.from_s, color=FAINT, lw=0.8, zorder=1)


def _link(axes: Any, picture: Picture) -> None:
    """The strip above the timeline: what was done to the stage, and the link's rate as a line."""
    slots = picture.slots
    _bands(axes, slots)
    edges = [slot.from_s for slot in slots] + [slots[-1].to_s]
    rates = [slot.phase.rate_mbit for slot in slots]
    axes.stairs(rates, edges, color=MUTED, lw=1.4, baseline=None, zorder=3)
    axes.set_yscale("log")
    axes.set_ylim(min(rates) / 2, max(rates) * 400)
    for slot in slots:
        middle = (slot.from_s + slot.to_s) / 2
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
        axes.annotate(slot.phase.name, (middle, 0.93), fontsize=9.5, fontweight="bold", **place)
        axes.annotate(_wrapped(slot.phase.event), (middle, 0.76), fontsize=8, color=MUTED, linespacing=1.15, **place)
    axes.set_yticks(sorted(set(rates)), [f"{rate:g}" for rate in sorted(set(rates))], fontsize=8)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("link\nMbit/s", fontsize=9)
    _bare(axes)
    axes.tick_params(labelbottom=False, which="both", length=0)


def _wrapped(text: str, width: int = 17) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _timeline(axes: Any, picture: Picture) -> None:
    slots, answers, refused = picture.slots, picture.record.answers, picture.record.refused
    _bands(axes, slots)
    for id_, colour in picture.colours.items():
        mine = [a for a in answers if a.placement == id_]
        at, ms = [a.at_s for a in mine], [max(a.latency_ms, 0.1) for a in mine]
        axes.scatter(at, ms, s=9, color=colour, alpha=0.6, lw=0, zorder=3, rasterized=True)
    axes.set_yscale("log")
    top = max([a.latency_ms for a in answers], default=100.0)
    low = min([a.latency_ms for a in answers], default=1.0)
    axes.set_ylim(low / 1.6, top * 3)
    axes.scatter([r.at_s for r in refused], [top * 2] * len(refused), s=34, color="black", marker="x", lw=1.2, zorder=4)
    axes.set_xlim(slots[0].from_s, slots[-1].to_s)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=FAINT, lw=0.6, zorder=1)
    axes.set_ylabel("latency of each answer, ms")
    axes.set_xlabel("seconds")
    _bare(axes, "bottom")
    axes.tick_params(which="both", length=0)
    _placement_legend(axes, picture, bool(refused))


def _placement_legend(axes: Any, picture: Picture, refusals: bool) -> None:
    counts = {id_: sum(a.placement == id_ for a in picture.record.answers) for id_ in picture.colours}
    entries = [
        Line2D([], [], marker="o", ls="", ms=7, color=colour, label=f"{id_}  ({counts[id_]:,})")
        for id_, colour in picture.colours.items()
    ]
    if refusals:
        count = len(picture.record.refused)
        entries.append(Line2D([], [], marker="x", ls="", ms=6, color="black", label=f"refused  ({count:,})"))
    legend = axes.legend(handles=entries, loc="upper right", ncols=len(entries), frameon=True, fontsize=9.5)
    legend.get_frame().set(facecolor="white", edgecolor="none", alpha=0.85)


def _costs(axes: Any, picture: Picture, rate: float, *, named: bool) -> None:
    """One link rate: a stacked bar of the measured stages per placement that ran, a diamond for every prediction."""
    placements = list(picture.predicted[rate])
    rows = {id_: len(placements) - 1 - i for i, id_ in enumerate(placements)}
    found = {m.placement: m for m in picture.measured if m.rate_mbit == rate}
    widest = max([*picture.predicted[rate].values(), *(m.latency_ms for m in found.values())])
    for id_, y in rows.items():
        predicted, colour = picture.predicted[rate][id_], picture.colours[id_]
        if id_ in found:
            _bar(axes, found[id_], y, colour)
            label = f"{found[id_].latency_ms:.1f} ms\n{_answers(found[id_].count)}"
            end = max(found[id_].latency_ms, sum(found[id_].stages_ms), predicted)
        else:
            label, end = f"did not run\n{predicted:.1f} ms predicted", predicted
        ink = INK if id_ in found else MUTED
        axes.text(end + widest * 0.035, y, label, va="center", fontsize=8.5, color=ink, linespacing=1.2)
        axes.scatter([predicted], [y], marker="D", s=34, color="white", edgecolor=INK, lw=1.2, zorder=5)
    axes.set_title(f"at {rate:g} Mbit/s", loc="left", fontsize=10.5, fontweight="bold")
    axes.set_xlim(0, widest * 1.5)
    axes.set_ylim(-0.6, len(placements) - 0.4)
    axes.set_yticks(list(rows.values()), list(rows) if named else [], color=INK)
    axes.grid(axis="x", color=FAINT, lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("ms per request")
    _bare(axes)


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _bar(axes: Any, measured: Measured, y: float, colour: str) -> None:
    left = 0.0
    rest = max(measured.latency_ms - sum(measured.stages_ms), 0.0)
    for ms, style in zip((*measured.stages_ms, rest), (*STAGE_STYLES, REST_STYLE), strict=True):
        axes.barh(y, ms, left=left, height=0.52, zorder=3, **_fill(colour, style))
        left += ms


def _fill(colour: str, style: tuple[float, str]) -> dict[str, Any]:
    opacity, hatch = style
    red, green, blue = matplotlib.colors.to_rgb(colour)
    tint = tuple(1 - opacity * (1 - part) for part in (red, green, blue))
    return {"facecolor": tint, "hatch": hatch, "edgecolor": colour, "linewidth": 0.6}


def _stage_legend(figure: Any, panel: Any) -> None:
    styles = zip((*STAGE_NAMES, "waiting on the device"), (*STAGE_STYLES, REST_STYLE), strict=True)
    entries: list[Any] = [Patch(label=name, **_fill("#555555", style)) for name, style in styles]
    entries.append(Line2D([], [], marker="D", ls="", ms=6, mfc="white", mec=INK, label="predicted by the bundle"))
    corner = (panel.get_position().x0 - 0.005, 0.012)
    figure.legend(handles=entries, loc="lower left", bbox_to_anchor=corner, ncols=7, frameon=False, fontsize=9)
