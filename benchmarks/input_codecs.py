"""What full-cloud would really send: bytes, times and accuracy of each input codec, and what pre-processing costs.

Law: photographs and a trained MobileNetV2 from the shared folder; without them there is nothing to measure. Times are
taken in turn over all codecs; accuracy is that of the answers to what arrives. Set `side=224` for another picture size
(bytes and times only) and `images=250` for fewer pictures.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import Options, Result
from partitioner.graph.inputs import parse
from partitioner.graph.model import load
from partitioner.judging import data
from partitioner.measuring.measure import interleaved_medians
from protocol import codecs, images
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array, TensorSpec

SHARED = Path(os.environ.get("ISTHMUS_SHARED", Path(__file__).parents[2] / "shared"))
MODEL, PICTURES = SHARED / "models" / "mobilenet_v2_224.onnx", SHARED / "data" / "imagenet"
LOSSY = ("jpeg98", "jpeg95", "jpeg90", "jpeg90-420", "jpeg85", "jpeg75", "jpeg50")
CODECS = ("raw", "zstd", "png", *LOSSY)
NORMAL = "mean=127.5,std=127.5"
RESIZED = "size=480x640,resize=256,crop=224"
MOST_TIMED = 50


def run(options: Options) -> list[Result]:
    """Raises FileNotFoundError where the shared folder is missing."""
    if not (MODEL.is_file() and PICTURES.is_dir()):
        raise FileNotFoundError(f"{MODEL} and {PICTURES} are needed; set ISTHMUS_SHARED to the folder that holds them")
    side, count = int(options.settings.get("side", 224)), int(options.settings.get("images", 250))
    return [*_codecs(side, options), *_accuracy(16 if options.quick else count), *_preprocessing()]


def _codecs(side: int, options: Options) -> Iterator[Result]:
    spec = TensorSpec("image", "uint8", (1, side, side, 3))
    paths = sorted(PICTURES.iterdir())[:: 20 if options.quick else 5][:MOST_TIMED]
    pictures = [images.load_picture(path.read_bytes(), spec) for path in paths]
    seen: dict[tuple[str, str], list[float]] = {}
    for picture in pictures * (1 if options.quick else options.repeats):
        for codec in CODECS:
            started = time.perf_counter()
            header, sent = codecs.encode("image", picture, codec)
            encoded = time.perf_counter()
            codecs.decode(header, sent)
            decode_ms, encode_ms = (time.perf_counter() - encoded) * 1e3, (encoded - started) * 1e3
            for what, value in (("size", header.nbytes), ("encode", encode_ms), ("decode", decode_ms)):
                seen.setdefault((codec, what), []).append(value)
    for (codec, what), values in seen.items():
        note = f"mean {statistics.fmean(values):.0f} B" if what == "size" else ""
        yield Result.of(f"{codec} {what}, {side}x{side}", "B" if what == "size" else "ms", values, note=note)


def _accuracy(count: int) -> Iterator[Result]:
    """Top-1 on the pictures as they arrive; they are cut to 224x224 before they are coded, as an application would."""
    model = load(MODEL, inputs=parse([f"input,{NORMAL}"]))
    samples = data.load(PICTURES, model.inputs, label_offset=1, classes=data.classes_of(model.outputs))
    assert samples.labels is not None
    indices = [*samples.held_out, *samples.calibration][:count]
    wanted: Array | None = None
    with OrtEngine(model.data, label="mobilenet") as engine:
        for codec in ("raw", *LOSSY):
            answers = _answers(engine, samples, indices, codec)
            wanted = answers if wanted is None else wanted
            right = float(np.mean(answers == samples.labels[indices]))
            agrees = float(np.mean(answers == wanted))
            yield Result.of(f"{codec} top-1 of MobileNetV2", "", [right], note=f"agrees with raw: {agrees:.3f}")


def _answers(engine: OrtEngine, samples: data.Samples, indices: Sequence[int], codec: str) -> Array:
    arrived = (codecs.decode(*codecs.encode("input", f["input"], codec)) for f in samples.feeds(indices))
    return np.array([int(engine.infer({"input": picture})["logits"].argmax()) for picture in arrived])


def _preprocessing() -> Iterator[Result]:
    """Time of the whole model from pictures over its time from prepared floats."""
    declared = {
        "none to resize": NORMAL,
        "480x640 linear": f"{NORMAL},{RESIZED},interpolation=linear",
        "480x640 antialias": f"{NORMAL},{RESIZED}",
    }
    engines = {"floats": OrtEngine(load(MODEL).data, label="floats")}
    for name, text in declared.items():
        engines[name] = OrtEngine(load(MODEL, inputs=parse([f"input,{text}"])).data, label=name)
    works: dict[str, Callable[[], object]] = {}
    for name, engine in engines.items():
        engine.activate()
        (feed,) = data.random([_at_batch_one(engine.inputs[0])], count=1).feeds([0])
        works[name] = functools.partial(engine.infer, feed)
    times = interleaved_medians(works)
    for name in declared:
        ratio, ms = times[name] / times["floats"], (times[name] - times["floats"]) * 1e3
        yield Result.of(f"MobileNetV2 from pictures, {name}", "x", [ratio], note=f"{ms:+.2f} ms")


def _at_batch_one(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, (1, *spec.shape[1:]))
