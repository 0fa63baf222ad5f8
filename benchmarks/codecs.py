"""What crosses, rung by rung: bits an element, speed and accuracy, as the tensor is and decorrelated.

Law: up to half of the samples calibrates (ranges, transforms, levels), accuracy is told for the rest and for all; sizes
and times are those of the rest. Times are taken in turn with zstd level 1 over the same codes, one core, medians;
only ratios to it are to be quoted. A line per cut, form and rung, and what was promised at the end.

`--set only=resnet8` picks a model, `cuts=act_7,act_11` its cuts, `ladder=1.2,0.8` the rungs in bits an element.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from benchmarks.results import Options, Result
from benchmarks.splitting_models import CIFAR, SUBJECTS, Subject
from partitioner.crossing import boundary, decorrelate, rungs
from partitioner.graph import cuts
from partitioner.graph.model import LoadedModel, serialise
from partitioner.graph.split import Halves, free_axes, split
from partitioner.judging.data import Samples
from protocol import codecs
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array

CUTS = {
    "mobilenet_v2": ("act_5", "add_10", "act_12", "add_21", "conv_22", "act_23", "conv_24", "add_36"),
    "resnet8": ("act_0", "act_3", "act_7", "act_11"),
    "digits": (),
}
JPEG_NBYTES = 14_000  # quality 90 at 224x224: what a useful cut must stay well below
BITS_TARGET, LOSS_TARGET = 0.8, 0.01
ENCODE_TARGET, DECODE_TARGET = 300.0, 600.0  # million codes a second
LARGE = 65_536  # codes
TIMED = 12  # tensors
BATCH = 25


class Line(NamedTuple):
    """One cut, form and rung. Accuracies are top-1 on all samples and on those that did not calibrate."""

    cut: str
    form: str
    rung: str
    bits: float
    nbytes: float
    accuracy: float
    held_out: float
    agreement: float
    encode_per_us: float  # codes
    decode_per_us: float
    encode_ratio: float  # to zstd level 1
    decode_ratio: float

    @property
    def large(self) -> bool:
        """Whether the codes are so many that a throughput says more than the microseconds that any call costs."""
        return 8 * self.nbytes / self.bits >= LARGE


@dataclass(frozen=True)
class Bench:
    """One model with its samples and its own answers."""

    model: LoadedModel
    samples: Samples
    labels: Array
    answers: Array  # of the whole model
    ladder: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.answers == self.labels))

    @property
    def held_out(self) -> float:
        some = list(self.samples.held_out)
        return float(np.mean(self.answers[some] == self.labels[some]))


def run(options: Options) -> list[Result]:
    """Measure every subject that is here; those that are not are left out, with a line that says so."""
    results: list[Result] = []
    ladder = tuple(float(bits) for bits in options.settings.get("ladder", "").split(",") if bits) or rungs.LADDER_BITS
    for subject in SUBJECTS:
        if subject.name in CUTS and options.settings.get("only", subject.name).lower() == subject.name.lower():
            results += _subject(subject, options, ladder)
    return results


def _subject(subject: Subject, options: Options, ladder: tuple[float, ...]) -> Iterator[Result]:
    if subject.absent:
        yield Result.missing(f"{subject.name}: not measured", subject.absent)
        return
    model, samples = subject.load()
    if subject.name == "resnet8":
        samples = _all_of_cifar(samples)
    assert samples.labels is not None
    bench = Bench(model, samples, samples.labels, np.zeros(0), ladder)
    bench = Bench(model, samples, samples.labels, _whole(bench), ladder)
    named = tuple(options.settings.get("cuts", "").split(",")) if options.settings.get("cuts") else CUTS[subject.name]
    chosen = named or _some_cuts(model)
    lines = [line for cut in chosen[: 1 if options.quick else None] for line in _cut(bench, cut)]
    for line in lines:
        yield _told(subject.name, bench, line)
    yield from _promises(subject.name, bench, lines)


def _all_of_cifar(samples: Samples) -> Samples:
    """The other suite makes do with half of them."""
    with np.load(CIFAR, allow_pickle=False) as archive:
        pictures, labels = archive["x"], archive["y"].astype(np.int64)
    return replace(samples, arrays=dict.fromkeys(samples.arrays, pictures), labels=labels)


def _some_cuts(model: LoadedModel) -> tuple[str, ...]:
    """Three single float tensors, early, in the middle and late."""
    single = [c.cut[0] for c in cuts.prefix_candidates(model.topology) if len(c.cut) == 1]
    single = [name for name in single if model.topology.crosses_as_codes(name)]
    return tuple(single[i] for i in (len(single) // 4, len(single) // 2, 3 * len(single) // 4))


# ---- one cut --------------------------------------------------------------------------------------------------------


def _cut(bench: Bench, cut: str) -> Iterator[Line]:
    halves = split(bench.model, cuts.separate(bench.model.topology, (cut,)))
    values = _many(serialise(halves.head), bench, cut)
    calibration = values[list(bench.samples.calibration)]
    low, high = float(calibration.min()), float(calibration.max())
    yield from _form(bench, cut, "as it is", halves, (low, high))
    if decorrelate.suits(calibration):
        with OrtEngine(free_axes(halves.tail, {cut: 0}), label="tail") as tail:
            transform = decorrelate.design(calibration, decorrelate.listen(tail, cut, batched=True))
        planes = {cut: transform}
        halves = Halves(decorrelate.end_head(halves.head, planes), decorrelate.begin_tail(halves.tail, planes))
        yield from _form(bench, cut, "decorrelated", halves, (transform.low, transform.high))


def _form(bench: Bench, cut: str, form: str, halves: Halves, reach: tuple[float, float]) -> Iterator[Line]:
    head, found = boundary.emit_codes(halves.head, [cut], {cut: reach})
    tail = free_axes(boundary.take_codes(halves.tail, found), {cut: 0})
    codes = _many(serialise(head), bench, cut)
    elements = int(np.prod(bench.model.topology.tensors[cut].shape or ()))
    ladder = rungs.design([codes[i : i + 1] for i in bench.samples.calibration], ladder_bits=bench.ladder)
    with OrtEngine(tail, label="tail") as engine:
        for rung in ladder:
            sent = [codecs.encode(cut, codes[i : i + 1], rung.codec, rung.levels) for i in range(len(codes))]
            received = np.concatenate([codecs.decode(*one) for one in sent])
            answers = _top(engine, cut, received)
            nbytes = statistics.fmean(sent[i][0].nbytes for i in bench.samples.held_out)
            encode, decode, encode_ratio, decode_ratio = _speed(codes, rung)
            held_out = list(bench.samples.held_out)
            yield Line(
                cut,
                form,
                rung.name,
                8 * nbytes / elements,
                nbytes,
                float(np.mean(answers == bench.labels)),
                float(np.mean(answers[held_out] == bench.labels[held_out])),
                float(np.mean(answers == bench.answers)),
                encode,
                decode,
                encode_ratio,
                decode_ratio,
            )


def _speed(codes: Array, rung: rungs.Rung) -> tuple[float, float, float, float]:
    """Million codes a second, encoding and decoding, and both as multiples of zstd level 1."""
    seen: dict[str, tuple[list[float], list[float]]] = {"zstd": ([], []), "rung": ([], [])}
    some = [codes[i : i + 1] for i in range(0, len(codes), max(len(codes) // TIMED, 1))]
    for array in some * 3:
        for name, codec, levels in (("zstd", "zstd", None), ("rung", rung.codec, rung.levels)):
            start = time.perf_counter()
            header, data = codecs.encode("t", array, codec, levels)
            encoded = time.perf_counter()
            codecs.decode(header, data)
            seen[name][1].append(time.perf_counter() - encoded)
            seen[name][0].append(encoded - start)
    (zstd_encode, zstd_decode), (encode, decode) = (tuple(map(statistics.median, seen[n])) for n in ("zstd", "rung"))
    million = codes[0].size / 1e6
    return million / encode, million / decode, zstd_encode / encode, zstd_decode / decode


# ---- answers --------------------------------------------------------------------------------------------------------


def _whole(bench: Bench) -> Array:
    with OrtEngine(bench.model.data, label="whole") as engine:
        feeds = bench.samples.feeds(range(len(bench.samples)))
        return np.array([int(np.argmax(next(iter(engine.infer(feed).values())))) for feed in feeds])


def _many(head: bytes, bench: Bench, cut: str) -> Array:
    """The tensor `cut` of all samples, one at a time as a device would."""
    with OrtEngine(head, label="head") as engine:
        return np.concatenate([engine.infer(feed)[cut] for feed in bench.samples.feeds(range(len(bench.samples)))])


def _top(engine: OrtEngine, name: str, arrays: Array) -> Array:
    fixed = isinstance(engine.inputs[0].shape[0], int)
    size = 1 if fixed else BATCH
    outputs = [next(iter(engine.infer({name: arrays[i : i + size]}).values())) for i in range(0, len(arrays), size)]
    scores = np.concatenate([o.reshape(len(o), -1) for o in outputs])
    answers: Array = np.argmax(scores, axis=1)
    return answers


# ---- what is told ---------------------------------------------------------------------------------------------------


def _told(subject: str, bench: Bench, line: Line) -> Result:
    note = (
        f"{line.nbytes / 1e3:.2f} KB; top-1 {line.accuracy:.3f} (fp32 {bench.accuracy:.3f}), "
        f"held out {line.held_out:.3f} ({bench.held_out:.3f}), agrees {line.agreement:.3f}; MB/s (x zstd-1): "
        f"encode {line.encode_per_us:.0f} ({line.encode_ratio:.1f}), "
        f"decode {line.decode_per_us:.0f} ({line.decode_ratio:.1f})"
    )
    name = f"{subject} {line.cut} {line.form} {line.rung}"
    return Result(name, "bit/el", line.bits, line.bits, line.bits, len(bench.samples.held_out), note=note)


def _promises(subject: str, bench: Bench, lines: Sequence[Line]) -> Iterator[Result]:
    fitting = [line for line in lines if line.held_out >= bench.held_out - LOSS_TARGET - 1e-9]
    for what, pool in (("any form", fitting), ("exact codes", [line for line in fitting if line.rung == "q8"])):
        if pool:
            best = min(pool, key=lambda line: line.nbytes)
            name = f"{subject}: fewest bytes at <= 1 % loss, {what}"
            note = f"{best.cut} {best.form} {best.rung}, {best.bits:.2f} bit/el"
            yield Result(name, "KB", best.nbytes / 1e3, best.nbytes / 1e3, best.nbytes / 1e3, 1, note=note)
    useful = [line for line in fitting if line.nbytes < JPEG_NBYTES]
    if useful and subject != "digits":
        best = min(useful, key=lambda line: line.bits)
        note = f"{best.cut} {best.form} {best.rung}, {best.nbytes / 1e3:.1f} KB, all samples {best.accuracy:.3f}"
        yield Result.bounded(f"{subject}: bits at <= 1 % loss", "bit/el", [best.bits], at_most=BITS_TARGET, note=note)
    large = [line for line in fitting if line.rung != "q8" and line.large]
    for what, target, value in (("encode", ENCODE_TARGET, "encode_per_us"), ("decode", DECODE_TARGET, "decode_per_us")):
        seen = [getattr(line, value) for line in large]
        if seen:
            name = f"{subject}: {what}, rungs at <= 1 % loss of >= {LARGE} codes"
            middle = statistics.median(seen)
            yield Result(name, "MB/s", middle, min(seen), max(seen), len(seen), f">= {target:g} MB/s", middle >= target)
