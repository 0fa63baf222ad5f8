"""What an application hands in for a model input, declared on the command line or in a JSON file.

    --input NAME[,KEY=VALUE...]        --input @FILE.json        --input FILE.json

The grammar stands in docs/inputs.md. A JSON value is read as the command line would read it, so that there is one
grammar: numbers as they are, lists joined ("/" between numbers of channels, "x" between height and width). Heights come
before widths everywhere, as in a tensor's shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import InputError

LAYOUTS = ("nhwc", "nchw")
COLOURS = ("rgb", "bgr")
# linear: the nearest four pixels, as OpenCV does; the others widen the filter when they shrink, as Pillow does.
INTERPOLATIONS = ("antialias", "linear", "cubic")
MAX_SIDE = 65_500


@dataclass(frozen=True)
class Size:
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True)
class InputSpec:
    """One image input. The application hands in uint8; the graph does the rest, in this order:

        crop (as a fraction) -> resize -> crop (in pixels) -> channel order -> (x * scale - mean) / std

    `layout` is the application's, `model_layout` the model's (None: read from its shape). `size` is what comes in: None
    is free where there is a resize or crop, else what the model takes. `resize` as a number is the short side's pixels.
    `colour` is what the model was trained on; the application's first channel is red. `scale`, `mean` and `std` hold
    one number or one per channel, in the model's channel order.
    """

    name: str
    kind: str = "image"
    layout: str = "nhwc"
    model_layout: str | None = None
    colour: str = "rgb"
    channels: int | None = None
    size: Size | None = None
    crop: float | Size | None = None
    resize: int | Size | None = None
    interpolation: str = "antialias"
    scale: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __str__(self) -> str:
        given = {k: v for k, v in vars(self).items() if k != "name" and v != getattr(InputSpec, k)}
        texts = ("/".join(f"{x:g}" for x in v) if isinstance(v, tuple) else v for v in given.values())
        return ",".join([self.name, *(f"{k}={v}" for k, v in zip(given, texts, strict=True))])


def parse(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Read the values of all `--input` flags. Raises InputError naming the flag, the key and what it may be."""
    specs = tuple(spec for text in texts for spec in _parse_one(text))
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"input {twice!r} is declared twice", "declare each input once")
    return specs


def _parse_one(text: str) -> tuple[InputSpec, ...]:
    if text.startswith("@") or text.lower().endswith(".json"):
        return _from_file(Path(text.removeprefix("@")))
    name, *rest = text.split(",")
    pairs = [item.partition("=") for item in rest]
    bare = next((key for key, equals, _ in pairs if not equals), None)
    if bare is not None:
        raise InputError(f"--input {text}: {bare!r} has no value", f"write KEY=VALUE; keys are {', '.join(_KEYS)}")
    return (_spec(name, [(key, value) for key, _, value in pairs], f"--input {text}"),)


def _from_file(path: Path) -> tuple[InputSpec, ...]:
    remedy = 'write {"name": "image", "mean": 127.5, ...} or a list of such objects'
    try:
        document = json.loads(path.read_bytes(), object_pairs_hook=_Pairs)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}", remedy) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", remedy) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON document ({str(error)[:200]})", remedy) from error
    items = document if isinstance(document, list) and not isinstance(document, _Pairs) else [document]
    if not items or not all(isinstance(item, _Pairs) for item in items):
        raise InputError(f"{path} declares no input", remedy)
    return tuple(_from_object(item, path) for item in items)


class _Pairs(list[tuple[str, object]]):
    """A JSON object with its keys as they stand: two of a kind must be seen."""


def _from_object(pairs: _Pairs, path: Path) -> InputSpec:
    name = next((value for key, value in pairs if key == "name"), "")
    texts = [(key, _as_text(key, value, path)) for key, value in pairs if key != "name"]
    return _spec(name if isinstance(name, str) else "", texts, str(path))


def _as_text(key: str, value: object, path: Path) -> str:
    items = value if isinstance(value, list) and not isinstance(value, _Pairs) else [value]
    if not items or not all(isinstance(x, int | float | str) and not isinstance(x, bool) for x in items):
        raise InputError(f"{path}: {key} is {json.dumps(value)[:80]}", "give a number, a text, or a list of numbers")
    return ("x" if key in ("size", "resize", "crop") else "/").join(str(x) for x in items)


