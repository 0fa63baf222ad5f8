"""Samples: what an .npz must hold, and what is said when it does not."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitioner import data
from protocol.errors import InputError
from protocol.tensors import TensorSpec

IMAGE = TensorSpec("image", "float32", ("N", 3, 4, 4))
FIXED = TensorSpec("image", "float32", (1, 3, 4, 4))
UNBATCHED = TensorSpec("signal", "float32", (6, 5))


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def images(count: int = 10) -> Any:
    return np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)


def refusal(path: Path, *specs: TensorSpec, labels: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        data.load(path, specs or (IMAGE,), labels=labels)
    return str(caught.value)


@pytest.mark.parametrize("spec", [IMAGE, FIXED])
def test_one_row_is_one_sample_fed_as_batch_one(tmp_path: Path, spec: TensorSpec) -> None:
    samples = data.load(save(tmp_path, image=images()), [spec])
    assert len(samples) == 10
    assert samples.feed(3)["image"].shape == (1, 3, 4, 4)
    assert np.shares_memory(samples.feed(3)["image"], samples.arrays["image"])


def test_an_input_without_a_batch_axis_is_fed_whole(tmp_path: Path) -> None:
    samples = data.load(save(tmp_path, signal=np.zeros((9, 6, 5), np.float32)), [UNBATCHED])
    assert samples.feed(0)["signal"].shape == (6, 5)


def test_samples_that_bring_their_batch_axis_of_one_lose_it(tmp_path: Path) -> None:
    samples = data.load(save(tmp_path, image=images()[:, None]), [IMAGE])
    assert samples.feed(0)["image"].shape == (1, 3, 4, 4)
    assert samples.whole == frozenset()
    assert "its shape must be" in refusal(save(tmp_path, image=np.zeros((10, 2, 3, 4, 4), np.float32)))
    assert "its shape must be" in refusal(save(tmp_path, image=np.float32(3)))


def test_halves_do_not_overlap_and_calibration_is_bounded(tmp_path: Path) -> None:
    samples = data.load(save(tmp_path, image=images(400)), [IMAGE])
    assert len(samples.calibration) == data.MAX_CALIBRATION
    assert set(samples.calibration).isdisjoint(samples.held_out)
    assert len(samples.calibration) + len(samples.held_out) == 400


@pytest.mark.parametrize("key", ["labels", "y"])
def test_labels_are_found_by_their_usual_names(tmp_path: Path, key: str) -> None:
    samples = data.load(save(tmp_path, image=images(), **{key: np.arange(10, dtype=np.uint8)}), [IMAGE])
    assert samples.labels is not None
    assert samples.labels.dtype == np.int64


def test_labels_are_taken_from_the_array_that_is_named(tmp_path: Path) -> None:
    samples = data.load(save(tmp_path, image=images(), truth=np.arange(10)), [IMAGE], labels="truth")
    assert samples.labels is not None
    assert "no array 'trut' for --labels" in refusal(save(tmp_path, image=images()), labels="trut")


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    assert "one integer per sample" in refusal(save(tmp_path, image=images(), y=np.zeros(10)))
    assert "one integer per sample" in refusal(save(tmp_path, image=images(), y=np.zeros(9, np.int64)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.npz")
    assert "cannot be read" in refusal(tmp_path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("not an archive")
    assert "is not an .npz file" in refusal(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", images())
    assert "is not an .npz file" in refusal(tmp_path / "b.npy")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, image=images())
    raw = bytearray(path.read_bytes())
    raw[200:260] = b"\xff" * 60
    path.write_bytes(raw)
    assert "damaged" in refusal(path)


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    assert "Python objects" in refusal(save(tmp_path, image=np.array([{}] * 10, dtype=object)))


def test_an_archive_of_something_else_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "holds no array 'image'" in refusal(path)


def test_a_wrong_name_is_told_what_the_model_takes(tmp_path: Path) -> None:
    text = refusal(save(tmp_path, images=images()))
    assert "holds no array 'image' but ['images']; the model takes image: float32 [N, 3, 4, 4]" in text
    assert "'extra' that is no input" in refusal(save(tmp_path, image=images(), extra=images()))


def test_a_wrong_element_type_is_told_with_its_remedy(tmp_path: Path) -> None:
    text = refusal(save(tmp_path, image=images().astype(np.float64)))
    assert "element type float64 but the model takes image: float32" in text
    assert ".astype('float32')" in text


@pytest.mark.parametrize("shape", [(10, 4, 4, 3), (10, 3, 4), (3, 4, 4)])
def test_a_wrong_shape_is_told_what_it_must_be(tmp_path: Path, shape: tuple[int, ...]) -> None:
    text = refusal(save(tmp_path, image=np.zeros(shape, np.float32)))
    assert str(list(shape)) in text
    assert "its shape must be [samples, 3, 4, 4]" in text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_must_be_finite(tmp_path: Path, value: float) -> None:
    broken = images()
    broken[4, 0, 0, 0] = value
    assert "holds NaN or infinity" in refusal(save(tmp_path, image=broken))


def test_too_few_samples_are_told_how_many_are_needed(tmp_path: Path) -> None:
    assert "holds 7 samples; at least 8 are needed" in refusal(save(tmp_path, image=images(7)))
    assert "holds 0 samples" in refusal(save(tmp_path, image=images(0)))


def test_inputs_must_hold_equally_many_samples(tmp_path: Path) -> None:
    other = TensorSpec("mask", "bool", ("N", 2))
    path = save(tmp_path, image=images(), mask=np.zeros((9, 2), bool))
    assert "different numbers of samples" in refusal(path, IMAGE, other)


def test_random_samples_are_seeded_and_say_so() -> None:
    specs = [IMAGE, TensorSpec("ids", "int64", ("N", 5)), TensorSpec("pixels", "uint8", ("N", 2)), UNBATCHED]
    one, two = data.random(specs), data.random(specs)
    assert one.is_random
    assert one.digest == two.digest
    assert one.labels is None
    assert set(np.unique(one.arrays["ids"])) == {0, 1}
    assert one.arrays["pixels"].max() > 127
    assert one.feed(0)["signal"].shape == (6, 5)


def test_random_samples_cannot_know_a_free_dimension() -> None:
    with pytest.raises(InputError, match="free dimension"):
        data.random([TensorSpec("text", "int64", ("N", "length"))])
