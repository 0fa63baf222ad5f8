"""A folder of pictures as samples for a model with one uint8 image input, with labels where the names tell them.

    FOLDER/LABEL_anything.jpg        every name begins with the class's number
    FOLDER/CLASS/anything.jpg        sub-folders are classes: their names where all are numbers, else their sorted order
    FOLDER/anything.jpg              no labels

Where the input has a fixed size, pictures of another size are resized until they cover it and cropped centrally, which
a note tells; where it is free, they come as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protocol import images
from protocol.bundle import sha256
from protocol.errors import InputError
from protocol.tensors import Array, TensorSpec, describe

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm"})
MOST_PICTURES = 2_000  # 300 MB at 224x224; more changes neither ranges nor the second digit of an accuracy
_LEADING_NUMBER = re.compile(r"([0-9]{1,9})_")


class Ragged:
    """Samples of different shapes, each with its batch axis of one: what an array would be if they were alike."""

    def __init__(self, rows: Sequence[Array]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Array:
        return self.rows[index]

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


class Album(NamedTuple):
    """The pictures of a folder: for which input, in the order of their names, and what was done to them."""

    name: str
    rows: Ragged
    labels: tuple[int, ...] | None
    digest: str
    notes: tuple[str, ...]


def read_folder(folder: Path, inputs: Sequence[TensorSpec]) -> Album:
    """Read the pictures of `folder` for the only input of a model.

    Raises InputError for a model that takes anything else, a folder without pictures, one whose names tell labels for
    some pictures only, and a file that is no picture.
    """
    spec, form = _image_input(inputs, folder)
    paths = _paths(folder)
    labels, notes = _labels(paths, folder)
    if len(paths) > MOST_PICTURES:
        notes = (*notes, f"{MOST_PICTURES} of {len(paths)} pictures were read, evenly spaced")
        chosen = [i * len(paths) // MOST_PICTURES for i in range(MOST_PICTURES)]
        paths = [paths[i] for i in chosen]
        labels = labels and tuple(labels[i] for i in chosen)
    rows, lines = [], []
    for path in paths:
        data = _bytes(path)
        rows.append(_picture(path, data, spec))
        lines.append(f"{path.relative_to(folder)} {sha256(data)}")
    if form.height is not None and form.width is not None:
        notes = (f"pictures of another size were resized to cover {form.height}x{form.width} and cropped", *notes)
    return Album(spec.name, Ragged(rows), labels, sha256("\n".join(lines).encode()), notes)


def _image_input(inputs: Sequence[TensorSpec], folder: Path) -> tuple[TensorSpec, images.ImageForm]:
    form = images.image_form(inputs[0]) if len(inputs) == 1 else None
    if form is None:
        takes = ", ".join(describe(s) for s in inputs)
        remedy = "declare its one image input with --input, or give an .npz"
        raise InputError(f"{folder} is a folder of pictures but the model takes {takes}", remedy)
    return inputs[0], form


def _paths(folder: Path) -> list[Path]:
    try:
        found = [p for p in [*folder.iterdir(), *folder.glob("*/*")] if p.suffix.lower() in SUFFIXES and p.is_file()]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})", "give a folder of pictures") from error
    if not found:
        raise InputError(f"{folder} holds no pictures", f"files must end in {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def _labels(paths: Sequence[Path], folder: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    inside = [p for p in paths if p.parent != folder]
    if inside and len(inside) < len(paths):
        loose = next(p for p in paths if p.parent == folder)
        raise InputError(f"{folder} has sub-folders of pictures but {loose.name} lies beside them", "move it into one")
    return _labels_of_folders(paths) if inside else _labels_of_names(paths, folder)


def _labels_of_folders(paths: Sequence[Path]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names = sorted({p.parent.name for p in paths})
    if all(re.fullmatch("[0-9]{1,9}", name) for name in names):
        return tuple(int(p.parent.name) for p in paths), ("labels are the sub-folders' numbers",)
    place = {name: i for i, name in enumerate(names)}
    listing = ", ".join(f"{i} {name}" for name, i in list(place.items())[:3]) + (", ..." if len(names) > 3 else "")
    return tuple(place[p.parent.name] for p in paths), (f"labels are the sub-folders in sorted order: {listing}",)


def _labels_of_names(paths: Sequence[Path], folder: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    numbers = [_LEADING_NUMBER.match(p.name) for p in paths]
    if not any(numbers):
        return None, ()
    if not all(numbers):
        bare = next(p for p, number in zip(paths, numbers, strict=True) if number is None)
        fact = f"in {folder} {bare.name} does not begin with LABEL_ but others do"
        raise InputError(fact, "name all of them or none like that")
    return tuple(int(n.group(1)) for n in numbers if n), ("labels are the numbers that file names begin with",)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "remove it or make it readable") from error


def _picture(path: Path, data: bytes, spec: TensorSpec) -> Array:
    try:
        return images.load_picture(data, spec)
    except InputError as error:
        raise InputError(f"{path}: {error.fact}", error.remedy) from error
