"""The graph around a cut, drawn in layers: head above the dashed line, tail below it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from partitioner.people.neighbourhood import Edge, Neighbourhood, Node
from partitioner.people.page.markup import Markup, el

BOX_WIDTH, BOX_HEIGHT = 150.0, 38.0
COLUMN, LINE = 174.0, 62.0
CUT_GAP = 34.0  # more room where the cut lies, for its label
MARGIN = 28.0
LEAST_WIDTH = 400.0
DETOUR = 96.0  # how far an edge over several layers swings out


def picture(seen: Neighbourhood, labels: Mapping[str, str]) -> Markup:
    """The picture; `labels` says for each crossing tensor what stands beside the cut line."""
    rows = Counter(node.layer for node in seen.nodes)
    columns = max(rows.values(), default=1)
    width = max(LEAST_WIDTH, columns * COLUMN + 2 * MARGIN)
    layers = max(rows, default=0) + 1
    height = 2 * MARGIN + (layers - 1) * LINE + BOX_HEIGHT + CUT_GAP
    at = [_place(node, rows, width, seen.split_after) for node in seen.nodes]
    parts = [_wire(edge, at, seen.nodes) for edge in sorted(seen.edges, key=lambda e: e.crosses)]
    parts += [part for node, where in zip(seen.nodes, at, strict=True) for part in _box(node, *where)]
    parts += _cut_line(seen, labels, width)
    parts += _stubs(seen, width, height)
    label = f"The graph around {', '.join(seen.cut)}"
    return el("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def _place(node: Node, rows: Mapping[int, int], width: float, split_after: int) -> tuple[float, float]:
    """Left upper corner of a node's box."""
    x = width / 2 + (node.place - (rows[node.layer] - 1) / 2) * COLUMN - BOX_WIDTH / 2
    return x, MARGIN + node.layer * LINE + (CUT_GAP if node.layer >= split_after else 0.0)


def _wire(edge: Edge, at: Sequence[tuple[float, float]], nodes: Sequence[Node]) -> Markup:
    (x1, y1), (x2, y2) = at[edge.source], at[edge.target]
    x1, x2, y1 = x1 + BOX_WIDTH / 2, x2 + BOX_WIDTH / 2, y1 + BOX_HEIGHT
    pull = (y2 - y1) / 2
    apart = nodes[edge.target].layer - nodes[edge.source].layer
    # Over several layers a straight edge would run behind the boxes between.
    swing = DETOUR if apart > 1 and abs(x1 - x2) < COLUMN / 2 else 0.0
    if swing:
        side = x1 + swing
        path = (
            f"M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 + 16:.1f} {side:.1f} {y1:.1f} {side:.1f} {y1 + 26:.1f} "
            f"L{side:.1f} {y2 - 26:.1f} C{side:.1f} {y2:.1f} {x2:.1f} {y2 - 16:.1f} {x2:.1f} {y2:.1f}"
        )
    else:
        path = f"M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 + pull:.1f} {x2:.1f} {y2 - pull:.1f} {x2:.1f} {y2:.1f}"
    return el("path", el("title", edge.tensor), class_="wire crosses" if edge.crosses else "wire", d=path)


def _box(node: Node, x: float, y: float) -> Iterable[Markup]:
    told = el("title", f"{node.name} ({node.side})")
    yield el("rect", told, class_=f"box {node.side}", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=5)
    middle = x + BOX_WIDTH / 2
    yield el("text", _short(node.op, 20), class_="strong", x=middle, y=y + 16, text_anchor="middle")
    yield el("text", _shape(node.shape), class_="small muted", x=middle, y=y + 30, text_anchor="middle")


def _shape(shape: tuple[int, ...] | None) -> str:
    return _short(" x ".join(str(n) for n in shape[1:] or shape), 22) if shape else "shape unknown"


def _cut_line(seen: Neighbourhood, labels: Mapping[str, str], width: float) -> Iterable[Markup]:
    y = MARGIN + (seen.split_after - 1) * LINE + BOX_HEIGHT + (LINE - BOX_HEIGHT + CUT_GAP) / 2
    yield el("line", class_="cutline", x1=0, x2=width, y1=y, y2=y)
    for at, name in enumerate(seen.cut[:2]):
        text = f"{_short(name, 26)}{f', {labels[name]}' if name in labels else ''}"
        yield el("text", text, class_="small strong halo", x=0, y=y - 7 + 21 * at)
    if len(seen.cut) > 2:
        yield el("text", f"and {len(seen.cut) - 2} more", class_="small halo", x=width, y=y + 14, text_anchor="end")


def _stubs(seen: Neighbourhood, width: float, height: float) -> Iterable[Markup]:
    if seen.before:
        yield el("text", f"{_steps(seen.before)} before", class_="small muted", x=width / 2, y=14, text_anchor="middle")
    if seen.after:
        text = f"{_steps(seen.after)} after"
        yield el("text", text, class_="small muted", x=width / 2, y=height - 8, text_anchor="middle")


def _steps(count: int) -> str:
    return "1 more step" if count == 1 else f"{count} more steps"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
