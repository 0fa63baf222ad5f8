"""ONNX Runtime on a GPU, through IOBinding: inputs go to the device once, outputs come back once, nothing in between.

    engine = BoundOrtEngine(graph, label="cut-1/tail", memory_nbytes=2 << 30)
    with engine:
        engine.infer({"x": rows})

`run` hands arrays over one by one and lets the runtime copy wherever it thinks best. A binding names the place of each
tensor instead, and is kept for the next run of the same shapes, with the inputs' room on the device. Several threads
may run at once: each takes a binding of its own.

The runtime puts nodes that it has no kernel for on the processor, silently. That is refused (`OrtEngine`): whoever
prefers a GPU is told what does not run there. TF32 is off: bundles are judged with whole float32 products.

`on="cpu"` runs the same path on the processor: it gains nothing there, and proves the path where no GPU is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from protocol.engines.causes import cause_of
from protocol.engines.ort import CPU, OrtEngine, first_line
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
MOST_SHAPES = 64  # whose bindings are kept; a lane runs a few dozen batch sizes

Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


class _Binding:
    """One run's places, for one set of shapes: kept, and used by one thread at a time."""

    def __init__(
        self, session: ort.InferenceSession, tensors: Tensors, outputs: list[str], on: str, device: int
    ) -> None:
        self._io = session.io_binding()
        self._session = session
        self._outputs = outputs
        self._on, self._device = on, device
        self._inputs: dict[str, Any] = {}
        for name, array in tensors.items() if on != "cpu" else ():
            self._inputs[name] = value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), on, device)
            self._io.bind_ortvalue_input(name, value)

    def run(self, tensors: Tensors) -> list[Array]:
        for name, array in tensors.items():
            if self._on == "cpu":
                self._io.bind_cpu_input(name, np.ascontiguousarray(array))
            else:
                self._inputs[name].update_inplace(np.ascontiguousarray(array))
        # Bound anew each time: the room of the run before would be taken again, which fails where an output's shape
        # depends on the values.
        self._io.clear_binding_outputs()
        for name in self._outputs:
            self._io.bind_output(name, self._on, self._device)
        self._io.synchronize_inputs()
        self._session.run_with_iobinding(self._io)
        self._io.synchronize_outputs()
        values: list[Array] = self._io.copy_outputs_to_cpu()
        return values


class BoundOrtEngine(OrtEngine):
    """`memory_nbytes` bounds the runtime's arena on the GPU; a run that needs more raises EngineError.

    With `tensorrt` the TensorRT provider comes first and CUDA runs what it leaves.
    """

    def __init__(
        self,
        model: bytes,
        *,
        label: str,
        on: Literal["cuda", "cpu"] = "cuda",
        device: int = 0,
        memory_nbytes: int | None = None,
        tensorrt: bool = False,
        threads: int = 1,
    ) -> None:
        cuda: dict[str, str] = {"device_id": str(device), "arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
        if memory_nbytes is not None:
            cuda["gpu_mem_limit"] = str(memory_nbytes)
        providers: list[tuple[str, dict[str, str]]] = [(CUDA, cuda)] if on == "cuda" else [(CPU, {})]
        if tensorrt:
            providers.insert(0, (TENSORRT, _tensorrt_options(device, memory_nbytes)))
        super().__init__(
            model, label=label, providers=[name for name, _ in providers],
            provider_options=[options for _, options in providers], threads=threads,
        )  # fmt: skip
        self._on = on
        self._device = device
        self._lock = threading.Lock()
        self._free: OrderedDict[Shapes, list[_Binding]] = OrderedDict()

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        self._check(tensors)
        shapes: Shapes = tuple((name, array.shape, array.dtype.str) for name, array in tensors.items())
        try:
            binding = self._take(shapes)
            if binding is None:
                binding = _Binding(session, tensors, self._output_names, self._on, self._device)
            values = binding.run(tensors)
        except Exception as error:  # the binding is not used again: what it holds is unknown
            fact, cause = f"{self.label} failed: {first_line(error)}", cause_of(error)
            if cause != "disagrees" and cause != "other":
                raise GpuError(fact, cause=cause) from error
            raise EngineError(fact, "") from error
        self._give_back(shapes, binding, session)
        return dict(zip(self._output_names, values, strict=True))

    def deactivate(self) -> None:
        super().deactivate()
        with self._lock:
            self._free.clear()

    def _check(self, tensors: Tensors) -> None:
        """A binding of other names or types would be run as it stands, or end the process: refuse it in words."""
        wanted = {spec.name: spec for spec in self.inputs}
        if tensors.keys() != wanted.keys():
            given = ", ".join(sorted(tensors)) or "nothing"
            raise EngineError(f"{self.label} takes {', '.join(sorted(wanted))}, but got {given}", "")
        for name, array in tensors.items():
            spec = wanted[name]
            fits = len(spec.shape) == array.ndim and all(
                not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
            )
            if array.dtype != spec.numpy_dtype or not fits:
                raise EngineError(
                    f"{self.label}: {name!r} is {array.dtype} {list(array.shape)}, wanted {spec.dtype} "
                    f"{['?' if not isinstance(d, int) else d for d in spec.shape]}", ""
                )  # fmt: skip

    def _take(self, shapes: Shapes) -> _Binding | None:
        with self._lock:
            kept = self._free.get(shapes)
            if not kept:
                return None
            self._free.move_to_end(shapes)
            return kept.pop()

    def _give_back(self, shapes: Shapes, binding: _Binding, session: ort.InferenceSession) -> None:
        with self._lock:
            if self._session is not session:  # deactivated meanwhile: the binding goes with what it was bound to
                return
            self._free.setdefault(shapes, []).append(binding)
            while len(self._free) > MOST_SHAPES:
                self._free.popitem(last=False)


def _tensorrt_options(device: int, memory_nbytes: int | None) -> dict[str, str]:
    """Its own cache of plans stays off: a plan is code, and nothing would say whose (docs/engines.md)."""
    options = {"device_id": str(device), "trt_engine_cache_enable": "0"}
    if memory_nbytes is not None:
        options["trt_max_workspace_size"] = str(memory_nbytes // 2)
    return options
