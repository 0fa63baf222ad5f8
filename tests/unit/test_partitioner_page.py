"""The page: loads nothing, survives hostile names, and draws what the explanation holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitioner.graph.cuts import separate
from partitioner.graph.model import load
from partitioner.graph.topology import Step, TensorInfo, Topology
from partitioner.people.explain import Explanation, Question, explain
from partitioner.people.neighbourhood import MOST_NODES, Neighbourhood, around
from partitioner.people.page import Sheet, pareto, render, sections
from partitioner.people.page.bars import WIDTH, of_families, stage_bars
from partitioner.people.page.envelope import envelope
from partitioner.people.page.graph import picture
from partitioner.people.page.markup import Markup, el, text
from partitioner.people.page.scales import Linear, Logarithmic, log_ticks, round_ticks, short, size
from protocol.bundle import Manifest, Measured
from protocol.latency import PlacementCost
from tests import manifests, models
from tests.manifests import cut, edge_only, full_cloud, manifest
from tests.markup import read

TOY = manifest()
HOSTILE = "</title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;\x00\x1b[31m\u202e"


def sheet(of: Manifest = TOY, mbit: float = 10.0, graph: Neighbourhood | str = "This bundle holds no cut.") -> Sheet:
    panels = tuple(explain(of, Question(m)) for m in (mbit / 10, mbit, mbit * 10))
    return Sheet(of, "d" * 64, explain(of, Question(mbit)), panels, graph, "partitioner report bundle -o page.html")


def at(mbit: float, of: Manifest = TOY) -> Explanation:
    return explain(of, Question(mbit))


def chain(*ops: str) -> Topology:
    """x -> t0 -> t1 -> ..., one step each."""
    names = ["x", *(f"t{i}" for i in range(len(ops)))]
    made = tuple(Step(f"node_{i}", op, (names[i],), (names[i + 1],)) for i, op in enumerate(ops))
    return Topology(("x",), (names[-1],), made, {n: TensorInfo("float32", (1, 4)) for n in names})


def rendered(sheet_: Sheet) -> Any:
    return read(render(sheet_))


# ---- the page as a whole --------------------------------------------------------------------------------------------


def test_a_page_is_well_formed_and_loads_nothing() -> None:
    page = rendered(sheet())
    assert page.faults() == []
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'") in (
        page.attributes
    )
    assert page.tags.count("svg") >= 3 + 2 + 2


def test_a_page_says_the_headline_the_sentences_and_every_placement() -> None:
    words = rendered(sheet()).words
    assert "Split at relu_3, 36.6 ms at 10 Mbit/s" in words
    assert "Another would be best below 1.48 Mbit/s (edge-only)" in words
    for placement in TOY.placements:
        assert placement.id in words
    for part in (
        "Test Processor, 2 cores",
        "declared 8 times slower",
        "64 samples",
        "onnxruntime 1.31",
        "dddddddddddddddd",
    ):
        assert part in words


@pytest.mark.parametrize("mbit", [0.2, 1.0, 10.0, 100.0, 5000.0])
def test_a_page_can_be_made_for_any_bandwidth(mbit: float) -> None:
    assert rendered(sheet(mbit=mbit)).faults() == []


def hostile(value: str) -> Manifest:
    """The toy manifest with `value` in every place that can hold any text."""
    spec = manifests.IMAGE.__class__(value, "uint8", (None, 3))
    toy = manifest(name=value, notes=(value,))
    placements = []
    for i, p in enumerate(toy.placements):
        named = (
            p
            if p.segment is None
            else msgspec.structs.replace(
                p,
                cut=(value, f"{value}2"),
                boundary=tuple(msgspec.structs.replace(t, spec=spec, codec=value) for t in p.boundary),
                notes=(value,),
                batch=msgspec.structs.replace(p.batch, batchable=False, reason=value) if p.batch else None,
            )
        )
        placements.append(msgspec.structs.replace(named, id=f"{value}{i}", precision=value))
    conditions = msgspec.structs.replace(
        toy.conditions, machine=value, versions={value: value}, created_utc=value, precision_asked=value
    )
    measured = (Measured((value,), 0.5, value, value, PlacementCost(edge_s=0.1, up_nbytes=10), value),)
    return msgspec.structs.replace(toy, placements=tuple(placements), conditions=conditions, measured=measured)


def test_hostile_names_stay_text() -> None:
    steps = (Step(HOSTILE, HOSTILE, ("x",), (HOSTILE,)), Step("b", HOSTILE, (HOSTILE,), ("y",)))
    topology = Topology(("x",), ("y",), steps, {})
    page = rendered(sheet(hostile(HOSTILE), graph=around(topology, separate(topology, [HOSTILE]))))
    assert page.faults() == []
    assert "<script>alert(1)</script>" in page.words, "what was written can be read"
    assert not any(c in render(sheet(hostile(HOSTILE))) for c in "\x00\x1b\u202e")


@settings(max_examples=10, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_text_in_a_manifest_leaves_the_page_well_formed(value: str) -> None:
    assert rendered(sheet(hostile(value))).faults() == []


def test_a_page_of_many_placements_stays_readable_and_small() -> None:
    many = [cut(f"cut-{i}.q{b}", 0.002 * i, 40_000 / i / b, 0.02 / i) for i in range(1, 25) for b in (1, 2, 4)]
    crowd = manifest([full_cloud(), *many, edge_only()])
    html = render(sheet(crowd))
    assert read(html).faults() == []
    assert len(html) < 400_000
    assert len(of_families(at(10, crowd))) == 12


def test_a_bundle_with_one_placement_has_a_page() -> None:
    assert rendered(sheet(manifest([edge_only()]))).faults() == []


def test_a_bundle_without_certificates_says_so() -> None:
    bare = manifest([msgspec.structs.replace(p, certificate=None) for p in TOY.placements])
    assert "carries no certificate" in rendered(sheet(bare)).words


def test_why_there_is_no_picture_of_the_graph_is_said() -> None:
    assert (
        "The graph cannot be drawn: too large." in rendered(sheet(graph="The graph cannot be drawn: too large.")).words
    )


# ---- drawings -------------------------------------------------------------------------------------------------------


def widths(svg: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for title, width in re.findall(r'<rect class="\w+"[^>]*?width="([\d.]+)"[^>]*><title>([^<]*)', svg):
        found[width] = float(title)
    return found


def test_bars_are_as_long_as_their_times() -> None:
    alone = manifest([cut("cut-1", 0.020, 12_500, 0.010), edge_only(0.040)])
    seen = at(10, alone)
    lengths = widths(stage_bars(seen))
    per_s = (WIDTH - 6) / max(r.total_s for r in seen.ranking)
    assert lengths["upload 10 ms"] == pytest.approx(0.010 * per_s, abs=0.01)
    assert lengths["device 20 ms"] == pytest.approx(2 * lengths["upload 10 ms"], abs=0.02)


def test_a_bar_much_longer_than_the_best_is_torn() -> None:
    slow = manifest([edge_only(0.010), cut("cut-1", 0.010, 100_000, 0.001)])
    assert "polygon" in stage_bars(at(1, slow))
    assert "polygon" not in stage_bars(at(1, manifest([edge_only(0.010)])))


def test_each_cut_has_one_bar_with_its_best_codec() -> None:
    assert [r.id for r in of_families(at(10))] == ["cut-1.q4", "full-cloud.jpeg90", "edge-only", "cut-2"]


@pytest.mark.parametrize(("width", "height"), [(1024.0, 420.0), (372.0, 400.0)])
def test_the_envelope_names_winners_and_their_switching_bandwidths(width: float, height: float) -> None:
    svg = envelope(at(10), width=width, height=height)
    for part in (">edge-only<", ">cut-1.q4<", ">full-cloud.jpeg90<", ">1.48<", ">22.2<"):
        assert part in svg


def test_marks_of_the_envelope_lie_within_the_picture() -> None:
    svg = envelope(at(10), width=1024, height=420)
    best = re.search(r'class="best" d="M([^"]*)"', svg)
    assert best is not None
    for point in best[1].split(" L"):
        x, y = map(float, point.split())
        assert 0 <= x <= 1024
        assert 0 <= y <= 420


def test_pareto_points_are_those_that_nobody_beats_in_both() -> None:
    values = {"a": 1.0, "b": 2.0, "c": 3.0}
    latencies = {"a": 0.3, "b": 0.1, "c": 0.2}
    points = pareto.points_of(pareto.OBJECTIVES[0], values, latencies)
    assert [(p.id, p.efficient) for p in points] == [("a", True), ("b", True), ("c", False)]
    assert "From b (100 ms, 2 B) to a (300 ms, 1 B)" in pareto.summary(pareto.OBJECTIVES[0], points)


def test_names_in_a_scatter_do_not_touch() -> None:
    crowd = {f"placement-{i}": 1000.0 + i for i in range(12)}
    points = pareto.points_of(pareto.OBJECTIVES[0], crowd, {id_: 0.1 - i * 1e-4 for i, id_ in enumerate(crowd)})
    svg = pareto.scatter(pareto.OBJECTIVES[0], points)
    found = re.findall(r'strong halo" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', svg)
    assert 2 <= len(found) < len(crowd)
    for at_, (x, y, anchor) in enumerate(found):
        same_side = [float(y_) for _, y_, anchor_ in found[:at_] if anchor_ == anchor]
        assert all(abs(float(y) - other) > 10 for other in same_side), x


def test_energy_and_memory_have_panels_only_where_every_placement_has_a_figure() -> None:
    assert "energy" not in rendered(sheet()).words
    known = manifest(
        [msgspec.structs.replace(p, cost=msgspec.structs.replace(p.cost, energy_j=0.1)) for p in TOY.placements]
    )
    assert "The device's energy" in rendered(sheet(known)).words


# ---- the graph around a cut -----------------------------------------------------------------------------------------


def test_the_neighbourhood_of_a_cut_in_a_chain_is_what_lies_next_to_it() -> None:
    topology = chain("Conv", "Relu", "Conv", "Relu", "Conv", "Relu", "Pool", "Gemm")
    seen = around(topology, separate(topology, ["t3"]), hops=1)
    assert [(n.op, n.side, n.layer) for n in seen.nodes] == [
        ("Conv", "head", 0), ("Relu", "head", 1), ("Conv", "tail", 2), ("Relu", "tail", 3)
    ]  # fmt: skip
    assert (seen.before, seen.after, seen.split_after) == (2, 2, 2)
    assert [e.tensor for e in seen.edges if e.crosses] == ["t3"]


def test_a_skip_connection_crosses_beside_the_main_path(tmp_path: Path) -> None:
    topology = load(models.write(models.residual(), tmp_path)).topology
    seen = around(topology, separate(topology, ["r1", "c3"]))
    assert {e.tensor for e in seen.edges if e.crosses} == {"r1", "c3"}
    assert all(n.layer < seen.split_after for n in seen.nodes if n.side == "head")
    assert all(n.layer >= seen.split_after for n in seen.nodes if n.side != "head")
    svg = picture(seen, {"r1": "100 bytes"})
    assert read(svg).faults() == []
    assert "r1, 100 bytes" in svg


def test_every_edge_points_down() -> None:
    topology = chain(*["Relu"] * 30)
    seen = around(topology, separate(topology, ["t14"]), hops=20)
    assert len(seen.nodes) <= MOST_NODES
    assert all(seen.nodes[e.source].layer < seen.nodes[e.target].layer for e in seen.edges)


# ---- markup, scales, tables -----------------------------------------------------------------------------------------


def test_text_is_escaped_and_markup_is_not() -> None:
    assert text("<a & 'b'>") == "&lt;a &amp; &#x27;b&#x27;&gt;"
    assert el("p", "<b>", el("b", "x"), class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<b>x</b></p>'
    assert el("line", x1=1.50001, stroke_width=None) == '<line x1="1.5"/>'
    assert el("meta", name="n", http_equiv="e") == '<meta name="n" http-equiv="e">'
    assert isinstance(el("p"), Markup)


def test_ticks_are_round_and_cover_the_range() -> None:
    assert round_ticks(43) == [0, 20, 40, 60]
    assert round_ticks(1.0) == [0, 0.25, 0.5, 0.75, 1.0]
    assert round_ticks(0) == [0, 1]
    assert log_ticks(1, 30) == [1, 2, 5, 10, 20]
    assert log_ticks(0.5, 5000) == [1, 10, 100, 1000]


def test_scales_keep_their_ends() -> None:
    assert (Linear(0, 10, 5, 105)(0), Linear(0, 10, 5, 105)(10)) == (5, 105)
    assert Logarithmic(1, 100, 0, 10)(10) == pytest.approx(5)
    assert Linear(3, 3, 5, 9)(3) == 5


def test_figures_are_written_for_people() -> None:
    assert [short(v) for v in (0, 0.00012, 0.1234, 12.34, 1234.5, float("inf"))] == [
        "0", "1e-04", "0.123", "12.3", "1,234", "-"
    ]  # fmt: skip
    assert [size(v) for v in (12, 1500, 999_600, 2.5e6)] == ["12 B", "1.5 KB", "1 MB", "2.5 MB"]


def test_recipes_and_layers_are_tables_in_words_and_rounded_figures() -> None:
    seen = rendered(sheet(msgspec.structs.replace(TOY, recipes=manifests.RECIPES, layers=manifests.LAYERS)))
    assert seen.faults() == []
    assert "minmax 0.9688 yes 0.38 - mse 0.9688 yes 0.37 0.9896 chosen" in seen.words
    assert "What eight bits cost each layer, worst first" in seen.words
    assert seen.words.index("conv2") < seen.words.index("conv1 Conv 49.7 36.6 0.5%")
    assert "left float" in seen.words


def test_where_no_recipe_was_found_the_layers_are_those_that_prevent_it() -> None:
    failed = tuple(msgspec.structs.replace(r, chosen=False) for r in manifests.RECIPES)
    seen = rendered(sheet(msgspec.structs.replace(TOY, recipes=failed, layers=manifests.LAYERS)))
    assert "Layers that prevent eight bits, worst first" in seen.words


def test_measured_cuts_are_listed_with_what_became_of_them() -> None:
    cost = PlacementCost(edge_s=0.01, up_nbytes=1000)
    rows = [Measured((f"t{i}",), i / 50, "int8", "", cost, "cut-1" if i == 0 else "") for i in range(50)]
    words = read(sections.measured(rows)).words
    assert "t0" in words
    assert "not kept" in words
    assert "and 10 more" in words
