"""The networks of the suite `splitting`: trained weights, real pictures. Codec rates of random weights say nothing.

Law: a subject that is absent says why and is left out. Each takes uint8 pictures of one fixed size, as a camera gives
them, so that cloud-only may send JPEG; the preparation that the network was trained with is compiled into its graph.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from partitioner.graph.inputs import parse
from partitioner.graph.model import LoadedModel, load
from partitioner.judging import data
from partitioner.judging.data import Samples
from protocol import images
from protocol.bundle import sha256
from protocol.tensors import Array

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("ISTHMUS_SHARED", ROOT.parent / "shared"))
PHOTOGRAPHS, CIFAR = SHARED / "data" / "imagenet", SHARED / "data" / "cifar10_1000.npz"
CIFAR_SAMPLES = 500
DIGITS_SAMPLES = 256
FACE_SAMPLES = 48  # 1.2 MB each


class Subject(NamedTuple):
    """A network: its file, how its input is declared (docs/inputs.md), its samples, and what stands behind them."""

    name: str
    model: Path
    declared: str
    needs: Path | None
    samples: Callable[[LoadedModel], Samples]

    @property
    def absent(self) -> str:
        """Why it cannot be measured here, or ""."""
        missing = [path for path in (self.model, self.needs) if path is not None and not path.exists()]
        return f"{missing[0]} is absent (set ISTHMUS_SHARED)" if missing else ""

    def load(self) -> tuple[LoadedModel, Samples]:
        """Read both; run it only where nothing is absent."""
        model = load(self.model, inputs=parse([self.declared] if self.declared else []))
        return model, self.samples(model)


def _samples(name: str, pictures: Array, labels: Array | None) -> Samples:
    digest = sha256(np.ascontiguousarray(pictures).tobytes())
    return Samples({name: pictures}, frozenset(), labels, is_random=False, digest=digest)


def _photographs(model: LoadedModel) -> Samples:
    """224x224 from the middle of each photograph; the network counts a background class in front."""
    return data.load(PHOTOGRAPHS, model.inputs, label_offset=1, classes=data.classes_of(model.outputs))


def _faces(model: LoadedModel) -> Samples:
    """The same photographs at the detector's size, without labels: nobody marked faces in them."""
    spec, paths = model.inputs[0], sorted(PHOTOGRAPHS.iterdir())
    chosen = paths[:: max(1, len(paths) // FACE_SAMPLES)][:FACE_SAMPLES]
    return _samples(
        spec.name, np.concatenate([images.load_picture(path.read_bytes(), spec) for path in chosen]), labels=None
    )


def _cifar(model: LoadedModel) -> Samples:
    with np.load(CIFAR, allow_pickle=False) as archive:
        some = slice(0, CIFAR_SAMPLES)
        return _samples(model.inputs[0].name, archive["x"][some], archive["y"][some].astype(np.int64))


def _digits(model: LoadedModel) -> Samples:
    from examples.digits.data import held_out_frames

    frames, labels = held_out_frames()
    return _samples(model.inputs[0].name, frames[:DIGITS_SAMPLES], labels[:DIGITS_SAMPLES])


SUBJECTS = (
    Subject("digits", ROOT / "examples" / "digits" / "digits.onnx", "", None, _digits),
    Subject("resnet8", SHARED / "models" / "resnet8l_cifar10.onnx", "input", CIFAR, _cifar),
    Subject(
        "mobilenet_v2", SHARED / "models" / "mobilenet_v2_224.onnx", "input,mean=127.5,std=127.5", PHOTOGRAPHS,
        _photographs,
    ),
    Subject("yunet_640", SHARED / "models" / "yunet_face_640.onnx", "input,colour=bgr", PHOTOGRAPHS, _faces),
)  # fmt: skip
