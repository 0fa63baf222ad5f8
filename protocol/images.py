"""Image codecs: a uint8 tensor of pictures to PNG (lossless) or JPEG (lossy) and back; the only door to Pillow here.

A tensor is [N, H, W, C] or [N, C, H, W] with C 1 (grey) or 3 (red, green, blue); where both readings fit, the last axis
counts. One picture travels as a plain file, so that what a camera compressed can be sent as it is; of several, each is
preceded by its length as uint32, little-endian. No picture is an empty payload.

    N = 1:   file
    N > 1:   length 0 | file 0 | length 1 | file 1 | ...

The tensor's header decides what is allocated. A file that names another size or another kind of pixels is refused
before a pixel is decoded, the file is parsed by the one decoder that its codec names, and what lets a small file cost
much time or memory (compressed texts, animations, hundreds of scans) is refused as well. Pillow is imported when it is
first needed: without it everything else of the protocol works.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from protocol.errors import InputError, WireError
from protocol.tensors import Array, TensorHeader, TensorSpec, describe
from protocol.wire import Buffer

if TYPE_CHECKING:
    from PIL import Image

    from protocol.bundle import Levels

PNG_LEVEL = 1  # of zlib: within 5 % of level 6 on photographs at a third of its time (measured)
JPEG_QUALITY = 90
MAX_SIDE = 65_500  # libjpeg's
MAX_SCANS = (
    32  # a progressive JPEG has about 10, thumbnails add theirs; every further scan costs a pass over the picture
)
# A file may be larger than its pixels (noise, tables, colour profiles), but not without limit.
MAX_FILE_NBYTES_OVER = 128 * 1024

_LENGTH = struct.Struct("<I")
_CHUNK = struct.Struct(">I4s")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CRC_NBYTES = 4
# Compressed texts and profiles (they inflate), animations (they hold further pictures).
_PNG_REFUSED = frozenset({b"zTXt", b"iTXt", b"iCCP", b"acTL", b"fcTL", b"fdAT"})
_PNG_MIN_IDAT_NBYTES = 256  # on average: libpng writes 8 KiB, and a chunk of nothing costs as much time as a full one
_NAME = re.compile(r"png|jpeg(100|[1-9][0-9]?)?(-420)?")
_WITHOUT_PILLOW = "install it (pip install pillow) or send with codec raw or zstd"


class Pictures(NamedTuple):
    """How a tensor's shape reads as pictures."""

    batch: int
    height: int
    width: int
    channels: int
    planes_first: bool

    @property
    def nbytes_each(self) -> int:
        return self.height * self.width * self.channels


def pictures(shape: tuple[int, ...]) -> Pictures | None:
    """Read a shape as pictures, or None where it is neither [N, H, W, 1|3] nor [N, 1|3, H, W]."""
    if len(shape) != 4:
        return None
    n, a, b, c = shape
    if c in (1, 3):
        return Pictures(n, a, b, c, planes_first=False)
    return Pictures(n, b, c, a, planes_first=True) if a in (1, 3) else None


def is_name(codec: str) -> bool:
    """Whether `codec` is one of these: png, jpeg, jpeg1 ... jpeg100, each jpeg also as jpegQ-420."""
    return _NAME.fullmatch(codec) is not None


def named(codec: str) -> ImageCodec | None:
    """The image codec of that name, or None where it is none."""
    return ImageCodec(codec) if is_name(codec) else None


def is_lossy(codec: str) -> bool:
    return is_name(codec) and codec != "png"


