"""A serialised ONNX graph together with the large weights that lie beside it.

A protocol buffer holds at most 2 GB, so a larger model is a small graph and files. In a bundle each such file holds one
weight, is named after its own sha256 (`weights/<sha256>`) and is listed in the manifest; graphs name it so, relative
to the bundle. So head, tail and whole model share the files, and a graph's digest covers its weights.

Every engine calls `onnx_scan.check_external` on a graph before its runtime sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from protocol.wire import Buffer

WEIGHTS = "weights"


class Graph(bytes):
    """The bytes of a graph as everybody else takes them, with `external`: the contents of the files it names.

    An ordinary graph is plain `bytes`, in which everything is contained.
    """

    external: Mapping[str, Buffer]

    def __new__(cls, data: bytes, external: Mapping[str, Buffer]) -> Self:
        graph = super().__new__(cls, data)
        graph.external = dict(external)
        return graph


def external_of(graph: bytes) -> Mapping[str, Buffer]:
    """The contents of the files that a graph names, by name; none for plain bytes."""
    return graph.external if isinstance(graph, Graph) else {}


def weight_file(sha256: str) -> str:
    """Where a bundle keeps the weight with this digest, relative to the bundle."""
    return f"{WEIGHTS}/{sha256}"
