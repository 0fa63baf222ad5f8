"""Image codecs: pictures come back, lossless where promised, and hostile files cost nothing."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protocol import codecs, images
from protocol.errors import InputError, WireError
from protocol.images import ImageCodec
from protocol.tensors import TensorHeader, TensorSpec

SHAPES = [(1, 12, 20, 3), (1, 12, 20, 1), (1, 3, 12, 20), (1, 1, 12, 20), (3, 12, 20, 3), (2, 3, 12, 20), (5, 1, 7, 9)]


def noise(*shape: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def scene(n: int, height: int, width: int, channels: int = 3) -> Any:
    """Smooth pictures, as photographs are, all different; uint8 [n, height, width, channels]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (9 + i + c)) * 60 + np.cos(y / (7 + c)) * 60 + 128 for i in range(n) for c in range(channels)]
    return np.stack(waves, -1).reshape(height, width, n, channels).transpose(2, 0, 1, 3).astype(np.uint8)


def header(shape: tuple[int, ...], codec: str, nbytes: int = 0, dtype: str = "uint8") -> TensorHeader:
    return TensorHeader("image", dtype, shape, codec, nbytes)


def decoded(data: Any, shape: tuple[int, ...], codec: str = "png") -> Any:
    return np.frombuffer(ImageCodec(codec).decode(data, header(shape, codec)), np.uint8).reshape(shape)


def refusal(data: bytes, shape: tuple[int, ...], codec: str) -> str:
    with pytest.raises(WireError) as caught:
        ImageCodec(codec).decode(data, header(shape, codec))
    return str(caught.value)