class ImageCodec:
    """One named image codec; `jpeg` is `jpeg90`, and any quality decodes any JPEG.

    Colour keeps its full resolution (4:4:4), unlike in most encoders' defaults: networks look at it. MobileNetV2 agreed
    with itself on 0.924 of 250 photographs at quality 90 with halved colour (16.4 KB), and on 0.944 at quality 75 with
    full colour (11.9 KB).
    `jpegQ-420` halves it, for comparison with what others send.
    """

    def __init__(self, name: str) -> None:
        if not is_name(name):
            raise WireError(f"codec {name!r}", "known image codecs are png and jpeg1 ... jpeg100")
        self.name = name
        self.is_png = name == "png"
        number = re.sub("[^0-9]", "", name.removesuffix("-420"))
        self.quality = int(number or JPEG_QUALITY)
        self.subsampling = "4:2:0" if name.endswith("-420") else "4:4:4"

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str:
        """What the codec takes instead of tensors of this element type and shape, or "" if it takes them."""
        try:
            _form(shape, dtype, self.name)
        except WireError as error:
            return error.remedy
        return ""

    def encode(self, array: Array, levels: Levels | None = None) -> Buffer:
        """The payload of uint8 [N, H, W, C] or [N, C, H, W]. Raises WireError for anything that is no picture."""
        form = _form(array.shape, str(array.dtype), self.name)
        if form.planes_first:
            array = array.transpose(0, 2, 3, 1)
        files = [self._write(np.ascontiguousarray(picture)) for picture in array]
        if form.batch == 1:
            return files[0]
        return b"".join(part for file in files for part in (_LENGTH.pack(len(file)), file))

    def decode(self, data: Buffer, header: TensorHeader) -> Buffer:
        """Exactly `header.decoded_nbytes()` bytes in the header's shape.

        Raises WireError when the files are not what the header says, before their pixels are decoded.
        """
        form = _form(header.shape, header.dtype, self.name)
        view = memoryview(data).cast("B")
        read = [self._read(file, form) for file in _files(view, form)]
        empty = np.empty((0, form.height, form.width, form.channels), np.uint8)
        out = read[0][None] if len(read) == 1 else np.stack(read) if read else empty
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2) if form.planes_first else out).reshape(-1).data

    def _write(self, picture: Array) -> bytes:
        image = _pillow().fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
        file = io.BytesIO()
        if self.is_png:
            image.save(file, "PNG", compress_level=PNG_LEVEL)
        else:
            image.save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
        return file.getvalue()

    def _read(self, file: memoryview, form: Pictures) -> Array:
        _pillow()
        (_check_png if self.is_png else _check_jpeg)(file, form)
        try:
            with _open(file, is_png=self.is_png) as image:
                _check_pixels(image, form)
                return np.asarray(image).reshape(form.height, form.width, form.channels)
        except WireError:
            raise
        except Exception as error:  # so many decoders, so many ways to fail
            raise WireError(f"{self._kind} file does not decode ({_why(error)})", "encode the picture again") from error

    @property
    def _kind(self) -> str:
        return "PNG" if self.is_png else "JPEG"


