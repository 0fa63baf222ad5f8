"""The recipe search on models that run: what it returns holds on samples it did not choose with, heads included."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from partitioner.crossing.boundary import emit_codes, take_codes
from partitioner.graph.cuts import separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.int8.eight_bits import RecipeBook, find_recipe
from partitioner.int8.recipes import RecipeResult, Refusal
from partitioner.judging import verify
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges, observed_topology, ranges
from partitioner.judging.verify import SplitPair, Yardstick
from protocol.tensors import Array
from tests import models

SHARED = Path(os.environ.get("ISTHMUS_SHARED", Path(__file__).parents[2].parent / "shared"))
ANY_SPEED = 100.0  # toys take microseconds: eight bits need not be faster there


class Bench:
    """A model with samples, its ranges and the yardstick on the held-out half."""

    def __init__(self, path: Path, array: Array, labels: Array | None, bound: float) -> None:
        model = load(path)
        self.samples = Samples({model.inputs[0].name: array}, frozenset(), labels, False, "")
        self.model: LoadedModel = replace(model, topology=observed_topology(model, self.samples))
        self.ranges: Ranges = ranges(self.model, self.samples)
        expected = verify.run_all(self.model.data, self.samples, self.samples.held_out)
        self.stick: Yardstick = verify.yardstick(expected, self.samples, self.model.outputs[0].name, bound)

    def search(self, budget_s: float, max_ratio: float = ANY_SPEED) -> RecipeBook:
        return find_recipe(self.model, self.samples, self.ranges, self.stick, budget_s=budget_s, max_ratio=max_ratio)

    def judged(self, book: RecipeBook) -> tuple[float, bool]:
        assert isinstance(book.whole, RecipeResult), str(book.whole)
        data = serialise(book.whole.graph)
        return self.stick.judge(verify.run_all(data, self.samples, self.samples.held_out))

    def through(self, cut: str, book: RecipeBook) -> list[tuple[float, bool]]:
        """Every INT8 form of the head at `cut`, judged together with its fp32 tail and an 8-bit boundary."""
        halves = split(self.model, separate(self.model.topology, (cut,)))
        judged = []
        for _, eight in book.for_head(halves.head):
            head, codes = emit_codes(eight, [cut], self.ranges)
            with SplitPair(serialise(head), serialise(take_codes(halves.tail, codes)), (cut,), ()) as pair:
                got = [pair.infer(feed) for feed in self.samples.feeds(self.samples.held_out)]
            judged.append(self.stick.judge(got))
        return judged


def bench(proto: onnx.ModelProto, folder: Path, bound: float) -> Bench:
    return Bench(models.write(proto, folder), models.image_samples(64), None, bound)


def test_what_the_search_returns_keeps_the_bound_on_held_out_samples(tmp_path: Path) -> None:
    toy = bench(models.residual(), tmp_path, bound=0.1)
    book = toy.search(budget_s=5.0)
    value, holds = toy.judged(book)
    assert holds
    assert isinstance(book.whole, RecipeResult)
    assert book.whole.achieved.metric == pytest.approx(value)
    assert {c.layer.name for c in book.whole.layers} >= {"node_c2", "node_c3", "node_c4"}


def test_every_head_gets_the_recipe_of_the_whole_model_as_far_as_it_holds_its_nodes(tmp_path: Path) -> None:
    toy = bench(models.residual(), tmp_path, bound=0.1)
    book = toy.search(budget_s=5.0)
    head = split(toy.model, separate(toy.model.topology, ("r3",))).head
    inside = {node.name for node in head.graph}
    forms = list(book.for_head(head))
    assert forms
    assert all(set(recipe.excluded) <= inside for recipe, _ in forms)
    assert any(holds for _, holds in toy.through("r3", book))


def test_a_model_that_eight_bits_cannot_hold_keeps_its_culprits_float_or_is_refused_with_their_names(
    tmp_path: Path,
) -> None:
    toy = bench(models.outliers(), tmp_path, bound=0.01)
    found = toy.search(budget_s=10.0).whole
    culprits = {"node_c2", "node_dw", "node_c3"}
    if isinstance(found, Refusal):
        assert {c.layer.name for c in found.layers} & culprits
    else:
        assert {c.layer.name for c in found.layers if c.left_float} & culprits


def test_eight_bits_that_do_not_pay_are_refused_with_that_reason(tmp_path: Path) -> None:
    found = bench(models.residual(), tmp_path, bound=0.5).search(budget_s=2.0, max_ratio=0.0).whole
    assert isinstance(found, Refusal)
    assert "fast enough" in found.reason


@pytest.mark.shared
def test_a_trained_network_loses_at_most_one_per_cent_whole_and_at_every_cut_tried() -> None:
    path, data = SHARED / "models" / "resnet8l_cifar10.onnx", SHARED / "data" / "cifar10_1000.npz"
    if not (path.is_file() and data.is_file()):
        pytest.skip(f"{path} or {data} is not here; set ISTHMUS_SHARED to the folder that holds them")
    with np.load(data, allow_pickle=False) as archive:
        images, labels = archive["x"].transpose(0, 3, 1, 2).astype(np.float32), archive["y"].reshape(-1)
    trained = Bench(path, images[:600], labels[:600].astype(np.int64), bound=0.01)
    book = trained.search(budget_s=15.0)
    value, holds = trained.judged(book)
    assert holds
    assert value >= trained.stick.reference - 0.01 - 1e-9
    cuts = [s.outputs[0] for s in trained.model.topology.steps if s.op == "Add"]
    assert cuts
    assert any(good for _, good in trained.through(cuts[-1], book))
