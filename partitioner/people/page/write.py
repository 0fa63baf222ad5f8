"""From a bundle to the page in a file: reads what the manifest hashes, writes the page whole or not at all."""

from __future__ import annotations

from pathlib import Path

from partitioner.graph.cuts import separate
from partitioner.graph.model import load
from partitioner.people.explain import Explanation, Question, explain
from partitioner.people.neighbourhood import Neighbourhood, around
from partitioner.people.page import Sheet, render
from protocol.bundle import Bundle
from protocol.errors import IsthmusError
from protocol.messages import PlacementKind
from protocol.outputs import check_output, write_output

PANELS = (0.1, 1.0, 10.0)  # times the bandwidth asked about


def write_page(bundle: Path, target: Path, question: Question) -> Explanation:
    """Write the report of `bundle` to `target` and return what it says. Raises BundleError or InputError."""
    check_output(target)
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    seen = explain(manifest, question)
    sheet = Sheet(
        manifest=manifest,
        digest=opened.digest,
        seen=seen,
        panels=tuple(explain(manifest, question._replace(mbit=question.mbit * times)) for times in PANELS),
        graph=_graph(opened, seen),
        command=f"partitioner report {bundle.name} -o {target.name} --mbit {question.mbit:g}",
    )
    write_output(target, render(sheet).encode())
    return seen


def _graph(opened: Bundle, seen: Explanation) -> Neighbourhood | str:
    """The graph around the best cut, or why it cannot be drawn: a page without it is better than no page."""
    cut = next((r.crossing for r in seen.ranking if r.kind is PlacementKind.CUT), None)
    cut = cut or (seen.no_split.crossing if seen.no_split is not None else ())
    full = opened.manifest.placement(PlacementKind.FULL_CLOUD)
    if not cut:
        return "This bundle holds no cut."
    if full is None or full.tail is None:
        return "This bundle does not hold the whole model."
    try:
        opened.read(full.tail)
        topology = load(opened.root / full.tail).topology
        return around(topology, separate(topology, cut))
    except IsthmusError as error:
        return f"The graph cannot be drawn: {error}."
