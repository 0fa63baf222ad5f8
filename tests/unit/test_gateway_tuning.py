"""Tuning: the simulation beside closed forms, the measuring on a clock of ours, the choice and its reasons."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from cloud_gateway.config import load_settings
from cloud_gateway.models.lanes import Lane, LaneRules
from cloud_gateway.tuning.cli import tune
from cloud_gateway.tuning.measure import ENOUGH, measure
from cloud_gateway.tuning.optuna_search import search_jointly
from cloud_gateway.tuning.search import Goal, Pair, as_toml, best_of, grid, pairs, score, search, why
from cloud_gateway.tuning.subject import open_subject
from cloud_gateway.tuning.traffic import Measured, Setting, play
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.errors import InputError
from protocol.tensors import Array, Tensors, TensorSpec
from tests import models

SIZES = (1, 2, 4, 8, 16)
X = BoundaryTensor(TensorSpec("x", "float32", ("N", 3)), "raw", 0)


def machine(cost_s: Callable[[int], float], sizes: tuple[int, ...] = SIZES) -> Measured:
    """One on which a batch always takes the same time."""
    return Measured({size: [cost_s(size)] * 20 for size in sizes})


def batching_pays(batch: int) -> float:
    return 0.004 + 0.0002 * batch


def batching_is_useless(batch: int) -> float:
    return 0.004 * batch


def goal(slo_s: float, rate_per_s: float | None = None) -> Goal:
    return Goal(slo_s, rate_per_s, requests=250)


def recommended(measurements: dict[Pair, Measured], wanted: Goal) -> Setting:
    found = search(measurements, grid(measurements), wanted, out_of_time=lambda: False)
    best = best_of(found, wanted)
    assert best is not None
    return best.setting


# ---- the simulation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_server_without_batches_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    service_s = 0.01
    outcome = play(
        machine(lambda _: service_s), Setting(1, 1, 1), rate_per_s=load / service_s, budget_s=9, requests=12_000, seed=1
    )
    expected_s = service_s * (1 + load / (2 * (1 - load)))
    assert outcome.mean_s == pytest.approx(expected_s, rel=0.05)
    assert (outcome.in_time, outcome.late, outcome.refused, outcome.mean_batch) == (12_000, 0, 0, 1.0)


def test_requests_that_come_one_by_one_run_at_once_and_alone() -> None:
    outcome = play(machine(batching_pays), Setting(1, 1, 16), rate_per_s=1.0, budget_s=1.0, requests=50, seed=1)
    assert outcome.p50_s == pytest.approx(batching_pays(1))
    assert outcome.mean_batch == pytest.approx(1.0, abs=0.1)


def test_under_overload_every_request_ends_and_those_that_are_answered_are_in_time() -> None:
    measured = machine(batching_pays)
    setting = Setting(1, 1, 16)
    ceiling = measured.ceiling_per_s(setting)
    outcome = play(measured, setting, rate_per_s=2 * ceiling, budget_s=0.05, requests=3000, seed=1)
    assert outcome.in_time + outcome.late + outcome.refused == 3000
    assert outcome.late == 0
    assert outcome.share_in_time > 0.35
    assert outcome.mean_batch > 14


def test_the_same_seed_plays_the_same() -> None:
    outcomes = [
        play(machine(batching_pays), Setting(1, 2, 8), rate_per_s=900, budget_s=0.05, requests=500, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_an_efficiency_delay_gathers_larger_batches_and_loses_nobody() -> None:
    def mean_batch(delay_ms: float) -> float:
        setting = Setting(1, 1, 16, delay_ms)
        outcome = play(machine(batching_pays), setting, rate_per_s=300, budget_s=0.1, requests=1000, seed=1)
        assert outcome.in_time == 1000
        return outcome.mean_batch

    assert mean_batch(20.0) > 2 * mean_batch(0.0)


def test_durations_between_measured_sizes_are_in_proportion() -> None:
    measured = Measured({1: [1.0, 3.0], 4: [2.0, 6.0], 2: []})
    assert measured.sizes == [1, 4]
    assert [measured.seconds(size, 0.0) for size in (1, 2, 4, 8)] == [1.0, pytest.approx(4 / 3), 2.0, 4.0]
    assert measured.seconds(4, 1.0) == 6.0


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_batches_are_recommended_where_they_pay_and_not_where_they_do_not() -> None:
    assert recommended({(1, 1): machine(batching_pays)}, goal(0.05)).max_batch_size == 16
    assert recommended({(1, 1): machine(batching_is_useless)}, goal(0.05)).max_batch_size == 1


def test_a_tight_budget_keeps_batches_small() -> None:
    def steep(batch: int) -> float:
        return 0.003 + 0.001 * batch

    assert recommended({(1, 1): machine(steep)}, goal(0.2)).max_batch_size == 16
    assert recommended({(1, 1): machine(steep)}, goal(0.012)).max_batch_size < 16


def test_a_second_instance_is_taken_only_where_it_adds_something() -> None:
    alone, side_by_side = machine(batching_pays), machine(lambda batch: 2 * batching_pays(batch))
    assert recommended({(1, 1): alone, (1, 2): alone}, goal(0.05)).instances == 2
    assert recommended({(1, 1): alone, (1, 2): side_by_side}, goal(0.05)).instances == 1


def test_at_a_given_rate_the_soonest_answers_win() -> None:
    measurements = {(1, 2): machine(batching_is_useless, (1,)), (2, 1): machine(lambda batch: 0.0021 * batch, (1,))}
    assert recommended(measurements, Goal(0.1)).threads == 1, "two instances answer 500/s, two threads 476"
    assert recommended(measurements, Goal(0.1, rate_per_s=5)).threads == 2


def test_a_rate_that_nothing_bears_is_said() -> None:
    measurements = {(1, 1): machine(batching_pays)}
    wanted = goal(0.05, rate_per_s=1e6)
    found = search(measurements, grid(measurements), wanted, out_of_time=lambda: False)
    best = best_of(found, wanted)
    assert best is not None
    assert not best.meets(wanted)
    assert "no setting bears the 1e+06/s" in why(best, found, measurements, wanted)[-1]


def test_a_model_slower_than_the_budget_has_no_recommendation() -> None:
    measurements = {(1, 1): machine(batching_pays)}
    found = search(measurements, grid(measurements), goal(0.001), out_of_time=lambda: False)
    assert best_of(found, goal(0.001)) is None


def test_when_time_is_over_one_setting_was_still_scored() -> None:
    measurements = {(1, 1): machine(batching_pays)}
    assert len(search(measurements, grid(measurements), goal(0.05), out_of_time=lambda: True)) == 1


def test_the_reasons_name_the_numbers_and_a_restless_machine() -> None:
    restless = Measured({size: [batching_pays(size)] * 8 + [batching_pays(size) * 3] * 2 for size in SIZES})
    measurements = {(1, 1): restless, (1, 2): machine(batching_is_useless)}
    wanted = goal(0.1)
    found = search(measurements, grid(measurements), wanted, out_of_time=lambda: False)
    best = best_of(found, wanted)
    assert best is not None
    text = "\n".join(why(best, found, measurements, wanted))
    assert "batch up to 16, 1 instance, 1 thread answers" in text
    assert "a batch of 16 takes 7.20 ms where one row takes 4.20: 9.3 times the rows a second" in text
    assert "took 3.0 times the median: something else was running" in text


def test_what_is_recommended_is_a_file_that_the_gateway_takes(tmp_path: Path) -> None:
    measured = machine(batching_pays)
    file = tmp_path / "tuned.toml"
    file.write_text(as_toml("resnet-18.v2", score(measured, Setting(2, 3, 8, 1.5), goal(0.05))))
    settings = load_settings(file=file, env={}).settings
    mine = settings.models.override["resnet-18.v2"]
    assert (mine.threads, mine.instances, mine.max_batch_size, mine.efficiency_delay_ms) == (2, 3, 8, 1.5)
    assert settings.scheduling.workers == 3


def test_pairs_use_at_most_the_processors_there_are() -> None:
    assert pairs(1) == [(1, 1)]
    assert pairs(3) == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
    assert all(threads * instances <= 12 for threads, instances in pairs(12))


def test_optuna_finds_what_the_grid_finds() -> None:
    pytest.importorskip("optuna")
    measurements = {(1, 1): machine(batching_pays), (2, 1): machine(lambda batch: batching_pays(batch) * 1.5)}
    tries = itertools.count()
    found = search_jointly(measurements, goal(0.05), out_of_time=lambda: next(tries) >= 10)
    best = best_of(found, goal(0.05))
    assert best is not None
    assert (best.setting.threads, best.setting.instances) == (1, 1)
    grid_best = search(measurements, grid(measurements), goal(0.05), out_of_time=lambda: False)[0]
    assert best.sustained_per_s >= grid_best.sustained_per_s * 0.97
    assert all(each.setting.delay_ms == 0 for each in found if each.setting.max_batch_size == 1)


# ---- the measuring --------------------------------------------------------------------------------------------------


class Machine:
    """A clock that only engines move: a batch takes `cost_s(rows)`."""

    def __init__(self, cost_s: Callable[[int], float]) -> None:
        self.now = 0.0
        self.runs: list[int] = []
        self._cost_s = cost_s

    def lane(self, *, batchable: bool = True) -> Lane:
        def run(tensors: Tensors) -> dict[str, Array]:
            rows = len(tensors["x"])
            self.now += self._cost_s(rows)
            self.runs.append(rows)
            return {"y": tensors["x"]}

        engine = FakeEngine(run, inputs=(X.spec,))
        engine.activate()
        return Lane("f" * 64, engine, boundary=(X,), output_axes={"y": 0}, batchable=batchable, rules=LaneRules())

    def clock(self) -> float:
        return self.now


def test_batches_grow_as_far_as_that_pays() -> None:
    for cost_s, sizes in ((batching_pays, [1, 2, 4, 8, 16, 32]), (batching_is_useless, [1, 2, 4])):
        world = Machine(cost_s)
        found = measure({1: world.lane()}, [(1, 1)], largest=32, slo_s=1.0, budget_s=1e6, clock=world.clock)
        assert found[1, 1].sizes == sizes
        assert all(len(runs) == ENOUGH for runs in found[1, 1].runs.values())
        assert found[1, 1].median_s(2) == pytest.approx(cost_s(2))


def test_a_batch_longer_than_the_budget_of_a_request_is_the_last_one() -> None:
    world = Machine(batching_pays)
    found = measure({1: world.lane()}, [(1, 1)], largest=64, slo_s=0.005, budget_s=1e6, clock=world.clock)
    assert found[1, 1].sizes == [1, 2, 4, 8]


def test_what_may_not_be_batched_is_measured_at_one_row() -> None:
    world = Machine(batching_pays)
    measure({1: world.lane(batchable=False)}, [(1, 1)], largest=64, slo_s=1.0, budget_s=1e6, clock=world.clock)
    assert set(world.runs) == {1}


def test_measuring_ends_with_its_budget_but_sees_every_pair() -> None:
    world = Machine(batching_pays)
    lanes = {1: world.lane(), 2: world.lane()}
    found = measure(lanes, [(1, 1), (2, 1)], largest=64, slo_s=1.0, budget_s=0.5, clock=world.clock)
    assert set(found) == {(1, 1), (2, 1)}
    assert world.now < 0.6
    found = measure(lanes, [(1, 1), (2, 1)], largest=64, slo_s=1.0, budget_s=0.0, clock=world.clock)
    assert [measured.sizes for measured in found.values()] == [[1], [1]]


def test_every_size_is_visited_in_every_round() -> None:
    world = Machine(batching_pays)
    measure({1: world.lane()}, [(1, 1)], largest=8, slo_s=1.0, budget_s=1e6, clock=world.clock)
    visits = [rows for rows, _ in itertools.groupby(world.runs)]
    assert len(visits) > 3 * 4 * 4, "one after the other, a slow moment would fall on one size"


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "toy" / "1"
    folder.mkdir(parents=True)
    return models.write(models.residual(), folder)


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(tune)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_tune_prints_a_table_and_writes_what_it_recommends(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "tuned.toml"
    done = run(model, "--slo-ms", 2000, "--budget-s", 0.6, "--max-batch-size", 4, "--processors", 1, "--output", target)
    assert done.exit_code == 0, done.stderr
    assert "in time/s" in done.stderr
    assert done.stdout in target.read_text()
    override = load_settings(file=target, env={}).settings.models.override["model"]
    assert override.threads == override.instances == 1


def test_tune_says_the_same_as_json(model: Path) -> None:
    done = run(model.parent, "--slo-ms", 2000, "--budget-s", 0.3, "--max-batch-size", 2, "--processors", 1, "--json")
    document = json.loads(done.stdout)
    assert document["model"] == "toy"
    assert document["placement"] == "full-cloud"
    assert document["recommended"] in document["tried"]
    assert {row["batch"] for row in document["measured"]} <= {1, 2}
    assert document["why"]


def test_tune_refuses_what_cannot_be_met_or_opened(model: Path, tmp_path: Path) -> None:
    done = run(model, "--slo-ms", 0.001, "--budget-s", 0.1, "--max-batch-size", 1, "--processors", 1)
    assert isinstance(done.exception, InputError)
    assert "one row takes" in str(done.exception)
    assert isinstance(run(tmp_path, "--slo-ms", 9).exception, InputError)


def test_every_form_of_a_model_can_be_tuned(model: Path, toy_bundle: Path, tmp_path: Path) -> None:
    assert open_subject(model, None).name == "model"
    assert open_subject(model.parent, None).name == "toy"
    assert open_subject(model.parents[1], None).version == 1
    assert open_subject(toy_bundle, None).tails[0].placement == "full-cloud"
    assert open_subject(toy_bundle, "cut-1").tails[0].placement == "cut-1"
    with pytest.raises(InputError, match=r"no placement cut-9; it has .*cut-1"):
        open_subject(toy_bundle, "cut-9")
    with pytest.raises(InputError, match="is no model"):
        open_subject(tmp_path, None)
