"""Where the time of a request goes: one stacked bar for each cut, at one bandwidth. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from partitioner.people.explain import Explanation, Ranked
from partitioner.people.page.markup import Markup, el
from partitioner.people.page.scales import Linear, ms, round_ticks
from protocol.stages import Stage

WIDTH = 360.0
ROW = 34.0
BAR = 11.0
TOP = 6.0
LONGEST = 4.0  # times the best: longer bars are cut off, or the short ones could not be told apart
MOST_ROWS = 12

CLASSES: dict[Stage, str] = {
    "device": "device",
    "encoding": "encoding",
    "upload": "upload",
    "round trip": "trip",
    "cloud": "cloud",
    "download": "download",
}


def of_families(seen: Explanation) -> list[Ranked]:
    """The best placement of each family, in the order in which the bundle would cut: best first, at most MOST_ROWS."""
    families: dict[str, Ranked] = {}
    for ranked in seen.ranking:
        families.setdefault(ranked.family, ranked)
    return list(families.values())[:MOST_ROWS]


def stage_bars(seen: Explanation) -> Markup:
    """One panel: a bar for each family under the conditions of `seen`, the shortest first."""
    rows = of_families(seen)
    longest_s = min(rows[-1].total_s, LONGEST * rows[0].total_s)
    ticks = [t for t in round_ticks(longest_s * 1e3, 3) if t <= longest_s * 1e3]
    scale = Linear(0.0, longest_s, 0.0, WIDTH - 6)
    height = TOP + ROW * len(rows) + 22
    parts: list[Markup] = []
    for tick in ticks:
        x = scale(tick / 1e3)
        parts.append(el("line", class_="grid", x1=x, x2=x, y1=TOP, y2=height - 20))
        parts.append(_tick(x, height - 6, f"{tick:g} ms" if tick == ticks[-1] else f"{tick:g}"))
    for at, ranked in enumerate(rows):
        parts += _bar(ranked, scale, TOP + ROW * at, best=at == 0)
    label = f"Latency by stage at {seen.mbit:g} Mbit/s: " + ", ".join(f"{r.id} {ms(r.total_s)} ms" for r in rows)
    return el("svg", *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=label)


def _tick(x: float, y: float, label: str) -> Markup:
    anchor = "start" if x < 1 else "end" if x > WIDTH - 40 else "middle"
    return el("text", label, class_="small muted", x=x, y=y, text_anchor=anchor)


def _bar(ranked: Ranked, scale: Linear, y: float, *, best: bool) -> list[Markup]:
    cut_off = ranked.total_s > scale.high * (1 + 1e-9)
    parts = [
        el("text", _shortened(ranked.id), class_="loud halo" if best else "halo", x=0, y=y + 12),
        el(
            "text",
            f"{ms(ranked.total_s)} ms",
            class_="loud halo" if best else "muted halo",
            x=WIDTH - 6,
            y=y + 12,
            text_anchor="end",
        ),
    ]
    at_s = 0.0
    for stage, seconds in ranked.stages.named().items():
        start, end = scale(min(at_s, scale.high)), scale(min(at_s + seconds, scale.high))
        at_s += seconds
        if end - start > 0.05:
            told = el("title", f"{stage} {ms(seconds)} ms")
            parts.append(el("rect", told, class_=CLASSES[stage], x=start, y=y + 17, width=end - start, height=BAR))
    if cut_off:
        parts.append(_torn(scale(scale.high), y + 17))
    return parts


def _torn(x: float, y: float) -> Markup:
    """A jagged end: the bar goes on."""
    teeth = ((7, -1), (-5, -1), (0, 3), (-5, 6), (0, 9), (-4, BAR + 1), (7, BAR + 1))
    return el("polygon", points=" ".join(f"{x + dx},{y + dy}" for dx, dy in teeth), fill="var(--paper)")


def _shortened(label: str, most: int = 34) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def keys(names: Sequence[tuple[Stage, str]]) -> Markup:
    """What the colours mean, in the order of the bars."""
    items = (
        el("li", el("i", "", style=f"background:var(--{CLASSES[stage]})"), f"{stage}: {meaning}")
        for stage, meaning in names
    )
    return el("ul", *items, class_="keys")
