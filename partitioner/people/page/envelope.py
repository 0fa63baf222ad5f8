"""Latency of every placement over bandwidth, both logarithmic; the best of them all is the thick line. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from partitioner.people.explain import Explanation, Stretch, link_of
from partitioner.people.page.markup import Markup, el
from partitioner.people.page.scales import Logarithmic, log_ticks, ms, short
from protocol.latency import PlacementCost, latency_s

SAMPLES = 96
TALLEST = 40.0  # the slowest latency shown, as a multiple of the fastest
LEFT, RIGHT, BOTTOM = 44.0, 12.0, 40.0
BAND = 46.0  # above the picture: who is best where
LABEL_EM = 6.6  # width of a character, on average
MOST_LABELS = 8


def reach(seen: Explanation) -> tuple[float, float]:
    """The bandwidths worth showing: three times beyond the outermost switch, and what was asked."""
    switches = [s.from_mbit for s in seen.stretches if s.from_mbit is not None]
    low = min([1.0, seen.mbit / 2, *(s / 3 for s in switches)])
    high = max([100.0, seen.mbit * 2, *(s * 3 for s in switches)])
    return low, high


def envelope(seen: Explanation, *, width: float, height: float) -> Markup:
    """The picture at this size in pixels; on a narrow one only winners have names."""
    costs = {r.id: r.cost for r in seen.ranking}
    low, high = reach(seen)
    wide = width > 600
    x = Logarithmic(low, high, LEFT, width - (150 if wide else RIGHT))
    grid = [low * (high / low) ** (i / SAMPLES) for i in range(SAMPLES + 1)]
    best_s = [min(_at(c, m, seen.rtt_s) for c in costs.values()) for m in grid]
    floor_s = max(min(best_s), 1e-9) * 0.8
    y = Logarithmic(floor_s, min(max(max(best_s) * 3, floor_s * 8), floor_s * TALLEST), height - BOTTOM, BAND)
    winners = {s.id for s in seen.stretches}
    parts = [_clip(x, y, wide), *_grid(x, y, width)]
    for id_ in sorted(costs, key=lambda i: i in winners):
        path = _path(x, y, grid, [_at(costs[id_], m, seen.rtt_s) for m in grid])
        told = el("title", id_)
        kind = "winner" if id_ in winners else "other"
        parts.append(el("path", told, class_=kind, d=path, clip_path=f"url(#{_clip_id(wide)})"))
    parts.append(el("path", class_="best", d=_path(x, y, grid, best_s)))
    parts += _stretches(seen, x, y)
    parts += _asked(seen, x, y, wide=wide)
    if wide:
        parts += _names(costs, x, y, seen.rtt_s, winners)
    label = "Latency over bandwidth. Best: " + "; ".join(_range(s) for s in seen.stretches)
    return el("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def _at(cost: PlacementCost, mbit: float, rtt_s: float) -> float:
    return latency_s(cost, link_of(mbit, rtt_s))


def _clip_id(wide: bool) -> str:
    return "plot-wide" if wide else "plot-narrow"


def _clip(x: Logarithmic, y: Logarithmic, wide: bool) -> Markup:
    box = el("rect", x=x.start, y=y.end, width=x.end - x.start, height=y.start - y.end)
    return el("defs", el("clipPath", box, id=_clip_id(wide)))


def _path(x: Logarithmic, y: Logarithmic, mbit: Sequence[float], seconds: Sequence[float]) -> str:
    points = [f"{x(m):.1f} {y(max(s, 1e-9)):.1f}" for m, s in zip(mbit, seconds, strict=True)]
    return "M" + " L".join(points)


def _grid(x: Logarithmic, y: Logarithmic, width: float) -> Iterable[Markup]:
    for tick in log_ticks(y.low * 1e3, y.high * 1e3):
        at = y(tick / 1e3)
        yield el("line", class_="grid", x1=x.start, x2=x.end, y1=at, y2=at)
        yield el("text", f"{tick:g}", class_="small muted", x=x.start - 8, y=at + 4, text_anchor="end")
    yield el("text", "ms", class_="small muted", x=x.start - 8, y=y.end - 8, text_anchor="end")
    ticks = log_ticks(x.low, x.high)
    if len(ticks) > width / 55:
        ticks = [t for t in ticks if math.isclose(10 ** round(math.log10(t)), t)]
    for tick in ticks:
        yield el("line", class_="axis", x1=x(tick), x2=x(tick), y1=y.start, y2=y.start + 4)
        yield el("text", f"{tick:g}", class_="small muted", x=x(tick), y=y.start + 18, text_anchor="middle")
    yield el("line", class_="axis", x1=x.start, x2=x.end, y1=y.start, y2=y.start)
    middle = (x.start + x.end) / 2
    yield el("text", "uplink, Mbit/s", class_="small muted", x=middle, y=y.start + 34, text_anchor="middle")


def _stretches(seen: Explanation, x: Logarithmic, y: Logarithmic) -> Iterable[Markup]:
    """Names above their stretches, in two rows so that neighbours do not touch, and the switching bandwidths."""
    taken = [-math.inf, -math.inf]
    for stretch in seen.stretches:
        start, end = x(max(stretch.from_mbit or 0.0, x.low)), x(min(stretch.to_mbit or math.inf, x.high))
        if end <= x.start or start >= x.end:
            continue
        room = LABEL_EM * len(stretch.id)
        at = min(max((start + end) / 2, x.start + room / 2), x.end - room / 2)
        row = next((r for r in (1, 0) if taken[r] + 8 <= at - room / 2), None)
        if row is not None:
            taken[row] = at + room / 2
            yield el("text", stretch.id, class_="loud halo", x=at, y=12 + 16 * row, text_anchor="middle")
    for stretch in seen.stretches[1:]:
        at, mbit = x(stretch.from_mbit or x.low), stretch.from_mbit or x.low
        yield el("line", class_="switch", x1=at, x2=at, y1=BAND - 10, y2=y.start)
        yield el("text", short(mbit), class_="small halo", x=at, y=y.start - 7, text_anchor="middle")


def _asked(seen: Explanation, x: Logarithmic, y: Logarithmic, *, wide: bool) -> Iterable[Markup]:
    text = f"{ms(seen.best.total_s)} ms" + (f" at {seen.mbit:g} Mbit/s" if wide else "")
    at_x, at_y = x(seen.mbit), y(seen.best.total_s)
    left = at_x > x.start + LABEL_EM * len(text)  # below the line and to its left is room: it falls
    yield el("circle", class_="mark", cx=at_x, cy=at_y, r=5.5)
    yield el(
        "text",
        text,
        class_="strong halo",
        x=at_x + (-4 if left else 8),
        y=at_y + 24,
        text_anchor="end" if left else "start",
    )


def _names(
    costs: Mapping[str, PlacementCost], x: Logarithmic, y: Logarithmic, rtt_s: float, winners: set[str]
) -> Iterable[Markup]:
    """Beside the right end of the lines, moved apart; the slowest are left out where there is no room."""
    ends = sorted((y(_at(cost, x.high, rtt_s)), id_) for id_, cost in costs.items())
    shown = [(at, id_) for at, id_ in ends if at >= y.end][-MOST_LABELS:]
    lowest = y.start
    for at, id_ in reversed(shown):
        place = min(at, lowest)
        lowest = place - 15
        name = id_ if len(id_) <= 22 else f"{id_[:21]}…"
        kind = "small strong" if id_ in winners else "small muted"
        yield el("text", name, class_=kind, x=x.end + 8, y=place + 4)


def _range(stretch: Stretch) -> str:
    low = "" if stretch.from_mbit is None else f" from {short(stretch.from_mbit)}"
    high = "" if stretch.to_mbit is None else f" to {short(stretch.to_mbit)}"
    return f"{stretch.id}{low}{high} Mbit/s"
