"""Samples for calibration and judgement: an .npz, a folder of pictures, or random numbers that say so.

An .npz holds one array per model input whose first axis counts samples, and perhaps labels; a folder holds pictures for
the one image input of a model (judging/pictures.py). One half, at most 128 samples, calibrates and the rest judges,
so that nothing is judged on what it was fitted to. Which sample goes where is decided by the golden ratio: sample i has
the key frac(i * 0.618...), and the smaller keys calibrate. That is the same on every machine, and spreads both parts,
and every first few of either, evenly over the file: over sorted labels as well as over alternating ones. Frames of a
stream are all but copies of their neighbours: there the first half of the file calibrates and the second judges.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from partitioner.judging import pictures
from partitioner.judging.pictures import Ragged
from protocol.bundle import sha256
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError
from protocol.tensors import Array, TensorSpec, describe, shape_fits

MAX_CALIBRATION = 128  # more changed the MinMax ranges of the models measured by less than one code
MIN_SAMPLES = 8  # four to calibrate, four to judge
RANDOM_SAMPLES = 32
RANDOM_SEED = 20_261_121
LABEL_NAMES = ("labels", "y")
_GOLDEN_64 = 0x9E37_79B9_7F4A_7C15  # 2**64 over the golden ratio
_MOST_NAMED = 3


@dataclass(frozen=True)
class Samples:
    """Samples by input name, first axis counting them; `labels` int64 [S] where known.

    `whole` names the inputs of which one sample is the whole tensor; of the others it is one row, fed as batch 1.
    With `calibrates` false nothing is fitted to them, and all of them judge. `consecutive` samples are the frames of a
    stream in their order. `notes` say what was done to them.
    """

    arrays: Mapping[str, Array | Ragged]
    whole: frozenset[str]
    labels: Array | None
    is_random: bool
    digest: str
    calibrates: bool = True
    consecutive: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return min(len(a) for a in self.arrays.values())

    def feed(self, index: int) -> dict[str, Array]:
        """What the model takes for one sample."""
        return {n: _row(a, index, n in self.whole) for n, a in self.arrays.items()}

    def feeds(self, indices: Sequence[int]) -> Iterator[dict[str, Array]]:
        return (self.feed(i) for i in indices)

    @property
    def calibration(self) -> Sequence[int]:
        """Indices of the samples that calibrate; any first few of them are spread evenly over their part."""
        half = len(self) // 2
        return _order(half if self.consecutive else len(self))[: min(half, MAX_CALIBRATION)] if self.calibrates else ()

    @property
    def held_out(self) -> Sequence[int]:
        """Indices of the samples that judge: likewise, or all of them as they come where nothing is fitted."""
        if not self.calibrates:
            return range(len(self))
        if self.consecutive:
            half = len(self) // 2
            return tuple(half + i for i in _order(len(self) - half))
        return _order(len(self))[len(self.calibration) :]

    def neighbours(self, indices: Sequence[int]) -> list[int]:
        """For each frame the one before it (for the first the one after it, which is as far away)."""
        return [i - 1 if i else min(1, len(self) - 1) for i in indices]


@functools.lru_cache(maxsize=8)
def _order(count: int) -> tuple[int, ...]:
    return tuple(sorted(range(count), key=lambda i: i * _GOLDEN_64 % 2**64))


def _row(array: Array | Ragged, index: int, is_whole: bool) -> Array:
    if isinstance(array, Ragged):
        return array[index]
    row: Array = array[index, ...] if is_whole else array[index : index + 1]  # of a scalar input, an array too
    return row


def load(
    path: Path,
    inputs: Sequence[TensorSpec],
    *,
    labels: str | None = None,
    label_offset: int = 0,
    classes: int | None = None,
    consecutive: bool = False,
) -> Samples:
    """Read an .npz or a folder of pictures for a model with these inputs.

    `labels` names their array in an .npz. `label_offset` is added to every label, for models with a class in front that
    the data does not count. Labels must lie in 0 ... `classes` - 1 then. `consecutive` samples are frames of a stream.
    Raises InputError naming the array or file, what it is and what the model takes.
    """
    samples = _load_folder(path, inputs, labels) if path.is_dir() else _load_npz(path, inputs, labels)
    samples = replace(samples, consecutive=consecutive)
    if len(samples) < MIN_SAMPLES:
        raise InputError(
            f"{path} holds {len(samples)} samples",
            f"at least {MIN_SAMPLES} are needed: half to calibrate, half to judge; some hundred are better",
        )
    if samples.labels is None:
        return samples
    return replace(samples, labels=_in_range(samples.labels + label_offset, classes, path))


def _load_folder(path: Path, inputs: Sequence[TensorSpec], labels: str | None) -> Samples:
    if labels is not None:
        raise InputError(
            f"{path} is a folder, which holds no array {labels!r}", "leave --labels out: names tell labels"
        )
    album = pictures.read_folder(path, inputs)
    answer = None if album.labels is None else np.array(album.labels, np.int64)
    return Samples(
        {album.name: album.rows}, frozenset(), answer, is_random=False, digest=album.digest, notes=album.notes
    )


def _load_npz(path: Path, inputs: Sequence[TensorSpec], labels: str | None) -> Samples:
    raw, arrays = _read(path)
    names = {spec.name for spec in inputs}
    key = _label_key(arrays, names, labels, path)
    whole = frozenset(spec.name for spec in inputs if _check(spec, arrays, inputs, path))
    unknown = [n for n in arrays if n not in names and n != key and n not in LABEL_NAMES]
    if unknown:
        raise InputError(f"{path} holds an array {unknown[0]!r} that is no input of the model", _takes(inputs))
    given = {n: arrays[n] for n in names}
    _check_counts(given, path)
    answer = None if key is None else _labels(arrays[key], key, len(next(iter(given.values()))), path)
    return Samples(given, whole, answer, is_random=False, digest=sha256(raw))


def classes_of(outputs: Sequence[TensorSpec]) -> int | None:
    """How many classes the first output scores, where it has the shape of scores: [N, C] or [N, C, 1, 1]."""
    shape = outputs[0].shape if outputs else ()
    count = shape[1] if len(shape) >= 2 else None
    return count if isinstance(count, int) and all(d == 1 for d in shape[2:]) else None


def random(inputs: Sequence[TensorSpec], *, count: int = RANDOM_SAMPLES, seed: int = RANDOM_SEED) -> Samples:
    """Seeded random samples: uniform over 8-bit integers, 0 or 1 for other integers, normal for floats.

    Raises InputError when an input has a free dimension besides the first, which no random sample can know.
    """
    rng = np.random.default_rng(seed)
    arrays = {spec.name: _draw(spec, rng, count) for spec in inputs}
    whole = frozenset(spec.name for spec in inputs if _is_whole(spec))
    digest = sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    return Samples(arrays, whole, None, is_random=True, digest=digest)


def prepared(samples: Samples, front: bytes, indices: Sequence[int]) -> Samples:
    """These samples as the model took them before its pre-processing was compiled in; sample i is `indices[i]`.

    `front` is `LoadedModel.front`. All of them judge: nothing may be fitted to a selection.
    """
    with OrtEngine(front, label="pre-processing", optimise=False) as engine:
        names = {spec.name: spec.name.removesuffix("/given") for spec in engine.inputs}
        feeds = []
        for feed in samples.feeds(indices):
            made = engine.infer({given: feed[name] for given, name in names.items()})
            feeds.append({**feed, **made})
    arrays = {n: Ragged(tuple(feed[n] for feed in feeds)) for n in samples.arrays}
    return replace(samples, arrays=arrays, labels=None, calibrates=False)


def _is_whole(spec: TensorSpec) -> bool:
    """Whether axis 0 is no batch axis: a scalar, or a fixed first dimension other than 1."""
    return not spec.shape or (isinstance(spec.shape[0], int) and spec.shape[0] != 1)


def _draw(spec: TensorSpec, rng: np.random.Generator, count: int) -> Array:
    dims = spec.shape if _is_whole(spec) else spec.shape[1:]
    free = [d for d in dims if not isinstance(d, int)]
    if free:
        raise InputError(
            f"input {describe(spec)} has a free dimension, so random samples cannot be drawn",
            "give real ones with --calibration DATA.npz",
        )
    shape = (count, *(d for d in dims if isinstance(d, int)))
    dtype = spec.numpy_dtype
    if dtype.kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    high = 256 if dtype == np.uint8 else 128 if dtype == np.int8 else 2
    drawn: Array = rng.integers(0, high, shape).astype(dtype)
    return drawn


def _read(path: Path) -> tuple[bytes, dict[str, Array]]:
    remedy = "write it with numpy.savez(path, INPUT=array, ...)"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", remedy) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", remedy) from error
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz file", remedy)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return raw, {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, MemoryError) as error:
        raise InputError(f"{path} is damaged or holds Python objects ({error})", remedy) from error
    except Exception as error:  # zlib.error and whatever else a damaged archive provokes
        raise InputError(f"{path} is damaged ({error})", remedy) from error


def _check(spec: TensorSpec, arrays: dict[str, Array], inputs: Sequence[TensorSpec], path: Path) -> bool:
    """Check one input's array; returns whether one sample of it is the whole tensor."""
    array = arrays.get(spec.name)
    if array is None:
        raise InputError(f"{path} holds no array {spec.name!r} but {sorted(arrays)}", _takes(inputs))
    if array.dtype != spec.numpy_dtype:
        raise InputError(
            f"array {spec.name!r} in {path} has element type {array.dtype} but the model takes {describe(spec)}",
            f"convert it with .astype({spec.dtype!r}) if the values are the same",
        )
    whole = _is_whole(spec)
    if not whole and array.ndim == len(spec.shape) + 1 and array.shape[1] == 1:
        arrays[spec.name] = array = array[:, 0]  # every sample was given its batch axis of one already
    if array.ndim == 0 or not shape_fits(array.shape[1:], spec.shape if whole else spec.shape[1:]):
        wanted = ["samples", *map(str, spec.shape if _is_whole(spec) else spec.shape[1:])]
        raise InputError(
            f"array {spec.name!r} in {path} has shape {list(array.shape)} but the model takes {describe(spec)}",
            f"its shape must be [{', '.join(wanted)}]",
        )
    _check_finite(array, spec.name, path)
    return whole


