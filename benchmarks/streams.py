"""What the difference to the frame before is worth: bytes of a panning camera's frames, alone and after each other.

Law: the frames are real photographs, mirrored at their edge so that a camera can pan over them, with sensor noise of
standard deviation 2 of 255; ranges, transform and levels come from other photographs. Each line is one tensor under one
rung at one speed of panning; the input under PNG, JPEG and `delta` stands beside them, since it could cross instead.

`--set cuts=add_21,act_12` picks tensors, `ladder=2.2,1.2` rungs, `scenes=10` and `frames=8` how much is seen.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from benchmarks.results import Options, Result
from benchmarks.splitting_models import SUBJECTS
from partitioner.crossing import boundary, decorrelate, rungs
from partitioner.graph import cuts
from partitioner.graph.model import LoadedModel, serialise
from partitioner.graph.split import Halves, free_axes, split
from partitioner.judging.data import Samples
from protocol import codecs
from protocol.bundle import Levels
from protocol.delta import Reference
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array

MODEL = "mobilenet_v2"
CUTS = "add_21,act_12,conv_24"
LADDER = "2.2,1.2"
SPEEDS = (0, 1, 2, 4, 8, 16)  # pixels a frame
NOISE = 2.0
DESIGN = 32  # photographs


class Sizes(NamedTuple):
    """Mean bytes of a frame that has one before it, and times of coding it as a multiple of coding it alone."""

    alone: float
    after: float
    encode_ratio: float
    decode_ratio: float


def run(options: Options) -> list[Result]:
    """Measure MobileNetV2's boundaries and its input; where the photographs are absent, say so."""
    subject = next(s for s in SUBJECTS if s.name == MODEL)
    if subject.absent:
        return [Result.missing(f"{MODEL}: not measured", subject.absent)]
    model, samples = subject.load()
    asked = options.settings
    names = asked.get("cuts", CUTS).split(",")[: 1 if options.quick else None]
    ladder = [float(bits) for bits in asked.get("ladder", LADDER).split(",")]
    scenes, frames = (2, 3) if options.quick else (int(asked.get("scenes", "10")), int(asked.get("frames", "8")))
    views = {speed: _pan(samples, speed, scenes, frames) for speed in (SPEEDS[:2] if options.quick else SPEEDS)}
    results = list(_input(views))
    for cut in names:
        results += _cut(model, samples, cut, ladder, views)
    return results


View = list[list[Array]]  # scenes of frames, each uint8 [1, H, W, 3]


def _pan(samples: Samples, speed: int, scenes: int, frames: int) -> View:
    """The camera moves by `speed` pixels a frame over held-out photographs."""
    rng = np.random.default_rng(20_261_121)
    (name,) = samples.arrays

    def scene(index: int) -> list[Array]:
        picture = samples.feed(index)[name]
        wide = np.concatenate([picture, picture[:, :, ::-1]], axis=2)
        width = picture.shape[2]
        seen = [wide[:, :, at * speed : at * speed + width].astype(np.float64) for at in range(frames)]
        return [np.clip(np.rint(f + rng.normal(0, NOISE, f.shape)), 0, 255).astype(np.uint8) for f in seen]

    return [scene(i) for i in samples.held_out[:scenes]]


def _input(views: dict[int, View]) -> Iterator[Result]:
    for speed, view in views.items():
        png, jpeg = (_mean_nbytes(view, codec) / 1e3 for codec in ("png", "jpeg90"))
        sizes = _sizes(view, None)
        note = f"raw {view[0][0].nbytes / 1e3:.0f} KB, png {png:.1f}, jpeg90 {jpeg:.1f}"
        yield _told("input exact", speed, sizes, view[0][0].size, note)


def _cut(
    model: LoadedModel, samples: Samples, cut: str, ladder: Sequence[float], views: dict[int, View]
) -> Iterator[Result]:
    halves, reach, form = _prepared(model, samples, cut)
    head, _ = boundary.emit_codes(halves.head, [cut], {cut: reach})
    (name,) = samples.arrays
    with OrtEngine(serialise(head), label="head") as engine:
        fitted = [engine.infer(feed)[cut] for feed in samples.feeds(samples.calibration[:DESIGN])]
        seen = {s: [[engine.infer({name: f})[cut] for f in scene] for scene in view] for s, view in views.items()}
    for rung in rungs.design(fitted, ladder_bits=ladder):
        for speed, view in seen.items():
            yield _told(f"{cut} {form} {rung.name}", speed, _sizes(view, rung.levels), view[0][0].size)


def _prepared(model: LoadedModel, samples: Samples, cut: str) -> tuple[Halves, tuple[float, float], str]:
    """The halves, decorrelated where that suits the tensor, with the range of what crosses."""
    halves = split(model, cuts.separate(model.topology, (cut,)))
    with OrtEngine(serialise(halves.head), label="head") as engine:
        some = samples.feeds(samples.calibration[:DESIGN])
        values = np.concatenate([engine.infer(feed)[cut] for feed in some])
    if not decorrelate.suits(values):
        return halves, (float(values.min()), float(values.max())), "as it is"
    with OrtEngine(free_axes(halves.tail, {cut: 0}), label="tail") as tail:
        transform = decorrelate.design(values, decorrelate.listen(tail, cut, batched=True))
    planes = {cut: transform}
    halves = Halves(decorrelate.end_head(halves.head, planes), decorrelate.begin_tail(halves.tail, planes))
    return halves, (transform.low, transform.high), "decorrelated"


def _sizes(view: View, levels: Levels | None) -> Sizes:
    alone: list[int] = []
    after: list[int] = []
    seconds: dict[str, list[float]] = {"alone": [], "after": [], "open alone": [], "open after": []}
    for scene in view:
        for before, now in pairwise(scene):
            held = codecs.decode(*codecs.encode("t", before, "delta", levels))
            for what, sizes, reference in (("alone", alone, None), ("after", after, Reference(0, before))):
                start = time.perf_counter()
                header, data = codecs.encode("t", now, "delta", levels, reference)
                encoded = time.perf_counter()
                got = codecs.decode(header, data, {0: held}.get)
                seconds[f"open {what}"].append(time.perf_counter() - encoded)
                seconds[what].append(encoded - start)
                sizes.append(header.nbytes)
                if levels is None and not np.array_equal(got, now):
                    raise AssertionError("an exact stream lost something")
    medians = {what: statistics.median(times) for what, times in seconds.items()}
    return Sizes(
        statistics.fmean(alone),
        statistics.fmean(after),
        medians["after"] / medians["alone"],
        medians["open after"] / medians["open alone"],
    )


def _mean_nbytes(view: View, codec: str) -> float:
    return statistics.fmean(codecs.encode("x", frame, codec)[0].nbytes for scene in view for frame in scene[1:])


def _told(what: str, speed: int, sizes: Sizes, elements: int, note: str = "") -> Result:
    bits, alone = 8 * sizes.after / elements, 8 * sizes.alone / elements
    saved = f"{sizes.alone / 1e3:.2f} -> {sizes.after / 1e3:.2f} KB ({sizes.alone / sizes.after:.2f} x)"
    times = f"time: encode {sizes.encode_ratio:.2f} x, decode {sizes.decode_ratio:.2f} x"
    told = f"alone {alone:.2f} bit/el; {saved}; {times}"
    return Result(
        f"{what}, {speed} px a frame", "bit/el", bits, bits, bits, 1, note="; ".join(filter(None, (told, note)))
    )
