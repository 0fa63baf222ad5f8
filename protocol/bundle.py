"""The bundle: a directory with a manifest that names, hashes and explains every file. Files are hashed before parsing.

    BUNDLE/
      manifest.json            what this module describes
      manifest.json.sha256     detects damage to the manifest itself
      signature.json           who vouches for the manifest, if anybody does (see protocol.signing)
      full.onnx                the whole model: the full-cloud placement's tail, and the reference for every proof
      edge.onnx                the whole model as the device runs it: the edge-only placement's head
      cut-1/head.onnx          head and tail of each kept cut
      cut-1/tail.onnx
      cut-1/tail.fp16.onnx     with --half-tails: this tail in float16, and full.fp16.onnx for full.onnx
      cut-1/bridge.onnx        with --common-suffix: what this tail has before the suffix in which several tails end
      suffix.onnx              that suffix
      known.npz                a question and the heads' answers to it (see protocol.known)
      weights/SHA256           large weights, one a file, which graphs name relative to BUNDLE (see protocol.graphs)

A *segment* is a head and the tail it belongs to, with the boundary between them. Requests name the segment's digest,
never the bundle's, so that a head and a tail of different builds can never be combined.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import msgspec

from protocol.documents import decode_document
from protocol.errors import BundleError, ModelError
from protocol.graphs import Graph
from protocol.latency import PlacementCost
from protocol.messages import PlacementKind
from protocol.onnx_scan import external_references
from protocol.plan import PlanConditions
from protocol.profile import Machine
from protocol.tensors import TensorSpec

if TYPE_CHECKING:
    from protocol.signing import Statement, Trust

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"
SIGNATURE = "signature.json"

HexDigest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class FileEntry(msgspec.Struct, frozen=True):
    sha256: HexDigest
    nbytes: int


class Levels(msgspec.Struct, frozen=True):
    """How a codec of few levels reads 8-bit codes: level = number of `thresholds` that are <= code, and level i decodes
    to the code `values[i]`. Ascending, `len(values) == len(thresholds) + 1 <= 256`.
    """

    thresholds: tuple[int, ...]
    values: tuple[int, ...]


class BoundaryTensor(msgspec.Struct, frozen=True):
    """One tensor that crosses. `spec` is what travels; 8-bit codes mean (code - zero_point) * scale.

    `batch_axis` is None when no axis was found that grows with the batch; a tail with such a tensor runs at batch 1.
    `levels` belongs to the codecs "levels" and "delta". `outer_share` is the share of codes at either end of the range
    (0 and 255) that calibration showed: much more of them in service means that the data has drifted.
    """

    spec: TensorSpec
    codec: str
    batch_axis: int | None
    scale: float | None = None
    zero_point: int | None = None
    levels: Levels | None = None
    outer_share: float | None = None


class BatchProof(msgspec.Struct, frozen=True):
    """Whether f([a, b]) = [f(a), f(b)] was shown for the tail, and what was seen. Not batchable means batch 1."""

    batchable: bool
    reason: str
    max_abs_difference: float | None = None
    output_axes: dict[str, int] = {}


class ParityCertificate(msgspec.Struct, frozen=True):
    """What was proven about tail(head(x)) against the whole model, and on which data.

    `fp32_*` compare the fp32 head and tail with the model, ONNX Runtime's optimisation off. `metric` says how the
    shipped precision was judged: "accuracy" against labels (values are top-1 fractions), "agreement" of the top-1 with
    the whole model, or "cosine" (of the worst output, mean over samples) where the output is no classification.
    """

    fp32_max_abs_difference: float
    fp32_bound: float
    metric: str
    reference: float  # the whole fp32 model's own value of the metric
    achieved: float
    bound: float  # the least value that was acceptable
    samples: int  # held out of calibration
    random_inputs: bool = False


class HalfTail(msgspec.Struct, frozen=True):
    """A tail computed in float16, for a gateway's GPU; its certificate is of this head and coding in front of it."""

    file: str
    certificate: ParityCertificate


class PlacementEntry(msgspec.Struct, frozen=True):
    """One row of the plan: where the work is done, with which files, at what cost, and what was proven about it.

    `head` is None for full-cloud, `tail` is None for edge-only. `segment` is None for edge-only, where nothing crosses.
    `head_outputs` are model outputs that the head already produces; they never cross.
    """

    id: str
    kind: PlacementKind
    cut: tuple[str, ...]
    head: str | None
    tail: str | None
    segment: HexDigest | None
    precision: str  # of the head: "int8", "fp32"; "none" for full-cloud
    boundary: tuple[BoundaryTensor, ...]
    head_outputs: tuple[str, ...]
    batch: BatchProof | None
    cost: PlacementCost
    certificate: ParityCertificate | None
    notes: tuple[str, ...] = ()  # e.g. why the INT8 head was not shipped
    bridge: str | None = None  # the tail is also `Manifest.suffix` after this graph
    half: HalfTail | None = None