def file_of(array: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


# ---- what is promised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_png_brings_every_pixel_back(shape: tuple[int, ...]) -> None:
    array = noise(*shape)
    assert np.array_equal(decoded(ImageCodec("png").encode(array), shape), array)


@pytest.mark.parametrize("planes_first", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_brings_pictures_back_in_order_and_nearly_as_they_were(channels: int, planes_first: bool) -> None:
    array = scene(3, 32, 48, channels)
    array = np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if planes_first else array
    got = decoded(ImageCodec("jpeg90").encode(array), array.shape, "jpeg90")
    # Neighbouring pictures differ by far more than what the coding loses.
    for picture, wanted in zip(got.astype(int), array.astype(int), strict=True):
        distances = [np.abs(picture - other).mean() for other in array.astype(int)]
        assert min(distances) == np.abs(picture - wanted).mean() < 4


def test_a_higher_quality_costs_more_bytes_and_loses_less() -> None:
    array = scene(1, 64, 64)
    results = []
    for codec in ("jpeg30", "jpeg75", "jpeg"):
        data = ImageCodec(codec).encode(array)
        results.append((memoryview(data).nbytes, -np.abs(decoded(data, array.shape, codec).astype(int) - array).mean()))
    assert results == sorted(results)
    assert ImageCodec("jpeg").encode(array) == ImageCodec("jpeg90").encode(array)


def test_colour_keeps_its_resolution_unless_the_name_says_otherwise() -> None:
    stripes = np.zeros((1, 16, 16, 3), np.uint8)
    stripes[:, :, ::2, 0] = 255
    stripes[:, :, 1::2, 2] = 255
    full, halved = (
        np.abs(decoded(ImageCodec(name).encode(stripes), stripes.shape, name).astype(int) - stripes).mean()
        for name in ("jpeg90", "jpeg90-420")
    )
    assert full < 20 < halved


def test_any_quality_decodes_any_jpeg() -> None:
    array = scene(1, 16, 16)
    data = ImageCodec("jpeg50").encode(array)
    assert np.array_equal(decoded(data, array.shape, "jpeg95"), decoded(data, array.shape, "jpeg50"))


def test_one_picture_is_a_plain_file_that_anyone_can_open() -> None:
    array = noise(1, 5, 7, 3)
    with Image.open(io.BytesIO(ImageCodec("png").encode(array)), formats=("PNG",)) as image:
        assert np.array_equal(np.asarray(image), array[0])


def test_several_pictures_carry_their_lengths() -> None:
    array = noise(2, 5, 7, 1)
    one, two = (bytes(ImageCodec("png").encode(array[i : i + 1])) for i in range(2))
    assert ImageCodec("png").encode(array) == struct.pack("<I", len(one)) + one + struct.pack("<I", len(two)) + two


def test_no_picture_is_an_empty_payload() -> None:
    array = np.zeros((0, 5, 7, 3), np.uint8)
    assert ImageCodec("png").encode(array) == b""
    assert decoded(b"", array.shape).shape == array.shape
    assert "follow the last picture" in refusal(b"x", array.shape, "png")


def test_a_strided_picture_travels_in_logical_order() -> None:
    array = noise(1, 6, 8, 3)[:, ::-1, ::2]
    assert np.array_equal(decoded(ImageCodec("png").encode(array), array.shape), array)


def test_where_both_readings_fit_the_last_axis_counts() -> None:
    assert images.pictures((2, 3, 9, 1)) == (2, 3, 9, 1, False)
    assert images.pictures((2, 3, 9, 9)) == (2, 9, 9, 3, True)
    assert images.pictures((2, 9, 9, 9)) is None
    assert images.pictures((2, 9, 9)) is None


def test_a_picture_that_a_camera_compressed_is_accepted_as_it_is() -> None:
    array = scene(1, 40, 40)
    for options in ({"progressive": True}, {"subsampling": 0}, {"comment": b"made by hand"}):
        assert decoded(file_of(array[0], "JPEG", **options), array.shape, "jpeg").shape == array.shape
    assert np.array_equal(decoded(file_of(array[0], "PNG", dpi=(72, 72)), array.shape), array)


@pytest.mark.parametrize("name", ["png", "jpeg", "jpeg1", "jpeg75", "jpeg100", "jpeg90-420"])
def test_names_of_image_codecs(name: str) -> None:
    assert images.is_name(name)


@pytest.mark.parametrize(
    "name",
    ["jpg", "jpeg0", "jpeg101", "jpeg090", "jpeg-1", "png9", "webp", "", "jpeg90 ", "raw", "png-420", "jpeg90-422"],
)
def test_other_names_are_refused(name: str) -> None:
    assert not images.is_name(name)
    with pytest.raises(WireError, match="png and jpeg1"):
        ImageCodec(name)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), r"float32 \[1, 4, 4, 3\]"),
        (np.zeros((4, 4, 3), np.uint8), r"uint8 \[4, 4, 3\]"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"uint8 \[1, 4, 4, 4\]"),
        (np.zeros((1, 0, 4, 3), np.uint8), r"uint8 \[1, 0, 4, 3\]"),
    ],
)
def test_what_is_no_picture_is_refused_on_both_sides(array: Any, what: str) -> None:
    for codec in ("png", "jpeg90"):
        with pytest.raises(WireError, match=what):
            ImageCodec(codec).encode(array)
        with pytest.raises(WireError, match=what):
            ImageCodec(codec).decode(b"", header(array.shape, codec, dtype=str(array.dtype)))


def test_a_codec_says_beforehand_what_it_takes() -> None:
    assert ImageCodec("png").refusal("uint8", (1, 4, 4, 3)) == ""
    assert "png takes uint8 [N, H, W, 1 or 3]" in ImageCodec("png").refusal("float32", (1, 4, 4, 3))
    assert [images.is_lossy(name) for name in ("raw", "png", "jpeg", "jpeg75")] == [False, False, True, True]
    assert images.named("raw") is None
    assert isinstance(images.named("jpeg75"), ImageCodec)


