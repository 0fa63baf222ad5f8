"""Files become samples, or say in words why not: no file, however damaged, may end the daemon."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge_agent.sources import Sample, load_sample, open_source
from protocol.errors import InputError
from protocol.tensors import TensorSpec

Image = pytest.importorskip("PIL.Image")

FEATURES = TensorSpec("x", "float32", ("N", 4))
MASK = TensorSpec("mask", "int64", ("N", 2))
GREY = TensorSpec("image", "uint8", ("N", 1, 6, 8))
COLOUR = TensorSpec("image", "uint8", (None, 6, 8, 3))
FREE = TensorSpec("image", "uint8", ("N", 3, "H", "W"))


def rows(count: int) -> np.ndarray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


def read(source: Path | str, *specs: TensorSpec, stdin: str = "") -> list[Sample]:
    return list(open_source(str(source), specs or (FEATURES,), io.StringIO(stdin)))


def only(samples: list[Sample]) -> Sample:
    (sample,) = samples
    return sample


# ---- npz ------------------------------------------------------------------------------------------------------------


def test_each_row_of_an_npz_is_one_request_with_a_batch_axis_of_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=rows(3))
    samples = read(tmp_path / "set.npz")
    assert [s.name for s in samples] == ["set.npz#0", "set.npz#1", "set.npz#2"]
    assert all(s.inputs["x"].shape == (1, 4) and not s.error for s in samples)
    assert np.array_equal(np.concatenate([s.inputs["x"] for s in samples]), rows(3))


def test_an_npz_holds_one_array_for_each_input_and_others_are_left_aside(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=rows(2), mask=np.ones((2, 2), np.int64), labels=np.arange(2))
    samples = read(tmp_path / "set.npz", FEATURES, MASK)
    assert [set(s.inputs) for s in samples] == [{"x", "mask"}] * 2


def test_a_compressed_npz_is_read_too(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", x=rows(2))
    assert len(read(tmp_path / "set.npz")) == 2


def test_an_npz_without_an_input_names_it_and_what_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", y=rows(2), z=rows(2))
    with pytest.raises(InputError, match=r"no array 'x' \(it has y, z\)"):
        read(tmp_path / "set.npz")


def test_an_npz_of_another_element_type_says_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=rows(2).astype(np.float64))
    with pytest.raises(InputError, match="float64 but the model takes float32"):
        read(tmp_path / "set.npz")


def test_an_npz_of_another_shape_says_which(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.zeros((2, 5), np.float32))
    with pytest.raises(InputError, match=r"\[1, 5\] but the model takes x: float32 \[N, 4\]"):
        read(tmp_path / "set.npz")


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=rows(3), mask=np.ones((2, 2), np.int64))
    with pytest.raises(InputError, match="different lengths"):
        read(tmp_path / "set.npz", FEATURES, MASK)


def test_an_npz_without_samples_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=rows(0))
    with pytest.raises(InputError, match="no samples"):
        read(tmp_path / "set.npz")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"'x' of .*set\.npz cannot be read"):
        read(tmp_path / "set.npz")


# ---- single files and folders ---------------------------------------------------------------------------------------


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no source at .*nowhere"):
        read(tmp_path / "nowhere")


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="holds no"):
        read(tmp_path)


def test_a_folder_gives_one_request_a_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", rows(1))
    np.savez(tmp_path / "a.npz", x=rows(1))
    np.save(tmp_path / "C.NPY.npy", rows(1)[0])
    (tmp_path / "notes.txt").write_text("hello")
    samples = read(tmp_path)
    assert [s.name for s in samples] == ["C.NPY.npy", "a.npz", "b.npy"]
    assert all(s.inputs["x"].shape == (1, 4) for s in samples)


def test_one_file_of_a_folder_that_does_not_fit_does_not_stop_the_others(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(1))
    np.save(tmp_path / "b.npy", rows(1).astype(np.int8))
    np.save(tmp_path / "c.npy", rows(1))
    first, bad, last = read(tmp_path)
    assert not first.error
    assert not last.error
    assert bad.inputs == {}
    assert "int8" in bad.error


def test_an_npy_gets_its_batch_axis_if_it_has_none(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", rows(1)[0])
    assert only(read(tmp_path / "one.npy")).inputs["x"].shape == (1, 4)


def test_a_single_tensor_is_not_enough_for_a_model_with_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", rows(1))
    with pytest.raises(InputError, match="one tensor but the model takes x, mask"):
        read(tmp_path / "one.npy", FEATURES, MASK)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no \.npz, \.npy or image file"):
        load_sample(tmp_path / "notes.txt", (FEATURES,))


def test_a_sample_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.npy"):
        load_sample(tmp_path / "nowhere.npy", (FEATURES,))


# ---- standard input -------------------------------------------------------------------------------------------------


def test_standard_input_names_files_one_a_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(1))
    samples = read("-", stdin=f"{tmp_path / 'a.npy'}\n\n  {tmp_path / 'a.npy'}  \n{tmp_path / 'gone.npy'}\n")
    assert [bool(s.error) for s in samples] == [False, False, True]
    assert "there is no file" in samples[2].error


def test_standard_input_is_read_as_it_comes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(1))
    stdin = io.StringIO(f"{tmp_path / 'a.npy'}\n{tmp_path / 'gone.npy'}\n")
    samples = open_source("-", (FEATURES,), stdin)
    assert stdin.tell() == 0
    assert next(samples).name == "a.npy"


def test_empty_standard_input_gives_no_samples() -> None:
    assert read("-", stdin="\n\n") == []


# ---- damaged files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bad.npz", "bad.npy", "bad.png"])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read(tmp_path / name, GREY)


def test_an_npy_that_is_called_npz_is_refused_by_name(tmp_path: Path) -> None:
    with (tmp_path / "false.npz").open("wb") as file:
        np.save(file, rows(1))
    with pytest.raises(InputError, match=r"false\.npz"):
        read(tmp_path / "false.npz")


def test_an_npz_that_is_called_npy_is_refused_by_name(tmp_path: Path) -> None:
    with (tmp_path / "false.npy").open("wb") as file:
        np.savez(file, x=rows(1))
    with pytest.raises(InputError, match=r"false\.npy"):
        read(tmp_path / "false.npy")


def test_a_member_that_is_no_array_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("x", b"just text")
    with pytest.raises(InputError, match=r"odd\.npz"):
        read(tmp_path / "odd.npz")


def _good_files() -> dict[str, bytes]:
    files = {}
    for suffix, save in {"npz": np.savez, "z.npz": np.savez_compressed}.items():
        buffer = io.BytesIO()
        save(buffer, x=rows(2))
        files[suffix] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, rows(1))
    files["npy"] = buffer.getvalue()
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    for suffix, kind in {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "pgm": "PPM"}.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        files[suffix] = buffer.getvalue()
    return files


GOOD_FILES = _good_files()


# Each of these once ended in another exception: of numpy, of zlib and zipfile, of the tokenizer, of Pillow.
@example(suffix="npz", cut=1.0, at=223, value=1)
@example(suffix="npz", cut=1.0, at=221, value=255)
@example(suffix="z.npz", cut=1.0, at=28, value=0)
@example(suffix="npy", cut=1.0, at=8, value=1)
@example(suffix="png", cut=1.0, at=11, value=0)
@example(suffix="png", cut=1.0, at=36, value=0)
@example(suffix="bmp", cut=1.0, at=21, value=40)
@example(suffix="bmp", cut=1.0, at=30, value=1)
@example(suffix="pgm", cut=0.0, at=1, value=0)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(sorted(GOOD_FILES)),
    cut=st.floats(0, 1),
    at=st.integers(0, 1000),
    value=st.integers(0, 255),
)
def test_no_damage_to_a_file_gets_past_its_sample(tmp_path: Path, suffix: str, cut: float, at: int, value: int) -> None:
    """Truncated, or one byte changed: a sample or an error in words, and the next file is still read."""
    content = bytearray(GOOD_FILES[suffix])
    content[at % len(content)] = value
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content[: int((0.2 + cut) * len(content))])
    np.save(tmp_path / "b.npy", rows(1))
    spec = FEATURES if suffix.endswith(("npz", "npy")) else GREY
    first, _ = read("-", spec, stdin=f"{path}\n{tmp_path / 'b.npy'}\n")
    assert bool(first.inputs) != bool(first.error)


# ---- images ---------------------------------------------------------------------------------------------------------


def test_an_image_is_resized_and_turned_into_planes(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), (10, 20, 30)).save(tmp_path / "a.png")
    image = only(read(tmp_path / "a.png", FREE)).inputs["image"]
    assert image.shape == (1, 3, 60, 80)
    assert image.dtype == np.uint8
    assert [int(plane.max()) for plane in image[0]] == [10, 20, 30]
    assert only(read(tmp_path / "a.png", GREY)).inputs["image"].shape == (1, 1, 6, 8)


def test_a_model_with_its_channels_last_gets_them_last(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), (10, 20, 30)).save(tmp_path / "a.png")
    image = only(read(tmp_path / "a.png", COLOUR)).inputs["image"]
    assert image.shape == (1, 6, 8, 3)
    assert image[0, 0, 0].tolist() == [10, 20, 30]
    assert image.flags.c_contiguous


def test_pixels_of_the_right_size_cross_unchanged(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(only(read(tmp_path / "a.png", GREY)).inputs["image"][0, 0], pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_grey_or_colour(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 6)).save(tmp_path / "a.tif")
    path = (tmp_path / "a.tif").rename(tmp_path / "a.png")  # the suffix does not decide how it is read
    assert only(read(path, GREY)).inputs["image"].shape == (1, 1, 6, 8)
    assert only(read(path, COLOUR)).inputs["image"].shape == (1, 6, 8, 3)


@pytest.mark.parametrize(
    "spec",
    [
        FEATURES,
        TensorSpec("image", "float32", ("N", 3, 6, 8)),
        TensorSpec("image", "uint8", ("N", 4, 6, 8)),
        TensorSpec("image", "uint8", ("N", 48)),
    ],
)
def test_an_image_for_a_model_that_takes_none_is_refused_with_the_remedy(tmp_path: Path, spec: TensorSpec) -> None:
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="pre-processing into the model"):
        read(tmp_path / "a.png", spec)


def test_images_in_a_folder_are_found_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.Jpg", "c.bmp"):
        Image.new("L", (8, 6)).save(tmp_path / name)
    assert [s.name for s in read(tmp_path, GREY)] == ["a.PNG", "b.Jpg", "c.bmp"]