class CommonSuffix(msgspec.Struct, frozen=True):
    """Layers in which several tails end. A gateway may run each tail's bridge for its rows, and these once for all.

    `batch_axes` names what the suffix takes, which is what every bridge gives; `max_abs_difference` is that of all
    tails from suffix after bridge, ONNX Runtime's optimisation off.
    """

    file: str
    batch_axes: dict[str, int]
    output_axes: dict[str, int]
    max_abs_difference: float


class Known(msgspec.Struct, frozen=True):
    """A question whose answers are known, in `file`; how far each head (by its file) may be off, as `protocol.known`
    measures it.
    """

    file: str
    most_deviation: dict[str, float]


class ModelInfo(msgspec.Struct, frozen=True):
    name: str
    digest: HexDigest  # of full.onnx
    source_digest: HexDigest  # of the file that the user handed in
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Conditions(msgspec.Struct, frozen=True):
    """Under which declared and measured conditions the costs hold."""

    machine: str
    edge_slowdown: float  # declared: times of head and encoding were multiplied by it
    threads: int  # of heads
    tail_threads: int
    rtt_s: float
    precision_asked: str
    versions: dict[str, str]
    calibration_digest: HexDigest
    calibration_samples: int
    created_utc: str
    label_offset: int = 0  # added to the labels of the data
    stream: bool = False  # the calibration samples were consecutive frames
    device: Machine | None = None  # whose profile the plan was made for; None where a slow-down was declared
    declared_inputs: tuple[str, ...] = ()  # image inputs and their pre-processing, as they were declared
    planned: PlanConditions | None = None
    head_engine: str = "onnxruntime"  # what heads were made for; "tensorrt": symmetric int8 alone
    constraints: tuple[str, ...] = ()  # what every placement keeps, in words


class Measured(msgspec.Struct, frozen=True):
    """A line that was split, proven and timed while the plan was made, whether or not it was kept."""

    cut: tuple[str, ...]
    share: float  # of the estimated compute, before the cut
    precision: str
    rung: str  # coding of the boundary; "" is the lossless one
    cost: PlacementCost
    kept_as: str = ""  # placement family in the bundle; "" if it was not kept


class TriedRecipe(msgspec.Struct, frozen=True):
    """One way to make the whole model INT8, judged on calibration samples; `ratio` is its time over fp32's.

    `held_out` is the metric on held-out samples, for those few that were shown to them. None: not measured.
    """

    recipe: str
    metric: float | None
    holds: bool
    ratio: float | None
    held_out: float | None
    chosen: bool
    problem: str = ""


class LayerLoss(msgspec.Struct, frozen=True):
    """What one layer costs in eight bits: signal over noise in dB, of its own values and of the model's outputs when it
    alone is quantised; `saved` is the estimated share of fp32's time that its eight bits save.
    """

    layer: str
    op: str
    own_db: float | None
    outputs_db: float | None
    saved: float
    left_float: bool


class Manifest(msgspec.Struct, frozen=True):
    schema_version: int
    model: ModelInfo
    files: dict[str, FileEntry]
    placements: tuple[PlacementEntry, ...]
    conditions: Conditions
    # (placement id, from Mbit/s, to Mbit/s) where each is predicted best, fastest link first
    plan: tuple[tuple[str, float, float], ...] = ()
    notes: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    recipes: tuple[TriedRecipe, ...] = ()
    layers: tuple[LayerLoss, ...] = ()
    suffix: CommonSuffix | None = None
    known: Known | None = None

    def placement(self, kind: PlacementKind) -> PlacementEntry | None:
        return next((p for p in self.placements if p.kind == kind), None)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def segment_digest(head_sha256: str, tail_sha256: str, boundary: tuple[BoundaryTensor, ...]) -> str:
    """Digest of a split's work: head, tail and the parameters between them, none of which may differ alone."""
    parameters = msgspec.json.encode(boundary, order="deterministic")
    return sha256(b"\0".join((b"isthmus-segment-1", head_sha256.encode(), tail_sha256.encode(), parameters)))


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


