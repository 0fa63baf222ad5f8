"""The search for the fastest INT8 recipe whose promise holds. Pure: what is baked, judged and timed comes as a Kitchen.

    plain recipes, most promising first  --fit-->  those that hold on the calibration samples  --time-->  fastest first
    layers in stretches, the noisiest halved again and again   --sense-->   what each layer costs
    whatever is to ship                  --certify-->  held-out samples, looked at no more than `LOOKS` times
    none holds: the fewest layers left float that make it hold, most damage per time saved first (bisection)

Choosing uses the calibration samples alone. The held-out ones only say yes or no, and few times, since the best of
many looks at them would be fitted to them as well. After a no only a clearly truer recipe is shown to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic

from partitioner.int8.recipes import (
    PLAIN,
    Graph,
    Kitchen,
    Layer,
    LayerCost,
    Recipe,
    RecipeResult,
    Refusal,
    Score,
    Trial,
    by_damage,
    excluding,
    fastest_first,
    only,
    power,
    preventing,
    safer_forms,
    shared_out,
    stretches,
    without_worst,
)
from protocol.errors import EngineError, ModelError

LOOKS = 4
TRUER_DB = 1.0  # how much truer, in SQNR of the outputs, a recipe must be after a no
MIN_PLAIN = 2  # plain recipes that are tried whatever the budget
MAX_RATIO = 1.0
FASTER = 1.03  # a stretch left float must make at least this much faster; repeatability is 2-8 % (measured)
_NEGLIGIBLE = 0.02  # of all damage: a stretch that does less is not looked into
# Shares of the budget after which each stage stops; the last one may use all.
_PLAIN_UNTIL, _LAYERS_UNTIL, _SLOW_UNTIL = 0.35, 0.6, 0.75


def search(
    kitchen: Kitchen[Graph],
    *,
    budget_s: float,
    now: Callable[[], float],
    plain: Sequence[Recipe] = PLAIN,
    max_ratio: float = MAX_RATIO,
    is_timed: bool = True,
) -> RecipeResult[Graph] | Refusal:
    """The fastest recipe that meets the bound on calibration and on held-out samples, or why there is none.

    `budget_s` is in seconds of `now()`; it bounds what is tried, not the step in progress. `max_ratio` is the longest
    time, as a share of fp32's, that is worth shipping. Where ratios are estimates and not `is_timed`, no layer is found
    that is faster in float.
    """
    return _Search(kitchen, budget_s, now, max_ratio, is_timed).run(plain)


class _Search(Generic[Graph]):
    def __init__(
        self, kitchen: Kitchen[Graph], budget_s: float, now: Callable[[], float], max_ratio: float, is_timed: bool
    ) -> None:
        self.kitchen = kitchen
        self.now = now
        self.started_s = now()
        self.budget_s = budget_s
        self.max_ratio = max_ratio
        self.is_timed = is_timed
        self.trials: dict[Recipe, Trial] = {}
        self.costs: list[LayerCost] = []
        self.looks = 0
        self.floor_db = -math.inf

    def run(self, plain: Sequence[Recipe]) -> RecipeResult[Graph] | Refusal:
        for count, recipe in enumerate(plain):
            if count < MIN_PLAIN or self._spent() < _PLAIN_UNTIL:
                self._try(recipe)
        base = self._truest()
        if base is None:
            return Refusal(self._why(), (), tuple(self.trials.values()), ())
        self.costs = self._layer_costs(base)
        if (candidates := self._candidates()) and self.is_timed:
            self._leave_slow_layers_float(candidates[0])
        found = self._certified(base)
        if found is not None:
            return found
        spent = self._spent() >= 1.0
        culprits = preventing(self.costs)
        if not spent:
            culprits = tuple(replace(c, alone=self._fit_alone(base.recipe, c)) for c in culprits)
        why = self._why()
        if spent:
            why += f"; the search ended after its {self.budget_s:g} s (--recipe-budget-s)"
        return Refusal(why, culprits, tuple(self.trials.values()), safer_forms(base.recipe, self.costs))

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

    def _certified(self, base: Trial) -> RecipeResult[Graph] | None:
        """Show the fastest that may hold to the held-out samples; where there is none, look for a truer one."""
        while self.looks < LOOKS and (self._candidates() or self._leave_more_float(base.recipe)):
            result = self._certify(self._candidates()[0])
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
        safer = tuple(dict.fromkeys([*others, *safer_forms(trial.recipe, self.costs)[1:]]))
        costs = tuple(replace(c, left_float=c.layer.name in trial.recipe.excluded) for c in self.costs)
        return RecipeResult(graph, trial.recipe, trial.held_out, trial.ratio, costs, tuple(self.trials.values()), safer)

    def _layer_costs(self, base: Trial) -> list[LayerCost]:
        """Every layer's own noise, and its part of what its stretch of layers does to the outputs."""
        layers = self.kitchen.layers()
        own = self.kitchen.own_noise()
        parts = self._damages(base.recipe, layers)
        alone = {stretch[0].name: score for stretch, score in parts if score is not None and len(stretch) == 1}
        damage: dict[str, float] = {}
        for stretch, score in parts:
            total = 0.0 if score is None else power(score.sqnr_db)
            damage |= shared_out(total, stretch, own)
        work = sum(layer.work for layer in layers) or 1.0
        gain = max(0.0, 1.0 - base.ratio) if base.ratio is not None else 0.5
        costs = [LayerCost(c, own.get(c.name), damage[c.name], gain * c.work / work, alone.get(c.name)) for c in layers]
        return sorted(costs, key=lambda c: -c.damage)

    def _damages(self, recipe: Recipe, layers: Sequence[Layer]) -> list[tuple[tuple[Layer, ...], Score | None]]:
        """Stretches of layers and the outputs when each alone is quantised, the noisiest halved while time lasts."""
        parts = [(stretch, self._alone(recipe, stretch)) for stretch in stretches(layers)]
        while self._spent() < _LAYERS_UNTIL:
            noise = [0.0 if score is None or len(s) == 1 else power(score.sqnr_db) for s, score in parts]
            worst = max(range(len(parts)), key=lambda i: noise[i], default=0)
            total = sum(power(score.sqnr_db) for _, score in parts if score is not None)
            if not noise or noise[worst] <= _NEGLIGIBLE * total:
                break
            stretch, _ = parts.pop(worst)
            middle = len(stretch) // 2
            parts += [(half, self._alone(recipe, half)) for half in (stretch[:middle], stretch[middle:])]
        return parts

    def _alone(self, recipe: Recipe, stretch: Sequence[Layer]) -> Score | None:
        try:
            return self.kitchen.sense(self.kitchen.bake(only(recipe, self.kitchen.layers(), stretch)))
        except (ModelError, EngineError):
            return None

    def _fit_alone(self, recipe: Recipe, cost: LayerCost) -> Score | None:
        """One of the worst few once more, on all calibration samples."""
        try:
            return self.kitchen.fit(self.kitchen.bake(only(recipe, self.kitchen.layers(), [cost.layer])))
        except (ModelError, EngineError):
            return cost.alone

    def _leave_slow_layers_float(self, fastest: Trial) -> None:
        """Some layers are slower in eight bits than in float: time the model without each stretch of layers."""
        slow: list[str] = []
        for stretch in stretches(self.kitchen.layers()):
            nodes = [n for layer in stretch for n in layer.nodes]
            without = None if self._spent() >= _SLOW_UNTIL else self._timed(excluding(fastest.recipe, nodes))
            if without is not None and without * FASTER < (fastest.ratio or 0.0):
                slow += nodes
        if slow:
            self._try(excluding(fastest.recipe, slow))

    def _timed(self, recipe: Recipe) -> float | None:
        try:
            return self.kitchen.ratio(self.kitchen.bake(recipe))
        except (ModelError, EngineError):
            return None

    def _leave_more_float(self, recipe: Recipe) -> bool:
        """Search the fewest layers left float with which the recipe may hold; whether that found a candidate.

        As if holding were monotone in their number: doubled from what the damages predict, then bisected.
        """
        order = by_damage(self.costs)
        fails, holds = 0, len(order)
        count = self._predicted(recipe, order)
        while holds - fails > max(1, holds // 8) and (self._spent() < 1.0 or fails == 0):
            trial = self._try(without_worst(recipe, order, count))
            if self._may_hold(trial) or (trial.ratio or 0.0) > self.max_ratio:
                holds = count
            else:
                fails = count
            count = (fails + holds) // 2 if holds < len(order) else min(2 * count, (fails + holds) // 2)
        return bool(self._candidates())

    def _predicted(self, recipe: Recipe, order: Sequence[LayerCost]) -> int:
        """How many layers must go, damages being additive, for the outputs to reach the floor."""
        fit = self.trials[recipe].fit
        noise = 0.0 if fit is None else power(fit.sqnr_db)
        allowed = power(self.floor_db) if self.floor_db > -math.inf else noise
        count = 0
        while count < len(order) - 1 and (noise > allowed or count == 0):
            noise -= order[count].damage
            count += 1
        return min(count, max(1, len(order) // 2))

    def _why(self) -> str:
        tried = list(self.trials.values())
        known = [t for t in tried if t.fit is not None]
        if not known:
            return tried[0].problem if tried else "no recipe was tried"
        if refused := [t.held_out.metric for t in known if t.held_out is not None]:
            near = f"the best reaches {max(refused):.4f}, asked was {self.kitchen.asked(held_out=True)}"
            count = f"{len(refused)} recipe{'s' * (len(refused) != 1)}"
            return f"{count} held on calibration samples but not on held-out ones ({near})"
        if holding := [t.ratio for t in known if t.holds and t.ratio is not None]:
            return f"no recipe that holds is fast enough here (the best takes {min(holding):.2f} of fp32's time)"
        best = max(t.fit.metric for t in known if t.fit is not None)
        near = f"the best reaches {best:.4f}, asked was {self.kitchen.asked(held_out=False)}"
        return f"none of {len(tried)} recipes meets the bound on the calibration samples ({near})"
