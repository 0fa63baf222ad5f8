"""Where the daemon's requests come from: an npz of samples, a folder of files, or file names on standard input.

A sample is one request: a dict of arrays by ONNX input name, with a batch axis of 1 in front. Files: `.npz` (one array
per model input), `.npy` (models with one input), and images where Pillow is installed (models with one uint8 input of 1
or 3 channels: converted to grey or RGB, resized until they cover a fixed size and cropped, as the partitioner does with
folders of samples; any other pre-processing belongs into the model).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol import images
from protocol.errors import InputError
from protocol.tensors import Array, TensorSpec, check_inputs, describe

STOP_POLL_S = 0.2
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".pgm", ".ppm"})
FILE_SUFFIXES = frozenset({".npz", ".npy"}) | IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Sample:
    """One request's inputs and where they came from; `error` instead of inputs for a file that does not fit."""

    name: str
    inputs: dict[str, Array]
    error: str = ""


def open_source(text: str, specs: Sequence[TensorSpec], lines: Iterable[str]) -> Iterator[Sample]:
    """The samples of `text`: an .npz file, a folder, or `-` for the file names in `lines`.

    Raises InputError at once if there is nothing to read or an npz does not fit the model; a single file of a folder
    that does not fit comes as a Sample with an error.
    """
    if text == "-":
        return (_from_file(Path(line.strip()), specs) for line in lines if line.strip())
    path = Path(text)
    if not path.exists():
        raise InputError(f"there is no source at {path}", "give an .npz file, a folder, or - for standard input")
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in FILE_SUFFIXES)
        if not files:
            raise InputError(f"{path} holds no .npz, .npy or image file", "give a folder with samples")
        return (_from_file(f, specs) for f in files)
    if path.suffix.lower() == ".npz":
        return iter(_from_npz(path, specs))
    return iter([_checked(path.name, _load(path, specs), specs)])


def is_single(text: str) -> bool:
    """Whether `text` names a file of one sample: an image or an .npy."""
    path = Path(text)
    return path.suffix.lower() in FILE_SUFFIXES - {".npz"} and not path.is_dir()


def read_lines(descriptor: int, stopped: Callable[[], bool]) -> Iterator[str]:
    """Lines from a pipe or terminal until its end or until `stopped()`: a plain read would go on through SIGTERM."""
    rest = b""
    while not stopped():
        if not select.select([descriptor], [], [], STOP_POLL_S)[0]:
            continue
        data = os.read(descriptor, 65_536)
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def load_sample(path: Path, specs: Sequence[TensorSpec]) -> Sample:
    """One sample from one file. Raises InputError if it does not fit the model."""
    if not path.is_file():
        raise InputError(f"there is no file {path}", "give an .npz, .npy or image file")
    return _checked(path.name, _load(path, specs), specs)


def _from_file(path: Path, specs: Sequence[TensorSpec]) -> Sample:
    try:
        return load_sample(path, specs)
    except InputError as error:
        return Sample(path.name, {}, str(error))


def _from_npz(path: Path, specs: Sequence[TensorSpec]) -> list[Sample]:
    arrays = _arrays(path, specs)
    counts = {name: len(a) for name, a in arrays.items() if a.ndim}
    if len(set(counts.values())) != 1:
        raise InputError(f"{path} holds arrays of different lengths: {counts}", "give the same samples for every input")
    count = next(iter(counts.values()))
    if count == 0:
        raise InputError(f"{path} holds no samples", "give at least one")
    return [_checked(f"{path.name}#{i}", {n: a[i : i + 1] for n, a in arrays.items()}, specs) for i in range(count)]


def _load(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return {s.name: _with_batch(a, s) for s, a in zip(specs, _arrays(path, specs).values(), strict=True)}
    only = _only_input(path, specs)
    if suffix == ".npy":
        return {only.name: _with_batch(_array(path), only)}
    if suffix in IMAGE_SUFFIXES:
        return {only.name: _image(path, only)}
    raise InputError(f"{path} is no .npz, .npy or image file", "convert it")


def _array(path: Path) -> Array:
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy's parsers let almost any exception out when a file is damaged
        raise InputError(f"{path} is not a readable .npy file ({_why(error)})", "write it with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is not an .npy file but an archive", "call it .npz")
    return array


def _arrays(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:
        raise InputError(f"{path} is not a readable .npz file ({_why(error)})", "write it with numpy.savez") from error
    if isinstance(archive, np.ndarray):
        raise InputError(f"{path} is not an .npz file but a single array", "call it .npy")
    with archive:
        missing = [s.name for s in specs if s.name not in archive.files]
        if missing:
            has = ", ".join(archive.files) or "nothing"
            raise InputError(f"{path} has no array {missing[0]!r} (it has {has})", "name arrays like model inputs")
        return {s.name: _member(archive, s.name, path) for s in specs}


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Array:
    try:
        array = archive[name]
    except Exception as error:
        fact = f"array {name!r} of {path} cannot be read ({_why(error)})"
        raise InputError(fact, "write it with numpy.savez") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name!r} of {path} is no array", "write it with numpy.savez")
    return array


def _why(error: Exception) -> str:
    if "allow_pickle" in str(error):
        return "it holds objects or something else that is no plain array"
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]


def _checked(name: str, inputs: dict[str, Array], specs: Sequence[TensorSpec]) -> Sample:
    try:
        check_inputs(specs, inputs)
    except InputError as error:
        raise InputError(f"{name}: {error.fact}", error.remedy) from error
    return Sample(name, inputs)


def _only_input(path: Path, specs: Sequence[TensorSpec]) -> TensorSpec:
    if len(specs) != 1:
        names = ", ".join(s.name for s in specs)
        raise InputError(f"{path} holds one tensor but the model takes {names}", "give an .npz with one array for each")
    return specs[0]


def _with_batch(array: Array, spec: TensorSpec) -> Array:
    return array[None] if array.ndim == len(spec.shape) - 1 else array


def _image(path: Path, spec: TensorSpec) -> Array:
    if images.image_form(spec) is None:
        raise InputError(
            f"{path} is an image but the model takes {describe(spec)}",
            "put the pre-processing into the model or use .npy",
        )
    try:
        return images.load_picture(path.read_bytes(), spec)
    except InputError as error:
        raise InputError(f"{path} is not a readable image ({error.fact})", error.remedy) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "make it readable") from error
