"""Samples for calibration and judgement: an .npz of the user's, or seeded random numbers that say that they are random.

An .npz holds one array per model input whose first axis counts samples, and perhaps labels. The first half (at most 128
samples) calibrates and the rest judges, so that nothing is judged on what it was fitted to.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol.bundle import sha256
from protocol.errors import InputError
from protocol.tensors import Array, TensorSpec, describe, shape_fits

MAX_CALIBRATION = 128  # more changed the MinMax ranges of the models measured by less than one code
MIN_SAMPLES = 8  # four to calibrate, four to judge
RANDOM_SAMPLES = 32
RANDOM_SEED = 20_261_121
LABEL_NAMES = ("labels", "y")


@dataclass(frozen=True)
class Samples:
    """Samples by input name, first axis counting them; `labels` int64 [S] where known.

    `whole` names the inputs of which one sample is the whole tensor; of the others it is one row, fed as batch 1.
    With `calibrates` false nothing is fitted to them, and all of them judge.
    """

    arrays: dict[str, Array]
    whole: frozenset[str]
    labels: Array | None
    is_random: bool
    digest: str
    calibrates: bool = True

    def __len__(self) -> int:
        return min(len(a) for a in self.arrays.values())

    def feed(self, index: int) -> dict[str, Array]:
        """What the model takes for one sample."""
        return {n: a[index] if n in self.whole else a[index : index + 1] for n, a in self.arrays.items()}

    def feeds(self, indices: Sequence[int]) -> Iterator[dict[str, Array]]:
        return (self.feed(i) for i in indices)

    @property
    def calibration(self) -> range:
        return range(min(len(self) // 2, MAX_CALIBRATION) if self.calibrates else 0)

    @property
    def held_out(self) -> range:
        return range(len(self.calibration), len(self))


def load(path: Path, inputs: Sequence[TensorSpec], *, labels: str | None = None) -> Samples:
    """Read an .npz for a model with these inputs.

    Raises InputError naming the array, what it is and what the model takes.
    """
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


def random(inputs: Sequence[TensorSpec], *, count: int = RANDOM_SAMPLES, seed: int = RANDOM_SEED) -> Samples:
    """Seeded random samples: uniform over 8-bit integers, 0 or 1 for other integers, normal for floats.

    Raises InputError when an input has a free dimension besides the first, which no random sample can know.
    """
    rng = np.random.default_rng(seed)
    arrays = {spec.name: _draw(spec, rng, count) for spec in inputs}
    whole = frozenset(spec.name for spec in inputs if _is_whole(spec))
    digest = sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
    return Samples(arrays, whole, None, is_random=True, digest=digest)


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
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"array {spec.name!r} in {path} holds NaN or infinity", "leave those samples out")
    return whole


def _check_counts(given: dict[str, Array], path: Path) -> None:
    counts = {name: len(array) for name, array in given.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{n!r} {c}" for n, c in counts.items())
        raise InputError(f"the arrays in {path} hold different numbers of samples ({listing})", "make them equal")
    count = next(iter(counts.values()))
    if count < MIN_SAMPLES:
        raise InputError(
            f"{path} holds {count} samples",
            f"at least {MIN_SAMPLES} are needed: half to calibrate, half to judge; some hundred are better",
        )


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


def _takes(inputs: Sequence[TensorSpec]) -> str:
    return "the model takes " + ", ".join(describe(s) for s in inputs)
