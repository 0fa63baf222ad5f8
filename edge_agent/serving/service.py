"""The standard protocol over an agent: an application asks for a model, and never learns where it runs unless it looks.

    door -> infer -> agent.submit ....... socket thread -> future -> event loop -> door

Tensors are not copied on their way: heads read the bytes of the request's body, doors write the arrays of the answer.
The agent is looked up for each request, so that it may be swapped for one with another bundle between any two of them;
a request stays with the agent that took it.

What the agent refuses, and what it is over the wire (see `protocol.oip.service`):

    DEADLINE       504   NO_PLACEMENT   503 NOT_READY    BUSY  503
    BAD_REQUEST    400   CLOSED         503 DRAINING     CANCELLED   499

Who goes away cancels the door's task, and so the agent's future: see `Agent.submit`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from edge_agent.outcomes import Answer, Outcome, StageTimings
from edge_agent.outcomes import Refusal as Refused
from edge_agent.serving.counting import Counting
from edge_agent.version import is_called, version_of
from protocol import __version__
from protocol.bundle import Bundle
from protocol.control.flights import RefusalCode
from protocol.errors import InputError
from protocol.oip.service import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelStatistics,
    OipError,
    Parameter,
    Refusal,
    RepositoryEntry,
    ServerMetadata,
    TensorMetadata,
)
from protocol.oip.tensors import NAMES
from protocol.tensors import Tensors, TensorSpec

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
SERVER = ServerMetadata(
    "isthmus-edge-agent", __version__, ("binary_tensor_data", "statistics", "model_configuration", "parameters")
)
DEFAULT_PRIORITY = 4
_REFUSALS = {
    RefusalCode.DEADLINE: Refusal.DEADLINE,
    RefusalCode.NO_PLACEMENT: Refusal.NOT_READY,
    RefusalCode.BAD_REQUEST: Refusal.BAD_REQUEST,
    RefusalCode.BUSY: Refusal.BUSY,
    RefusalCode.CLOSED: Refusal.DRAINING,
    RefusalCode.CANCELLED: Refusal.CANCELLED,
}
_STAGES = tuple(StageTimings.__slots__)


class Serving(Protocol):
    """What of an agent this room needs."""

    @property
    def bundle(self) -> Bundle: ...

    def submit(self, inputs: Tensors, *, deadline_s: float, priority: int = 4) -> Future[Outcome]: ...


class AgentService:
    """The `InferenceService` of a device. `current` gives the agent that new requests go to.

    `observe` is told of every outcome, with the request's budget in seconds. `unwell` says why the device cannot answer
    now, or "", and `live` whether waiting may help: if not, only another process can.
    """

    def __init__(
        self,
        current: Callable[[], Serving],
        *,
        deadline_s: float,
        most_pending: int = 64,
        observe: Callable[[Outcome, float], None] = lambda outcome, budget_s: None,
        unwell: Callable[[], str] = lambda: "",
        live: Callable[[], bool] = lambda: True,
    ) -> None:
        self._current = current
        self._deadline_s = deadline_s
        self._most_pending = most_pending
        self._observe = observe
        self._unwell = unwell
        self._live = live
        self._pending = 0
        self._counts: dict[str, Counting] = {}  # by bundle

    def retune(self, *, deadline_s: float, most_pending: int) -> None:
        """For requests from now on."""
        self._deadline_s, self._most_pending = deadline_s, most_pending

    @property
    def pending(self) -> int:
        """Requests of applications that wait for their outcome."""
        return self._pending

    def counts(self) -> dict[str, int]:
        """Requests by what they ended in, over all bundles."""
        total: Counter[str] = Counter()
        for counts in self._counts.values():
            total.update(counts.totals())
        return dict(total)

    # ---- inference --------------------------------------------------------------------------------------------------

    async def infer(self, request: InferRequest) -> InferResponse:
        began = time.monotonic()
        agent = self._find(request.model, request.version)
        counts = self._counts.setdefault(agent.bundle.digest, Counting())
        try:
            outcome = await self._ask(agent, request)
            if isinstance(outcome, Refused):
                raise OipError(_REFUSALS[outcome.code], outcome.reason, slack_s=outcome.slack_s)
        except BaseException:  # also who goes away: the work is in vain then, and counts as that
            counts.failed(time.monotonic() - began)
            raise
        counts.answered(outcome, at_ms=time.time_ns() // 1_000_000)
        outputs = outcome.outputs
        if request.outputs:
            outputs = {name: outputs[name] for name in request.outputs if name in outputs}
        return InferResponse(request.model, version_of(agent.bundle), request.id, outputs, provenance(outcome))

    async def _ask(self, agent: Serving, request: InferRequest) -> Outcome:
        known = [spec.name for spec in agent.bundle.manifest.model.outputs]
        for output in request.outputs:
            if output not in known:
                reason = f"output {output[:128]!r} is not one of {', '.join(known)}"
                raise OipError(Refusal.BAD_REQUEST, reason)
        budget_s = request.timeout_s or self._deadline_s
        if self._pending >= self._most_pending:
            reason = f"{self._pending} requests are already waiting on this device"
            outcome: Outcome = Refused("", RefusalCode.BUSY, reason, budget_s)
            self._observe(outcome, budget_s)
            return outcome
        try:
            future = agent.submit(request.tensors, deadline_s=budget_s, priority=_priority(request))
        except InputError as error:
            raise OipError(Refusal.BAD_REQUEST, str(error)[:900]) from None
        self._pending += 1
        try:
            outcome = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._observe(Refused("", RefusalCode.CANCELLED, "its caller went away", 0.0), budget_s)
            raise
        finally:
            self._pending -= 1
        self._observe(outcome, budget_s)
        return outcome

    # ---- descriptions -----------------------------------------------------------------------------------------------

    def _find(self, model: str, version: str | None) -> Serving:
        agent = self._current()
        bundle = agent.bundle
        name = bundle.manifest.model.name
        if model != name or not is_called(bundle, version):
            what = f"model {model[:128]!r}" + (f" version {version[:20]!r}" if version is not None else "")
            here = f"this device serves {name!r} version {version_of(bundle)}"
            raise OipError(Refusal.NOT_FOUND, f"{what} is not here; {here}")
        return agent

    async def live(self) -> bool:
        return self._live()

    async def ready(self) -> bool:
        return not self._unwell()

    async def model_ready(self, model: str, version: str | None) -> bool:
        self._find(model, version)
        return not self._unwell()

    async def server_metadata(self) -> ServerMetadata:
        return SERVER

    async def model_metadata(self, model: str, version: str | None) -> ModelMetadata:
        bundle = self._find(model, version).bundle
        info = bundle.manifest.model
        inputs, outputs = ([_tensor(spec) for spec in specs] for specs in (info.inputs, info.outputs))
        return ModelMetadata(info.name, [version_of(bundle)], PLATFORM, inputs, outputs)

    async def model_config(self, model: str, version: str | None) -> dict[str, Any]:
        """No batching by the device: `dims` hold every dimension, the batch's too."""
        bundle = self._find(model, version).bundle
        info = bundle.manifest.model
        return {
            "name": info.name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "max_batch_size": 0,
            "input": [_config(spec) for spec in info.inputs],
            "output": [_config(spec) for spec in info.outputs],
            "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
            "parameters": {
                "bundle": {"string_value": bundle.digest},
                "placements": {"string_value": ",".join(entry.id for entry in bundle.manifest.placements)},
                "default_timeout_us": {"string_value": str(int(self._deadline_s * 1e6))},
            },
        }

    async def statistics(self, model: str | None, version: str | None) -> Sequence[ModelStatistics]:
        agent = self._current() if model is None else self._find(model, version)
        counts = self._counts.get(agent.bundle.digest, Counting())
        return [counts.statistics(agent.bundle.manifest.model.name, version_of(agent.bundle))]

    async def repository_index(self, *, ready_only: bool) -> Sequence[RepositoryEntry]:
        bundle, reason = self._current().bundle, self._unwell()
        name, version = bundle.manifest.model.name, version_of(bundle)
        if reason:
            return [] if ready_only else [RepositoryEntry(name, version, "UNAVAILABLE", reason)]
        return [RepositoryEntry(name, version, "READY")]

    async def load(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        raise _bundles_come_otherwise()

    async def unload(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        raise _bundles_come_otherwise()


def _priority(request: InferRequest) -> int:
    return DEFAULT_PRIORITY if request.priority is None else request.priority


def provenance(answer: Answer) -> dict[str, Parameter]:
    """Where an answer was made, as parameters: `degraded` and `causes` only if it was not where the plan wanted it."""
    found: dict[str, Parameter] = {
        "placement": answer.placement,
        "kind": answer.kind,
        "precision": answer.precision,
        "engine": answer.engine,
        "bundle": answer.bundle,
        "request": answer.request,
        "attempts": answer.attempts,
        "batch_size": answer.batch_size,
        "up_bytes": answer.up_nbytes,
        "down_bytes": answer.down_nbytes,
    }
    found |= {f"{stage.removesuffix('_s')}_us": int(getattr(answer.timings, stage) * 1e6) for stage in _STAGES}
    if answer.predicted_s is not None:
        found["predicted_us"] = int(answer.predicted_s * 1e6)
    if answer.gateway:
        found["gateway"] = answer.gateway
    if answer.hedged:
        found["hedged"] = True
    if answer.degraded:
        found["degraded"] = "; ".join(answer.degraded)
        found["causes"] = ",".join(answer.causes)
    return found


def _bundles_come_otherwise() -> OipError:
    return OipError(Refusal.BAD_REQUEST, "a device's bundle is changed with `edge-agent bundles`")


def _dims(spec: TensorSpec) -> list[int]:
    return [d if isinstance(d, int) else -1 for d in spec.shape]


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, NAMES[spec.numpy_dtype], _dims(spec))


def _config(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{NAMES[spec.numpy_dtype]}", "dims": _dims(spec)}
