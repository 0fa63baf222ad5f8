"""Samples: what an .npz or a folder must hold, how they are divided, and what is said when they do not fit."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from PIL import Image

from partitioner.graph.inputs import parse
from partitioner.graph.preprocess import front
from partitioner.judging import data, pictures
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


def test_a_scalar_input_is_fed_as_an_array_without_axes(tmp_path: Path) -> None:
    samples = data.load(save(tmp_path, scale=np.arange(9, dtype=np.float32)), [TensorSpec("scale", "float32", ())])
    fed = samples.feed(3)["scale"]
    assert (type(fed), fed.shape, float(fed)) == (np.ndarray, (), 3.0)


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


def shares(labels: Any, **options: Any) -> list[list[float]]:
    """Of the calibrating samples, the held-out ones and the first 16 of these: the share of each class."""
    samples = data.Samples({"x": np.zeros((len(labels), 1), np.float32)}, frozenset(), labels, False, "", **options)
    parts = (samples.calibration, samples.held_out, samples.held_out[:16])
    return [[float(np.mean(labels[list(part)] == c)) for c in np.unique(labels)] for part in parts if len(part)]


@pytest.mark.parametrize("count", [40, 100, 250, 1000])
@pytest.mark.parametrize("classes", [2, 4, 5])
def test_both_parts_hold_every_class_evenly_whether_labels_are_sorted_or_alternate(count: int, classes: int) -> None:
    for labels in (np.arange(count) * classes // count, np.arange(count) % classes):
        for part in shares(labels):
            assert max(abs(share - 1 / classes) for share in part) < 0.13


def test_the_parts_are_the_same_every_time_and_everywhere() -> None:
    samples = data.random([IMAGE], count=10)
    assert list(samples.calibration) == [0, 5, 2, 7, 4]
    assert list(samples.held_out) == [9, 1, 6, 3, 8]


def test_where_nothing_calibrates_all_judge_as_they_come() -> None:
    samples = replace(data.random([IMAGE], count=10), calibrates=False)
    assert list(samples.calibration) == []
    assert list(samples.held_out) == list(range(10))


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


def test_labels_must_be_classes_of_the_model(tmp_path: Path) -> None:
    path = save(tmp_path, image=images(), y=np.arange(10))
    shifted = data.load(path, [IMAGE], label_offset=1, classes=11)
    assert shifted.labels is not None
    assert shifted.labels.tolist() == list(range(1, 11))
    with pytest.raises(
        InputError, match=r"label 9 of sample 9 in .* is no class of the model; labels are 0 ... 8; shift"
    ):
        data.load(path, [IMAGE], classes=9)
    with pytest.raises(InputError, match="label -1 of sample 0"):
        data.load(path, [IMAGE], label_offset=-1)


@pytest.mark.parametrize(
    ("shape", "classes"), [(("N", 10), 10), ((1, 10, 1, 1), 10), (("N", "C"), None), (("N", 10, 4), None), ((), None)]
)
def test_classes_are_counted_where_the_output_scores_them(shape: tuple[Any, ...], classes: int | None) -> None:
    assert data.classes_of([TensorSpec("scores", "float32", shape)]) == classes


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.npz")
    assert "is a folder of pictures but the model takes image: float32" in refusal(tmp_path)


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
def test_samples_must_be_finite_and_those_that_are_not_are_named(tmp_path: Path, value: float) -> None:
    broken = images()
    broken[4, 0, 0, 0] = value
    assert "array 'image' in" in refusal(save(tmp_path, image=broken))
    assert "holds NaN or infinity in sample 4; leave those samples out" in refusal(save(tmp_path, image=broken))
    broken[5:] = value
    assert "holds NaN or infinity in sample 4, 5, 6 and 3 more" in refusal(save(tmp_path, image=broken))


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


# ---- folders of pictures --------------------------------------------------------------------------------------------

FIXED_PICTURE = TensorSpec("image", "uint8", ("N", 6, 8, 3))
FREE_PICTURE = TensorSpec("image", "uint8", ("N", "height", "width", 3))


def album(folder: Path, *names: str) -> Path:
    """Pictures of rising sizes, each of one colour that tells its place."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i, 6), (i, i, i)).save(folder / name)
    return folder


NUMBERED = [f"{label:03d}_{i}.png" for i, label in enumerate([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])]


