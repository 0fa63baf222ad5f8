"""How well a profile predicts cuts that it did not measure: mean absolute percentage error of heads and tails.

Law: a held-out cut is measured with an anchor's effort, in the same session, and never shown to the predictor.
Beside each error stands the machine's own repeatability, the difference when the same cut is measured twice: no
prediction can be better than that. `--set models=a,b` restricts the run, `--set budget=30` gives seconds for anchors,
`--set held_out=6` measures fewer cuts, `--set sides=head` only heads.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.light_models import NAMES, write_light
from benchmarks.results import Options, Result
from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.measuring.anchors import Estimate, Predictor
from partitioner.measuring.profile import ProfileOrder, Survey, load_for
from protocol.bench import Silent
from protocol.profile import Role, Side

ROOT = Path(__file__).parents[1]
BOUND_PERCENT = 5.0
HELD_OUT = 12
TWICE = 4  # held-out cuts that are measured a second time
BUDGET_S = 20.0
SEED = 7
LEAST_SHARE = 0.02  # shorter segments decide nothing; they count, but are told apart
DEFAULT = (
    "squeezenet", "shufflenet", "bvlc_alexnet", "inception_v1", "inception_v2", "resnet50", "densenet121", "zfnet512",
    "mobilenet_v2_224", "resnet8l_cifar10", "yunet_face_640", "digits",
)  # fmt: skip
_ROLES: dict[Side, Role] = {"head": "edge", "tail": "cloud"}


class Checked(NamedTuple):
    """One held-out segment: what was predicted and what was measured, in seconds."""

    cut: tuple[str, ...]
    side: Side
    predicted: Estimate
    measured_s: float
    whole_s: float

    @property
    def percent(self) -> float:
        return 100.0 * abs(self.predicted.seconds / self.measured_s - 1.0)


def run(options: Options) -> list[Result]:
    """Predict heads and tails of every model at cuts that were not measured, and measure them."""
    names = options.settings.get("models", ",".join(DEFAULT)).split(",")
    budget_s = 3.0 if options.quick else float(options.settings.get("budget", BUDGET_S))
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        for name in names:
            path = find(name, Path(folder))
            if path is not None:
                held_out = 4 if options.quick else int(options.settings.get("held_out", HELD_OUT))
                sides = options.settings.get("sides", ",".join(_ROLES)).split(",")
                results += _results(name, *check(path, budget_s, held_out=held_out, sides=sides))
    return results


def find(name: str, folder: Path) -> Path | None:
    """The model's file; None where the shared models are absent."""
    if name in NAMES:
        return write_light(name, folder)
    if name == "digits":
        return ROOT / "examples" / "digits" / "digits.onnx"
    if name not in DEFAULT:
        raise SystemExit(f"no model {name!r} here; these are: {', '.join(DEFAULT)}")
    path = Path(os.environ.get("ISTHMUS_SHARED", ROOT.parent / "shared")) / "models" / f"{name}.onnx"
    return path if path.is_file() else None


def check(
    path: Path, budget_s: float, *, held_out: int = HELD_OUT, sides: Iterable[str] = tuple(_ROLES)
) -> tuple[list[Checked], list[float], int]:
    """Held-out segments, relative differences of those measured twice (in per cent), and the number of anchors."""
    model, samples = load_for(ProfileOrder(path, "edge"), Silent())
    topology = model.topology
    checked: list[Checked] = []
    twice: list[float] = []
    anchors = 0
    for side, role in ((s, r) for s, r in _ROLES.items() if s in sides):
        with Survey(model, samples, ProfileOrder(path, role, budget_s=budget_s), Silent()) as survey:
            taken = survey.grow()
            anchors = max(anchors, len(taken))
            predictor = Predictor(survey.profile(), topology)
            free = [c.cut for c in prefix_candidates(topology) if c.cut not in taken]
            cuts = random.Random(SEED).sample(free, min(held_out, len(free)))
            jobs = [survey.segments.job(cut, side) for cut in cuts]
            again = [job._replace(precision="again") for job in jobs[:TWICE]]
            survey.bench.measure([*jobs, *again], budget_s=budget_s, reporter=Silent())
            whole_s = survey.bench.whole.median_s
            pace = predictor.whole_s().seconds / whole_s
            for job in jobs:
                halves = separate(topology, job.cut)
                predicted = predictor.head_s(halves) if side == "head" else predictor.tail_s(halves)
                checked.append(Checked(job.cut, side, predicted, survey.bench.timing(job).median_s * pace, whole_s))
            twice += [
                100.0 * abs(survey.bench.timing(a).median_s / survey.bench.timing(b).median_s - 1.0)
                for a, b in zip(again, jobs, strict=False)
            ]
    return checked, twice, anchors


def _results(name: str, checked: list[Checked], twice: list[float], anchors: int) -> Iterable[Result]:
    for side in dict.fromkeys(c.side for c in checked):
        mine = [c for c in checked if c.side == side]
        errors = [c.percent for c in mine]
        worst = max(mine, key=lambda c: c.percent)
        covered = sum(c.predicted.low <= c.measured_s <= c.predicted.high for c in mine)
        long = [c.percent for c in mine if c.measured_s >= LEAST_SHARE * c.whole_s]
        note = (
            f"{anchors} anchors; {statistics.fmean(long):.1f} % over those above {LEAST_SHARE:.0%} of the whole; "
            f"worst {worst.percent:.0f} % at {worst.measured_s / worst.whole_s:.3f}; in interval {covered}/{len(mine)}"
        )
        mape = statistics.fmean(errors)
        yield Result(
            f"{name} {side}", "%", mape, min(errors), max(errors), len(errors), f"<= {BOUND_PERCENT:g} %",
            mape <= BOUND_PERCENT, note,
        )  # fmt: skip
    yield Result.of(f"{name} same cut twice", "%", twice)
