"""Reads a model's external data without ever reading a file that is not the model's own.

External data is a file-read primitive (measured: ONNX Runtime reads hard links, and from bytes resolves paths against
the current directory). The gate, in this order: `onnx`'s own checker; a plain relative path without `..`; every folder
on the way and the file itself opened without following links; a regular file with one name; offset and length within
its size, and as long as the tensor's shape says; no two tensors that overlap. Only then is memory allocated and the
content read, once, from the open file. What is read is part of the model's digest.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from protocol.errors import ModelError
from protocol.tensors import Array

_REMEDY = "keep the data in plain files beside the model, or save the model in one file"
_KEYS = frozenset({"location", "offset", "length", "checksum"})


class Place(NamedTuple):
    """Where a tensor's bytes lie: a path relative to the model's folder, and the bytes from `start` to `end` in it."""

    location: str
    start: int
    end: int


def external_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors that keep their data in another file, wherever in the model they are."""
    graphs = [proto.graph, *(g for t in proto.training_info for g in (t.initialization, t.algorithm))]
    tensors = [t for g in graphs for t in _tensors(g)]
    tensors += [t for f in proto.functions for n in f.node for t in _node_tensors(n)]
    tensors += [t for f in proto.functions for a in f.attribute_proto for t in _attribute_tensors(a)]
    return [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]


def read_external(proto: onnx.ModelProto, path: Path) -> Mapping[Place, Array]:
    """The bytes (uint8 arrays) of every place at which the model at `path` keeps tensors. Empty for ordinary models.

    Raises ModelError, and reads nothing, when any of them is not safe or not possible.
    """
    tensors = external_tensors(proto)
    if not tensors:
        return {}
    _check(path)
    places = list(dict.fromkeys(place_of(t) for t in tensors))
    _refuse_overlaps(places)
    with ExitStack() as stack:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        files = {}
        for location in dict.fromkeys(p.location for p in places):
            files[location] = _open(folder, location)
            stack.callback(os.close, files[location])
        for place in places:
            size = os.fstat(files[place.location]).st_size
            if place.end > size:
                raise ModelError(f"{place.location!r} holds {size} bytes but a tensor ends at {place.end}", _REMEDY)
        return {place: _read(files[place.location], place) for place in places}


def place_of(tensor: onnx.TensorProto) -> Place:
    """Where an external tensor lies. Raises ModelError for an unsafe path, or a length that its shape contradicts."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = f"tensor {tensor.name!r}"
    if len(entries) != len(tensor.external_data) or not entries.keys() <= _KEYS:
        raise ModelError(f"{name} describes its external data in an unknown way", _REMEDY)
    location = entries.get("location", "")
    if not _is_plain(location):
        raise ModelError(f"{name} lies outside the model's folder, at {location!r}", _REMEDY)
    start = _whole(entries.get("offset", "0"), name)
    nbytes = _nbytes(tensor)
    if "length" in entries and _whole(entries["length"], name) != nbytes:
        raise ModelError(f"{name} is {nbytes} bytes by its shape but {entries['length']} bytes are stated", _REMEDY)
    return Place(location, start, start + nbytes)


def digest_of(source: str, contents: Mapping[Place, Array]) -> str:
    """sha256 (hex) of a model: `source`, the digest of its file, and with it what was read from others."""
    if not contents:
        return source
    whole = hashlib.sha256(f"isthmus-model-1\0{source}".encode())
    for place, content in sorted(contents.items()):
        whole.update(f"\0{place.location}\0{place.start}\0{place.end}\0".encode())
        whole.update(hashlib.sha256(content.data).digest())
    return whole.hexdigest()


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # its own error, and bare OSError or RuntimeError for what it cannot open
        text = str(error).strip().split("\n")[0][:200]
        raise ModelError(f"{path} is not a valid ONNX model ({text})", _REMEDY) from error


def _is_plain(location: str) -> bool:
    path = PurePosixPath(location)
    return (
        bool(path.name)
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(location) & {"\\", "\0", ":", "*"}
        and path.as_posix() == location
    )


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{name} begins or ends at {text[:40]!r}, which is no number of bytes", _REMEDY)
    return int(text)


def _nbytes(tensor: onnx.TensorProto) -> int:
    kind = ir.DataType(tensor.data_type)
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED) or any(d < 0 for d in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} cannot be external data ({kind.name.lower()})", _REMEDY)
    bits: int = math.prod(tensor.dims) * kind.bitwidth
    return -(-bits // 8)


def _refuse_overlaps(places: Sequence[Place]) -> None:
    """Distinct places that overlap would read the same bytes many times over: a small file could fill all memory."""
    ordered = sorted(p for p in places if p.end > p.start)
    for one, two in itertools.pairwise(ordered):
        if one.location == two.location and two.start < one.end:
            raise ModelError(f"two tensors overlap in {one.location!r} at byte {two.start}", _REMEDY)


def _open(folder: int, location: str) -> int:
    """A descriptor of a regular file with one name below `folder`, reached through no link."""
    *folders, name = PurePosixPath(location).parts
    at = folder
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            if at != folder:
                os.close(at)
            at = below
        # Without O_NONBLOCK a pipe in a file's place would hang us here. The size is asked only of what is a file.
        _check_status(os.stat(name, dir_fd=at, follow_symlinks=False), location)
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except OSError as error:
        raise ModelError(f"{location!r} cannot be opened as a plain file ({error.strerror})", _REMEDY) from error
    finally:
        if at != folder:
            os.close(at)
    try:
        _check_status(os.fstat(descriptor), location)
    except ModelError:
        os.close(descriptor)
        raise
    return descriptor


def _check_status(status: os.stat_result, location: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{location!r} is no plain file", _REMEDY)
    if status.st_nlink != 1:
        raise ModelError(f"{location!r} is a hard link: {status.st_nlink} names lead to it", _REMEDY)


def _read(descriptor: int, place: Place) -> Array:
    try:
        content = np.empty(place.end - place.start, np.uint8)
    except MemoryError as error:
        raise ModelError(f"{place.location!r} does not fit in memory", "use a machine with more memory") from error
    view, done = content.data, 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + (1 << 30)]], place.start + done)
        if count == 0:
            raise ModelError(f"{place.location!r} became shorter while it was read", "try again")
        done += count
    return content


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    # Asking for a message that is not there creates one: 20 times slower on graphs of 100,000 nodes.
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse: Iterable[onnx.SparseTensorProto] = attribute.sparse_tensors
    for tensor in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *sparse):
        yield from (tensor.values, tensor.indices)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _tensors(graph)
