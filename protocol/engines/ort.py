"""ONNX Runtime behind the Engine contract, for engines and partitioner alike; `ort_cuda` binds it to a GPU's memory.

No silent fallback: ONNX Runtime quietly runs on the CPU when an execution provider fails to load, when a node has no
kernel there, and (its Python part) when a provider fails in the middle of a run. All three are switched off, and what
was asked is compared with what was got. Spinning is off: idle worker threads otherwise burn whole cores, and several
sessions on one machine then starve each other.

Nothing is told to anybody: the official builds since 1.29 send names and hashes of models to their maker, by a thread
of their own, and keep an identifier of the machine under the user's home directory, unless they are told not to before
they are loaded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library is loaded
import onnxruntime as ort

from protocol.engines.base import ActivationScope
from protocol.engines.causes import cause_of, failed
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError, ModelError
from protocol.graphs import external_of
from protocol.onnx_scan import check_external
from protocol.tensors import DTYPES, Array, Tensors, TensorSpec

CPU = "CPUExecutionProvider"

_ONLY_HERE = "session.disable_cpu_ep_fallback"
_NO_TENSORRT = "Please install TensorRT libraries"
_LEFT_TO_THE_CPU = "assigned to the default CPU EP"

_TELLING = re.compile(
    r"(CUDA|CUDNN|CUBLAS|CURAND|CUFFT)\w* failure -?\d+:[^;]*|Available memory of .*|Failed to allocate .*"
)

_ORT_TYPES = {
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


@functools.cache
def _saturates() -> bool:
    """Whether pairs of u8*s8 products saturate at 16 bits here: x86 without VNNI.

    Accuracy is then lost silently (MobileNetV2: 90.5 -> 80.2 % agreement), and ONNX Runtime's exact mode costs nothing.
    With VNNI the products are exact anyway and that mode would only be slower (digits: 2.5 -> 3.4 ms).
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True  # unknown: be exact
    return "avx512_vnni" not in flags and "avx_vnni" not in flags


def version() -> str:
    return str(ort.__version__)


def available() -> tuple[str, ...]:
    """The execution providers that this build brings. Whether their libraries load shows only when one is asked for."""
    return tuple(ort.get_available_providers())


