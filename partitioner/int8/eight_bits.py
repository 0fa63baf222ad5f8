"""The recipe search on a real model, and what it found applied to its heads.

The search looks at the whole model once. A head is a prefix of it, so the layers that must stay float are the same
ones as far as the head holds them; each head is then judged on its own, the recipe's safer forms following.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import onnx_ir as ir

from partitioner.graph.model import LoadedModel, serialise
from partitioner.int8.bias import dequantised_weights, mean_shifts
from partitioner.int8.calibration import Histogram, collect, ranges_for
from partitioner.int8.head_engine import estimated_ratio, refusal
from partitioner.int8.quantise import first_convolutions, quantise
from partitioner.int8.recipe_search import MAX_RATIO, search
from partitioner.int8.recipes import (
    HeadEngine,
    Layer,
    Recipe,
    RecipeResult,
    Refusal,
    Score,
    distinct,
    plain_for,
    restrict,
)
from partitioner.int8.rounding import rounded
from partitioner.int8.sensitivity import layers_of, own_noise
from partitioner.judging import verify
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges
from partitioner.judging.verify import Outputs, Yardstick
from protocol.engines.ort import OrtEngine
from protocol.errors import ModelError
from protocol.tensors import Array
from protocol.timing import MAX_VISITS, Ratios, visit

BUDGET_S = 60.0
SENSED = 16  # samples that a single layer's effect is measured on
SHIFT_SAMPLES = 64  # means settle fast: 32 of them gave the same accuracy as 64 on MobileNetV2
MOST_FORMS = 3  # of the recipe that are offered to one head


class ModelKitchen:
    """Bakes, judges and times INT8 forms of one model. `stick` judges the held-out samples, and so does its like the
    calibration samples: same metric, same loss allowed. What `engine` does not take is no graph; where it is not this
    machine's ONNX Runtime, times are estimated.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Samples,
        extremes: Ranges,
        stick: Yardstick,
        *,
        threads: int = 1,
        engine: HeadEngine = "onnxruntime",
    ) -> None:
        self.model = model
        self._samples = samples
        self._extremes = extremes
        self._stick = stick
        self._threads = threads
        self._engine = engine
        self._shifts: dict[Recipe, dict[str, Array]] = {}
        self._stack = ExitStack()
        self._fp32 = OrtEngine(model.data, label="fp32", threads=threads)

    def __enter__(self) -> Self:
        self._stack.enter_context(self._fp32)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        return collect(self.model, self._samples, self._extremes, threads=verify.JUDGING_THREADS)

    @cached_property
    def _calibrated(self) -> Yardstick:
        indices = self._samples.calibration
        expected = tuple(verify.run_all(self.model.data, self._samples, indices))
        labels = None if self._samples.labels is None else self._samples.labels[list(indices)]
        return self._stick.like(expected, labels)

    @cached_property
    def _few(self) -> Yardstick:
        labels = self._calibrated.labels
        return self._stick.like(self._calibrated.expected[:SENSED], None if labels is None else labels[:SENSED])

    def layers(self) -> Sequence[Layer]:
        return self._layers

    @cached_property
    def _layers(self) -> tuple[Layer, ...]:
        return layers_of(self.model.topology)

    def own_noise(self) -> dict[str, float]:
        """Without the first convolutions: they stay float in nearly every recipe, and have no part in a stretch."""
        first = set(first_convolutions(self.model.graph))
        return {n: db for n, db in own_noise(self.model.graph, self.histograms).items() if n not in first}

    def ranges(self, recipe: Recipe) -> Ranges:
        return self._extremes if recipe.calibration == "minmax" else ranges_for(recipe, self._extremes, self.histograms)

    def bake(self, recipe: Recipe) -> ir.Model:
        return self.bake_part(self.model.graph, recipe)

    def bake_part(self, part: ir.Model, recipe: Recipe) -> ir.Model:
        """The INT8 form of a prefix of the model.

        Raises ModelError when nothing of it becomes eight bits, or the heads' engine does not take what does.
        """
        restricted = restrict(recipe, (n.name or "" for n in part.graph))
        made = quantise(part, self.ranges(recipe), restricted, self.shifts(recipe) if recipe.correct_bias else None)
        if reason := refusal(self._engine, made, self._samples.whole):
            raise ModelError(reason, "it stays fp32")
        return made

    def shifts(self, recipe: Recipe) -> dict[str, Array]:
        """By how much the recipe's weights shift the mean of each product's output channels, by node name."""
        key = recipe.weights
        if key not in self._shifts:
            weights = dequantised_weights(rounded(self.model.graph, key, self._extremes))
            feeds = self._samples.feeds(self._samples.calibration[:SHIFT_SAMPLES])
            self._shifts[key] = mean_shifts(self.model.graph, weights, feeds, threads=verify.JUDGING_THREADS)
        return self._shifts[key]

    def sense(self, graph: ir.Model) -> Score:
        return self._judge(graph, self._few, self._samples.calibration[:SENSED])

    def fit(self, graph: ir.Model) -> Score:
        return self._judge(graph, self._calibrated, self._samples.calibration)

    def certify(self, graph: ir.Model) -> Score:
        return self._judge(graph, self._stick, self._samples.held_out)

    def asked(self, *, held_out: bool) -> str:
        stick = self._stick if held_out else self._calibrated
        return f"{stick.metric} {stick.bound:.4f}"

    def ratio(self, graph: ir.Model) -> float:
        """Median of the INT8 graph's time over the fp32 model's just before it, until its interval is narrow; by
        estimate where it is not made for this machine."""
        if self._engine != "onnxruntime":
            return estimated_ratio(graph, self.model.topology)
        feed = self._samples.feed(self._samples.calibration[0])
        seen = Ratios()
        with OrtEngine(serialise(graph), label="int8", threads=self._threads) as eight:
            for _ in range(MAX_VISITS):
                visit(lambda: eight.infer(feed), lambda: self._fp32.infer(feed), seen, [], threads=self._threads)
                if seen.is_narrow:
                    break
        return statistics.median(seen.ratios)

    def _judge(self, graph: ir.Model, stick: Yardstick, indices: Sequence[int]) -> Score:
        got = verify.run_all(serialise(graph), self._samples, indices)
        return Score(*stick.judge(got), outputs_db(stick.expected, got))


