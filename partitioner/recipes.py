"""The search for the fastest INT8 recipe whose promise holds. Pure: what is baked, judged and timed comes as a Kitchen.

    plain recipes, most promising first  --fit-->  those that hold on the calibration samples  --time-->  fastest first
    none holds: the fewest layers left float that make it hold, most damage per time saved first (bisection)
    whatever is to ship                  --certify-->  held-out samples, looked at no more than `LOOKS` times

Choosing uses the calibration samples alone. The held-out ones only say yes or no, and few times, since the best of
many looks at them would be fitted to them as well. After a no the next safer recipe is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from protocol.errors import EngineError, ModelError

Calibration = Literal["minmax", "percentile", "mse", "entropy"]
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # the products; what else becomes eight bits follows them
LOOKS = 4
# After a no of the held-out samples only recipes whose outputs are this much truer are shown to them.
TRUER_DB = 1.0
MIN_PLAIN = 2  # plain recipes that are tried whatever the budget
# Two recipes whose times differ by less are equally fast: the truer one is taken. Repeatability is 2-8 % (measured).
SAME_SPEED = 1.03
MAX_RATIO = 1.0
_MOST_OF_THE_NOISE = 0.8


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a graph becomes eight bits. `parameter` is the percentile (both tails together) where that is the method."""

    name: str
    calibration: Calibration = "minmax"
    parameter: float = 0.0
    per_channel: bool = True  # one weight scale for each output channel
    weight_type: Literal["int8", "uint8"] = "int8"
    activation_type: Literal["uint8", "int8"] = "uint8"  # int8 is symmetric: zero point 0, as TensorRT demands
    reduce_range: bool = False  # 7-bit weights: no saturation where the processor lacks VNNI
    float_first: bool = True  # the convolutions that no other product precedes stay float
    products_only: bool = False  # only convolutions and matrix products, nothing between them
    correct_bias: bool = True  # the mean shift that rounded weights cause is taken off the biases
    excluded: tuple[str, ...] = ()  # names of nodes that stay float

    @property
    def weights(self) -> Recipe:
        """The recipe of the weights alone: what the shifts of the biases depend on."""
        plain = Recipe(name="weights", per_channel=self.per_channel, weight_type=self.weight_type)
        return msgspec.structs.replace(plain, reduce_range=self.reduce_range, float_first=False)


DEFAULT = Recipe(name="minmax")
PLAIN: tuple[Recipe, ...] = (
    DEFAULT,
    Recipe(name="mse", calibration="mse"),
    Recipe(name="minmax, first too", float_first=False),
    Recipe(name="percentile 99.99", calibration="percentile", parameter=99.99),
    Recipe(name="biases as they are", correct_bias=False),
    Recipe(name="products only", products_only=True),
    Recipe(name="int8 activations", activation_type="int8"),
    Recipe(name="entropy", calibration="entropy"),
    Recipe(name="7-bit weights", reduce_range=True),
    Recipe(name="per tensor", per_channel=False),
)


