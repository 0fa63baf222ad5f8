"""What can run a graph, by name: whether this machine has it, why not, and how one is made.

    tensorrt               TensorRT itself; plans are built here, in minutes, and cached
    tensorrt-rtx           the same for RTX-class GPUs, installable from the Python index alone
    onnxruntime-tensorrt   ONNX Runtime, which gives what it can to TensorRT 10 and the rest to CUDA
    onnxruntime-cuda       ONNX Runtime on the GPU, inputs and outputs bound to its memory
    onnxruntime-cpu        ONNX Runtime on the processor: runs everything, everywhere

The table stands in the order of preference that holds where nobody states one. Nothing is imported, and no driver is
asked, until somebody asks for that kind: an agent on the processor never loads a GPU's libraries.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from protocol.engines.base import Engine
from protocol.engines.trt_options import Edition

CPU = "onnxruntime-cpu"
TENSORRT_10 = "libnvinfer.so.10"  # what ONNX Runtime's TensorRT provider is linked with
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is told besides its graph; each kind takes of it what it knows.

    `max_rows` is the largest batch that will be asked for, `knee` the one to be fastest at (None: the largest),
    `batch_axes` where each input has it (None: nowhere). With `several`, single rows get kernels of their own where a
    plan is built.
    `gpu_memory_nbytes` bounds what it may take of the GPU; None does not. `cache_dir` is where built plans are kept.
    """

    label: str
    threads: int = 1
    max_rows: int = 1
    knee: int | None = None
    several: bool = False
    batch_axes: Mapping[str, int | None] | None = None
    device: int = 0
    gpu_memory_nbytes: int | None = None
    cache_dir: Path | None = None
    told: Callable[[str], None] | None = None  # hears how far a build has come


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to run a graph. `absent` says in one sentence why this machine cannot, or ""; it is asked once.

    `is_built` takes minutes to load a graph for the first time: something else serves meanwhile. `takes_half` computes
    a graph in float16 where the graph says so, and faster; a processor casts to float32 and back instead.
    """

    name: str
    absent: Callable[[], str]
    make: Callable[[bytes, EngineOptions], Engine]
    on_gpu: bool = True
    is_built: bool = False
    takes_half: bool = False


Kinds = Mapping[str, Kind]


def present(kinds: Kinds, order: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Of the kinds in `order` those that this machine has, and why it lacks each of the others."""
    absent = {name: reason for name in order if (reason := kinds[name].absent())}
    return tuple(name for name in order if name not in absent), absent


# ---- what is there --------------------------------------------------------------------------------------------------


def both_onnxruntimes(folder_of: Callable[[str], Path | None] | None = None) -> str:
    """Why ONNX Runtime cannot reach a GPU although its GPU build is installed, or "".

    `onnxruntime` and `onnxruntime-gpu` share one import name: in one folder, whichever was installed last is there, in
    parts. In folders of their own they do each other no harm, and the first in Python's path is imported.
    """
    where = folder_of or _folder_of
    if (folder := where("onnxruntime")) is not None and folder == where("onnxruntime-gpu"):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "uninstall both, then install onnxruntime-gpu alone (isthmus[cuda])"
        )
    return ""


def no_gpu() -> str:
    """Why no GPU can be used here, or ""."""
    from protocol.engines import driver

    found = driver.probe()
    return found if isinstance(found, str) else ""


def gpu_memory(device: int = 0) -> tuple[int, bool] | None:
    """The bytes of that GPU's memory, and whether the processor lives in the same; None where there is no GPU."""
    from protocol.engines import driver

    found = driver.probe()
    if isinstance(found, str):
        return None
    return next(((d.memory_nbytes, d.is_integrated) for d in found.devices if d.index == device), None)


@functools.cache
def _no_ort_on_gpu(provider: str) -> str:
    from protocol.engines import ort

    if reason := both_onnxruntimes():
        return reason
    if reason := no_gpu():
        return reason
    if provider not in ort.available():
        return f"the installed onnxruntime has no {provider}; install isthmus[cuda] instead of isthmus[gateway]"
    return _no_tensorrt_10() if provider == "TensorrtExecutionProvider" else ""


