"""INT8 recipes on real models and labelled images: speed, accuracy, what the search returns, which layers hurt.

Law: the first half of the images (at most 128) calibrates and chooses, the others judge. Speed is the INT8 graph's time
over the fp32 one's, one thread, taken in turn. Settings: `models=digits,mobilenet_v2,resnet8`, `budget=120` seconds of
search for each model, `images=250` for fewer, `heads=tensorrt` for recipes that TensorRT takes, at estimated times.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.results import Options, Result
from examples.digits import data as digits
from partitioner.graph.model import load, serialise
from partitioner.int8.eight_bits import ModelKitchen, RecipeBook, find_recipe
from partitioner.int8.recipes import HeadEngine, LayerCost, Recipe, RecipeResult, plain_for
from partitioner.judging import verify
from partitioner.judging.data import Samples
from partitioner.judging.observe import observed_topology, ranges
from partitioner.judging.verify import Yardstick
from protocol.errors import EngineError, ModelError
from protocol.tensors import Array

SHARED = Path(os.environ.get("ISTHMUS_SHARED", Path(__file__).parents[2] / "shared"))
DIGITS = Path(digits.__file__).with_name("digits.onnx")
BOUND = 0.01
SEED = 20_261_121
WORST_LAYERS = 10


class Subject(NamedTuple):
    """A model, its inputs (first axis: samples) and its labels."""

    path: Path
    inputs: Array
    labels: Array


def run(options: Options) -> list[Result]:
    """Raises KeyError for a model that is not known and FileNotFoundError where the shared folder is missing."""
    names = options.settings.get("models", "resnet8" if options.quick else ",".join(SUBJECTS)).split(",")
    budget_s = 15.0 if options.quick else float(options.settings.get("budget", 120))
    most = int(options.settings.get("images", 200 if options.quick else 1_000))
    heads: HeadEngine = "tensorrt" if options.settings.get("heads") == "tensorrt" else "onnxruntime"
    return [r for name in names for r in _of(name, SUBJECTS[name](), budget_s, most, options.repeats, heads)]


def _of(name: str, subject: Subject, budget_s: float, most: int, repeats: int, heads: HeadEngine) -> Iterator[Result]:
    order = np.random.default_rng(SEED).permutation(len(subject.inputs))[:most]  # folders are sorted by class
    model = load(subject.path)
    given = {model.inputs[0].name: subject.inputs[order]}
    samples = Samples(given, frozenset(), subject.labels[order], is_random=False, digest="")
    model = replace(model, topology=observed_topology(model, samples))
    seen = ranges(model, samples, threads=verify.JUDGING_THREADS)
    expected = verify.run_all(model.data, samples, samples.held_out)
    stick = verify.yardstick(expected, samples, model.outputs[0].name, BOUND)
    yield _figure(f"{name}: fp32", "top-1", stick.reference, len(expected), _counts(samples))
    book = find_recipe(model, samples, seen, stick, budget_s=budget_s, engine=heads)
    with book.kitchen as kitchen:
        for recipe in plain_for(heads):
            yield from _recipe(f"{name}: {recipe.title}", kitchen, recipe, stick, samples, repeats)
        yield from _chosen(name, kitchen, book, stick, samples, repeats)


def _counts(samples: Samples) -> str:
    return f"{len(samples.calibration)} images calibrate and choose, {len(samples.held_out)} judge"


def _recipe(
    name: str, kitchen: ModelKitchen, recipe: Recipe, stick: Yardstick, samples: Samples, repeats: int
) -> Iterator[Result]:
    try:
        graph = kitchen.bake(recipe)
        ratios = [kitchen.ratio(graph) for _ in range(repeats)]
        got = verify.run_all(serialise(graph), samples, samples.held_out)
    except (ModelError, EngineError) as error:
        yield _figure(name, "x fp32 time", math.nan, 0, error.fact)
        return
    score, agreement = stick.score(got), _agreement(stick, got)
    calibrated = kitchen.fit(graph)
    note = f"agrees {agreement:.4f}; on calibration {calibrated.metric:.4f}, outputs {calibrated.sqnr_db:.1f} dB"
    yield Result.of(f"{name}, time", "x fp32 time", ratios)
    yield _figure(f"{name}, accuracy", "top-1", score, len(got), note)


def _agreement(stick: Yardstick, got: list[verify.Outputs]) -> float:
    return replace(stick, metric="agreement", labels=None).score(got)


def _chosen(
    name: str, kitchen: ModelKitchen, book: RecipeBook, stick: Yardstick, samples: Samples, repeats: int
) -> Iterator[Result]:
    found = book.whole
    if not isinstance(found, RecipeResult):
        refusal = _figure(f"{name}: refused", "top-1", math.nan, 0, str(found))
        yield replace(refusal, target="a recipe", ok=False)
    else:
        for result in _recipe(f"{name}: CHOSEN", kitchen, found.recipe, stick, samples, repeats):
            if result.unit == "top-1":
                ok = result.median >= stick.bound - 1e-9
                result = replace(result, target=f">= {stick.bound:.4f}", ok=ok)
            yield replace(result, note=f"{found.recipe.title}; {result.note}".rstrip("; "))
    yield from (_layer(f"{name}: layer", cost) for cost in found.layers[:WORST_LAYERS] if cost.damage > 0.0)


def _layer(name: str, cost: LayerCost) -> Result:
    own = "unknown" if cost.own_db is None else f"{cost.own_db:.1f} dB"
    how = "measured alone" if cost.alone is not None else "its part of a stretch"
    note = f"{cost.layer.op}, own noise {own}, saves {cost.saved:.1%} of fp32's time, {how}"
    left = ", LEFT FLOAT" if cost.left_float else ""
    return _figure(f"{name} {cost.layer.name}", "dB", cost.outputs_db, 1, note + left)


def _figure(name: str, unit: str, value: float, count: int, note: str) -> Result:
    return Result(name, unit, value, value, value, count, note=note)


def _digits() -> Subject:
    frames, labels = digits.calibration_frames(128)
    held_out, more = digits.held_out_frames()
    return Subject(DIGITS, np.concatenate([frames, held_out]), np.concatenate([labels, more]))


def _mobilenet() -> Subject:
    paths = sorted(_shared("data/imagenet").glob("*.jpg"))
    labels = np.array([int(path.name.split("_")[0]) + 1 for path in paths])  # class 0 is the background
    return Subject(_shared("models/mobilenet_v2_224.onnx"), np.stack([_picture(path) for path in paths]), labels)


def _picture(path: Path) -> Array:
    """float32 [3,224,224]: the central square of 87.5 % of the shorter side, x / 127.5 - 1."""
    with Image.open(path) as image:
        side = round(min(image.size) * 0.875)
        left, top = ((length - side) // 2 for length in image.size)
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        pixels = np.asarray(square.resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    scaled: Array = (pixels / np.float32(127.5) - np.float32(1.0)).transpose(2, 0, 1)
    return scaled


def _resnet8() -> Subject:
    with np.load(_shared("data/cifar10_1000.npz"), allow_pickle=False) as archive:
        images, labels = archive["x"], archive["y"]
    return Subject(
        _shared("models/resnet8l_cifar10.onnx"), images.transpose(0, 3, 1, 2).astype(np.float32), labels.reshape(-1)
    )


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is needed; set ISTHMUS_SHARED to the folder that holds it, or choose models=")
    return path


SUBJECTS: dict[str, Callable[[], Subject]] = {"digits": _digits, "mobilenet_v2": _mobilenet, "resnet8": _resnet8}
