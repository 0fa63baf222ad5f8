"""What an INT8 recipe is, what trying one shows, and in which order layers are given up. Pure.

A recipe says everything that decides which numbers an INT8 graph holds, except the calibration samples. Names of nodes
in it are the whole model's, so that the same recipe serves every head: `restrict` it to the nodes that the head holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

Calibration = Literal["minmax", "percentile", "mse", "entropy"]
HeadEngine = Literal["onnxruntime", "tensorrt"]  # what heads are made for
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # the products; what else becomes eight bits follows them
# Two recipes whose times differ by less are equally fast: the truer one is taken. Repeatability is 2-8 % (measured).
SAME_SPEED = 1.08
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
    made_for: HeadEngine = "onnxruntime"  # TensorRT takes no biases of int32, and wants only what products read rounded
    excluded: tuple[str, ...] = ()  # names of nodes that stay float

    @property
    def title(self) -> str:
        """The name, and how many nodes it leaves float besides."""
        return f"{self.name}, {len(self.excluded)} nodes float" if self.excluded else self.name

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


def for_tensorrt(recipe: Recipe) -> Recipe:
    """The recipe as far as TensorRT takes it, whose products do not saturate.

    Symmetric int8, float biases; rounded is what products read and nothing else, so that what follows a product stays
    in one kernel with it, which writes the eight bits that the next one reads.
    """
    return msgspec.structs.replace(
        recipe,
        made_for="tensorrt",
        activation_type="int8",
        weight_type="int8",
        reduce_range=False,
        products_only=True,
    )


def plain_for(engine: HeadEngine) -> tuple[Recipe, ...]:
    """The recipes that are tried first, most promising first, none twice."""
    return PLAIN if engine == "onnxruntime" else tuple(distinct(map(for_tensorrt, PLAIN), ()))


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
    """What one layer costs in eight bits.

    `own_db` is the SQNR of its own inputs and weights, `damage` noise over signal (power) at the model's outputs when
    it alone is quantised: measured where `alone` is given, else its part of what its neighbours cost together. `saved`
    is the share of fp32's time that its eight bits save, by estimate.
    """

    layer: Layer
    own_db: float | None
    damage: float
    saved: float
    alone: Score | None = None
    left_float: bool = False

    @property
    def outputs_db(self) -> float:
        """SQNR of the model's outputs when this layer alone is quantised."""
        return -10.0 * math.log10(self.damage) if self.damage > 0.0 else math.inf


Graph = TypeVar("Graph")


class Kitchen(Protocol[Graph]):
    """What the search asks of the world. Any call with a graph may raise ModelError or EngineError: it is then out.

    `sense` judges on a few calibration samples, `fit` on all of them, `certify` on the held-out ones; `ratio` is the
    graph's time over the fp32 model's; `own_noise` is in dB by layer name; `asked` puts the bound in words.
    """

    def layers(self) -> Sequence[Layer]: ...
    def own_noise(self) -> dict[str, float]: ...
    def bake(self, recipe: Recipe) -> Graph: ...
    def sense(self, graph: Graph) -> Score: ...
    def fit(self, graph: Graph) -> Score: ...
    def certify(self, graph: Graph) -> Score: ...
    def ratio(self, graph: Graph) -> float: ...
    def asked(self, *, held_out: bool) -> str: ...


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
        named = ", ".join(f"{cost.layer.name} ({cost.outputs_db:.0f} dB)" for cost in self.layers)
        culprits = f"; most of the noise at the outputs comes from {named}" if named else ""
        return f"{self.reason}{culprits}"


def excluding(recipe: Recipe, nodes: Iterable[str]) -> Recipe:
    """The recipe with these nodes left float as well."""
    return msgspec.structs.replace(recipe, excluded=tuple(dict.fromkeys([*recipe.excluded, *nodes])))


def only(recipe: Recipe, layers: Sequence[Layer], some: Iterable[Layer]) -> Recipe:
    """The recipe for `some` of the model's layers alone."""
    kept = {layer.name for layer in some}
    return excluding(recipe, (n for layer in layers if layer.name not in kept for n in layer.nodes))


def without_worst(recipe: Recipe, order: Sequence[LayerCost], count: int) -> Recipe:
    """The recipe with the first `count` layers of `order` left float as well."""
    return excluding(recipe, (n for cost in order[:count] for n in cost.layer.nodes))


def safer_forms(recipe: Recipe, costs: Iterable[LayerCost]) -> tuple[Recipe, ...]:
    """The recipe, then the same with a tenth and with a third of the other layers left float, worst first."""
    order = [c for c in by_damage(costs) if c.layer.name not in recipe.excluded]
    counts = sorted({max(1, len(order) // 10), max(1, len(order) // 3)}) if len(order) > 1 else []
    return (recipe, *(without_worst(recipe, order, count) for count in counts))


def shared_out(total: float, layers: Sequence[Layer], own_db: Mapping[str, float]) -> dict[str, float]:
    """A stretch's damage divided among its layers as their own noise is."""
    powers = {layer.name: power(own_db[layer.name]) if layer.name in own_db else 0.0 for layer in layers}
    whole = sum(powers.values())
    return {n: total * (p / whole if whole > 0.0 else 1.0 / len(layers)) for n, p in powers.items()}


def by_damage(costs: Iterable[LayerCost]) -> list[LayerCost]:
    """Most damage per time saved first: what to give up first. Layers that save nothing come before all others."""
    return sorted(costs, key=lambda c: -c.damage / max(c.saved, 1e-6))


def preventing(costs: Iterable[LayerCost], limit: int = 5) -> tuple[LayerCost, ...]:
    """The layers that make most of the noise together, worst first, at most `limit`."""
    worst = sorted(costs, key=lambda c: -c.damage)
    total = sum(c.damage for c in worst)
    found: list[LayerCost] = []
    for cost in worst[:limit]:
        if sum(c.damage for c in found) < _MOST_OF_THE_NOISE * total:
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


def stretches(layers: Sequence[Layer], count: int = 8) -> Iterator[tuple[Layer, ...]]:
    """Consecutive layers in at most `count` groups of about equal work."""
    total = sum(layer.work for layer in layers)
    group: list[Layer] = []
    done = 0.0
    for layer in layers:
        group.append(layer)
        done += layer.work
        if done >= total / count:
            yield tuple(group)
            group, done = [], 0.0
    if group:
        yield tuple(group)


def power(db: float) -> float:
    """Noise power over signal power: 10 ** (-dB / 10)."""
    return float(10.0 ** (-db / 10.0))
