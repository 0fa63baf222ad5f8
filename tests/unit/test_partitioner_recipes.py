"""The recipe search against a kitchen whose noise and speed are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.int8.recipe_search import LOOKS, MIN_PLAIN, TRUER_DB, search
from partitioner.int8.recipes import (
    DEFAULT,
    Layer,
    LayerCost,
    Recipe,
    RecipeResult,
    Refusal,
    Score,
    Trial,
    by_damage,
    distinct,
    fastest_first,
    only,
    power,
    preventing,
    restrict,
    safer_forms,
    shared_out,
    stretches,
)
from protocol.errors import ModelError

PLAIN = (DEFAULT, Recipe(name="mse", calibration="mse"), Recipe(name="first too", float_first=False))


def layers(count: int, work: float = 1.0) -> tuple[Layer, ...]:
    return tuple(Layer(f"conv{i}", "Conv", (f"conv{i}", f"relu{i}"), work) for i in range(count))


@dataclass
class Known:
    """A kitchen whose graphs are the recipes themselves. Noise adds up over the layers that are quantised, and so does
    the time that they save; the metric is 1 - noise. Every call takes a second of `clock_s`.
    """

    noise: Sequence[float]
    allowed: float = 0.1
    strict: float | None = None  # on held-out samples, where it differs
    speed: dict[str, float] = field(default_factory=dict)  # by recipe name: factor on the ratio
    saving: Sequence[float] | None = None  # by layer, share of fp32's time
    broken: tuple[str, ...] = ()
    clock_s: float = 0.0
    shown: list[Recipe] = field(default_factory=list)

    def now(self) -> float:
        return self.clock_s

    def layers(self) -> Sequence[Layer]:
        return layers(len(self.noise))

    def own_noise(self) -> dict[str, float]:
        return {f"conv{i}": -10 * math.log10(n) for i, n in enumerate(self.noise)}

    def bake(self, recipe: Recipe) -> Recipe:
        self.clock_s += 1.0
        if recipe.name in self.broken:
            raise ModelError(f"{recipe.name} cannot be made")
        if not self._quantised(recipe):
            raise ModelError("nothing to quantise")
        return recipe

    def sense(self, graph: Recipe) -> Score:
        return self._score(graph, self.allowed)

    def fit(self, graph: Recipe) -> Score:
        return self._score(graph, self.allowed)

    def certify(self, graph: Recipe) -> Score:
        self.shown.append(graph)
        return self._score(graph, self.allowed if self.strict is None else self.strict)

    def asked(self, *, held_out: bool) -> str:
        return "a metric on held-out samples" if held_out else "a metric on calibration samples"

    def ratio(self, graph: Recipe) -> float:
        saving = self.saving or [0.5 / len(self.noise)] * len(self.noise)
        return (1.0 - sum(saving[i] for i in self._quantised(graph))) * self.speed.get(graph.name, 1.0)

    def _quantised(self, recipe: Recipe) -> list[int]:
        return [i for i in range(len(self.noise)) if f"conv{i}" not in recipe.excluded]

    def _score(self, recipe: Recipe, allowed: float) -> Score:
        noise = sum(self.noise[i] for i in self._quantised(recipe))
        return Score(1.0 - noise, noise <= allowed, -10.0 * math.log10(noise))


def searched(kitchen: Known, budget_s: float = 1000.0) -> RecipeResult[Recipe] | Refusal:
    return search(kitchen, budget_s=budget_s, now=kitchen.now, plain=PLAIN)


def found(kitchen: Known, budget_s: float = 1000.0) -> RecipeResult[Recipe]:
    result = searched(kitchen, budget_s)
    assert isinstance(result, RecipeResult), str(result)
    return result


def refused(kitchen: Known, budget_s: float = 1000.0) -> Refusal:
    result = searched(kitchen, budget_s)
    assert isinstance(result, Refusal)
    return result


def test_the_fastest_recipe_that_holds_is_returned() -> None:
    result = found(Known([0.001] * 8, speed={"mse": 0.8}))
    assert result.recipe.name == "mse"
    assert result.ratio == pytest.approx(0.4)
    assert [t.recipe.name for t in result.trials] == [r.name for r in PLAIN]


def test_a_recipe_that_cannot_be_made_is_recorded_and_passed_over() -> None:
    result = found(Known([0.001] * 8, broken=("minmax",)))
    assert result.recipe.name != "minmax"
    assert [t.problem for t in result.trials if t.problem] == ["minmax cannot be made"]


def test_only_the_layer_that_does_the_damage_is_left_float() -> None:
    noise = [0.001] * 16
    noise[5] = 0.5
    result = found(Known(noise))
    assert set(result.recipe.excluded) == {"conv5", "relu5"}
    assert [c.layer.name for c in result.layers if c.left_float] == ["conv5"]
    assert result.layers[0].layer.name == "conv5"
    assert result.layers[0].outputs_db == pytest.approx(-10 * math.log10(0.5))


def test_of_two_layers_that_hurt_equally_the_one_that_saves_less_time_is_given_up() -> None:
    noise = [0.001] * 8
    noise[2] = noise[6] = 0.09
    order = by_damage([LayerCost(c, None, noise[i], 0.3 if i == 2 else 0.05) for i, c in enumerate(layers(8))])
    assert order[0].layer.name == "conv6"


def test_after_a_no_of_the_held_out_samples_only_clearly_truer_recipes_are_shown_to_them() -> None:
    kitchen = Known([0.012] * 8, allowed=0.1, strict=0.075)
    result = found(kitchen)
    shown = [kitchen.fit(r).sqnr_db for r in kitchen.shown]
    assert 2 <= len(shown) <= LOOKS
    assert all(later >= earlier + TRUER_DB for earlier, later in pairwise(shown))
    assert result.achieved.holds


def test_the_held_out_samples_are_looked_at_a_few_times_only() -> None:
    kitchen = Known([0.01] * 64, allowed=1.0, strict=-1.0, saving=[0.9 / 64] * 64)
    result = refused(kitchen)
    assert len(kitchen.shown) <= LOOKS
    assert "not on held-out ones (the best reaches 0.7200, asked was a metric on held-out samples)" in result.reason


def test_where_nothing_holds_the_worst_layers_are_named() -> None:
    noise = [0.2] * 8
    noise[3] = 5.0
    result = refused(Known(noise, allowed=0.1))
    assert result.layers[0].layer.name == "conv3"
    assert "the outputs comes from conv3 (-7 dB)" in str(result)
    assert "none of" in result.reason
    assert "asked was a metric on calibration samples" in result.reason
    assert "fp32" not in str(result), "what is done instead is said by whoever does it"
    assert result.closest


def test_where_eight_bits_are_slower_that_is_the_reason() -> None:
    result = refused(Known([0.001] * 8, speed={r.name: 3.0 for r in PLAIN}))
    assert "fast enough" in result.reason


def test_layers_that_are_slower_in_eight_bits_are_left_float_though_the_bound_is_met() -> None:
    saving = [-0.2, -0.2, *[0.1] * 6]
    result = found(Known([0.001] * 8, saving=saving))
    assert set(result.recipe.excluded) == {"conv0", "relu0", "conv1", "relu1"}


def test_a_spent_budget_ends_the_search_after_the_first_recipes() -> None:
    kitchen = Known([0.01] * 64, allowed=0.0001)
    result = refused(kitchen, budget_s=0.5)
    plain = [t for t in result.trials if not t.recipe.excluded]
    assert len(plain) == MIN_PLAIN
    assert "the search ended after its 0.5 s (--recipe-budget-s)" in result.reason
    assert kitchen.clock_s < 40


def test_a_recipe_that_holds_is_found_even_with_no_budget_left() -> None:
    assert found(Known([0.001] * 8), budget_s=0.0).achieved.holds


def test_safer_forms_leave_more_and_more_float_and_never_count_a_layer_twice() -> None:
    costs = [LayerCost(c, None, 1.0 / (i + 1), 0.1) for i, c in enumerate(layers(30))]
    already = msgspec.structs.replace(DEFAULT, excluded=("conv0", "relu0"))
    forms = safer_forms(already, costs)
    assert forms[0] == already
    sizes = [len(f.excluded) for f in forms]
    assert sizes == sorted(set(sizes))
    assert all(len(set(f.excluded)) == len(f.excluded) for f in forms)


def test_a_recipe_for_a_head_names_only_nodes_of_the_head() -> None:
    recipe = Recipe(name="r", excluded=("a", "z"))
    assert restrict(recipe, ["a", "b"]).excluded == ("a",)


def test_recipes_that_come_to_the_same_on_a_head_are_offered_once() -> None:
    first, second = Recipe(name="one", excluded=("z",)), Recipe(name="two", excluded=("y",))
    assert [r.name for r in distinct([first, second, DEFAULT], ["a"])] == ["one"]
    assert len(distinct([first, second], ["y", "z"])) == 2


def test_among_equally_fast_recipes_the_truest_comes_first() -> None:
    trials = [
        Trial(Recipe(name=n), Score(1.0, True, db), ratio)
        for n, db, ratio in (("fast", 20.0, 0.50), ("true", 30.0, 0.51), ("slow", 40.0, 0.9))
    ]
    assert [t.recipe.name for t in fastest_first(trials)] == ["true", "fast", "slow"]


def test_a_recipe_for_one_stretch_leaves_every_other_layer_float() -> None:
    everything = layers(4)
    assert only(DEFAULT, everything, everything[1:3]).excluded == ("conv0", "relu0", "conv3", "relu3")


def test_the_layers_that_prevent_it_make_most_of_the_noise() -> None:
    costs = [LayerCost(c, None, n, 0.1) for c, n in zip(layers(4), (0.01, 0.7, 0.2, 0.01), strict=True)]
    assert [c.layer.name for c in preventing(costs)] == ["conv1", "conv2"]


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=60), st.integers(1, 12))
def test_stretches_hold_every_layer_once_in_order(work: list[float], count: int) -> None:
    everything = tuple(Layer(f"n{i}", "Conv", (f"n{i}",), w) for i, w in enumerate(work))
    groups = list(stretches(everything, count))
    assert [layer for group in groups for layer in group] == list(everything)
    assert all(groups)
    assert len(groups) <= count + 1


@given(st.lists(st.floats(0.0, 60.0), min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_what_a_stretch_costs_is_shared_out_completely(own: list[float], total: float) -> None:
    everything = layers(len(own))
    shares = shared_out(total, everything, {c.name: db for c, db in zip(everything, own, strict=True)})
    assert sum(shares.values()) == pytest.approx(total)
    assert all(v >= 0.0 for v in shares.values())


def test_noise_power_is_one_at_zero_decibels() -> None:
    assert power(0.0) == 1.0
    assert power(20.0) == pytest.approx(0.01)
