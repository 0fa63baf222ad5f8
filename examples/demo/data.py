"""The samples: what calibrates the split, what is shown to the agent, and what would be right.

Law: nothing that calibrated is ever shown, and the source of every sample is said in one sentence.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.demo.record import Truth
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, InputError, ModelError
from protocol.tensors import Array, TensorSpec, check_inputs, describe

DIGITS = Path(__file__).resolve().parents[1] / "digits" / "digits.onnx"
LABEL_NAMES = ("labels", "y")
RANDOM_SAMPLES = 64  # half of them calibrate
RANDOM_SEED = 20_261_121
MOST_SHOWN = 500  # the whole model answers each of them once before the curtain rises


@dataclass(frozen=True)
class Samples:
    """Two files of arrays by input name, the labels of those that are shown, and where they came from."""

    calibration: Path
    shown: Path
    labels: Array | None
    story: str


def prepare(model: Path, data: Path | None, out: Path) -> Samples:
    """Write `calibration.npz` and `shown.npz` into `out`. Raises InputError for data that cannot be used."""
    if not model.is_file():
        raise ModelError(f"there is no model at {model}", "name an ONNX file with --model")
    out.mkdir(parents=True, exist_ok=True)
    if data is not None:
        return _halves(_load(data), out, f"samples from {data.name}: the first half calibrated, the second is shown")
    if model.resolve() == DIGITS:
        return _digits(out)
    arrays = _random(_input_specs(model))
    return _halves(arrays, out, "inputs are random (seeded), so accuracy is agreement with the full model")


def truth(bundle: Bundle, samples: Samples) -> Truth:
    """The whole fp32 model's answer to every shown sample, and what is right: the label, or else that answer.

    Raises InputError for samples that the bundle's model does not take.
    """
    arrays = _load(samples.shown)
    check_inputs(bundle.manifest.model.inputs, {name: a[:1] for name, a in arrays.items()})
    count = len(next(iter(arrays.values())))
    with OrtEngine(bundle.read("full.onnx"), label="full model", threads=2) as engine:
        answers = [_top1(engine.infer({n: a[i : i + 1] for n, a in arrays.items()})) for i in range(count)]
    if samples.labels is None:
        return Truth(tuple(answers), (True,) * count, labelled=False)
    right = [int(label) for label in samples.labels]
    return Truth(tuple(right), tuple(a == b for a, b in zip(answers, right, strict=True)), labelled=True)


def _top1(outputs: dict[str, Array]) -> int:
    first = next(iter(outputs.values()))
    return int(first.reshape(len(first), -1).argmax(axis=1)[0]) if first.ndim else 0


def _digits(out: Path) -> Samples:
    from examples.digits.data import calibration_frames, held_out_frames  # scikit-learn is slow to import

    frames, labels = calibration_frames()
    np.savez(out / "calibration.npz", image=frames, labels=labels)
    frames, labels = held_out_frames()
    np.savez(out / "shown.npz", image=frames)
    story = f"{len(frames)} handwritten digits that neither training nor calibration has seen"
    return Samples(out / "calibration.npz", out / "shown.npz", labels, story)


def _load(path: Path) -> dict[str, Array]:
    remedy = "write it with numpy.savez(path, INPUT=array, ...), first axis = samples"
    if not path.is_file():
        raise InputError(f"there is no file {path}", remedy)
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz file", remedy)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable .npz file ({error})", remedy) from error


def _halves(arrays: dict[str, Array], out: Path, story: str) -> Samples:
    counts = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(counts) != 1 or min(counts) < 16:
        raise InputError(
            f"the arrays hold {', '.join(map(str, sorted(counts))) or 'no'} samples",
            "give every array the same first axis, at least 16 samples long",
        )
    half = counts.pop() // 2
    key = next((name for name in LABEL_NAMES if name in arrays), None)
    inputs = {name: a for name, a in arrays.items() if name != key}
    np.savez(out / "calibration.npz", **_part(arrays, 0, half))
    np.savez(out / "shown.npz", **_part(inputs, half, half + MOST_SHOWN))
    labels = arrays[key][half : half + MOST_SHOWN] if key else None
    return Samples(out / "calibration.npz", out / "shown.npz", labels, story)


def _part(arrays: dict[str, Array], start: int, stop: int) -> dict[str, Any]:
    return {name: a[start:stop] for name, a in arrays.items()}


def _input_specs(model: Path) -> tuple[TensorSpec, ...]:
    try:
        with OrtEngine(model.read_bytes(), label=model.name) as engine:
            return engine.inputs
    except EngineError as error:
        raise ModelError(error.fact, error.remedy or "give a model that ONNX Runtime can load") from error


def _random(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    rng = np.random.default_rng(RANDOM_SEED)
    return {spec.name: _draw(spec, rng) for spec in specs}


def _draw(spec: TensorSpec, rng: np.random.Generator) -> Array:
    """Uniform over 8-bit integers, 0 or 1 for other integers, normal for floats."""
    dims = [d for d in spec.shape[1:] if isinstance(d, int)]
    if not spec.shape or len(dims) != len(spec.shape) - 1 or (isinstance(spec.shape[0], int) and spec.shape[0] != 1):
        raise InputError(
            f"random inputs need a batch axis first and fixed sizes after it, but the model takes {describe(spec)}",
            "give real samples with --data DATA.npz",
        )
    shape, dtype = (RANDOM_SAMPLES, *dims), spec.numpy_dtype
    if dtype.kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    high = {"uint8": 256, "int8": 128}.get(spec.dtype, 2)
    drawn: Array = rng.integers(0, high, shape).astype(dtype)
    return drawn