def _check_finite(array: Array, name: str, path: Path) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    some = ", ".join(map(str, bad[:_MOST_NAMED])) + (
        f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    )
    raise InputError(f"array {name!r} in {path} holds NaN or infinity in sample {some}", "leave those samples out")


def _check_counts(given: dict[str, Array], path: Path) -> None:
    counts = {name: len(array) for name, array in given.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{n!r} {c}" for n, c in counts.items())
        raise InputError(f"the arrays in {path} hold different numbers of samples ({listing})", "make them equal")


def _label_key(arrays: dict[str, Array], inputs: set[str], asked: str | None, path: Path) -> str | None:
    if asked is None:
        return next((n for n in LABEL_NAMES if n in arrays and n not in inputs), None)
    if asked not in arrays:
        raise InputError(f"{path} holds no array {asked!r} for --labels but {sorted(arrays)}", "name one of them")
    return asked


def _labels(array: Array, key: str, count: int, path: Path) -> Array:
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) != count:
        raise InputError(
            f"labels {key!r} in {path} are {array.dtype} {list(array.shape)}",
            f"one integer per sample is needed: shape [{count}]",
        )
    labels: Array = array.astype(np.int64)
    return labels


def _in_range(labels: Array, classes: int | None, path: Path) -> Array:
    wrong = np.flatnonzero((labels < 0) | (labels >= (np.iinfo(np.int64).max if classes is None else classes)))
    if wrong.size:
        most = "" if classes is None else f" ... {classes - 1}"
        fact = f"label {labels[wrong[0]]} of sample {wrong[0]} in {path} is no class of the model"
        raise InputError(fact, f"labels are 0{most}; shift them with a label offset")
    return labels


def _takes(inputs: Sequence[TensorSpec]) -> str:
    return "the model takes " + ", ".join(describe(s) for s in inputs)
