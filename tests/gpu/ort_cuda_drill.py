"""The real ONNX Runtime for CUDA on a SIMULATED CUDA runtime: `python -m tests.gpu.ort_cuda_drill FOLDER`. Needs gcc.

FOLDER holds the package, put there by `pip install --no-deps --target FOLDER onnxruntime-gpu`; CUDA's own libraries are
not needed, nor a driver. Options are parsed, nodes are placed, memory is bounded, inputs and outputs are bound by the
library as on a GPU. No kernel computes (see `simulated_cuda.c`), so only products of matrices have values.

It leaves with 0 if every graph below runs wholly on CUDA, is refused in our words where it cannot, and what is bound
arrives, from two threads at once too, with one copy in, one out, and no wait for the whole device.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
CUDA_ROOT = Path(os.environ.get("CUDA_ROOT", "/usr/local/cuda"))
SHARED = Path(os.environ.get("ISTHMUS_SHARED", "../shared")) / "models"
LIVE_NBYTES, _, COPIED_IN, COPIED_OUT, WAITED_FOR_ALL = range(5)
SONAMES = ("libcudart.so.{}", "libcublas.so.{}", "libcublasLt.so.{}", "libcurand.so.10", "libcuda.so.1")


def build(folder: Path, package: Path) -> Any:
    """The simulated libraries, loaded so that the package finds them under the names that it is linked with."""
    provider = package / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        sys.exit(f"not run: {package} holds no onnxruntime-gpu")
    linked = subprocess.run(["readelf", "-d", provider], check=True, capture_output=True, text=True).stdout
    found = re.search(r"libcudart\.so\.(\d+)", linked)
    assert found is not None, linked
    listing = subprocess.run(["nm", "-D", "--undefined-only", provider], check=True, capture_output=True, text=True)
    names = {line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines()}
    wanted = {name for name in names if re.match(r"(__cuda|cuda|cublas|curand|cu[A-Z])", name)}
    source = (HERE / "simulated_cuda.c").read_text()
    there = set(re.findall(r"\b((?:__)?cu\w+)[(,]", source))
    rest = "".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(wanted - there))
    (folder / "rest.c").write_text(rest)
    first, *others = (name.format(found[1]) for name in SONAMES)
    gcc = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-I{CUDA_ROOT}/include"]
    sources = [HERE / "simulated_cuda.c", folder / "rest.c", "-lpthread"]
    subprocess.run([*gcc, f"-Wl,-soname,{first}", "-o", folder / first, *sources], check=True)
    library = ctypes.CDLL(str(folder / first), os.RTLD_GLOBAL | os.RTLD_NOW)
    for name in others:
        own = ["-Wl,--no-as-needed", f"-Wl,-soname,{name}", "-x", "c", "/dev/null", "-x", "none"]
        subprocess.run([*gcc, *own, "-o", folder / name, f"-L{folder}", f"-l:{first}"], check=True)
        ctypes.CDLL(str(folder / name), os.RTLD_GLOBAL | os.RTLD_NOW)
    library.isthmus_count.restype = ctypes.c_long
    return library


def product(width: int = 64, height: int = 32) -> tuple[bytes, Any]:
    """y = x @ w, and w."""
    weight = np.random.default_rng(1).standard_normal((width, height)).astype(np.float32)
    return _graph([helper.make_node("MatMul", ["x", "w"], ["y"])], width, height, [(weight, "w")]), weight


def by_shape() -> bytes:
    """y = x times the number of its rows: the library has no use for a GPU where it works on shapes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    return _graph(nodes, 64, 64, [(np.array(0), "first")])


