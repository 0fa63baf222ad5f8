"""The joint space (batch bounds between the measured ones, efficiency delay) searched by Optuna. The extra `tune`.

The measurements are the same as the grid's; Optuna's sampler (TPE, seeded) proposes settings, the simulation answers.
"""

from __future__ import annotations

from collections.abc import Callable

from cloud_gateway.tuning.search import Goal, Measurements, Scored, score
from cloud_gateway.tuning.traffic import Setting
from protocol.errors import EngineError

TRIALS = 60
MOST_DELAY_MS = 10.0


def search_jointly(measurements: Measurements, goal: Goal, *, out_of_time: Callable[[], bool]) -> list[Scored]:
    """Every setting that was tried. Raises EngineError where Optuna is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise EngineError(
            "the package optuna is not installed", "pip install 'isthmus[tune]', or --search grid"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = {f"{threads}x{instances}": (threads, instances) for threads, instances in measurements}
    largest = max(measured.sizes[-1] for measured in measurements.values())
    most_delay_ms = min(MOST_DELAY_MS, goal.slo_s * 500)
    found: dict[Setting, Scored] = {}

    def objective(trial: optuna.Trial) -> float:
        pair = names[trial.suggest_categorical("threads x instances", list(names))]
        measured = measurements[pair]
        bound = min(trial.suggest_int("max_batch_size", 1, largest, log=True), measured.sizes[-1])
        delay_ms = round(trial.suggest_float("efficiency_delay_ms", 0.0, most_delay_ms), 1)
        setting = Setting(*pair, bound, delay_ms if bound > 1 else 0.0)  # alone there is no company to wait for
        if setting not in found:
            found[setting] = score(measured, setting, goal)
        scored = found[setting]
        if goal.rate_per_s is not None and scored.meets(goal) and scored.outcome is not None:
            return -scored.outcome.p99_s
        return scored.sustained_per_s - (1e12 if goal.rate_per_s is not None else 0.0)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=5))
    for pair, measured in measurements.items():  # begin where the grid would look first
        study.enqueue_trial({
            "threads x instances": f"{pair[0]}x{pair[1]}", "max_batch_size": measured.sizes[-1],
            "efficiency_delay_ms": 0.0,
        })  # fmt: skip
    study.optimize(objective, n_trials=TRIALS, callbacks=[lambda s, _: s.stop() if out_of_time() else None])
    return list(found.values())
