"""Latency against another objective: filled and named is who no other beats in both, hollow who is beaten. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from partitioner.people.page.markup import Markup, el
from partitioner.people.page.scales import Linear, ms, round_ticks, short, size
from protocol.plan import pareto

WIDTH, HEIGHT = 360.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 14.0, 12.0, 42.0
SLOWEST = 5.0  # times the fastest: slower ones are left out and counted
LABEL_EM = 6.4
LABEL_HEIGHT = 14.0


class Objective(NamedTuple):
    """One panel: its heading and how its figures are written."""

    key: str
    heading: str
    unit: str
    factor: float = 1.0  # from the plan's unit to the axis'


OBJECTIVES: tuple[Objective, ...] = (
    Objective("up_nbytes", "Bytes sent", "KB up per request", 1e-3),
    Objective("cloud_s", "The gateway's time", "ms of gateway per request", 1e3),
    Objective("energy_j", "The device's energy", "mJ per request", 1e3),
    Objective("edge_memory_nbytes", "The device's memory", "MB on the device", 1e-6),
)


class Point(NamedTuple):
    x: float  # in the axis' unit
    y_ms: float
    id: str
    efficient: bool


def points_of(objective: Objective, values: Mapping[str, float], latencies_s: Mapping[str, float]) -> list[Point]:
    """All placements; efficient are those that no other beats in one without losing in the other."""
    front = pareto({id_: (latencies_s[id_], values[id_]) for id_ in values})
    return [Point(values[id_] * objective.factor, latencies_s[id_] * 1e3, id_, id_ in front) for id_ in values]


def scatter(objective: Objective, points: Sequence[Point]) -> Markup:
    """One panel. Placements much slower than the fastest are only counted."""
    fastest = min(p.y_ms for p in points)
    shown = [p for p in points if p.y_ms <= SLOWEST * fastest or p.efficient]
    x_ticks = round_ticks(max(p.x for p in shown), 4)
    y_ticks = round_ticks(max(p.y_ms for p in shown), 4)
    x = Linear(0.0, x_ticks[-1], LEFT, WIDTH - RIGHT)
    y = Linear(0.0, y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(objective, x, y, x_ticks, y_ticks)]
    front = sorted((p for p in shown if p.efficient), key=lambda p: (p.x, p.y_ms))
    if len(front) > 1:
        parts.append(el("path", class_="winner", d="M" + " L".join(f"{x(p.x):.1f} {y(p.y_ms):.1f}" for p in front)))
    for point in sorted(shown, key=lambda p: p.efficient):
        told = el("title", f"{point.id}: {short(point.y_ms)} ms, {short(point.x)} {objective.unit}")
        kind, radius = ("full", 5.0) if point.efficient else ("hollow", 4.0)
        parts.append(el("circle", told, class_=kind, cx=x(point.x), cy=y(point.y_ms), r=radius))
    parts += _labels(front, x, y, [(x(p.x), y(p.y_ms)) for p in shown])
    left_out = len(points) - len(shown)
    if left_out:
        note = f"{left_out} slower not shown"
        parts.append(el("text", note, class_="small muted halo", x=WIDTH - RIGHT, y=TOP + 4, text_anchor="end"))
    label = f"Latency against {objective.unit}. Not beaten in both: {', '.join(p.id for p in front)}"
    return el("svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=label)


def _grid(
    objective: Objective, x: Linear, y: Linear, x_ticks: Sequence[float], y_ticks: Sequence[float]
) -> Iterable[Markup]:
    for tick in y_ticks:
        yield el("line", class_="grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick))
        yield el("text", f"{tick:g}", class_="small muted", x=x.start - 7, y=y(tick) + 4, text_anchor="end")
    for tick in x_ticks:
        yield el("line", class_="axis", x1=x(tick), x2=x(tick), y1=y.start, y2=y.start + 4)
        yield el("text", f"{tick:g}", class_="small muted", x=x(tick), y=y.start + 17, text_anchor="middle")
    yield el(
        "text", objective.unit, class_="small muted", x=(x.start + x.end) / 2, y=y.start + 34, text_anchor="middle"
    )
    yield el("text", "ms", class_="small muted", x=x.start - 7, y=y.end + 16, text_anchor="end")


def _labels(points: Iterable[Point], x: Linear, y: Linear, marks: Sequence[tuple[float, float]]) -> Iterable[Markup]:
    """Each name beside its mark where it touches neither another name nor another mark; a name without room is left out
    (it can still be read by pointing at the mark)."""
    taken: list[tuple[float, float, float, float]] = [(mx - 5, my - 5, mx + 5, my + 5) for mx, my in marks]
    for point in points:
        name = point.id if len(point.id) <= 24 else f"{point.id[:23]}…"
        px, py, room = x(point.x), y(point.y_ms), LABEL_EM * len(name)
        for dx, dy, anchor in _PLACES:
            left = px + dx if anchor == "start" else px + dx - room
            box = (left, py + dy - LABEL_HEIGHT + 4, left + room, py + dy + 3)
            if box[0] >= x.start - 2 and box[2] <= WIDTH and not any(_touch(box, other) for other in taken):
                taken.append(box)
                yield el("text", name, class_="small strong halo", x=px + dx, y=py + dy, text_anchor=anchor)
                break


# Where a name may stand, as an offset from its mark, in order of preference.
_PLACES = (
    (9, 4, "start"),
    (-9, 4, "end"),
    (7, -8, "start"),
    (-7, -8, "end"),
    (7, 17, "start"),
    (-7, 17, "end"),
    (4, -24, "start"),
    (4, 32, "start"),
)


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def summary(objective: Objective, points: Sequence[Point]) -> str:
    """One sentence for the caption."""
    front = sorted((p for p in points if p.efficient), key=lambda p: p.y_ms)
    first, last = front[0], front[-1]
    if first.id == last.id:
        return f"{first.id} is best in both."
    return (
        f"From {first.id} ({ms(first.y_ms / 1e3)} ms, {_amount(objective, first)}) "
        f"to {last.id} ({ms(last.y_ms / 1e3)} ms, {_amount(objective, last)})."
    )


def _amount(objective: Objective, point: Point) -> str:
    if objective.key == "up_nbytes":
        return size(point.x / objective.factor)
    return f"{short(point.x)} {objective.unit.split(' ')[0]}"