def _no_tensorrt_10(load: Callable[[str], object] | None = None) -> str:
    """Why ONNX Runtime's provider would not load, or "": it finds the library as every program does, by the loader."""
    from protocol.engines import driver

    try:
        (load or driver.load_library)(TENSORRT_10)
    except OSError:
        return f"{TENSORRT_10} is not found; install TensorRT 10 where the loader looks, or do with onnxruntime-cuda"
    return ""


@functools.cache
def _no_tensorrt(edition: Edition) -> str:
    if reason := no_gpu():
        return reason
    module = edition.replace("-", "_")
    missing = [module] if importlib.util.find_spec(module) is None else []
    if not _can_import("pycuda") and not _can_import("cuda.bindings"):
        missing.append("pycuda (or cuda-python)")
    return f"{' and '.join(missing)} cannot be imported; install isthmus[{edition}]" if missing else ""


def _can_import(module: str) -> bool:
    """Whether it is there, without importing it. Several packages share the name `cuda`."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it would be in is not there
        return False


def _folder_of(distribution: str) -> Path | None:
    """The folder that it is installed in."""
    try:
        return Path(str(importlib.metadata.distribution(distribution).locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        return None


# ---- how it is made -------------------------------------------------------------------------------------------------


def _cpu(graph: bytes, options: EngineOptions) -> Engine:
    from protocol.engines.ort import OrtEngine

    return OrtEngine(graph, label=options.label, threads=options.threads)


def _cuda(graph: bytes, options: EngineOptions) -> Engine:
    from protocol.engines.ort_cuda import BoundOrtEngine

    return BoundOrtEngine(graph, label=options.label, device=options.device, memory_nbytes=options.gpu_memory_nbytes)


def _ort_tensorrt(graph: bytes, options: EngineOptions) -> Engine:
    from protocol.engines.ort_cuda import BoundOrtEngine

    return BoundOrtEngine(
        graph, label=options.label, device=options.device, memory_nbytes=options.gpu_memory_nbytes, tensorrt=True
    )


def _tensorrt(edition: Edition, graph: bytes, options: EngineOptions) -> Engine:
    from protocol.engines.tensorrt import TensorRtEngine
    from protocol.engines.trt_options import TrtOptions

    wanted = TrtOptions(
        edition=edition, device=options.device, max_batch=options.max_rows, knee=options.knee,
        several=options.several and edition == "tensorrt",  # RTX compiles for each shape as it comes, anyhow
        batch_axes=options.batch_axes or {}, cache=options.cache_dir,
    )  # fmt: skip
    if (most := options.gpu_memory_nbytes) is not None:
        wanted = msgspec.structs.replace(wanted, memory_nbytes=most, workspace_nbytes=most // 2)
    return TensorRtEngine(graph, label=options.label, options=wanted, told=options.told)


KINDS: Kinds = {
    kind.name: kind
    for kind in (
        Kind(
            "tensorrt",
            lambda: _no_tensorrt("tensorrt"),
            functools.partial(_tensorrt, "tensorrt"),
            is_built=True,
            takes_half=True,
        ),
        Kind(
            "tensorrt-rtx",
            lambda: _no_tensorrt("tensorrt-rtx"),
            functools.partial(_tensorrt, "tensorrt-rtx"),
            is_built=True,
            takes_half=True,
        ),
        Kind(
            "onnxruntime-tensorrt",
            lambda: _no_ort_on_gpu("TensorrtExecutionProvider"),
            _ort_tensorrt,
            is_built=True,
            takes_half=True,
        ),
        Kind("onnxruntime-cuda", lambda: _no_ort_on_gpu("CUDAExecutionProvider"), _cuda, takes_half=True),
        Kind(CPU, lambda: "", _cpu, on_gpu=False),
    )
}
