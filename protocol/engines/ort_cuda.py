"""ONNX Runtime on a GPU, through IOBinding: inputs go to the device once, outputs come back once, nothing in between.

    engine = BoundOrtEngine(graph, label="cut-1/tail", memory_nbytes=2 << 30)
    with engine:
        engine.infer({"x": rows})

`run` hands arrays over one by one and lets the runtime copy wherever it thinks best. A binding names the place of each
tensor instead, and is kept for the next run of the same shapes, with the inputs' room on the device. Several threads
may run at once: each takes a binding of its own.

A run on a GPU may hang, and no library can be told to stop: it is given to a deputy, who is given up after
`run_timeout_s`. Then the device is lost to this process, for every session: what is on it is neither asked again nor
freed.

The runtime puts nodes that it has no kernel for on the processor, silently. That is refused (`OrtEngine`): whoever
prefers a GPU is told what does not run there. TF32 is off: bundles are judged with whole float32 products. It is on for
a graph in float16, whose convolutions the runtime would keep from the tensor cores too: TF32 is no coarser than that.

Nothing here waits for the whole device, or one lane's run would wait for another's: what is written to an OrtValue is
there when that returns, and a run returns when its own stream is done. Convolutions are chosen by cuDNN's heuristics:
the runtime chooses again whenever a batch is of another size than the one before, and must not try them all each time.

`on="cpu"` runs the same path on the processor: it gains nothing there, and proves the path where no GPU is.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from protocol.engines.causes import cause_of, failed
from protocol.engines.deputies import Deputies
from protocol.engines.gpu_quiet import QUIET
from protocol.engines.ort import CPU, OrtEngine, first_line
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError, ModelError
from protocol.onnx_outline import FLOAT16, read_outline
from protocol.tensors import Array, Tensors

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
MOST_SHAPES = 64  # whose bindings are kept; a lane runs a few dozen batch sizes
KEPT_NBYTES = 256 * 1024 * 1024  # of the GPU, for the inputs of those, and no more than the next of its share:
KEPT_SHARE = 1 / 8  # they lie in an arena of the process, which the bound of a session's own does not count
RUN_TIMEOUT_S = 30.0  # a GPU that has not answered by then is lost
SETUP_TIMEOUT_S = 1800.0  # loading, the first run, with TensorRT that of each shape: some compile then

# Devices that hung, and what was on them: freeing it would hang as well.
_LOST: dict[tuple[str, int], GpuError] = {}
_ABANDONED: list[object] = []

Shapes = tuple[tuple[str, tuple[int, ...], str], ...]


class _Binding:
    """One run's places, for one set of shapes: kept, and used by one thread at a time."""

    def __init__(
        self, session: ort.InferenceSession, tensors: Tensors, outputs: list[str], on: str, device: int, *, waits: bool
    ) -> None:
        self._io = session.io_binding()
        self._session = session
        self._outputs = outputs
        self._on, self._device = on, device
        self._waits = waits  # for the whole device, before and after
        self._is_filled = True
        self._inputs: dict[str, Any] = {}
        self.nbytes = sum(array.nbytes for array in tensors.values())  # of the device, kept between runs
        for name, array in tensors.items() if on != "cpu" else ():
            self._inputs[name] = value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), on, device)
            self._io.bind_ortvalue_input(name, value)

    def run(self, tensors: Tensors) -> list[Array]:
        for name, array in tensors.items():
            if self._on == "cpu":
                self._io.bind_cpu_input(name, np.ascontiguousarray(array))
            elif not self._is_filled:  # it was made of the first ones
                self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self._is_filled = False
        # Bound anew each time: the room of the run before would be taken again, which fails where an output's shape
        # depends on the values.
        self._io.clear_binding_outputs()
        for name in self._outputs:
            self._io.bind_output(name, self._on, self._device)
        if self._waits:
            self._io.synchronize_inputs()
        self._session.run_with_iobinding(self._io)
        if self._waits:
            self._io.synchronize_outputs()
        values: list[Array] = self._io.copy_outputs_to_cpu()
        return values


