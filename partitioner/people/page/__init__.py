"""`partitioner report`: one HTML page that needs nothing else, readable on a phone, in the dark and on paper. Pure.

No script, no font, no image is loaded from anywhere, and a policy in the page forbids it; what a manifest says is text,
whatever it holds. What is shown was found by `explain`: this package only draws and arranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from partitioner.people.eight_bits import grids
from partitioner.people.explain import Explanation
from partitioner.people.neighbourhood import Neighbourhood
from partitioner.people.page import bars, graph, pareto, sections
from partitioner.people.page.envelope import envelope
from partitioner.people.page.markup import Markup, el, joined
from partitioner.people.page.pareto import Objective, Point
from partitioner.people.page.scales import ms, short, size
from partitioner.people.page.style import STYLE
from partitioner.people.sentences import conditions, headline, sentences
from protocol.bundle import Manifest
from protocol.messages import PlacementKind

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
WIDE, NARROW = (1024.0, 420.0), (372.0, 400.0)
MOST_PANELS = 3


@dataclass(frozen=True)
class Sheet:
    """Everything on the page. `panels` are explanations at other bandwidths, ascending; `graph` is a picture's content
    or the reason why there is none.
    """

    manifest: Manifest
    digest: str
    seen: Explanation
    panels: tuple[Explanation, ...]
    graph: Neighbourhood | str
    command: str


def render(sheet: Sheet) -> str:
    """The whole page."""
    body = el(
        "main",
        _top(sheet),
        _bars(sheet),
        _envelope(sheet),
        _pareto(sheet),
        _accuracy(sheet),
        _graph(sheet),
        _placements(sheet),
        _measurement(sheet),
        el("footer", f"Made by `{sheet.command}`. This page loads nothing and needs no network."),
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("title", f"{sheet.seen.model}: {headline(sheet.seen)}"),
        el("style", Markup(STYLE)),
    )
    return "<!doctype html>\n" + el("html", head, el("body", body), lang="en") + "\n"


def _top(sheet: Sheet) -> Markup:
    seen = sheet.seen
    said = sentences(seen)
    return el(
        "header",
        el("p", f"Where to run {seen.model}", class_="over"),
        el("h1", headline(seen)),
        el("p", said[0], class_="lede"),
        *(el("p", sentence) for sentence in said[1:]),
        sections.figures(_figures(sheet)),
    )


def _figures(sheet: Sheet) -> list[tuple[str, str]]:
    best, proof = sheet.seen.best, sheet.seen.certificate
    found = [
        (f"{ms(best.total_s)} ms", f"predicted at {sheet.seen.mbit:g} Mbit/s"),
        (size(best.cost.up_nbytes), "sent for each request"),
        (f"{ms(best.stages.cloud_s)} ms", "of the gateway's time"),
    ]
    if best.cost.energy_j is not None:
        found.append((f"{short(best.cost.energy_j * 1e3)} mJ", "of the device's energy"))
    if proof is not None:
        found.append((f"{proof.achieved:.1%}", f"{proof.metric}; the whole model {proof.reference:.1%}"))
    return found


def _bars(sheet: Sheet) -> Markup:
    panels = [el("figure", el("h3", f"{seen.mbit:g} Mbit/s"), bars.stage_bars(seen)) for seen in sheet.panels]
    meaning = bars.keys(
        [
            ("device", "the head, or the whole model"),
            ("encoding", "on the device, too"),
            ("upload", "bytes over the uplink"),
            ("round trip", "the link's own delay"),
            ("cloud", "decoding and tail"),
            ("download", "the answer"),
        ]
    )
    caption = (
        "The best codec of each cut, the fastest first. A torn bar goes on: it takes more than four times as long as "
        "the best. Each panel has its own scale."
    )
    return sections.section(
        "Where the time goes", meaning, el("div", *panels, class_="panels"), el("figcaption", caption)
    )


def _envelope(sheet: Sheet) -> Markup:
    seen = sheet.seen
    caption = (
        "The thick line is the best that can be had at each bandwidth; who holds it stands above, and the figures at "
        "its foot are where it changes hands. Both axes are logarithmic; the downlink counts as equal to the uplink."
    )
    return sections.section(
        "Which placement at which bandwidth",
        el(
            "figure",
            el("div", envelope(seen, width=WIDE[0], height=WIDE[1]), class_="broad"),
            el("div", envelope(seen, width=NARROW[0], height=NARROW[1]), class_="narrow"),
            el("figcaption", caption),
        ),
    )


def _pareto(sheet: Sheet) -> Markup:
    found = list(_objectives(sheet.seen))
    panels = [
        el(
            "figure",
            el("h3", objective.heading),
            pareto.scatter(objective, points),
            el("figcaption", pareto.summary(objective, points)),
        )
        for objective, points in found[:MOST_PANELS]
    ]
    text = (
        f"Latency at {sheet.seen.mbit:g} Mbit/s against what else a request costs. Filled and joined: no other "
        "placement is better in one without being worse in the other."
    )
    return sections.section(
        "What it costs besides time", el("p", text, class_="soft"), el("div", *panels, class_="panels")
    )


def _objectives(seen: Explanation) -> Sequence[tuple[Objective, list[Point]]]:
    """The objectives that every placement has a figure for, and that differ between them."""
    latencies = {r.id: r.total_s for r in seen.ranking}
    found = []
    for objective in pareto.OBJECTIVES:
        values = {r.id: _value(objective.key, r.stages.cloud_s, r.cost) for r in seen.ranking}
        known = {id_: v for id_, v in values.items() if v is not None}
        if len(known) == len(values) and max(known.values()) > 0:
            found.append((objective, pareto.points_of(objective, known, latencies)))
    return found


def _value(key: str, cloud_s: float, cost: object) -> float | None:
    value = cloud_s if key == "cloud_s" else getattr(cost, key)
    return None if value is None else float(value)


def _accuracy(sheet: Sheet) -> Markup:
    content: list[str] = []
    certificates = sections.certificates(sheet.manifest)
    if certificates is None:
        content.append(el("p", "This bundle carries no certificate.", class_="soft"))
    else:
        text = (
            "Judged on samples held out of calibration. The tick is the bound, the ring the whole model, the dot what "
            "was achieved; the last column compares the fp32 halves with the whole model, optimisation off."
        )
        content += [el("p", text, class_="soft"), certificates]
    content += [sections.grid(made) for made in grids(sheet.manifest)]
    return sections.section("How true the answers are", *content)


def _graph(sheet: Sheet) -> Markup:
    seen = sheet.graph
    if isinstance(seen, str):
        return sections.section("The graph around the cut", el("p", seen, class_="soft"))
    ranked = next((r for r in sheet.seen.ranking if r.crossing == seen.cut), None)
    text = [el("p", _about_the_cut(sheet, seen))]
    labels: dict[str, str] = {}
    entry = next((p for p in sheet.manifest.placements if p.cut == seen.cut and p.kind is PlacementKind.CUT), None)
    if entry is not None:
        rows = [
            el(
                "tr",
                el("td", t.spec.name, class_="name"),
                el("td", t.spec.dtype),
                el("td", " x ".join("N" if n is None else str(n) for n in t.spec.shape)),
                el("td", t.codec),
            )
            for t in entry.boundary
        ]
        text.append(sections.table(["what crosses", "as", "shape", "codec"], rows))
    if ranked is not None and len(seen.cut) == 1:
        labels[seen.cut[0]] = f"{ranked.cost.up_nbytes:,.0f} bytes"
    return sections.section(
        "The graph around the cut",
        el("div", el("figure", graph.picture(seen, labels)), el("div", *text), class_="beside"),
    )


def _about_the_cut(sheet: Sheet, seen: Neighbourhood) -> str:
    wins = sheet.seen.best.crossing == seen.cut and sheet.seen.best.kind is PlacementKind.CUT
    which = f"the cut that is best at {sheet.seen.mbit:g} Mbit/s" if wins else "the cut that comes nearest to the best"
    dashed = " Dashed boxes are computed on both sides." if any(n.side == "both" for n in seen.nodes) else ""
    head, tail = sum(n.side == "head" for n in seen.nodes), sum(n.side != "head" for n in seen.nodes)
    return (
        f"This is {which}. Above the dashed line is the head ({head + seen.before} "
        f"steps), which runs on the device; below it the tail ({tail + seen.after} steps), which runs at the gateway. "
        f"The thick lines are what crosses; a tensor with several readers crosses once.{dashed}"
    )


def _placements(sheet: Sheet) -> Markup:
    text = (
        f"At {sheet.seen.mbit:g} Mbit/s with {conditions(sheet.seen)}. Ids with a dot are other codecs of the same cut."
    )
    content = [el("p", text, class_="soft"), sections.placements(sheet.manifest, sheet.seen)]
    if sheet.manifest.measured:
        content += [el("h3", "Cuts that were measured"), sections.measured(sheet.manifest.measured)]
    return sections.section("Every placement", *content)


def _measurement(sheet: Sheet) -> Markup:
    text = (
        "Heads, tails and codecs were run on one machine, in turn and repeatedly, and their medians taken; the "
        "declared slow-down multiplies the device's times. Bytes are means of real coded samples. Latency over a link "
        "is composed: head + encoding + bytes / bandwidth + round trip + decoding + tail, without queues and losses."
    )
    remarks = sections.notes(sheet.manifest)
    parts = [el("p", text), sections.conditions(sheet.manifest, sheet.digest)]
    return sections.section(
        "How this was measured", *parts, *([el("h3", "Notes"), remarks] if remarks is not None else [])
    )


__all__ = ["Sheet", "joined", "render"]
