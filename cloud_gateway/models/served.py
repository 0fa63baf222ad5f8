"""What one version folder holds: a bundle, a plain `model.onnx`, or a Triton folder; afterwards all look alike.

    models/
      NAME/
        config.pbtxt          optional: how the model is served (see triton_config); with it a plain model is "triton"
        1/                    a bundle (manifest.json, cut-1/tail.onnx, ...), or
        2/model.onnx          one graph, served whole: full-cloud. Large weights may lie beside it, nowhere else.

Opening reads the manifest, or hashes the model; no engine is touched. Graphs are read and hashed again when they are
wanted, so that nothing runs whose bytes changed after it was opened. Only plain files are read: neither symbolic nor
hard links.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from cloud_gateway.models.settings import ModelSettings
from cloud_gateway.models.triton_config import read_config
from protocol.bundle import MANIFEST, BoundaryTensor, Bundle, PlacementEntry, check_relative, read_regular
from protocol.errors import BundleError, InputError, ModelError
from protocol.graphs import Graph
from protocol.messages import PlacementKind
from protocol.onnx_scan import external_references

CONFIG = "config.pbtxt"
MOST_CONFIG_BYTES = 1 << 20
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Format = Literal["bundle", "onnx", "triton"]


@dataclass(frozen=True, slots=True)
class Joint:
    """A tail as two graphs: a bridge of its own, and the suffix in which other tails of its bundle end as well.

    `batch_axes` are those of what the bridge gives to the suffix.
    """

    bridge: Tail
    suffix: Tail
    batch_axes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class HalfForm:
    """A tail computed in float16, for engines that gain by it. `key` is the sha256 (hex) of its file."""

    key: str
    graph: Callable[[], bytes] = field(compare=False, repr=False)  # raises BundleError


@dataclass(frozen=True, slots=True)
class Tail:
    """One graph to serve.

    `key` is the sha256 (hex) of the graph file, weights beside it included: two versions with the same tail share a
    lane. `segment` is the digest (32 bytes) that agents name. `boundary` and `batchable` are None for a plain model,
    about which nothing is known before its engine is loaded; whoever loads it asks the engine and proves the rest.
    """

    key: str
    label: str
    placement: str
    kind: PlacementKind
    precision: str
    segment: bytes | None
    boundary: tuple[BoundaryTensor, ...] | None
    batchable: bool | None
    output_axes: Mapping[str, int]
    graph: Callable[[], bytes] = field(compare=False, repr=False)  # raises BundleError or ModelError
    joint: Joint | None = None
    half: HalfForm | None = None

    @property
    def graphs(self) -> str:
        """Everything that a lane of this tail may run: versions that differ in it share none."""
        return self.key if self.half is None else f"{self.key}+{self.half.key}"


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One content of one version folder. Whoever keeps several at once tells them apart by `identity`.

    `digest` is the bundle's, or the model's sha256, in hex; `model_digest` (32 bytes) is what an agent calls the model.
    `build` counts the contents that this version's folder has had since the start.
    """

    name: str
    version: int
    folder: Path
    format: Format
    digest: str
    model_digest: bytes
    tails: tuple[Tail, ...]
    settings: ModelSettings
    build: int = 1

    @property
    def identity(self) -> tuple[str, int, int]:
        return self.name, self.version, self.build

    def same_content(self, other: ServedVersion) -> bool:
        """Whether serving the other instead would change nothing. Which versions are wanted is no content."""
        mine, others = (msgspec.structs.replace(v.settings, version_policy=None) for v in (self, other))
        return (self.format, self.digest, mine) == (other.format, other.digest, others)

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def open_version(name: str, version: int, folder: Path, *, build: int = 1) -> ServedVersion:
    """Open the version folder `models/NAME/VERSION`, with the settings of `models/NAME/config.pbtxt` if it is there.

    Raises BundleError (a damaged bundle, a folder that holds neither form), ModelError (a model that names foreign
    files) or InputError (a config.pbtxt that is wrong or asks for what is not offered).
    """
    if (folder / MANIFEST).exists():
        return _from_bundle(name, version, folder, read_settings(name, folder.parent, bundle=True), build)
    settings = read_settings(name, folder.parent)
    file = (settings or ModelSettings()).model_filename
    if not (folder / file).exists():
        raise BundleError(
            f"{folder} holds neither a bundle ({MANIFEST}) nor a model ({file})",
            "copy one of them there, or remove the folder",
        )
    return _from_model(name, version, folder, file, settings, build)


