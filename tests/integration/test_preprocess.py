"""Declared pre-processing all the way: from pictures models answer as they did from floats, and are cut like others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.graph.inputs import parse
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.judging import data, verify
from partitioner.judging.observe import observed_topology
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from protocol import codecs, images
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from tests import models

SHARED = Path(os.environ.get("ISTHMUS_SHARED", Path(__file__).parents[2].parent / "shared"))
NORMAL = "mean=127.5,std=127.5"


def scenes(count: int, height: int, width: int) -> Any:
    """Smooth noise, uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse])


def with_inputs(path: Path, text: str, pictures: Any) -> tuple[LoadedModel, data.Samples]:
    model = load(path, inputs=parse([text]))
    samples = data.Samples({model.inputs[0].name: pictures}, frozenset(), None, False, "")
    return replace(model, topology=observed_topology(model, samples)), samples


def normal(pictures: Any) -> Any:
    """float32 [N, C, H, W] of uint8 [N, H, W, C], as users write it."""
    return (pictures.transpose(0, 3, 1, 2).astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


def test_a_model_that_takes_pictures_answers_bit_for_bit_as_on_numpys_floats(tmp_path: Path) -> None:
    path = models.write(models.residual(), tmp_path)
    pictures = scenes(4, 16, 16)
    model, samples = with_inputs(path, f"x,{NORMAL}", pictures)
    assert [(s.name, s.dtype, s.shape) for s in model.inputs] == [("x", "uint8", ("N", 16, 16, 3))]
    got = verify.run_all(model.data, samples, range(4), optimise=False)
    floats = data.Samples({"x": normal(pictures)}, frozenset(), None, False, "")
    wanted = verify.run_all(path.read_bytes(), floats, range(4), optimise=False)
    assert verify.difference(wanted, got).seen == 0.0


def test_the_source_digest_stays_the_files(tmp_path: Path) -> None:
    path = models.write(models.residual(), tmp_path)
    assert load(path, inputs=parse([f"x,{NORMAL}"])).source_digest == load(path).source_digest


@pytest.mark.parametrize(
    "text",
    [
        f"x,{NORMAL}",
        f"x,{NORMAL},size=20x30,resize=18,crop=16,interpolation=linear",
        f"x,{NORMAL},colour=bgr,crop=0.9,resize=16x16",
    ],
)
def test_every_cut_of_a_model_that_takes_pictures_is_exact(text: str, tmp_path: Path) -> None:
    size = (16, 16) if "resize" not in text else (20, 30)
    model, samples = with_inputs(models.write(models.residual(), tmp_path), text, scenes(8, *size))
    expected = verify.run_all(model.data, samples, range(2), optimise=False)
    tried = 0
    for candidate in prefix_candidates(model.topology):
        sides = separate(model.topology, candidate.cut)
        halves = split(model, sides)
        pair = verify.SplitPair(
            serialise(halves.head), serialise(halves.tail), sides.cut, sides.head_outputs, optimise=False
        )
        with pair:
            assert verify.difference(expected, [pair.infer(f) for f in samples.feeds(range(2))]).seen == 0.0
        tried += 1
    assert tried >= 4


def test_an_old_model_is_raised_to_the_opset_that_antialiasing_needs_and_answers_the_same(tmp_path: Path) -> None:
    path = models.write(models.old_export(), tmp_path)
    model, samples = with_inputs(path, f"x,{NORMAL},resize=16x16", scenes(8, 40, 30))
    assert model.notes == ("converted from opset 11 to 18",)
    assert model.front is not None
    floats = data.prepared(samples, model.front, range(4))
    before = verify.run_all(model.source, floats, range(4), optimise=False)
    assert verify.difference(before, verify.run_all(model.data, samples, range(4), optimise=False)).within


def test_a_bundle_from_pictures_sends_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(scenes(16, 60, 80)):
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    order = Order(
        model=models.write(models.residual(), tmp_path),
        target=tmp_path / "bundle",
        cuts=(("r3",),),
        calibration=folder,
        precision="fp32",
        inputs=(f"x,{NORMAL},size=60x80,resize=16x16",),
        bound=0.5,
    )
    build(order, Silent())
    manifest = Bundle.open(order.target).manifest
    (taken,) = manifest.model.inputs
    clouds = [e for e in manifest.placements if e.id.startswith("full-cloud")]
    assert (taken.dtype, taken.shape[1:]) == ("uint8", (60, 80, 3))
    assert any(images.is_name(e.boundary[0].codec) for e in clouds)
    assert max(e.cost.up_nbytes for e in clouds) <= 60 * 80 * 3


@pytest.mark.shared
def test_mobilenet_answers_bit_for_bit_from_real_pictures_and_mostly_alike_from_jpeg() -> None:
    path, pictures = SHARED / "models" / "mobilenet_v2_224.onnx", SHARED / "data" / "imagenet"
    if not (path.is_file() and pictures.is_dir()):
        pytest.skip(f"{path} or {pictures} is not here; set ISTHMUS_SHARED to the folder that holds them")
    model = load(path, inputs=parse([f"input,{NORMAL}"]))
    samples = data.load(pictures, model.inputs, label_offset=1, classes=data.classes_of(model.outputs))
    assert samples.labels is not None
    some = samples.held_out[:24]
    with (
        OrtEngine(model.data, label="pictures", optimise=False) as engine,
        OrtEngine(path.read_bytes(), label="floats", optimise=False) as reference,
    ):
        right = alike = 0
        for index in some:
            image = samples.feed(index)["input"]
            got = engine.infer({"input": image})["logits"]
            assert np.array_equal(got, reference.infer({"input": normal(image)})["logits"])
            lossy = engine.infer({"input": codecs.decode(*codecs.encode("input", image, "jpeg90"))})["logits"]
            right += int(got.argmax() == samples.labels[index])
            alike += int(got.argmax() == lossy.argmax())
    assert right >= 17
    assert alike >= 20
