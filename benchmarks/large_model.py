"""A model of more than 2 GB, with external data, through load, split, bundle and back: in what time and memory?

    python -m benchmarks large_model [--set gigabytes=2.2]

Law: weights are random and real (no holes in the file, no two equal), and the peak is the process's own as the kernel
counts it, so the suite runs alone in its process. It needs three times the model's size in the temporary folder and
three times in memory: ours, the copy that ONNX Runtime makes, and the bundle read back. A protocol buffer of this size
cannot be written at all; graphs here stay below a megabyte.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.results import Options, Result
from partitioner.graph.cuts import separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.judging import verify
from partitioner.planning.write import with_weights, write_bundle
from protocol import bundle
from protocol.engines.ort import OrtEngine

WIDTH = 4096
LAYER_NBYTES = WIDTH * WIDTH * 4


def run(options: Options) -> list[Result]:
    """The suite `large_model`."""
    gigabytes = 0.3 if options.quick else float(options.settings.get("gigabytes", "2.2"))
    layers = max(2, round(gigabytes * 1e9 / LAYER_NBYTES))
    results: list[Result] = []
    began, before = time.monotonic(), _peak_nbytes()
    size = layers * LAYER_NBYTES

    def stage(name: str, note: str = "") -> None:
        nonlocal began
        now = time.monotonic()
        results.append(Result.of(f"{name}: time", "s", [now - began]))
        peak = (_peak_nbytes() - before) / size
        results.append(Result.of(f"{name}: peak memory so far", "of weights", [peak], note=note))
        began = now

    with tempfile.TemporaryDirectory() as folder:
        path = _write(Path(folder), layers)
        results.append(Result.of("weights", "GB", [size / 1e9], note=f"{layers} products of {WIDTH}x{WIDTH}"))
        stage("write the model (the suite's own)")
        model = load(path, most_inline_nbytes=size // 4 if options.quick else None)
        path.with_suffix(".data").unlink()
        stage("load", f"graph {len(model.data)} bytes")
        sides = separate(model.topology, [f"h{layers // 2}"])
        halves = split(model, sides)
        head, tail = serialise(halves.head), serialise(halves.tail)
        stage("split")
        opened = _bundle(Path(folder) / "bundle", model, head, tail)
        on_disk = sum(f.nbytes for f in opened.manifest.files.values()) / size
        stage("write the bundle", f"{on_disk:.2f} of weights on disk")
        feed = {"x": np.random.default_rng(1).standard_normal((1, WIDTH), np.float32)}
        with OrtEngine(model.data, label="whole", optimise=False) as engine:
            whole = engine.infer(feed)
        stage("run the whole model")
        del model, halves, head, tail, engine
        graphs = opened.graph("cut-1/head.onnx"), opened.graph("cut-1/tail.onnx")
        with verify.SplitPair(*graphs, sides.cut, (), optimise=False) as pair:
            result = verify.difference([whole], [pair.infer(feed)])
        stage("read, hash and run head and tail from the bundle")
    results.append(Result.bounded("difference, optimisation off", "", [result.seen], at_most=0.0))
    return results


def _write(folder: Path, layers: int) -> Path:
    """h1 = x @ w0, h2 = h1 @ w1, ...; the weights one after the other in model.data."""
    rng = np.random.default_rng(7)
    nodes, weights = [], []
    with (folder / "model.data").open("wb") as file:
        for i in range(layers):
            file.write((rng.standard_normal((WIDTH, WIDTH), np.float32) / np.float32(np.sqrt(WIDTH))).data)
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "model.data"), ("offset", i * LAYER_NBYTES), ("length", LAYER_NBYTES)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"h{i}" if i else "x", f"w{i}"], [f"h{i + 1}"], name=f"node{i}"))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(f"h{layers}", TensorProto.FLOAT, ["N", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    return path


def _bundle(target: Path, model: LoadedModel, head: bytes, tail: bytes) -> bundle.Bundle:
    files = with_weights({"full.onnx": model.data, "cut-1/head.onnx": head, "cut-1/tail.onnx": tail})
    entries = {name: bundle.FileEntry(bundle.sha256(content), len(content)) for name, content in files.items()}
    info = bundle.ModelInfo(
        model.name, entries["full.onnx"].sha256, model.source_digest, model.opset, model.inputs, model.outputs
    )
    conditions = bundle.Conditions("here", 1.0, 1, 1, 0.0, "fp32", {}, "0" * 64, 0, "now")
    write_bundle(target, bundle.Manifest(bundle.SCHEMA_VERSION, info, entries, (), conditions), files, force=False)
    return bundle.Bundle.open(target)


def _peak_nbytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
