"""`partitioner verify`: a finished bundle proves itself again. Hashes first, then structure, then answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from partitioner.crossing.boundary import decodes_first
from partitioner.crossing.codings import Way, received
from partitioner.crossing.half_rounding import rounded
from partitioner.judging import data, verify
from partitioner.planning.entries import FULL
from partitioner.planning.sign import SignatureState, state_of
from protocol import images
from protocol.bundle import Bundle, Manifest, PlacementEntry
from protocol.engines.ort import OrtEngine
from protocol.errors import AccuracyRefusedError, BundleError
from protocol.messages import PlacementKind
from protocol.signers import VerifyKey


class Recheck(msgspec.Struct, frozen=True):
    """What was seen for one placement. `bound` is None where inputs are random, so that nothing is judged; `half` is
    what its tail in float16 achieves, where there is one.
    """

    id: str
    metric: str
    reference: float
    achieved: float
    bound: float | None
    samples: int
    max_abs_difference: float
    half: float | None = None


class Verified(msgspec.Struct, frozen=True):
    """The result for a whole bundle. `random_inputs` means that values are reported but not judged."""

    bundle: str
    files: int
    random_inputs: bool
    placements: tuple[Recheck, ...]
    signature: SignatureState


def recheck(path: Path, data_path: Path | None, known: tuple[VerifyKey, ...] = ()) -> Verified:
    """Hash every file, check that heads and tails fit each other, and compare their answers with the model's.

    With `data_path` the recorded tolerance must be met on that data; without, inputs are random and only equality of
    placements that claim no loss is demanded. With `known` keys one of them must have signed the bundle. Raises
    BundleError, InputError or AccuracyRefusedError.
    """
    signature = state_of(path, known)
    opened = Bundle.open(path)
    count = opened.verify()
    manifest = opened.manifest
    samples = _samples(manifest, data_path)
    indices = samples.held_out
    # The whole model is in every bundle, even where constraints forbid to send it what the application hands in.
    expected = verify.run_all(opened.graph(FULL), samples, indices)
    stick = verify.yardstick(expected, samples, manifest.model.outputs[0].name, 0.0)
    results = tuple(
        _recheck_one(opened, entry, samples, indices, stick, judge=data_path is not None)
        for entry in manifest.placements
        if entry.kind != PlacementKind.FULL_CLOUD or _is_lossy(entry) or entry.half is not None
    )
    _recheck_suffix(opened, samples)
    return Verified(str(path), count, data_path is None, results, signature)


def _recheck_suffix(opened: Bundle, samples: data.Samples) -> None:
    """The common suffix after each bridge must still be the tail. Raises BundleError."""
    suffix = opened.manifest.suffix
    for entry in opened.manifest.placements if suffix is not None else ():
        if suffix is None or not (entry.head and entry.tail and entry.bridge):
            continue
        with ExitStack() as stack:
            files = (entry.head, entry.tail, entry.bridge, suffix.file)
            engines = [OrtEngine(opened.graph(name), label=name, optimise=False) for name in files]
            head, tail, bridge, last = (stack.enter_context(engine) for engine in engines)
            made = [head.infer(feed) for feed in samples.feeds(samples.held_out[: verify.PARITY_SAMPLES])]
            crossing = [{name: each[name] for name in entry.cut} for each in made]
            joined = [last.infer(bridge.infer(each)) for each in crossing]
            seen = verify.difference([tail.infer(each) for each in crossing], joined)
        if not seen.within:
            fact = f"placement {entry.id}: its bridge and {suffix.file} differ from its tail by {seen.seen:.3g}"
            raise BundleError(f"{fact}, allowed {seen.allowed:.3g}", "rebuild the bundle")


def _samples(manifest: Manifest, data_path: Path | None) -> data.Samples:
    if data_path is None:
        return data.random(manifest.model.inputs, count=data.RANDOM_SAMPLES)
    samples = data.load(
        data_path,
        manifest.model.inputs,
        label_offset=manifest.conditions.label_offset,
        classes=data.classes_of(manifest.model.outputs),
    )
    # What the bundle was calibrated on must not judge it; other data judges with all of its samples.
    calibrates = samples.digest == manifest.conditions.calibration_digest
    return replace(samples, calibrates=calibrates, consecutive=manifest.conditions.stream)


def _recheck_one(
    opened: Bundle,
    entry: PlacementEntry,
    samples: data.Samples,
    indices: Sequence[int],
    stick: verify.Yardstick,
    *,
    judge: bool,
) -> Recheck:
    got = _answers(opened, entry, entry.tail, samples, indices)
    achieved = stick.score(got)
    seen = verify.difference(stick.expected, got)
    certificate = entry.certificate
    tolerance = None if certificate is None else certificate.reference - certificate.bound
    bound = stick.reference - tolerance if judge and tolerance is not None else None
    half = None
    if entry.half is not None:
        half = stick.score(_answers(opened, entry, entry.half.file, samples, indices, in_half=True))
    for value, how in ((achieved, ""), (half, " in float16")):
        if bound is not None and value is not None and value < bound - 1e-9:
            raise AccuracyRefusedError(
                f"placement {entry.id}: {stick.metric} {value:.4f}{how} on {len(got)} samples is below {bound:.4f}",
                "rebuild the bundle with calibration data that looks like this data",
            )
    if _claims_no_loss(entry) and not seen.within:
        raise AccuracyRefusedError(
            f"placement {entry.id} differs from the model by {seen.seen:.3g}, allowed {seen.allowed:.3g}",
            "rebuild the bundle on this machine",
        )
    return Recheck(entry.id, stick.metric, stick.reference, achieved, bound, len(got), seen.seen, half)


def _claims_no_loss(entry: PlacementEntry) -> bool:
    exact = all(t.scale is None and t.spec.dtype != "float16" for t in entry.boundary)
    return entry.precision == "fp32" and exact and not _is_lossy(entry)


def _is_lossy(entry: PlacementEntry) -> bool:
    return any(t.levels is not None or images.is_lossy(t.codec) for t in entry.boundary)


def _answers(
    opened: Bundle,
    entry: PlacementEntry,
    file: str | None,
    samples: data.Samples,
    indices: Sequence[int],
    *,
    in_half: bool = False,
) -> list[verify.Outputs]:
    """What the placement answers with the tail in `file`; `in_half` as where there is float16."""
    given = opened.graph(file) if file is not None else b""
    tail = rounded(given) if in_half else given
    ways = {t.spec.name: Way(t.codec, t.levels) for t in entry.boundary}
    if entry.head is None and file is not None:
        with OrtEngine(tail, label=f"{entry.id}/tail", threads=verify.JUDGING_THREADS) as engine:
            return [engine.infer(received(feed, ways)) for feed in samples.feeds(indices)]
    if entry.head is None:
        raise BundleError(f"placement {entry.id} names neither head nor tail", "rebuild the bundle")
    head = opened.graph(entry.head)
    if file is None:
        return verify.run_all(head, samples, indices)
    _check_fit(entry, head, given)
    with verify.SplitPair(head, tail, [t.spec.name for t in entry.boundary], entry.head_outputs) as pair:
        runs = (pair.run(feed) for feed in samples.feeds(indices))
        if not _is_lossy(entry):
            return [answer for _, answer in runs]
        return [answer | pair.tail.infer(received(crossing, ways)) for crossing, answer in runs]


def _check_fit(entry: PlacementEntry, head: bytes, tail: bytes) -> None:
    with OrtEngine(head, label=f"{entry.id}/head") as first, OrtEngine(tail, label=f"{entry.id}/tail") as second:
        made = {s.name: s.dtype for s in first.outputs}
        taken = {s.name: s.dtype for s in second.inputs}
    stated = {t.spec.name: t.spec.dtype for t in entry.boundary}
    if taken != stated or any(made.get(name) != dtype for name, dtype in stated.items()):
        raise BundleError(
            f"placement {entry.id}: head, tail and manifest disagree about what crosses ({made}, {taken}, {stated})",
            "rebuild the bundle",
        )
    coded = [t.spec.name for t in entry.boundary if t.scale is not None]
    wrong = [name for name in coded if not decodes_first(tail, name)]
    if wrong:
        raise BundleError(
            f"the tail of {entry.id} does not decode {wrong[0]!r} by Cast, Sub, Mul", "rebuild the bundle"
        )