def _graph(nodes: list[Any], width: int, height: int, weights: list[tuple[Any, str]]) -> bytes:
    graph = helper.make_graph(
        nodes, "drill",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", height])],
        [numpy_helper.from_array(*weight) for weight in weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def graphs(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What the tests and benchmarks for a GPU run, and the shared models where they are."""
    from benchmarks import tails
    from tests import models

    yield "digits", (HERE.parents[1] / "examples" / "digits" / "digits.onnx").read_bytes()
    for make in (models.residual, models.two_heads, models.fixed_batch, models.tokens):
        yield make.__name__, make().SerializeToString()
    for name in tails.NAMES:
        yield name, tails.build(name, folder).read_bytes()
    for path in sorted(SHARED.rglob("*.onnx")):
        yield path.stem, onnx.load(path).SerializeToString()


def drill_runs(library: Any) -> None:
    """What is bound arrives: once each way, without a wait for the device, from two threads at once."""
    from protocol.engines.ort_cuda import BoundOrtEngine

    def count(what: int) -> int:
        return int(library.isthmus_count(what))

    graph, weight = product()
    with BoundOrtEngine(graph, label="product", memory_nbytes=64 << 20) as engine:
        for rows in (1, 3, 3, 8, 1):
            x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32)
            before = [count(what) for what in (COPIED_IN, COPIED_OUT, WAITED_FOR_ALL)]
            np.testing.assert_allclose(engine.infer({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-5)
            after = [count(what) for what in (COPIED_IN, COPIED_OUT, WAITED_FOR_ALL)]
            assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 0], (rows, before, after)
        wrong: list[str] = []

        def ask(seed: int) -> None:
            for n in range(200):
                x = np.random.default_rng(seed + n).standard_normal((1 + n % 4, 64)).astype(np.float32)
                if not np.allclose(engine.infer({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-5):
                    wrong.append(f"{seed} {n}")

        threads = [threading.Thread(target=ask, args=(1000 * n,)) for n in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong, wrong
    print("runs: each input goes there once, each output back once, no wait for the device; two threads at once")


def drill_refusals(library: Any) -> None:
    """What the library says of too little memory, of unknown options, of nodes left to the processor; we tell why."""
    from protocol.engines.ort import OrtEngine
    from protocol.engines.ort_cuda import CUDA, BoundOrtEngine
    from protocol.engines.trt_options import GpuError
    from protocol.errors import EngineError

    graph, _ = product(2048, 2048)  # 16 MiB
    with pytest.raises(GpuError) as refused:
        BoundOrtEngine(graph, label="large", memory_nbytes=8 << 20).activate()
    assert refused.value.cause == "out-of-memory", refused.value
    with BoundOrtEngine(graph, label="large", memory_nbytes=32 << 20) as engine:
        with pytest.raises(GpuError) as refused:
            engine.infer({"x": np.zeros((4096, 2048), np.float32)})
        assert refused.value.cause == "out-of-memory", refused.value
        engine.infer({"x": np.zeros((2, 2048), np.float32)})
    print("memory: bounded, and told as such where it does not suffice")
    with pytest.raises(EngineError):
        OrtEngine(graph, label="typo", providers=(CUDA,), provider_options=({"gpu_memory_limit": "1"},)).activate()
    with pytest.raises(GpuError) as refused:
        BoundOrtEngine(by_shape(), label="by shape").activate()
    assert refused.value.cause == "unsupported-graph", refused.value
    print(f"refused: {refused.value}")


def drill_memory(library: Any) -> None:
    """An engine keeps to its bound, inputs included, and gives back all but the arena of the inputs."""
    from protocol.engines.ort_cuda import BoundOrtEngine

    before, bound = library.isthmus_count(LIVE_NBYTES), 64 << 20
    graph, _ = product(512, 512)
    for _ in range(5):
        with BoundOrtEngine(graph, label="bounded", memory_nbytes=bound) as engine:
            for rows in (1, 512, 1024, 2048, 1536, 300):
                engine.infer({"x": np.zeros((rows, 512), np.float32)})
            taken = library.isthmus_count(LIVE_NBYTES) - before
            assert taken <= bound, taken
        left = library.isthmus_count(LIVE_NBYTES) - before
    print(f"memory: {taken / 2**20:.1f} of {bound >> 20} MiB taken, {left / 2**20:.1f} kept for inputs after the end")


def drill_failures(library: Any) -> None:
    """A kernel that failed is told by the library in words that we know."""
    from protocol.engines.ort_cuda import BoundOrtEngine
    from protocol.engines.trt_options import GpuError

    for code, cause in ((700, "device-lost"), (719, "device-lost"), (999, "run-failed")):
        graph, _ = product()
        with BoundOrtEngine(graph, label="failing", memory_nbytes=64 << 20) as engine:
            engine.infer({"x": np.zeros((1, 64), np.float32)})
            library.isthmus_fail(code)
            with pytest.raises(GpuError) as refused:
                engine.infer({"x": np.zeros((1, 64), np.float32)})
            library.isthmus_fail(0)
        print(f"  error {code}: {refused.value.cause}: {refused.value}")
        assert refused.value.cause == cause, refused.value


def drill_placement(folder: Path) -> list[str]:
    """Which graphs run wholly on CUDA."""
    from partitioner.crossing.half_tail import in_half
    from protocol.engines.ort_cuda import BoundOrtEngine
    from protocol.errors import EngineError

    refused = []
    for name, graph in graphs(folder):
        for form, data in (("float32", graph), ("float16", in_half(graph))):
            try:
                with BoundOrtEngine(data, label=f"{name}, {form}", memory_nbytes=900 << 20) as engine:
                    assert "CUDA" in engine.description
            except EngineError as error:
                refused.append(str(error))
                print(f"  {error}")
            else:
                print(f"  {name}, {form}: wholly on CUDA")
    return refused


def main() -> int:
    package = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(package))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build(folder, package)
        from protocol.engines import ort
        from protocol.engines.driver import ask

        print(f"onnxruntime {ort.version()}, {ask()} (simulated)")
        drill_runs(library)
        drill_memory(library)
        drill_refusals(library)
        drill_failures(library)
        return 1 if drill_placement(folder) else 0


if __name__ == "__main__":
    sys.exit(main())