def test_without_pillow_the_room_stands_and_says_what_is_missing() -> None:
    code = """
import sys
sys.modules["PIL"] = None
import numpy as np
from protocol import codecs, images
from protocol.errors import WireError
assert images.is_name("png")
codecs.encode("t", np.zeros(3, np.uint8), "zstd")
for work in (lambda: images.ImageCodec("jpeg90").encode(np.zeros((1, 4, 4, 3), np.uint8)),):
    try:
        work()
    except WireError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "need Pillow, which is not installed; install it" in done.stdout, done.stderr


def test_pillow_is_not_imported_before_it_is_needed() -> None:
    code = "import protocol.images, sys; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


# ---- hostile files --------------------------------------------------------------------------------------------------

PNG = file_of(noise(12, 20, 3), "PNG")
JPEG = file_of(scene(1, 12, 20)[0], "JPEG")
SHAPE = (1, 12, 20, 3)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def peak_of_refusal(data: bytes, shape: tuple[int, ...], codec: str) -> int:
    with pytest.raises(WireError):  # imports Pillow's plugins, which is not the file's fault
        ImageCodec(codec).decode(b"x", header(SHAPE, codec))
    tracemalloc.start()
    try:
        refusal(data, shape, codec)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("side", [13, 20_000, 2**31 - 1])
def test_a_file_of_another_size_is_refused_before_its_pixels_are_decoded(side: int) -> None:
    bomb = png(side, side, chunk(b"IDAT", zlib.compress(bytes(1000))))
    assert f"{side}x{side}; the tensor's shape needs 12x20" in refusal(bomb, SHAPE, "png")
    assert peak_of_refusal(bomb, SHAPE, "png") < 100_000
    frame = JPEG.index(b"\xff\xc0")
    small = min(side, 65_500)
    lying = JPEG[: frame + 5] + struct.pack(">HH", small, small) + JPEG[frame + 9 :]
    assert f"{small}x{small}; the tensor's shape needs 12x20" in refusal(lying, SHAPE, "jpeg")
    assert peak_of_refusal(lying, SHAPE, "jpeg") < 200_000


def test_a_file_that_inflates_to_more_than_its_picture_stays_within_the_picture() -> None:
    bomb = png(20, 12, chunk(b"IDAT", zlib.compress(bytes(50_000_000), 9)))
    tracemalloc.start()
    with contextlib.suppress(WireError):
        ImageCodec("png").decode(bomb, header(SHAPE, "png"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"acTL", b"fdAT"])
def test_chunks_that_inflate_or_hold_more_pictures_are_refused(kind: bytes) -> None:
    data = png(20, 12, chunk(kind, b"name\0\0" + zlib.compress(bytes(10_000_000), 9)))
    assert f"{kind.decode()} chunk" in refusal(data, SHAPE, "png")


def test_a_file_of_nothing_but_empty_chunks_is_refused() -> None:
    assert "chunks" in refusal(png(20, 12, chunk(b"IDAT", b"") * 5000), SHAPE, "png")


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    scan = JPEG[JPEG.index(b"\xff\xda") : -2]
    assert "scans; at most" in refusal(JPEG[:-2] + scan * 100 + b"\xff\xd9", SHAPE, "jpeg")


def test_a_file_far_larger_than_its_pixels_is_refused_unread() -> None:
    assert "its pixels take 720" in refusal(JPEG + bytes(200_000), SHAPE, "jpeg")


@pytest.mark.parametrize("codec", ["png", "jpeg"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_only_the_format_that_the_codec_names_is_parsed(kind: str, codec: str) -> None:
    data = file_of(scene(1, 12, 20)[0], kind)
    if kind.lower() == codec:
        assert decoded(data, SHAPE, codec).shape == SHAPE
    else:
        assert f"no {codec.upper()} file" in refusal(data, SHAPE, codec)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_pixels_of_another_kind_are_refused(mode: str) -> None:
    picture = np.zeros((12, 20), np.uint16) if mode == "I;16" else scene(1, 12, 20)[0]
    data = file_of(picture, "PNG", None if mode == "I;16" else mode)
    assert "pixels are" in refusal(data, SHAPE, "png")


def test_colours_of_another_kind_are_refused_in_jpeg_as_well() -> None:
    data = file_of(scene(1, 12, 20)[0], "JPEG", "CMYK")
    assert "pixels are CMYK" in refusal(data, SHAPE, "jpeg")
    assert "pixels are RGB; the tensor's shape needs L" in refusal(JPEG, (1, 12, 20, 1), "jpeg")


@pytest.mark.parametrize(("codec", "file"), [("png", PNG), ("jpeg", JPEG)])
def test_a_truncated_file_is_refused(codec: str, file: bytes) -> None:
    for cut in range(0, len(file) - 20, 7):
        refusal(file[:cut], SHAPE, codec)


def test_bytes_after_a_png_are_refused() -> None:
    assert "followed by other bytes" in refusal(PNG + b"x", SHAPE, "png")


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["png", "jpeg75"]), st.integers(0, 3))
def test_random_bytes_are_refused(data: bytes, codec: str, count: int) -> None:
    prefix = PNG[:33] if codec == "png" else JPEG[:200]
    for payload in (data, prefix + data):
        if count or payload:
            refusal(payload, (count, 12, 20, 3), codec)


@settings(deadline=None)
@given(st.sampled_from(["png", "jpeg"]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_gives_a_picture_of_the_right_size_or_a_refusal(codec: str, where: float, change: int) -> None:
    file = bytearray(PNG if codec == "png" else JPEG)
    file[int(where * len(file))] ^= change
    with contextlib.suppress(WireError):
        assert decoded(bytes(file), SHAPE, codec).shape == SHAPE


def test_lengths_that_do_not_add_up_are_refused() -> None:
    one = struct.pack("<I", len(PNG)) + PNG
    shape = (2, 12, 20, 3)
    assert decoded(one + one, shape).shape == shape
    assert "ends before picture" in refusal(one, shape, "png")
    assert "ends before picture" in refusal(one + b"\1\0", shape, "png")
    assert "its pixels take" in refusal(one + struct.pack("<I", 2**32 - 1) + PNG, shape, "png")
    assert "follow the last picture" in refusal(one + one + b"x", shape, "png")


def test_a_claim_of_many_pictures_costs_no_memory() -> None:
    assert peak_of_refusal(b"", (2**20, 8, 8, 3), "png") < 100_000
    assert peak_of_refusal(PNG, (1, 9000, 9000, 3), "png") < 100_000


# ---- pictures for an image input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [("N", 8, 8, 3), (1, 3, 8, 8), ("N", 1, 8, 8), (1, 8, 8, 1)])
def test_a_picture_of_the_right_size_is_taken_as_it_is(shape: tuple[Any, ...]) -> None:
    form = images.image_form(TensorSpec("image", "uint8", shape))
    assert form is not None
    pixels = noise(8, 8, form.channels)
    got = images.load_picture(file_of(pixels[..., 0] if form.channels == 1 else pixels, "PNG"), _spec(*shape))
    wanted = pixels.transpose(2, 0, 1) if form.planes_first else pixels
    assert np.array_equal(got, wanted[None])


def _spec(*shape: Any) -> TensorSpec:
    return TensorSpec("image", "uint8", shape)


def test_a_picture_of_another_size_covers_the_input_and_is_cropped_centrally() -> None:
    wide = np.zeros((8, 32, 3), np.uint8)
    wide[:, 12:20] = 255
    assert (images.load_picture(file_of(wide, "PNG"), _spec(1, 8, 8, 3)) == 255).all()
    assert images.load_picture(file_of(wide, "PNG"), _spec(1, 21, 13, 3)).shape == (1, 21, 13, 3)


def test_a_free_size_keeps_the_picture_whole() -> None:
    wide = noise(8, 32, 3)
    assert np.array_equal(images.load_picture(file_of(wide, "PNG"), _spec("N", "H", "W", 3)), wide[None])


def test_grey_and_colour_are_converted_to_what_the_input_takes() -> None:
    grey = noise(8, 8)
    got = images.load_picture(file_of(grey, "PNG"), _spec(1, 8, 8, 3))
    assert np.array_equal(got, np.repeat(grey[None, :, :, None], 3, -1))


def test_what_is_no_image_is_refused_with_its_reason() -> None:
    with pytest.raises(InputError, match="no readable image"):
        images.load_picture(b"hello", _spec(1, 8, 8, 3))
    with pytest.raises(InputError, match="no uint8 image"):
        images.load_picture(PNG, TensorSpec("image", "float32", (1, 8, 8, 3)))


# ---- through the registry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["png", "jpeg", "jpeg75"])
def test_pictures_cross_by_the_name_of_their_codec(codec: str) -> None:
    array = scene(2, 32, 40)
    sent, data = codecs.encode("image", array, codec)
    assert sent == TensorHeader("image", "uint8", array.shape, codec, memoryview(data).nbytes)
    got = codecs.decode(sent, data)
    assert np.abs(got.astype(int) - array).mean() < (1e-9 if codec == "png" else 4)
    assert not got.flags.writeable


def test_what_is_no_picture_is_told_what_the_codec_takes() -> None:
    with pytest.raises(WireError, match=r"tensor 'x' is float32 \[4\]; png takes uint8 \[N, H, W, 1 or 3\]"):
        codecs.encode("x", np.zeros(4, np.float32), "png")
    with pytest.raises(WireError, match=r"'jpeg0'; known are raw, zstd, .*png, jpeg1 ... jpeg100"):
        codecs.decode(header((1, 4, 4, 3), "jpeg0"), b"")