@dataclass(frozen=True)
class RecipeBook:
    """What the search found for the whole model, and the same for its heads."""

    kitchen: ModelKitchen
    whole: RecipeResult[ir.Model] | Refusal

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What to try on a head, best first."""
        if isinstance(self.whole, RecipeResult):
            return (self.whole.recipe, *self.whole.safer)
        return self.whole.closest

    def for_head(self, head: ir.Model) -> Iterator[tuple[Recipe, ir.Model]]:
        """Up to MOST_FORMS INT8 forms of a head, best first, each made when it is asked for; none twice.

        What cannot be made is left out. Raises ModelError, with the reason, when none can.
        """
        recipes = distinct(self.recipes, [node.name or "" for node in head.graph])
        made, problem = 0, "no recipe came near the bound"
        for recipe in recipes[:MOST_FORMS]:
            try:
                graph = self.kitchen.bake_part(head, recipe)
            except ModelError as error:
                problem = error.fact
                continue
            made += 1
            yield recipe, graph
        if not made:
            raise ModelError(problem, "it stays fp32")


def find_recipe(
    model: LoadedModel,
    samples: Samples,
    extremes: Ranges,
    stick: Yardstick,
    *,
    threads: int = 1,
    budget_s: float = BUDGET_S,
    max_ratio: float = MAX_RATIO,
    now: Callable[[], float] = time.monotonic,
    engine: HeadEngine = "onnxruntime",
) -> RecipeBook:
    """Search the recipes of a model. `extremes` are its MinMax ranges, `stick` its yardstick on the held-out samples.

    Raises InputError when calibration meets NaN, naming the tensor.
    """
    with ModelKitchen(model, samples, extremes, stick, threads=threads, engine=engine) as kitchen:
        found = search(
            kitchen,
            budget_s=budget_s,
            now=now,
            plain=plain_for(engine),
            max_ratio=max_ratio,
            is_timed=engine == "onnxruntime",
        )
        return RecipeBook(kitchen, found)


def outputs_db(expected: Sequence[Outputs], got: Sequence[Outputs]) -> float:
    """Signal over noise of the worst float output over all samples, in dB; infinite where all are equal.

    Probabilities are compared by their logarithms: after Softmax the few undecided samples would drown all others.
    """
    worst = np.inf
    for name in expected[0]:
        if expected[0][name].dtype.kind != "f":
            continue
        pairs = [(_evened(e[name]), _evened(g[name])) for e, g in zip(expected, got, strict=True)]
        same = [(e, g) for e, g in pairs if e.shape == g.shape]
        signal = sum(float(np.square(e).sum()) for e, _ in same)
        noise = sum(float(np.square(e - g).sum()) for e, g in same)
        if noise > 0.0:
            worst = min(worst, 10.0 * np.log10(max(signal, 1e-30) / noise))
    return float(worst)


def _evened(array: Array) -> Array:
    exact: Array = array.astype(np.float64)
    if exact.ndim < 2 or exact.shape[1] < 2 or exact.min() < 0.0 or not np.allclose(exact.sum(axis=1), 1.0, atol=1e-2):
        return exact
    logs: Array = np.log(np.maximum(exact, 1e-9))
    centred: Array = logs - logs.mean(axis=1, keepdims=True)
    return centred