def open_model(path: Path) -> ServedVersion:
    """Open an ONNX file that lies anywhere, as version 1 of a model called like it. Raises BundleError, ModelError."""
    return _from_model(safe_name(path.stem), 1, path.parent, path.name, None, 1)


def open_bundle(path: Path, *, name: str | None = None, version: int = 1, build: int = 1) -> ServedVersion:
    """Open a bundle that lies anywhere; without a `name` it is called like its model. Raises BundleError."""
    bundle = Bundle.open(path)
    return _from_opened(name or safe_name(bundle.manifest.model.name), version, bundle, ModelSettings(), build)


def safe_name(name: str) -> str:
    """`name` as a folder and a URL may carry it: letters, digits, dot, dash, underscore."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return kept[:128] or "model"


def read_settings(name: str, folder: Path, *, bundle: bool = False) -> ModelSettings | None:
    """The settings in `folder`/config.pbtxt; None where there is no such file. Raises InputError."""
    path = folder / CONFIG
    if not path.exists():
        return None
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise InputError(
            f"{path} holds {path.stat().st_size} bytes", f"a configuration has {MOST_CONFIG_BYTES} at most"
        )
    try:
        data = read_regular(folder, CONFIG)
    except BundleError as error:
        raise InputError(error.fact, "put a plain file there") from error
    return read_config(data, model=name, source=str(path), bundle=bundle)


def _from_model(
    name: str, version: int, folder: Path, file: str, settings: ModelSettings | None, build: int
) -> ServedVersion:
    digest, _ = _load_model(folder, file)
    tail = Tail(
        key=digest,
        label=f"{name}/{version}",
        placement=PlacementKind.FULL_CLOUD.value,
        kind=PlacementKind.FULL_CLOUD,
        precision="none",
        segment=bytes.fromhex(digest),
        boundary=None,
        batchable=None,
        output_axes={},
        graph=functools.partial(_read_model, folder, file, digest),
    )
    return ServedVersion(
        name=name,
        version=version,
        folder=folder,
        format="onnx" if settings is None else "triton",
        digest=digest,
        model_digest=bytes.fromhex(digest),
        tails=(tail,),
        settings=settings or ModelSettings(),
        build=build,
    )


def _from_bundle(name: str, version: int, folder: Path, settings: ModelSettings | None, build: int) -> ServedVersion:
    return _from_opened(name, version, Bundle.open(folder), settings or ModelSettings(), build)


def _from_opened(name: str, version: int, bundle: Bundle, settings: ModelSettings, build: int) -> ServedVersion:
    tails = tuple(_named(tail_of(bundle, entry), f"{name}/{version}") for entry in bundle.remote_segments())
    if not tails:
        raise BundleError(f"{bundle.root} has no work for a gateway", "build one with a cut or full-cloud placement")
    model = bundle.manifest.model
    return ServedVersion(
        name=name,
        version=version,
        folder=bundle.root,
        format="bundle",
        digest=bundle.digest,
        model_digest=bytes.fromhex(model.digest),
        tails=tails,
        settings=msgspec.structs.replace(settings, inputs=model.inputs, outputs=model.outputs),
        build=build,
    )


def _named(tail: Tail, of: str) -> Tail:
    """The same tail, whose label says whose it is: the log and the status page show those of all models."""
    joint = tail.joint
    if joint is not None:
        joint = replace(joint, bridge=_named(joint.bridge, of), suffix=_named(joint.suffix, of))
    return replace(tail, label=f"{of} {tail.label}", joint=joint)


def tail_of(bundle: Bundle, entry: PlacementEntry) -> Tail:
    """What a gateway runs of one placement. Raises BundleError if the manifest does not list it."""
    remedy = "rebuild the bundle"
    if entry.tail is None or entry.segment is None:
        raise BundleError(f"{bundle.root}: placement {entry.id} has a segment but no tail", remedy)
    if entry.tail not in bundle.manifest.files:
        raise BundleError(f"{bundle.root}: the tail {entry.tail!r} of placement {entry.id} is not listed", remedy)
    tail = Tail(
        key=bundle.manifest.files[entry.tail].sha256,
        label=f"{entry.id}/tail",
        placement=entry.id,
        kind=entry.kind,
        precision=entry.precision,
        segment=bytes.fromhex(entry.segment),
        boundary=entry.boundary,
        batchable=bool(entry.batch and entry.batch.batchable),
        output_axes=entry.batch.output_axes if entry.batch else {},
        graph=functools.partial(bundle.graph, entry.tail),
        half=_half(bundle, entry),
    )
    return replace(tail, joint=_joint(bundle, entry, tail))


def _half(bundle: Bundle, entry: PlacementEntry) -> HalfForm | None:
    if entry.half is None:
        return None
    file = entry.half.file
    if file not in bundle.manifest.files:
        fact = f"{bundle.root}: the tail in float16 {file!r} of placement {entry.id} is not listed"
        raise BundleError(fact, "rebuild the bundle")
    return HalfForm(bundle.manifest.files[file].sha256, functools.partial(bundle.graph, file))


def _joint(bundle: Bundle, entry: PlacementEntry, tail: Tail) -> Joint | None:
    suffix = bundle.manifest.suffix
    if suffix is None or entry.bridge is None:
        return None

    def part(file: str, label: str) -> Tail:
        if file not in bundle.manifest.files:
            raise BundleError(f"{bundle.root}: the graph {file!r} of {label} is not listed", "rebuild the bundle")
        key, graph = bundle.manifest.files[file].sha256, functools.partial(bundle.graph, file)
        return replace(tail, key=key, label=label, graph=graph, output_axes=suffix.output_axes, half=None)

    return Joint(part(entry.bridge, f"{entry.id}/bridge"), part(suffix.file, "suffix"), suffix.batch_axes)


def _read(folder: Path, file: str) -> bytes:
    try:
        return read_regular(folder, file)
    except BundleError as error:
        raise ModelError(error.fact, "put plain files there: neither symbolic nor hard links are followed") from error


def _external_files(folder: Path, file: str, model: bytes) -> list[str]:
    """The files beside the model that it keeps weights in. Raises ModelError for any that lies elsewhere."""
    names = sorted({reference.location for reference in external_references(model)})
    for name in names:
        try:
            check_relative(folder, name, listed_in=file)
        except BundleError as error:
            raise ModelError(error.fact, "keep the weights in the model's own folder") from error
        if "/" in name or name == file:
            raise ModelError(f"{folder / file} keeps weights in {name!r}", "keep them in a file beside the model")
    return names


def _load_model(folder: Path, file: str) -> tuple[str, bytes]:
    """A model with its weights, and the digest of both (hex). That of a model in one file is the file's own sha256."""
    model = _read(folder, file)
    digest = hashlib.sha256(model).hexdigest()
    weights = {name: _read(folder, name) for name in _external_files(folder, file, model)}
    if not weights:
        return digest, model
    listed = (f"{name}\0{hashlib.sha256(data).hexdigest()}".encode() for name, data in weights.items())
    return hashlib.sha256(b"\0".join((b"isthmus-model-1", digest.encode(), *listed))).hexdigest(), Graph(model, weights)


def _read_model(folder: Path, file: str, digest: str) -> bytes:
    """The model whose digest was taken when its folder was opened. Raises ModelError if it changed since."""
    found, model = _load_model(folder, file)
    if found != digest:
        fact = f"{folder / file}, or its weights, changed after the folder was opened"
        raise ModelError(fact, "put a new content under a new version")
    return model
