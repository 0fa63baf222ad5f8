"""A kit: a folder of segments that a device without any graph library measures. The workbench writes it, we run it.

    KIT/
      kit.json           what this module describes: steps, segments, and the digest of every file
      kit.json.sha256    detects damage to the list itself
      full.onnx          the whole model, the yardstick of every measurement
      head-0.onnx, ...   segments; feed-0.bin, ... the tensors that each of them takes
      weights/...        large weights, where the model has such

Files are hashed before they are parsed, and read only through plain paths to plain files, as in a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from protocol import codecs, sensors
from protocol.bench import Bench, Job, Reporter, kernels
from protocol.bundle import FileEntry, check_relative, read_regular, sha256
from protocol.documents import decode_document
from protocol.errors import BundleError, ModelError, WireError
from protocol.graphs import Graph
from protocol.onnx_scan import external_references
from protocol.profile import SCHEMA_VERSION, HexDigest, PlainStep, Profile, Role, Side, step_costs
from protocol.tensors import TensorHeader, Tensors

KIT = "kit.json"
KIT_DIGEST = "kit.json.sha256"
_REMEDY = "export it again with `partitioner profile MODEL --role ROLE --kit -o KIT`"


class Feed(msgspec.Struct, frozen=True):
    """The tensors of one run: raw, one behind the other, in the file `name`."""

    name: str
    headers: tuple[TensorHeader, ...]


class KitSegment(msgspec.Struct, frozen=True):
    """One segment. With `batch_axes` (input -> axis) not empty it takes any batch, and its batches are timed too."""

    cut: tuple[str, ...]
    side: Side
    precision: str
    graph: str
    feed: Feed
    batch_axes: dict[str, int] = {}


class KitManifest(msgspec.Struct, frozen=True):
    schema_version: int
    role: Role
    model: str
    model_digest: HexDigest
    whole: KitSegment
    segments: tuple[KitSegment, ...]
    steps: tuple[PlainStep, ...]
    work: dict[str, float]  # estimated, by step: stands in where no kernel can be attributed
    files: dict[str, FileEntry]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KitRun:
    """How to run a kit. Seconds of `budget_s` are for timing segments; kernels, memory and energy come on top."""

    budget_s: float = 60.0
    threads: int = 1
    memory: bool = True


def encode_kit(manifest: KitManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


class Kit:
    """An opened kit: its list was checked on opening; a file is checked whenever it is read."""

    def __init__(self, root: Path, manifest: KitManifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def open(cls, root: Path) -> Kit:
        """Raises BundleError when the kit is missing, damaged, of another schema or names unsafe paths."""
        if not (root / KIT).is_file():
            raise BundleError(f"{root} is no kit: it holds no {KIT}", _REMEDY)
        raw = read_regular(root, KIT)
        stated = read_regular(root, KIT_DIGEST).decode("ascii", "replace").split()
        if stated[:1] != [sha256(raw)]:
            raise BundleError(f"{root / KIT} does not match {KIT_DIGEST}: it was changed or damaged", _REMEDY)
        manifest = decode_document(
            raw, KitManifest, version=SCHEMA_VERSION, name=str(root / KIT), error=BundleError, remedy=_REMEDY
        )
        for name in manifest.files:
            check_relative(root, name, listed_in=KIT)
        return cls(root, manifest)

    def verify(self) -> int:
        """Read and hash every file; returns their number. Raises BundleError at the first that does not match."""
        for name in self.manifest.files:
            self.read(name)
        return len(self.manifest.files)

    def read(self, name: str) -> bytes:
        """The bytes of file `name`, hashed before they are handed out. Raises BundleError if they changed."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{name!r} is not listed in {self.root / KIT}", _REMEDY)
        data = read_regular(self.root, name, limit=entry.nbytes)
        if sha256(data) != entry.sha256:
            raise BundleError(f"{self.root / name} does not match its digest: it was changed or damaged", _REMEDY)
        return data

    def graph(self, name: str) -> bytes:
        """The graph in file `name`, with the weights that it names in other files."""
        data = self.read(name)
        try:
            named = sorted({r.location for r in external_references(data)} & self.manifest.files.keys())
        except ModelError:
            return data  # the engine will say what is wrong with it
        return Graph(data, {n: self.read(n) for n in named}) if named else data

    def feed(self, feed: Feed) -> Tensors:
        """Raises BundleError when headers and data do not belong together."""
        data, at = memoryview(self.read(feed.name)), 0
        tensors = {}
        for header in feed.headers:
            try:
                # Copied, so that every tensor lies aligned.
                tensors[header.name] = codecs.decode(header, data[at : at + header.nbytes]).copy()
            except WireError as error:
                raise BundleError(f"{self.root / feed.name}: {error.fact}", _REMEDY) from error
            at += header.nbytes
        return tensors

    def job(self, segment: KitSegment) -> Job:
        return Job(segment.cut, segment.side, segment.precision, partial(self._load, segment), dict(segment.batch_axes))

    def _load(self, segment: KitSegment) -> tuple[bytes, Tensors]:
        return self.graph(segment.graph), self.feed(segment.feed)


def run_kit(root: Path, how: KitRun, reporter: Reporter) -> Profile:
    """Measure every segment of the kit at `root` on this machine.

    Raises BundleError for a damaged kit (before anything is measured) and EngineError for a graph that does not run.
    """
    kit = Kit.open(root)
    reporter.stage("checking the kit")
    kit.verify()
    model, feed = kit.job(kit.manifest.whole).load()
    manifest = kit.manifest
    reporter.stage("timing kernels")
    optimised = kernels(model, feed, threads=how.threads, optimise=True)
    plain = kernels(model, feed, threads=how.threads, optimise=False)
    costs = step_costs(manifest.steps, optimised, plain, manifest.work)
    with Bench(model, feed, threads=how.threads) as bench:
        jobs = [kit.job(s) for s in manifest.segments]
        bench.measure([j for j in jobs if not j.batch_axes], budget_s=how.budget_s, reporter=reporter)
        bench.measure_batches([j for j in jobs if j.batch_axes], reporter=reporter)
        if how.memory:
            bench.measure_memory(plain_jobs(kit.job(manifest.whole), jobs), reporter=reporter)
        energy = bench.energy(reporter=reporter)
        anchors = bench.anchors()
    return Profile(
        schema_version=SCHEMA_VERSION,
        role=manifest.role,
        model=manifest.model,
        model_digest=manifest.model_digest,
        machine=sensors.machine(),
        threads=how.threads,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        steps=costs,
        anchors=anchors,
        energy=energy,
        notes=manifest.notes,
    )


def plain_jobs(whole: Job, jobs: Sequence[Job]) -> list[Job]:
    """The whole model and every segment once, without those that are there for their batches."""
    return [whole, *(j for j in jobs if not j.batch_axes)]