class BoundOrtEngine(OrtEngine):
    """`memory_nbytes` bounds what it takes of the GPU, inputs included; a run that needs more raises EngineError.

    With `tensorrt` the TensorRT provider comes first and CUDA runs what it leaves. A run that takes longer than
    `run_timeout_s` is given up; on the processor, which does not hang, only if that is given.
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
        run_timeout_s: float | None = None,
    ) -> None:
        half = on == "cuda" and _is_in_half(model)
        cuda = {
            "device_id": str(device),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "1" if half else "0",
        }
        self._most_kept_nbytes = KEPT_NBYTES
        if memory_nbytes is not None:
            self._most_kept_nbytes = min(KEPT_NBYTES, int(memory_nbytes * KEPT_SHARE))
            cuda["gpu_mem_limit"] = str(memory_nbytes - self._most_kept_nbytes)
        providers: list[tuple[str, dict[str, str]]] = [(CUDA, cuda)] if on == "cuda" else [(CPU, {})]
        if tensorrt:
            providers.insert(0, (TENSORRT, _tensorrt_options(device, memory_nbytes, half=half)))
        super().__init__(
            model, label=label, providers=[name for name, _ in providers],
            provider_options=[options for _, options in providers], threads=threads,
        )  # fmt: skip
        self._on = on
        self._device = device
        self._lock = threading.Lock()
        self._free: OrderedDict[Shapes, list[_Binding]] = OrderedDict()
        self._kept_nbytes = 0
        self._timeout_s = RUN_TIMEOUT_S if run_timeout_s is None and on == "cuda" else run_timeout_s
        self._compiles = tensorrt  # each shape, when it is run first
        self._has_run = False
        self._deputies = Deputies(label)

    def activate(self) -> None:
        if (lost := self._lost()) is not None:
            raise lost
        if self._timeout_s is None:
            super().activate()
            return
        self._has_run = False
        self._deputies.start()
        load = super().activate

        def load_loud() -> None:
            with self._loud():
                load()

        try:
            self._deputies.run(load_loud, timeout_s=SETUP_TIMEOUT_S)
        except TimeoutError as error:
            raise self._lose(error) from error

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        self._check(tensors)
        if (lost := self._lost()) is not None:
            raise lost
        shapes: Shapes = tuple((name, array.shape, array.dtype.str) for name, array in tensors.items())
        binding = self._take(shapes)
        try:
            if self._timeout_s is None:
                values, binding = self._bound_run(session, binding, tensors)
            else:
                is_slow = not self._has_run or (self._compiles and binding is None)
                values, binding = self._deputies.run(
                    lambda: self._bound_run(session, binding, tensors),
                    timeout_s=SETUP_TIMEOUT_S if is_slow else self._timeout_s,
                )
                self._has_run = True
        except GpuError:
            raise
        except TimeoutError as error:
            _ABANDONED.append(session)
            raise self._lose(error) from error
        except Exception as error:  # the binding is not used again: what it holds is unknown
            raise failed(f"{self.label} failed: {first_line(error)}", cause_of(error)) from error
        self._give_back(shapes, binding, session)
        return dict(zip(self._output_names, values, strict=True))

    def deactivate(self) -> None:
        with self._lock:
            if self._lost() is not None:
                _ABANDONED.append((self._session, self._free))
            self._free = OrderedDict()
            self._kept_nbytes = 0
            super().deactivate()
        self._deputies.stop()

    def _bound_run(
        self, session: ort.InferenceSession, binding: _Binding | None, tensors: Tensors
    ) -> tuple[list[Array], _Binding]:
        """Run once, in places that are kept or in new ones."""
        with self._loud():
            if binding is None:
                binding = _Binding(
                    session, tensors, self._output_names, self._on, self._device, waits=self._compiles
                )  # TensorRT's provider says nothing of what it leaves running
            return binding.run(tensors), binding

    def _loud(self) -> contextlib.AbstractContextManager[None]:
        """While the runtime may wait for the whole device, as it does to synchronise a binding."""
        return QUIET.loud() if self._on == "cuda" else contextlib.nullcontext()

    def _lost(self) -> GpuError | None:
        return _LOST.get((self._on, self._device))

    def _lose(self, error: TimeoutError) -> GpuError:
        """Nothing on that device is asked again by this process."""
        lost = GpuError(
            f"{self.label} is lost to this process, with all on its device: {error}",
            "restart the gateway, and see dmesg",
            cause="device-lost",
        )
        return _LOST.setdefault((self._on, self._device), lost)

    def _check(self, tensors: Tensors) -> None:
        """A binding of other names or types would be run as it stands, or end the process: refuse it in words."""
        wanted = {spec.name: spec for spec in self.inputs}
        if tensors.keys() != wanted.keys():
            given = ", ".join(sorted(tensors)) or "nothing"
            raise GpuError(f"{self.label} takes {', '.join(sorted(wanted))}, but got {given}", cause="bad-input")
        for name, array in tensors.items():
            spec = wanted[name]
            fits = len(spec.shape) == array.ndim and all(
                not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
            )
            if array.dtype != spec.numpy_dtype or not fits:
                raise GpuError(
                    f"{self.label}: {name!r} is {array.dtype} {list(array.shape)}, wanted {spec.dtype} "
                    f"{['?' if not isinstance(d, int) else d for d in spec.shape]}", cause="bad-input"
                )  # fmt: skip

    def _take(self, shapes: Shapes) -> _Binding | None:
        with self._lock:
            kept = self._free.get(shapes)
            if not kept:
                return None
            self._free.move_to_end(shapes)
            binding = kept.pop()
            self._kept_nbytes -= binding.nbytes
            return binding

    def _give_back(self, shapes: Shapes, binding: _Binding, session: ort.InferenceSession) -> None:
        with self._lock:
            if self._session is not session:  # deactivated meanwhile: the binding goes with what it was bound to
                return
            self._free.setdefault(shapes, []).append(binding)
            self._kept_nbytes += binding.nbytes
            while len(self._free) > MOST_SHAPES or self._kept_nbytes > self._most_kept_nbytes:
                _, forgotten = self._free.popitem(last=False)
                self._kept_nbytes -= sum(each.nbytes for each in forgotten)


def _is_in_half(model: bytes) -> bool:
    """Whether it has weights in float16. Bytes that are no graph have none: loading says what they are."""
    try:
        return any(constant.element == FLOAT16 for constant in read_outline(model).constants.values())
    except ModelError:
        return False


def _tensorrt_options(device: int, memory_nbytes: int | None, *, half: bool) -> dict[str, str]:
    """Its own cache of plans stays off: a plan is code, and nothing would say whose (docs/engines.md).

    A graph in float16 is refused by the library unless its builder is told that such layers will come.
    """
    options = {"device_id": str(device), "trt_engine_cache_enable": "0", "trt_fp16_enable": "1" if half else "0"}
    if memory_nbytes is not None:
        options["trt_max_workspace_size"] = str(memory_nbytes // 2)
    return options