def _spec(name: str, pairs: Sequence[tuple[str, str]], where: str) -> InputSpec:
    if not name or "=" in name:
        raise InputError(
            f"{where}: no input is named", "begin with the input's name, as `partitioner inspect` shows it"
        )
    keys = [key for key, _ in pairs]
    for key in keys:
        if key not in _KEYS:
            raise InputError(f"{where}: unknown key {key!r}", f"keys are {', '.join(_KEYS)}")
        if keys.count(key) > 1:
            raise InputError(f"{where}: {key} is given twice", "give it once")
    values: dict[str, Any] = {_FIELDS.get(key, key): _value(key, value.strip(), where) for key, value in pairs}
    spec = InputSpec(name, **values)
    _check(spec, where)
    return spec


def _value(key: str, text: str, where: str) -> object:
    read, wanted = _KEYS[key]
    try:
        return read(text)
    except ValueError:
        raise InputError(f"{where}: {key}={text} is not understood", f"{key} is {wanted}") from None


def _one_of(*known: str) -> tuple[Callable[[str], object], str]:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError(text)
        return text

    return read, " or ".join(known)


def _numbers(text: str) -> tuple[float, ...]:
    """127.5; 0.485/0.456/0.406 or with colons; 1/255, since no image has two channels."""
    numbers = tuple(float(item) for item in re.split("[/:]", text))
    if len(numbers) == 2 and "/" in text and numbers[1]:
        numbers = (numbers[0] / numbers[1],)
    if len(numbers) not in (1, 3, 4) or not all(map(math.isfinite, numbers)):
        raise ValueError(text)
    return numbers


def _factors(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if 0.0 in numbers:
        raise ValueError(text)
    return numbers


def _pixels(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_SIDE:
        raise ValueError(text)
    return int(text)


def _size(text: str) -> Size:
    height, _, width = text.partition("x")
    return Size(_pixels(height), _pixels(width))


def _resize(text: str) -> int | Size:
    return _size(text) if "x" in text else _pixels(text)


def _crop(text: str) -> float | Size:
    if "." not in text:
        return _size(text) if "x" in text else Size(_pixels(text), _pixels(text))
    fraction = float(text)
    if not 0 < fraction <= 1:
        raise ValueError(text)
    return fraction


def _channels(text: str) -> int:
    if text not in ("1", "3", "4"):
        raise ValueError(text)
    return int(text)


_PER_CHANNEL = "a number, or one per channel such as 0.485/0.456/0.406"
_KEYS: dict[str, tuple[Callable[[str], object], str]] = {
    "kind": _one_of("image"),
    "layout": _one_of(*LAYOUTS),
    "model": _one_of(*LAYOUTS),
    "colour": _one_of(*COLOURS),
    "channels": (_channels, "1, 3 or 4"),
    "size": (_size, "HEIGHTxWIDTH in pixels, such as 480x640"),
    "crop": (_crop, "pixels such as 224 or 224x256 (height x width), or a fraction such as 0.875"),
    "resize": (_resize, "the short side's pixels such as 256, or HEIGHTxWIDTH"),
    "interpolation": _one_of(*INTERPOLATIONS),
    "scale": (_factors, f"{_PER_CHANNEL}, or 1/255; not 0"),
    "mean": (_numbers, _PER_CHANNEL),
    "std": (_factors, f"{_PER_CHANNEL}; not 0"),
}
_FIELDS = {"model": "model_layout"}


def _check(spec: InputSpec, where: str) -> None:
    """What contradicts itself whatever the model is."""
    if isinstance(spec.crop, Size) and spec.resize is not None:
        left = spec.resize if isinstance(spec.resize, Size) else Size(spec.resize, spec.resize)
        if spec.crop.height > left.height or spec.crop.width > left.width:
            fact = f"{where}: crop={spec.crop} does not fit into what resize={spec.resize} leaves"
            raise InputError(fact, f"resize to at least {max(spec.crop.height, spec.crop.width)}")
    if spec.colour == "bgr" and spec.channels == 1:
        raise InputError(f"{where}: colour=bgr with one channel", "leave colour out")