def test_a_folder_of_pictures_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    samples = data.load(album(tmp_path, *NUMBERED), [FIXED_PICTURE])
    assert len(samples) == 10
    assert samples.labels is not None
    assert samples.labels.tolist() == sorted([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    assert samples.feed(0)["image"].shape == (1, 6, 8, 3)
    assert [int(samples.feed(i)["image"][0, 0, 0, 0]) for i in range(3)] == [1, 3, 6]
    assert samples.notes == (
        "pictures of another size were resized to cover 6x8 and cropped",
        "labels are the numbers that file names begin with",
    )


def test_where_the_size_is_free_pictures_come_as_they_are(tmp_path: Path) -> None:
    samples = data.load(album(tmp_path, *NUMBERED), [FREE_PICTURE])
    assert {samples.feed(i)["image"].shape for i in range(10)} == {(1, 6, 8 + i, 3) for i in range(10)}
    assert samples.notes == ("labels are the numbers that file names begin with",)


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    named = data.load(
        album(tmp_path / "a", *(f"{n}/{i}.jpg" for n in ("dog", "cat") for i in range(4))), [FIXED_PICTURE]
    )
    assert named.labels is not None
    assert named.labels.tolist() == [0] * 4 + [1] * 4
    assert "labels are the sub-folders in sorted order: 0 cat, 1 dog" in named.notes
    counted = data.load(album(tmp_path / "b", *(f"{n}/{i}.jpg" for n in (7, 30) for i in range(4))), [FIXED_PICTURE])
    assert counted.labels is not None
    assert sorted(counted.labels.tolist()) == [7] * 4 + [30] * 4


def test_pictures_without_numbers_have_no_labels(tmp_path: Path) -> None:
    samples = data.load(album(tmp_path, *(f"frame{i}.png" for i in range(8))), [FIXED_PICTURE])
    assert samples.labels is None


def test_the_digest_of_a_folder_tells_its_pictures_and_their_names(tmp_path: Path) -> None:
    one = data.load(album(tmp_path / "a", *NUMBERED), [FREE_PICTURE]).digest
    assert data.load(album(tmp_path / "b", *NUMBERED), [FREE_PICTURE]).digest == one
    (tmp_path / "b" / NUMBERED[0]).rename(tmp_path / "b" / "077_0.png")
    assert data.load(tmp_path / "b", [FREE_PICTURE]).digest != one


def test_a_huge_folder_is_thinned_evenly_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PICTURES", 8)
    samples = data.load(album(tmp_path, *(f"{i:03d}_.png" for i in range(16))), [FIXED_PICTURE])
    assert samples.labels is not None
    assert samples.labels.tolist() == list(range(0, 16, 2))
    assert "8 of 16 pictures were read, evenly spaced" in samples.notes


def test_folders_that_do_not_fit_are_told_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no pictures; files must end in .bmp, .jpeg" in refusal(tmp_path / "empty", FIXED_PICTURE)
    few = album(tmp_path / "few", *NUMBERED[:7])
    assert "holds 7 samples; at least 8" in refusal(few, FIXED_PICTURE)
    assert "declare its one image input with --input" in refusal(few, FIXED_PICTURE, FREE_PICTURE)
    assert "holds no array 'y'" in refusal(few, FIXED_PICTURE, labels="y")
    mixed = album(tmp_path / "mixed", *NUMBERED, "extra.png")
    assert "extra.png does not begin with LABEL_ but others do" in refusal(mixed, FIXED_PICTURE)
    beside = album(tmp_path / "beside", "cat/1.png", "loose.png")
    assert "loose.png lies beside them; move it into one" in refusal(beside, FIXED_PICTURE)
    broken = album(tmp_path / "broken", *NUMBERED)
    (broken / NUMBERED[3]).write_bytes(b"not a picture")
    assert f"{NUMBERED[3]}: no readable image" in refusal(broken, FIXED_PICTURE)


def test_prepared_samples_are_what_the_model_took_before(tmp_path: Path) -> None:
    samples = data.load(album(tmp_path, *NUMBERED), [FIXED_PICTURE])
    shape = ("N", 3, 6, 8)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["image"], ["y"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    ahead = ir.to_proto(front(model, parse(["image,mean=1,std=2"]))).SerializeToString()
    floats = data.prepared(samples, ahead, samples.held_out[:2])
    assert list(floats.arrays) == ["image"]
    for i, index in enumerate(samples.held_out[:2]):
        wanted = (samples.feed(index)["image"].transpose(0, 3, 1, 2).astype(np.float32) - 1) / 2
        assert np.array_equal(floats.feed(i)["image"], wanted)
