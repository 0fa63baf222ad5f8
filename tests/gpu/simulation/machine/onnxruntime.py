"""SIMULATION of ONNX Runtime's GPU build: the real ONNX Runtime, with providers and memory of a GPU that it lacks.

Importing this imports the real one, changes it and steps aside. What is asked of CUDA runs on the processor. It is as
strict as the real build where that can be told without a GPU: options of a provider that it does not know are refused,
nodes that it would leave to the processor are refused where that was forbidden, a session's memory is named by its
device, convolutions in half precision are kept from no tensor core, and nobody waits for the whole device while others
run on it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).parent)
CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
# As the libraries of onnxruntime-gpu 1.31.1 have them.
OPTIONS = {
    CUDA: {
        "device_id", "has_user_compute_stream", "user_compute_stream", "gpu_mem_limit", "arena_extend_strategy",
        "cudnn_conv_algo_search", "do_copy_in_default_stream", "cudnn_conv_use_max_workspace", "enable_cuda_graph",
        "cudnn_conv1d_pad_to_nc1d", "tunable_op_enable", "tunable_op_tuning_enable",
        "tunable_op_max_tuning_duration_ms", "enable_skip_layer_norm_strict_mode", "prefer_nhwc", "use_tf32",
        "use_ep_level_unified_stream", "fuse_conv_bias", "sdpa_kernel", "gpu_external_alloc", "gpu_external_free",
        "gpu_external_empty_cache",
    },
    TENSORRT: {"device_id", "trt_engine_cache_enable", "trt_fp16_enable", "trt_max_workspace_size"},  # and more
    CPU: set(),
}  # fmt: skip
LEFT_TO_THE_CPU = {"Shape", "NonZero", "Unique"}  # among others
FORBIDDEN = "session.disable_cpu_ep_fallback"


def _real() -> Any:
    mine = sys.modules.pop("onnxruntime", None)
    path = sys.path[:]
    sys.path[:] = [folder for folder in path if folder != _HERE]
    importlib.invalidate_caches()
    try:
        return importlib.import_module("onnxruntime")
    finally:
        sys.path[:] = path
        if "onnxruntime" not in sys.modules and mine is not None:
            sys.modules["onnxruntime"] = mine


real = _real()


class InferenceSession(real.InferenceSession):  # type: ignore[misc, name-defined]
    def __init__(
        self, model: Any, options: Any = None, providers: Any = None, provider_options: Any = None, **more: Any
    ) -> None:
        asked = [each if isinstance(each, str) else each[0] for each in providers or (CPU,)]
        given = provider_options or [{} if isinstance(each, str) else each[1] for each in providers or (CPU,)]
        for name, of_it in zip(asked, given, strict=True):
            if unknown := set(of_it) - OPTIONS[name]:
                raise RuntimeError(f"[ONNXRuntimeError] : 3 : INVALID_ARGUMENT : Unknown provider option: {unknown}")
            if name == CUDA and of_it.get("cudnn_conv_algo_search", "EXHAUSTIVE") == "EXHAUSTIVE":
                raise RuntimeError("it would try every convolution anew for every size of a batch")
            if name == TENSORRT and of_it.get("trt_fp16_enable", "0") == "0" and _is_in_half(model):
                raise RuntimeError("fp16 precision has been set for a layer, but fp16 is not configured in the builder")
            if name == CUDA and of_it.get("use_tf32", "1") == "0" and _is_in_half(model):
                raise RuntimeError("without TF32, convolutions in half precision are kept from the tensor cores too")
            if not all(isinstance(value, str) for value in of_it.values()):
                raise RuntimeError("values of a provider's options are strings")
        self.asked = [name for name in asked if name != CPU]
        if self.asked and _entry(options, FORBIDDEN) == "1":
            import onnx

            if {node.op_type for node in onnx.load_from_string(model).graph.node} & LEFT_TO_THE_CPU:
                raise RuntimeError(
                    "This session contains graph nodes that are assigned to the default CPU EP, "
                    "but fallback to CPU EP has been explicitly disabled by the user."
                )
            options.add_session_config_entry(FORBIDDEN, "0")
        super().__init__(model, options, providers=[CPU], **more)

    def get_providers(self) -> list[str]:
        return [*self.asked, CPU]

    def io_binding(self) -> IOBinding:
        return IOBinding(self)


class IOBinding(real.IOBinding):  # type: ignore[misc, name-defined]
    def __init__(self, session: InferenceSession) -> None:
        super().__init__(session)
        self._session_of = session

    def bind_output(self, name: str, device_type: str = "cpu", device_id: int = 0, *more: Any, **named: Any) -> None:
        assert device_type in ("cpu", "cuda"), device_type
        assert device_id == 0, "this machine has one GPU"
        super().bind_output(name, "cpu", 0, *more, **named)

    def synchronize_inputs(self) -> None:
        assert TENSORRT in self._session_of.asked, "this waits for every stream of the device"
        super().synchronize_inputs()

    def synchronize_outputs(self) -> None:
        assert TENSORRT in self._session_of.asked, "this waits for every stream of the device"
        super().synchronize_outputs()


class OrtValue(real.OrtValue):  # type: ignore[misc, name-defined]
    @classmethod
    def ortvalue_from_numpy(cls, array: Any, device_type: str = "cpu", device_id: int = 0, *more: Any) -> Any:
        assert device_type in ("cpu", "cuda"), device_type
        assert device_id == 0, "this machine has one GPU"
        return super().ortvalue_from_numpy(array.copy() if device_type == "cuda" else array, "cpu")


def _is_in_half(model: bytes) -> bool:
    import onnx

    weights = onnx.load_from_string(model).graph.initializer
    return any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights)


def _entry(options: Any, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except Exception:
        return ""


def _get_available_providers() -> list[str]:
    return [TENSORRT, CUDA, CPU]


(real.InferenceSession, real.IOBinding, real.OrtValue) = (InferenceSession, IOBinding, OrtValue)
real.get_available_providers = _get_available_providers
sys.modules["onnxruntime"] = real