def restrict(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe for a part of the model (a head is a prefix) that holds only the nodes `names`."""
    there = set(names)
    return msgspec.structs.replace(recipe, excluded=tuple(n for n in recipe.excluded if n in there))


def distinct(recipes: Iterable[Recipe], names: Sequence[str]) -> list[Recipe]:
    """The recipes restricted to the nodes `names`, without those that come to the same there; order is kept."""
    found: dict[Recipe, Recipe] = {}
    for recipe in recipes:
        own = restrict(recipe, names)
        found.setdefault(msgspec.structs.replace(own, name=""), own)
    return list(found.values())


class Score(NamedTuple):
    """How a graph answers on some samples: the metric, whether it meets the bound, and the outputs' SQNR in dB."""

    metric: float
    holds: bool
    sqnr_db: float


class Layer(NamedTuple):
    """A product and the lighter nodes that follow it, up to the next product; `work` in multiply-adds."""

    name: str
    op: str
    nodes: tuple[str, ...]
    work: float


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried. `ratio` is its time over fp32's on this machine; None: not measured."""

    recipe: Recipe
    fit: Score | None = None
    ratio: float | None = None
    held_out: Score | None = None
    problem: str = ""

    @property
    def holds(self) -> bool:
        return self.fit is not None and self.fit.holds


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs: SQNR in dB of its own inputs and weights in eight bits, and of the model's outputs when it
    alone is quantised (with the metric then); the share of fp32's time that its eight bits save, by estimate.
    """

    layer: Layer
    own_db: float | None
    alone: Score | None
    saved: float
    left_float: bool = False

    @property
    def damage(self) -> float:
        """Noise power over signal power at the outputs when this layer alone is quantised."""
        return 0.0 if self.alone is None else _power(self.alone.sqnr_db)


Graph = TypeVar("Graph")


class Kitchen(Protocol[Graph]):
    """What the search asks of the world. Any call with a graph may raise ModelError or EngineError: it is then out.

    `sense` judges on a few calibration samples, `fit` on all of them, `certify` on the held-out ones; `ratio` is the
    graph's time over the fp32 model's; `own_noise` is in dB by layer name.
    """

    def layers(self) -> Sequence[Layer]: ...
    def own_noise(self) -> dict[str, float]: ...
    def bake(self, recipe: Recipe) -> Graph: ...
    def sense(self, graph: Graph) -> Score: ...
    def fit(self, graph: Graph) -> Score: ...
    def certify(self, graph: Graph) -> Score: ...
    def ratio(self, graph: Graph) -> float: ...


@dataclass(frozen=True)
class RecipeResult(Generic[Graph]):
    """The fastest recipe that holds, and how it was found. `safer` are others to fall back on, fastest first."""

    graph: Graph
    recipe: Recipe
    achieved: Score
    ratio: float
    layers: tuple[LayerCost, ...]
    trials: tuple[Trial, ...]
    safer: tuple[Recipe, ...]


@dataclass(frozen=True)
class Refusal:
    """No recipe holds, or none pays. `layers` prevent it, worst first; `closest` are the recipes that came nearest."""

    reason: str
    layers: tuple[LayerCost, ...]
    trials: tuple[Trial, ...]
    closest: tuple[Recipe, ...]

    def __str__(self) -> str:
        names = ", ".join(cost.layer.name for cost in self.layers[:5])
        return f"{self.reason}; {names} prevent it" if names else self.reason


def search(
    kitchen: Kitchen[Graph],
    *,
    budget_s: float,
    now: Callable[[], float],
    plain: Sequence[Recipe] = PLAIN,
    max_ratio: float = MAX_RATIO,
) -> RecipeResult[Graph] | Refusal:
    """The fastest recipe that meets the bound on calibration and on held-out samples, or why there is none.

    `budget_s` is in seconds of `now()`; it bounds what is tried, not the step in progress. `max_ratio` is the longest
    time, as a share of fp32's, that is worth shipping.
    """
    return _Search(kitchen, budget_s, now, max_ratio).run(plain)


class _Search(Generic[Graph]):
    def __init__(self, kitchen: Kitchen[Graph], budget_s: float, now: Callable[[], float], max_ratio: float) -> None:
        self.kitchen = kitchen
        self.now = now
        self.started_s = now()
        self.budget_s = budget_s
        self.max_ratio = max_ratio
        self.trials: dict[Recipe, Trial] = {}
        self.costs: list[LayerCost] = []
        self.looks = 0
        self.floor_db = float("-inf")

    def run(self, plain: Sequence[Recipe]) -> RecipeResult[Graph] | Refusal:
        for count, recipe in enumerate(plain):
            if count < MIN_PLAIN or self._spent() < 0.3:
                self._try(recipe)
        base = self._truest()
        if base is None:
            return Refusal(self._why(), (), tuple(self.trials.values()), ())
        self.costs = self._layer_costs(base)
        if self._candidates():
            self._leave_slow_layers_float(base)
        found = self._certified() or (self._excluding(base) if self.looks < LOOKS else None)
        if found is not None:
            return found
        culprits = tuple(replace(c, alone=self._fit_alone(base.recipe, c)) for c in preventing(self.costs))
        return Refusal(self._why(), culprits, tuple(self.trials.values()), self._ladder_of(base.recipe))

    def _spent(self) -> float:
        """Share of the budget that is gone."""
        return (self.now() - self.started_s) / self.budget_s if self.budget_s > 0 else 1.0

    def _try(self, recipe: Recipe) -> Trial:
        """Fit first: a recipe that does not hold need not be timed."""
        if recipe in self.trials:
            return self.trials[recipe]
        try:
            graph = self.kitchen.bake(recipe)
            fit = self.kitchen.fit(graph)
            trial = Trial(recipe, fit, self.kitchen.ratio(graph) if fit.holds else None)
        except (ModelError, EngineError) as error:
            trial = Trial(recipe, problem=error.fact)
        self.trials[recipe] = trial
        return trial

    def _truest(self) -> Trial | None:
        known = [t for t in self.trials.values() if t.fit is not None]
        return max(known, key=lambda t: (t.holds, t.fit.sqnr_db if t.fit else 0.0), default=None)

    def _candidates(self) -> list[Trial]:
        """Trials that hold and pay and are truer than those that the held-out samples refused, fastest first."""
        good = [t for t in self.trials.values() if self._may_hold(t) and t.held_out is None]
        return fastest_first(t for t in good if t.ratio is not None and t.ratio <= self.max_ratio)

    def _may_hold(self, trial: Trial) -> bool:
        return trial.fit is not None and trial.fit.holds and trial.fit.sqnr_db >= self.floor_db

    def _certified(self) -> RecipeResult[Graph] | None:
        while self.looks < LOOKS and (waiting := self._candidates()):
            result = self._certify(waiting[0])
            if result is not None:
                return result
        return None

    def _certify(self, trial: Trial) -> RecipeResult[Graph] | None:
        self.looks += 1
        graph = self.kitchen.bake(trial.recipe)
        trial = replace(trial, held_out=self.kitchen.certify(graph))
        self.trials[trial.recipe] = trial
        if trial.held_out is None or not trial.held_out.holds or trial.ratio is None:
            self.floor_db = max(self.floor_db, TRUER_DB + (trial.fit.sqnr_db if trial.fit else 0.0))
            return None
        others = [t.recipe for t in self._candidates()]
        safer = tuple(dict.fromkeys([*others, *self._ladder_of(trial.recipe)]))
        costs = tuple(replace(c, left_float=c.layer.name in trial.recipe.excluded) for c in self.costs)
        return RecipeResult(graph, trial.recipe, trial.held_out, trial.ratio, costs, tuple(self.trials.values()), safer)

    def _layer_costs(self, base: Trial) -> list[LayerCost]:
        """Every layer's own noise; and its effect on the outputs, worst first, until half the budget is spent."""
        layers = self.kitchen.layers()
        own = self.kitchen.own_noise()
        work = sum(layer.work for layer in layers) or 1.0
        gain = max(0.0, 1.0 - base.ratio) if base.ratio is not None else 0.5
        costs = [LayerCost(layer, own.get(layer.name), None, gain * layer.work / work) for layer in layers]
        costs.sort(key=lambda c: float("inf") if c.own_db is None else c.own_db)
        measured = [replace(c, alone=self._alone(base.recipe, layers, c.layer)) for c in costs]
        return sorted(measured, key=lambda c: -c.damage)

    def _alone(self, recipe: Recipe, layers: Sequence[Layer], layer: Layer) -> Score | None:
        if self._spent() >= 0.6:
            return None
        others = tuple(n for other in layers if other is not layer for n in other.nodes)
        try:
            return self.kitchen.sense(self.kitchen.bake(excluding(recipe, others, f"only {layer.name}")))
        except (ModelError, EngineError):
            return None

    def _fit_alone(self, recipe: Recipe, cost: LayerCost) -> Score | None:
        """The worst few once more, on all calibration samples, while the budget lasts."""
        if self._spent() >= 1.0:
            return cost.alone
        others = tuple(n for other in self.kitchen.layers() if other != cost.layer for n in other.nodes)
        try:
            return self.kitchen.fit(self.kitchen.bake(excluding(recipe, others, f"only {cost.layer.name}")))
        except (ModelError, EngineError):
            return cost.alone

    def _leave_slow_layers_float(self, base: Trial) -> None:
        """Some layers are slower in eight bits than in float: time the model without each stretch of layers."""
        ratio = self._candidates()[0].ratio
        recipe = self._candidates()[0].recipe
        slow: list[str] = []
        for stretch in stretches(self.kitchen.layers()):
            if self._spent() >= 0.8 or ratio is None:
                break
            nodes = tuple(n for layer in stretch for n in layer.nodes)
            without = self._timed(excluding(recipe, nodes, "one stretch float"))
            if without is not None and without * SAME_SPEED < ratio:
                slow += nodes
        if slow:
            self._try(excluding(recipe, slow, f"{recipe.name}, slow layers float"))

    def _timed(self, recipe: Recipe) -> float | None:
        try:
            return self.kitchen.ratio(self.kitchen.bake(recipe))
        except (ModelError, EngineError):
            return None

    def _excluding(self, base: Trial) -> RecipeResult[Graph] | None:
        """The fewest layers left float, most damage per time saved first, with which the recipe holds; then more."""
        order = by_damage(self.costs)
        fewest = self._fewest(base.recipe, order)
        while fewest is not None and self.looks < LOOKS:
            trial = self._try(without_worst(base.recipe, order, fewest))
            if trial.ratio is not None and trial.ratio > self.max_ratio:
                return None  # leaving more of it float would be slower still
            if self._may_hold(trial) and trial.held_out is None and (result := self._certify(trial)) is not None:
                return result
            more = fewest + max(1, (len(order) - fewest) // 4)
            fewest = more if more < len(order) else None
        return None

    def _fewest(self, recipe: Recipe, order: Sequence[LayerCost]) -> int | None:
        """Bisection: between `fails` and `holds` layers left float, as if holding were monotone in their number."""
        fails, holds = 0, len(order)
        while holds - fails > 1:
            if self._spent() >= 1.0:
                break
            middle = (fails + holds) // 2
            if self._may_hold(self._try(without_worst(recipe, order, middle))):
                holds = middle
            else:
                fails = middle
        return holds if holds < len(order) else None

    def _ladder_of(self, recipe: Recipe) -> tuple[Recipe, ...]:
        """Safer forms of a recipe, for parts of the model that are judged on their own."""
        order = by_damage(self.costs)
        counts = sorted({max(1, len(order) // 10), max(1, len(order) // 3)}) if len(order) > 1 else []
        return (recipe, *(without_worst(recipe, order, count) for count in counts))

    def _why(self) -> str:
        tried = list(self.trials.values())
        known = [t for t in tried if t.fit is not None]
        if not known:
            return tried[0].problem if tried else "no recipe was tried"
        if refused := [t for t in known if t.held_out is not None]:
            return f"{len(refused)} recipes held on the calibration samples but not on the held-out ones"
        if holding := [t.ratio for t in known if t.holds and t.ratio is not None]:
            return f"no recipe that holds is fast enough here (the best takes {min(holding):.2f} of fp32's time)"
        best = max(t.fit.metric for t in known if t.fit is not None)
        return f"none of {len(tried)} recipes meets the bound on the calibration samples (the best reaches {best:.4f})"


def excluding(recipe: Recipe, nodes: Iterable[str], name: str) -> Recipe:
    """The recipe with these nodes left float as well."""
    return msgspec.structs.replace(recipe, name=name, excluded=tuple(dict.fromkeys([*recipe.excluded, *nodes])))


def without_worst(recipe: Recipe, order: Sequence[LayerCost], count: int) -> Recipe:
    """The recipe with the first `count` layers of `order` left float."""
    nodes = [n for cost in order[:count] for n in cost.layer.nodes]
    return excluding(recipe, nodes, f"{recipe.name}, {count} of {len(order)} layers float") if count else recipe


def by_damage(costs: Iterable[LayerCost]) -> list[LayerCost]:
    """Most damage per time saved first: what to give up first. Layers that save nothing come before all others."""
    return sorted(costs, key=lambda c: -_estimated_damage(c) / max(c.saved, 1e-6))


def preventing(costs: Sequence[LayerCost], limit: int = 5) -> tuple[LayerCost, ...]:
    """The layers that make most of the noise together, worst first, at most `limit`."""
    total = sum(_estimated_damage(c) for c in costs)
    found: list[LayerCost] = []
    for cost in sorted(costs, key=lambda c: -_estimated_damage(c)):
        if len(found) < limit and sum(_estimated_damage(c) for c in found) < _MOST_OF_THE_NOISE * total:
            found.append(cost)
    return tuple(found)


def fastest_first(trials: Iterable[Trial]) -> list[Trial]:
    """Fastest first; among those as fast as the fastest left, the one with the truest outputs."""
    left = sorted(trials, key=lambda t: t.ratio or 0.0)
    order: list[Trial] = []
    while left:
        limit = SAME_SPEED * (left[0].ratio or 0.0)
        best = max((t for t in left if (t.ratio or 0.0) <= limit), key=lambda t: t.fit.sqnr_db if t.fit else 0.0)
        order.append(best)
        left.remove(best)
    return order


def stretches(layers: Sequence[Layer], count: int = 8) -> Iterator[Sequence[Layer]]:
    """Consecutive layers in at most `count` groups of about equal work."""
    total = sum(layer.work for layer in layers)
    group: list[Layer] = []
    done = 0.0
    for layer in layers:
        group.append(layer)
        done += layer.work
        if done >= total / count:
            yield group
            group, done = [], 0.0
    if group:
        yield group


def _estimated_damage(cost: LayerCost) -> float:
    """What was measured; else the layer's own noise, as if it reached the outputs undiminished."""
    if cost.alone is not None:
        return cost.damage
    return 0.0 if cost.own_db is None else _power(cost.own_db)


def _power(db: float) -> float:
    """Noise power over signal power: 10 ** (-dB / 10)."""
    return float(10.0 ** (-db / 10.0))
