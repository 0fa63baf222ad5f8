"""Tails in float16 beside the same in float32: size, and accuracy behind the head that ships, on real images.

Law: as `partitioner split --half-tails` builds and judges them: half of the images calibrates, the others judge. On a
processor float16 is what `partitioner/crossing/half_rounding.py` makes of it: sums in float32, and what each operator
gives rounded. Settings: `models=digits,resnet8,mobilenet_v2,yunet`, `images=200`, `precision=fp32` for heads
without the search for INT8, `keep=FOLDER` to have the bundles.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks import int8
from benchmarks.results import Options, Result
from partitioner.graph.model import load
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol.bundle import Bundle, PlacementEntry
from protocol.tensors import Array

BOUND = 0.01
SEED = 20_261_122


class Subject(NamedTuple):
    """A model, an early and a late cut, its images (first axis: samples) and labels, if it has any."""

    path: Path
    cuts: tuple[tuple[str, ...], ...]
    inputs: Array
    labels: Array | None


def run(options: Options) -> list[Result]:
    """Raises KeyError for a model that is not known and FileNotFoundError where the shared folder is missing."""
    names = options.settings.get("models", "resnet8" if options.quick else ",".join(SUBJECTS)).split(",")
    most = int(options.settings.get("images", 48 if options.quick else 200))
    precision = options.settings.get("precision", "auto")
    with contextlib.ExitStack() as stack:
        kept = options.settings.get("keep", "")
        folder = Path(kept) if kept else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return [r for name in names for r in _of(name, SUBJECTS[name](), most, precision, folder)]


def _of(name: str, subject: Subject, most: int, precision: str, folder: Path) -> Iterator[Result]:
    order = np.random.default_rng(SEED).permutation(len(subject.inputs))[:most]  # folders are sorted by class
    given = {load(subject.path).inputs[0].name: subject.inputs[order]}
    if subject.labels is not None:
        given["labels"] = subject.labels[order]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **given)  # type: ignore[arg-type]
    asked = Order(
        subject.path,
        folder / name,
        cuts=subject.cuts,
        calibration=folder / f"{name}.npz",
        search=Search(memory=False),
        precision=precision,
        recipe_budget_s=10.0,
        bound=BOUND,
        half_tails=True,
        force=True,
    )
    made = Bundle.open(build(asked, Silent()).target)
    for entry in made.remote_segments():
        yield from _placement(name, made, entry)


def _placement(name: str, made: Bundle, entry: PlacementEntry) -> Iterator[Result]:
    proof, half, files = entry.certificate, entry.half, made.manifest.files
    if proof is None or entry.tail is None:
        return
    where = f"{name}: {entry.id}"
    if half is None:
        reason = next((n for n in entry.notes if "float16" in n), "see the cut's lossless coding")
        yield Result(f"{where}, tail in float16", proof.metric, math.nan, math.nan, math.nan, 0, note=reason)
        return
    before, now = files[entry.tail].nbytes, files[half.file].nbytes
    if "." not in entry.id:
        note = f"{now / 1e6:.2f} of {before / 1e6:.2f} MB"
        yield Result(f"{where}, size", "x float32", now / before, now / before, now / before, 1, note=note)
    for how, certificate in (("float32", proof), ("float16", half.certificate)):
        value = certificate.achieved
        note = f"{entry.precision} head; whole model {certificate.reference:.4f}"
        target = f">= {certificate.bound:.4f}"
        held = value >= certificate.bound - 1e-9
        yield Result(
            f"{where}, tail in {how}", certificate.metric, value, value, value, certificate.samples, target, held, note
        )


def _digits() -> Subject:
    found = int8.SUBJECTS["digits"]()
    return Subject(found.path, (("stem3/relu",), ("down/relu",)), found.inputs, found.labels)


def _resnet8() -> Subject:
    found = int8.SUBJECTS["resnet8"]()
    return Subject(found.path, (("act_3",), ("act_7",)), found.inputs, found.labels)


def _mobilenet() -> Subject:
    found = int8.SUBJECTS["mobilenet_v2"]()
    return Subject(found.path, _spread(found.path), found.inputs, found.labels)


def _yunet() -> Subject:
    path = int8.SHARED / "models" / "yunet_face_640.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is needed; set ISTHMUS_SHARED to the folder that holds it, or choose models=")
    pictures = sorted((int8.SHARED / "data" / "imagenet").glob("*.jpg"))[:24]
    return Subject(path, _spread(path), np.stack([_square(picture) for picture in pictures]), None)


def _square(path: Path) -> Array:
    """float32 [3, 640, 640], blue first, 0 to 255."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((640, 640), Image.Resampling.BILINEAR), np.float32)
    planes: Array = np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))
    return planes


def _spread(path: Path) -> tuple[tuple[str, ...], ...]:
    """Cuts of one tensor, one at a third of the nodes and one at two thirds."""
    from benchmarks import cuts as sweep
    from partitioner.graph.cuts import Sides

    model = load(path)
    found = [s for s in sweep.choose(model.topology, sweep.Most(10_000, 0, 0)) if isinstance(s, Sides)]
    ordered = sorted((s for s in found if len(s.cut) == 1), key=lambda s: len(s.head_steps))
    return tuple(ordered[len(ordered) * part // 3].cut for part in (1, 2))


SUBJECTS = {"digits": _digits, "resnet8": _resnet8, "mobilenet_v2": _mobilenet, "yunet": _yunet}
