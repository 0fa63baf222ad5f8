"""Writes a kit of segments for a device that has the agent but no graph library; `protocol.kit` runs it there.

The anchors are chosen by this machine's kernels, which need not be the device's: they only have to lie apart.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from partitioner.graph.model import LoadedModel
from partitioner.judging.data import Samples
from partitioner.measuring.anchors import choose, plain_steps
from partitioner.measuring.profile import ProfileOrder, Segments, anchor_jobs, load_for, weigh, whole_jobs
from protocol import codecs
from protocol.bench import Job, Reporter
from protocol.bundle import FileEntry, sha256
from protocol.errors import InputError
from protocol.graphs import external_of
from protocol.kit import KIT, KIT_DIGEST, Feed, Kit, KitManifest, KitSegment, encode_kit
from protocol.outputs import folder_beside
from protocol.profile import SCHEMA_VERSION
from protocol.tensors import Tensors

KIT_ANCHORS = 8  # each holds its share of the weights once more


def export(order: ProfileOrder, target: Path, reporter: Reporter) -> Kit:
    """Write the kit to the folder `target`, which must not exist. Raises InputError, ModelError or EngineError."""
    if os.path.lexists(target):
        raise InputError(f"{target} exists already", "choose another place")
    model, samples = load_for(order, reporter)
    costs = weigh(model, samples.feed(0), order.threads, reporter)
    segments = Segments(model, samples, threads=order.threads)
    cuts = choose(model.topology, costs, KIT_ANCHORS)
    jobs = [*whole_jobs(segments, order), *anchor_jobs(segments, order, cuts)]
    if order.batches and order.role == "cloud":
        jobs += segments.batch_jobs(cuts[len(cuts) // 2 : len(cuts) // 2 + 1])
    with folder_beside(target) as folder:
        _write(_Folder(folder), model, samples, order, jobs, reporter)
        folder.rename(target)
    return Kit.open(target)


class _Folder:
    """Files as they are written, with their digests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, FileEntry] = {}

    def add(self, name: str, data: bytes) -> str:
        if name not in self.files:
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_bytes(data)
            self.files[name] = FileEntry(sha256(data), len(data))
        return name

    def add_graph(self, name: str, graph: bytes) -> str:
        for location, content in external_of(graph).items():
            self.add(location, bytes(content))
        return self.add(name, graph)

    def add_feed(self, name: str, tensors: Tensors) -> Feed:
        coded = [codecs.encode(n, array, "raw") for n, array in tensors.items()]
        data = b"".join(bytes(part) for _, part in coded)
        # All heads take the model's own inputs.
        same = next((n for n, entry in self.files.items() if entry.sha256 == sha256(data)), None)
        return Feed(same or self.add(name, data), tuple(header for header, _ in coded))


def _write(
    folder: _Folder, model: LoadedModel, samples: Samples, order: ProfileOrder, jobs: Sequence[Job], reporter: Reporter
) -> None:
    whole = KitSegment(
        (), "whole", "fp32", folder.add_graph("full.onnx", model.data), folder.add_feed("feed.bin", samples.feed(0))
    )
    written = []
    for number, job in enumerate(jobs):
        reporter.stage(f"writing the {job}")
        reporter.progress(number, len(jobs))
        graph, feed = job.load()
        name = folder.add_graph(f"{job.side}-{number}.onnx", graph)
        tensors = folder.add_feed(f"feed-{number}.bin", feed)
        written.append(KitSegment(job.cut, job.side, job.precision, name, tensors, job.batch_axes))
    topology = model.topology
    manifest = KitManifest(
        schema_version=SCHEMA_VERSION,
        role=order.role,
        model=model.name,
        model_digest=sha256(model.data),
        whole=whole,
        segments=tuple(written),
        steps=plain_steps(topology),
        work={topology.steps[i].name: topology.work[i] for i in topology.live_steps},
        files=folder.files,
        notes=model.notes,
    )
    encoded = encode_kit(manifest)
    (folder.root / KIT).write_bytes(encoded)
    (folder.root / KIT_DIGEST).write_text(f"{sha256(encoded)}  {KIT}\n", encoding="ascii")