def load_picture(data: bytes, spec: TensorSpec) -> Array:
    """One picture from a file's bytes as uint8 [1, ...] for an image input, and nothing else done to it.

    Grey or RGB as the input has 1 or 3 channels. Where the input's height and width are fixed and the picture's differ,
    it is resized (antialiased bilinear, aspect ratio kept) until it covers them and cropped centrally.
    Raises InputError for what is no JPEG, PNG, BMP, WebP, PNM or TIFF file, and for a spec that is no image.
    """
    form = image_form(spec)
    if form is None:
        raise InputError(f"the model takes {describe(spec)}, which is no uint8 image", "declare it with --input")
    height, width, channels, planes_first = form
    try:
        with _pillow().open(io.BytesIO(data), formats=("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except WireError as error:
        raise InputError(error.fact, "pip install pillow") from error
    except Exception as error:
        raise InputError(f"no readable image ({_why(error)})", "convert it to JPEG or PNG") from error
    if height is not None and width is not None:
        image = _cover(image, height, width)
    pixels = np.asarray(image).reshape(image.height, image.width, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if planes_first else pixels)[None]


class ImageForm(NamedTuple):
    """What an image input takes; a free height or width is None."""

    height: int | None
    width: int | None
    channels: int
    planes_first: bool


def image_form(spec: TensorSpec) -> ImageForm | None:
    """Read a model input as uint8 pictures, or None where it is none. Free dimensions count as neither 1 nor 3."""
    sizes = [d if isinstance(d, int) else 0 for d in spec.shape]
    form = pictures(tuple(sizes)) if spec.dtype == "uint8" else None
    return form and ImageForm(form.height or None, form.width or None, form.channels, form.planes_first)


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    factor = max(height / image.height, width / image.width)
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    resized = image.resize(size, _pillow().Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))


def _form(shape: tuple[int, ...], dtype: str, codec: str) -> Pictures:
    form = pictures(shape)
    if form is None or dtype != "uint8" or not (0 < form.height <= MAX_SIDE and 0 < form.width <= MAX_SIDE):
        raise WireError(f"{dtype} {list(shape)} does not travel as {codec}", _takes(codec))
    return form


def _takes(codec: str) -> str:
    return f"{codec} takes uint8 [N, H, W, 1 or 3] or [N, 1 or 3, H, W], 1 ... {MAX_SIDE} a side"


def _files(view: memoryview, form: Pictures) -> Iterator[memoryview]:
    """The files in a payload, each of a believable size, with nothing left over. Raises WireError."""
    at = 0
    for _ in range(form.batch):
        nbytes = view.nbytes
        if form.batch > 1:
            if view.nbytes - at < _LENGTH.size:
                raise WireError(f"payload of {view.nbytes} bytes ends before picture {form.batch}", "send all of them")
            nbytes = _LENGTH.unpack_from(view, at)[0]
            at += _LENGTH.size
        if nbytes > view.nbytes - at or nbytes > 2 * form.nbytes_each + MAX_FILE_NBYTES_OVER:
            raise WireError(f"a picture's file of {nbytes} bytes", f"its pixels take {form.nbytes_each}")
        yield view[at : at + nbytes]
        at += nbytes
    if at != view.nbytes:
        raise WireError(f"{view.nbytes - at} bytes follow the last picture", "send the tensor's shape as it is")


def _check_png(file: memoryview, form: Pictures) -> None:
    """Walk the chunks: the size first, nothing that inflates on the side, an end and nothing after it."""
    if bytes(file[:8]) != _PNG_SIGNATURE:
        raise WireError("the payload is no PNG file", "encode it as PNG")
    at, chunks, kind = 8, 0, b""
    while kind != b"IEND":
        if file.nbytes - at < _CHUNK.size:
            raise WireError("PNG file is truncated", "send all of it")
        length, kind = _CHUNK.unpack_from(file, at)
        if kind in _PNG_REFUSED:
            raise WireError(f"PNG file has a {kind.decode()} chunk", "send the pixels alone")
        if at == 8:
            _check_png_head(file, kind, length, form)
        at += _CHUNK.size + length + _PNG_CRC_NBYTES
        chunks += 1
        if chunks > 64 + file.nbytes // _PNG_MIN_IDAT_NBYTES:
            raise WireError(f"PNG file of {file.nbytes} bytes has more than {chunks} chunks", "write larger ones")
    if at != file.nbytes:
        raise WireError("PNG file is truncated or followed by other bytes", "send one whole file")


def _check_png_head(file: memoryview, kind: bytes, length: int, form: Pictures) -> None:
    if kind != b"IHDR" or length != 13 or file.nbytes < 33:
        raise WireError("PNG file does not begin with its size", "encode the picture again")
    width, height = struct.unpack_from(">II", file, 16)
    _check_size(height, width, form)


def _check_jpeg(file: memoryview, form: Pictures) -> None:
    data = bytes(file)
    if data[:2] != b"\xff\xd8":
        raise WireError("the payload is no JPEG file", "encode it as JPEG")
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise WireError(f"JPEG file has {scans} scans", f"at most {MAX_SCANS}; save it as baseline")


def _open(file: memoryview, *, is_png: bool) -> Image.Image:
    # The classes themselves, not Image.open: that would try MPO and further formats hidden in a JPEG.
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    stream = io.BytesIO(file)
    return PngImageFile(stream) if is_png else JpegImageFile(stream)


def _check_pixels(image: Image.Image, form: Pictures) -> None:
    _check_size(image.height, image.width, form)
    wanted = "L" if form.channels == 1 else "RGB"
    if image.mode != wanted:
        raise WireError(f"the file's pixels are {image.mode}", f"the tensor's shape needs {wanted}, 8 bits a channel")


def _check_size(height: int, width: int, form: Pictures) -> None:
    if (height, width) != (form.height, form.width):
        raise WireError(
            f"the file's picture is {height}x{width}", f"the tensor's shape needs {form.height}x{form.width}"
        )


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise WireError("image codecs need Pillow, which is not installed", _WITHOUT_PILLOW) from error
    return Image


def _why(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
