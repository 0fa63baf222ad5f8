"""What terminals show: readable at 80 and at 125 columns, families together, names as they are."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from partitioner.people.explain import Question, explain
from partitioner.people.inspection import CutLine, Inspection
from partitioner.people.replay import Drive, simulate
from partitioner.people.report import MOST_MEASURED, Bar, Silent, print_built, print_inspection, print_verified
from partitioner.people.tables import compared, print_explained, print_simulated
from partitioner.planning.build import Built
from partitioner.planning.recheck import Recheck, Verified
from partitioner.planning.sign import SignatureState
from protocol.bundle import Manifest, Measured
from protocol.latency import PlacementCost
from tests.manifests import LAYERS, PROOF, RECIPES, cut, edge_only, full_cloud, manifest

TOY = msgspec.structs.replace(
    manifest(notes=("one note",)),
    plan=(("full-cloud.jpeg90", 1000.0, 22.2), ("cut-1.q4", 22.2, 1.48), ("edge-only", 1.48, 0.1)),
)
MANY = manifest(
    [
        full_cloud(),
        full_cloud("full-cloud.jpeg90", 30_000),
        *(cut(f"cut-{i}{rung}", 0.001 * i, 9e4 / i, 0.01) for i in range(1, 7) for rung in ("", ".q4", ".q2", ".zrle")),
        edge_only(),
    ]
)


def console(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, color_system=None), out


def built(of: Manifest, width: int) -> list[str]:
    screen, out = console(width)
    print_built(Built(Path("bundle"), "d" * 64, of), screen)
    return out.getvalue().splitlines()


def words(lines: list[str]) -> str:
    return "\n".join(lines)


@pytest.mark.parametrize("of", [TOY, MANY], ids=["few", "many"])
@pytest.mark.parametrize("width", [80, 125, 140, 160])
def test_the_table_fits_and_keeps_every_id_whole(of: Manifest, width: int) -> None:
    lines = built(of, width)
    assert max(map(len, lines)) <= width
    for placement in of.placements:
        assert sum(line.strip("│ ").startswith(f"{placement.id} ") for line in lines) == 1, placement.id


@pytest.mark.parametrize("width", [80, 160])
def test_what_eight_bits_cost_is_a_table_of_recipes_and_one_of_layers(width: int) -> None:
    lines = built(msgspec.structs.replace(TOY, recipes=RECIPES, layers=LAYERS), width)
    assert max(map(len, lines)) <= width
    shown = [line.strip("│ ").split() for line in lines]
    assert ["mse", "│", "0.9688", "│", "yes", "│", "0.37", "│", "0.9896", "│", "chosen"] in shown
    assert ["fc", "│", "Gemm", "│", "-", "│", "-", "│", "0.0%", "│", "not", "measured"] in shown
    assert ["conv2", "│", "Conv", "│", "28.1", "│", "30.5", "│", "3.8%", "│", "left", "float"] in shown


def test_a_column_of_remarks_stands_only_where_there_are_any() -> None:
    assert "remark" in words(built(msgspec.structs.replace(TOY, recipes=RECIPES), 80))
    assert "remark" not in words(built(msgspec.structs.replace(TOY, layers=LAYERS[:1]), 80))


def test_what_codecs_of_a_cut_share_is_said_once() -> None:
    narrow, wide = built(MANY, 80), built(MANY, 140)
    assert [line for line in narrow if line.startswith("cut-3")] == [
        "cut-3: relu_3 uint8 crosses; accuracy 0.9750 (0.9800, 0.9700) on 200"
    ]
    row = next(line for line in wide if line.strip("│ ").startswith("cut-3.q4"))
    assert "relu_3" not in row
    rules = sum(line.startswith("├") for line in wide)
    assert rules == len({p.id.partition(".")[0] for p in MANY.placements}) - 1, "a line between families"


def test_a_coding_with_a_metric_of_its_own_has_a_line_of_its_own() -> None:
    worse = msgspec.structs.replace(PROOF, achieved=0.9712)
    odd = manifest([cut("cut-1", 0.01, 100, 0.01), cut("cut-1.q2", 0.01, 50, 0.01, certificate=worse), edge_only()])
    assert "cut-1.q2: accuracy 0.9712 (0.9800, 0.9700) on 200" in built(odd, 80)


def test_where_each_wins_and_what_was_proven_is_shown_at_every_width() -> None:
    for width in (80, 140):
        shown = words(built(TOY, width))
        for part in ("1.48..22.2", "22.2..1,000", "never", "accuracy 0.9750 (0.9800, 0.9700) on 200", "note: one note"):
            assert part in shown
    assert "dddddddddddddddd" in shown


def test_measured_cuts_are_cut_short_to_those_that_send_least() -> None:
    cost = PlacementCost(edge_s=0.01)
    rows = tuple(
        Measured((f"t{i}",), i / 99, "int8", "q4", msgspec.structs.replace(cost, up_nbytes=100.0 * i))
        for i in range(60)
    )
    shown = words(built(msgspec.structs.replace(TOY, measured=rows), 80))
    assert " t1 " in shown
    assert " t59 " not in shown
    assert f"and {60 - MOST_MEASURED} that send more" in shown


def test_brackets_in_names_are_text_and_no_style() -> None:
    odd = manifest([cut("cut-1", 0.01, 100, 0.01, cut=("[bold]x[/bold]",)), edge_only()], name="[red]model")
    for width in (80, 140):
        shown = words(built(odd, width))
        assert "[bold]x[/bold]" in shown
        assert "[red]model" in shown


def test_verified_placements_are_listed() -> None:
    screen, out = console(125)
    seen = Recheck("cut-1", "accuracy", 0.98, 0.97, 0.96, 200, 0.01)
    both = (seen, msgspec.structs.replace(seen, id="edge-only", bound=None))
    print_verified(Verified("[b]", 5, False, both, SignatureState(signed=False, checked=False)), screen)
    assert "signature: not signed" in out.getvalue()
    assert "[b]: 5 files match" in out.getvalue()
    assert "0.9600" in out.getvalue()


def test_an_explanation_fits_into_eighty_columns() -> None:
    screen, out = console(80)
    print_explained(explain(MANY, Question(10)), screen)
    table = [line for line in out.getvalue().splitlines() if line[:1] in "┏│└"]
    assert max(map(len, table)) <= 80
    assert "and 7 slower ones" in out.getvalue()


def test_a_simulation_fits_into_eighty_columns() -> None:
    costs = {p.id: p.cost for p in TOY.placements}
    screen, out = console(80)
    print_simulated(simulate("toy", costs, 0.010, Drive("outage")), screen)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("Mbit/s: edge-only was chosen after " in line for line in lines)


def test_progress_is_shown_on_a_terminal_only() -> None:
    Silent().stage("x")
    Silent().progress(1, 2)
    with Bar() as bar:
        bar.stage("reading")
        bar.progress(1, 2)


def test_an_inspection_says_its_headline_in_one_line_and_all_notes() -> None:
    screen, out = console(80)
    seen = Inspection("toy", 17, (), (), 3, 12, (CutLine(("relu",), 0.5, 7),), ("an input is never read",))
    print_inspection(seen, screen)
    lines = out.getvalue().splitlines()
    assert "toy: 1 cuts over 3 nodes; raw input 12 bytes" in lines
    assert lines[-1] == "note: an input is never read"


@pytest.mark.parametrize(
    ("share", "said"), [(0.0, "as fast"), (0.031, "3.1% slower"), (5.07, "6.07 x as long"), (-0.5, "2.00 x faster")]
)
def test_ratios_are_said_as_people_say_them(share: float, said: str) -> None:
    assert compared(share) == said