class OrtEngine(ActivationScope):
    """One ONNX Runtime session.

    `model` is the serialised graph (its bytes were hashed by whoever read them); large weights come along with it (see
    `protocol.graphs`), and a graph that names any other file is refused. `providers` are the execution providers in
    order of preference, each with its `provider_options` where it takes some, `threads` the intra-op threads.
    `optimise=False` runs the graph as it is written: proofs of equality use that, since fusions across a cut change the
    last bits; measurements use the default.
    """

    def __init__(
        self,
        model: bytes,
        *,
        label: str,
        providers: Sequence[str] = (CPU,),
        provider_options: Sequence[Mapping[str, str]] | None = None,
        threads: int = 1,
        optimise: bool = True,
    ) -> None:
        self.label = label
        self._model: bytes | None = model
        self._providers = list(providers)
        self._provider_options = None if provider_options is None else [dict(options) for options in provider_options]
        self._threads = threads
        self._optimise = optimise
        self._session: ort.InferenceSession | None = None
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._output_names: list[str] = []
        self._description = f"onnxruntime-{version()}/inactive"

    @property
    def description(self) -> str:
        return self._description

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def activate(self) -> None:
        if self._session is not None:
            return
        missing = [p for p in self._providers if p not in ort.get_available_providers()]
        if missing:
            raise EngineError(
                f"{self.label}: this onnxruntime has no {missing[0]}",
                f"it has {', '.join(ort.get_available_providers())}; install the build for your hardware",
            )
        options = self._options()
        self._hand_over_weights(options)
        if self._providers != [CPU]:
            _load_gpu_libraries()
        try:
            session = self._open(options)
        except Exception as error:  # the binding raises bare RuntimeError subclasses of its own
            if _LEFT_TO_THE_CPU in str(error):
                raise self._left_to_the_cpu() from error
            if _NO_TENSORRT in str(error):
                raise GpuError(
                    f"{self.label}: ONNX Runtime finds no TensorRT 10",
                    "install it, or take onnxruntime-tensorrt out of the order",
                    cause="no-library",
                ) from error
            fact, cause = f"{self.label}: ONNX Runtime refuses the graph ({first_line(error)})", cause_of(error)
            raise failed(fact, "other" if self._providers == [CPU] else cause) from error
        got = session.get_providers()
        if got[: len(self._providers)] != self._providers:
            raise EngineError(
                f"{self.label}: asked for {self._providers} but got {got}", "install the missing provider"
            )
        self._inputs = tuple(_spec(value, self.label) for value in session.get_inputs())
        self._outputs = tuple(_spec(value, self.label) for value in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        self._description = f"onnxruntime-{version()}/{got[0]}"
        self._session = session

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        session = self._session  # whoever deactivates meanwhile takes it from us, not from under the run
        if session is None:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        try:
            values: Sequence[Array] = session.run(self._output_names, dict(tensors))
        except Exception as error:
            raise EngineError(f"{self.label} failed: {first_line(error)}", "") from error
        return dict(zip(self._output_names, values, strict=True))

    def deactivate(self) -> None:
        self._session = None

    def _open(self, options: ort.SessionOptions) -> ort.InferenceSession:
        return ort.InferenceSession(
            self._model, options, providers=self._providers, provider_options=self._provider_options, enable_fallback=0
        )

    def _left_to_the_cpu(self) -> GpuError:
        """Why the graph does not run wholly on what was asked for.

        The runtime says the same where a provider's libraries do not load and where a node has no kernel.
        """
        options = self._options()
        options.add_session_config_entry(_ONLY_HERE, "0")
        self._hand_over_weights(options)
        try:
            got = self._open(options).get_providers()
        except Exception:
            got = []
        missing = [provider for provider in self._providers if provider not in got]
        if missing:
            return GpuError(
                f"{self.label}: {missing[0]} does not load: it lacks libraries, or the driver is too old for it",
                "isthmus[cuda] brings CUDA 13 and cuDNN 9; TensorRT's provider needs TensorRT 10 as well",
                cause="no-library",
            )
        return GpuError(
            f"{self.label}: {self._providers[0]} has no kernel for some of its nodes, and would leave them to the CPU",
            "run it on another engine, or build the bundle without shapes that are computed from inputs",
            cause="unsupported-graph",
        )

    def _hand_over_weights(self, options: ort.SessionOptions) -> None:
        """Give the runtime from memory what the graph would have it read; it keeps pointing into these buffers."""
        external = external_of(self._model or b"")
        try:
            names = check_external(self._model or b"", external)
        except ModelError as error:
            raise EngineError(f"{self.label}: {error.fact}", error.remedy) from error
        if names:
            buffers = [memoryview(external[name]).cast("B") for name in names]
            options.add_external_initializers_from_files_in_memory(names, buffers, [b.nbytes for b in buffers])

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised as an EngineError; printing it too helps nobody
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if _saturates():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if self._providers != [CPU]:
            options.add_session_config_entry(_ONLY_HERE, "1")
        if not self._optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options


@functools.cache
def _load_gpu_libraries() -> None:
    """CUDA and cuDNN as the Python index has them: no loader finds them by itself. Those of the system do as well."""
    ort.set_default_logger_severity(4)  # what fails is raised; the runtime prints it in colours besides
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        for folder in nvidia_folders(Path(ort.__file__).parents[1], sys.path):
            ort.preload_dlls(directory=str(folder))
        ort.preload_dlls()


def nvidia_folders(own: Path, path: Sequence[str]) -> list[Path]:
    """Where packages keep CUDA and cuDNN, of the first folder in Python's path that has any.

    Empty if it is `own`, where ONNX Runtime itself lies and looks. Elsewhere it does not look: it may have been put
    beside an environment that has those packages already.
    """
    for site in dict.fromkeys((own, *map(Path, path))):
        if found := sorted({library.parent for library in site.glob("nvidia/*/lib/lib*.so.*")}):
            return [] if site == own else found
    return []


def _spec(value: ort.NodeArg, label: str) -> TensorSpec:
    dtype = _ORT_TYPES.get(value.type)
    if dtype is None or dtype not in DTYPES:
        raise EngineError(f"{label}: {value.name!r} is a {value.type}", "only fixed-size elements are served")
    return TensorSpec(value.name, dtype, tuple(d if isinstance(d, int | str) else None for d in value.shape))


def first_line(error: Exception) -> str:
    """What an error of the runtime says, without its trace and, before what tells, the names of its own functions."""
    said = str(error).strip().split("\n")[0]
    if found := _TELLING.search(said):
        said = said.partition("/onnxruntime_src/")[0] + found[0]
    return said[:300].strip() or type(error).__name__
