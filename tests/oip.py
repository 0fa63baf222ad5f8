"""A model service small enough to check by eye: `sum` adds its inputs `a` and `b`, `echo` gives back what it gets.

It answers on the event loop itself, keeps what it was asked, and can be told to wait, to fail or to be unready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from protocol.oip.service import (
    BatchStatistics,
    Duration,
    InferRequest,
    InferResponse,
    InferStatistics,
    ModelMetadata,
    ModelStatistics,
    OipError,
    Parameter,
    Refusal,
    RepositoryEntry,
    ServerMetadata,
    TensorMetadata,
)

EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration", "model_repository", "parameters")
SPEC = {"sum": ("a", "b"), "echo": ("x",)}


class ToyService:
    def __init__(self) -> None:
        self.requests: list[InferRequest] = []
        self.controlled: list[tuple[str, str, dict[str, Parameter], str]] = []
        self.loaded = {"sum", "echo"}
        self.is_ready = True
        self.failure: Exception | None = None
        self.hold: asyncio.Event | None = None  # infer waits for it
        self.cancelled = 0

    def _known(self, model: str, version: str | None) -> str:
        if model not in SPEC or version not in (None, "1"):
            raise OipError(
                Refusal.NOT_FOUND, f"no model {model!r} version {version or 'any'}; see /v2/repository/index"
            )
        return model

    async def live(self) -> bool:
        return True

    async def ready(self) -> bool:
        return self.is_ready

    async def model_ready(self, model: str, version: str | None) -> bool:
        return self._known(model, version) in self.loaded

    async def server_metadata(self) -> ServerMetadata:
        return ServerMetadata("isthmus", "0.1.0", EXTENSIONS)

    async def model_metadata(self, model: str, version: str | None) -> ModelMetadata:
        inputs = [TensorMetadata(name, "FP32", [-1, 4]) for name in SPEC[self._known(model, version)]]
        return ModelMetadata(model, ["1"], "onnxruntime_onnx", inputs, [TensorMetadata("y", "FP32", [-1, 4])])

    async def model_config(self, model: str, version: str | None) -> dict[str, Any]:
        tensor = {"data_type": "TYPE_FP32", "dims": [4]}
        return {
            "name": self._known(model, version),
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 8,
            "input": [{"name": name, **tensor} for name in SPEC[model]],
            "output": [{"name": "y", **tensor}],
            "dynamic_batching": {},
            "version_policy": {"latest": {"num_versions": 1}},
        }

    async def statistics(self, model: str | None, version: str | None) -> Sequence[ModelStatistics]:
        names = sorted(SPEC) if model is None else [self._known(model, version)]
        count = Duration(3, 3000)
        return [
            ModelStatistics(
                name,
                "1",
                last_inference=17,
                inference_count=3,
                execution_count=2,
                inference_stats=InferStatistics(success=count, queue=count),
                batch_stats=[BatchStatistics(2, compute_infer=count)],
            )
            for name in names
        ]

    async def repository_index(self, *, ready_only: bool) -> Sequence[RepositoryEntry]:
        entries = [RepositoryEntry(name, "1", "READY" if name in self.loaded else "UNAVAILABLE") for name in SPEC]
        return [entry for entry in entries if not ready_only or entry.state == "READY"]

    async def load(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        self.loaded.add(self._known(model, None))
        self.controlled.append(("load", model, dict(parameters), tenant))

    async def unload(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        self.loaded.discard(self._known(model, None))
        self.controlled.append(("unload", model, dict(parameters), tenant))

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        if self._known(request.model, request.version) not in self.loaded:
            raise OipError(Refusal.NOT_READY, f"model {request.model!r} is not ready", retry_after_s=2.5)
        if self.failure is not None:
            raise self.failure
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        outputs = dict(request.tensors)
        if request.model == "sum":
            missing = {"a", "b"} ^ request.tensors.keys()
            if missing:
                raise OipError(Refusal.BAD_REQUEST, f"the model takes a and b; {sorted(missing)} differ")
            outputs = {"y": request.tensors["a"] + request.tensors["b"]}
        parameters = {"placement": "full-cloud", "engine": "toy", "batch_size": 1}
        return InferResponse(request.model, "1", request.id, outputs, parameters)