class Bundle:
    """An opened bundle: its manifest was checked on opening; a file is checked whenever it is read."""

    def __init__(self, root: Path, manifest: Manifest, digest: str, statement: Statement | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self.digest = digest  # sha256 of manifest.json, which hashes everything else
        self.statement = statement  # what was signed about it; None where nobody looked, or it may be unsigned

    @classmethod
    def open(cls, path: str | os.PathLike[str], trust: Trust | None = None) -> Bundle:
        """Open the bundle at `path`. Parses nothing but the manifest, and that only after its digest held.

        With `trust` its signature must hold before that. Raises BundleError when it is missing, damaged, of another
        schema or names unsafe paths, UntrustedError when `trust` refuses it.
        """
        root = Path(path)
        remedy = "build one with `partitioner split MODEL --auto -o BUNDLE`"
        if not root.exists():
            raise BundleError(f"there is no bundle at {root}", remedy)
        if not (root / MANIFEST).is_file():
            raise BundleError(f"{root} is not a bundle: it holds no {MANIFEST}", remedy)
        raw = read_regular(root, MANIFEST)
        statement = trust.judge(root, raw) if trust is not None else None
        digest = sha256(raw)
        stated = read_regular(root, MANIFEST_DIGEST).decode("ascii", "replace").split()
        if stated[:1] != [digest]:
            raise BundleError(
                f"{root / MANIFEST} does not match {MANIFEST_DIGEST}: it was changed or damaged after it was written",
                "copy the bundle again or rebuild it",
            )
        manifest = decode_document(
            raw,
            Manifest,
            version=SCHEMA_VERSION,
            name=str(root / MANIFEST),
            error=BundleError,
            remedy="rebuild the bundle with this version",
        )
        for name in manifest.files:
            check_relative(root, name)
        if statement is not None:
            statement.require_describes(manifest.model)
        return cls(root, manifest, digest, statement)

    def read(self, name: str) -> bytes:
        """The bytes of file `name`, hashed before they are handed out. Raises BundleError if they changed."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{name!r} is not listed in {self.root / MANIFEST}", "rebuild the bundle")
        check_relative(self.root, name)
        data = read_regular(self.root, name, limit=entry.nbytes)
        if sha256(data) != entry.sha256:
            raise BundleError(
                f"{self.root / name} does not match its digest in the manifest: it was changed or damaged",
                "copy the bundle again or rebuild it",
            )
        return data

    def graph(self, name: str) -> bytes:
        """The graph in file `name` together with the weights that it names, each read and hashed like any file.

        A graph that is damaged, or that names what the manifest does not list, is refused by the engine it is given to.
        Raises BundleError like `read`.
        """
        data = self.read(name)
        try:
            named = sorted({r.location for r in external_references(data)} & self.manifest.files.keys())
        except ModelError:
            return data
        return Graph(data, {n: self.read(n) for n in named}) if named else data

    def verify(self) -> int:
        """Read and hash every file. Returns their number; raises BundleError at the first that does not match."""
        for name in self.manifest.files:
            self.read(name)
        return len(self.manifest.files)

    def remote_segments(self) -> Iterator[PlacementEntry]:
        """The placements with work for a gateway."""
        return (p for p in self.manifest.placements if p.segment is not None)


def check_relative(root: Path, name: str, *, listed_in: str = MANIFEST) -> None:
    """Refuse a listed path that is not plainly inside the folder. Raises BundleError."""
    path = PurePosixPath(name)
    if (
        not path.name
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or path.as_posix() != name
    ):
        raise BundleError(f"{root / listed_in} lists the path {name!r}", "only plain paths inside the bundle are read")


def read_regular(root: Path, name: str, *, limit: int | None = None, most_nbytes: int | None = None) -> bytes:
    """Read a regular file that is reached through no symbolic link and has no other hard link. Raises BundleError.

    It must hold `limit` bytes exactly; of more than `most_nbytes` one more is read, so that the caller sees it.
    """
    path = root / name
    for part in (path, *path.parents):
        if part == root:
            break
        if part.is_symlink():
            raise BundleError(f"{part} is a symbolic link", "a bundle holds plain files only")
    try:
        # Without O_NONBLOCK a pipe in a file's place would hang us here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})", "copy the bundle again or rebuild it") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise BundleError(f"{path} is not a plain file with one name", "a bundle holds plain files only")
    with os.fdopen(descriptor, "rb") as file:
        if limit is not None and status.st_size != limit:
            raise BundleError(
                f"{path} holds {status.st_size} bytes but the manifest says {limit}: it was changed or damaged",
                "copy the bundle again or rebuild it",
            )
        return file.read() if most_nbytes is None else file.read(most_nbytes + 1)
