"""TensorRT and TensorRT-RTX behind the Engine contract: gateway tails and whole models, and heads on a Jetson.

    activate:  driver? -> graph taken? -> library? -> plan from the cache, or built in a child process -> session
    infer:     take a slot, copy the inputs into its pinned rows, have the GPU thread enqueue, sleep until the event

One code path serves TensorRT 10.3 to 11 and TensorRT-RTX: networks are strongly typed, so precision is a property of
the graph, and tensors are named. Nothing here falls back to anything: every failure is a GpuError with its cause, and
whoever holds the engines chooses the next.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from protocol.engines import trt_library
from protocol.engines.base import ActivationScope
from protocol.engines.driver import Device, Driver, probe
from protocol.engines.gpu_memory import aligned
from protocol.engines.gpu_thread import THREADS, GpuThread, GpuThreads, Watcher
from protocol.engines.trt_build import Built, PlanBuild
from protocol.engines.trt_cache import PlanCache
from protocol.engines.trt_child import Order
from protocol.engines.trt_graphs import check_graph, profile_shapes, specs
from protocol.engines.trt_options import GpuError, TrtOptions
from protocol.engines.trt_session import Capture, Session, Slot
from protocol.errors import EngineError, InputError, ModelError
from protocol.graphs import external_of
from protocol.onnx_outline import Outline
from protocol.onnx_scan import check_external
from protocol.tensors import Array, Tensors, TensorSpec, check_inputs

# What was on a device when it was lost. The libraries would try to free it there, which may end the process.
_ABANDONED: list[Session] = []

Told = Callable[[str], None]  # one sentence about how far a build has come
SETUP_TIMEOUT_S = 600.0  # loading a plan, the first run of a shape, giving everything back


class TensorRtEngine(ActivationScope):
    """One graph on one GPU. `infer` may be called by several threads at once; `options.slots` run side by side.

    `activate` builds the plan, which takes seconds to minutes, unless the cache holds it: call it on a thread that may
    wait. `told` hears how far it has come. Every failure is a GpuError with its cause.
    """

    def __init__(
        self,
        model: bytes,
        *,
        label: str,
        options: TrtOptions,
        told: Told | None = None,
        driver: Callable[[], Driver | str] = probe,
        threads: GpuThreads = THREADS,
    ) -> None:
        self.label = label
        self._model = model
        self._options = options
        self._told = told or (lambda sentence: None)
        self._driver = driver
        self._threads = threads
        self._inputs: tuple[TensorSpec, ...] = ()
        self._outputs: tuple[TensorSpec, ...] = ()
        self._description = f"{options.library}/inactive"
        self._gpu: GpuThread | None = None
        self._session: Session | None = None
        self._watcher: Watcher | None = None
        self._idle: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of activate and deactivate
        self._build: PlanBuild | None = None
        self.build_s: float | None = None  # how long the plan took; None where it came from the cache

    @property
    def description(self) -> str:
        return self._description

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    @property
    def graphs(self) -> str:
        """How runs are given to the GPU, for logs: as graphs, or why not."""
        session = self._session
        if session is None:
            return "inactive"
        return session.uncaptured or f"{session.captured} CUDA graphs"

    def activate(self) -> None:
        with self._lock:
            if self._session is not None:
                return
            try:
                self._activate()
            except GpuError as error:
                raise GpuError(f"{self.label}: {error.fact}", error.remedy, cause=error.cause) from error
            except ModelError as error:
                raise GpuError(f"{self.label}: {error.fact}", error.remedy, cause="unsupported-graph") from error
            except EngineError as error:  # of options, or a cache that cannot be believed
                raise GpuError(f"{self.label}: {error.fact}", error.remedy, cause="build-failed") from error

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        session, watcher = self._session, self._watcher
        if session is None or watcher is None:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        try:
            check_inputs(self._inputs, tensors)
            session.profile_of(tuple(tensors[spec.name].shape for spec in self._inputs))
            return self._run(session, watcher, tensors)
        except InputError as error:
            raise GpuError(f"{self.label} failed: {error.fact}", error.remedy, cause="bad-input") from error
        except GpuError as error:
            raise GpuError(f"{self.label} failed: {error.fact}", error.remedy, cause=error.cause) from error

    def rows(self, nbytes: int) -> Array:
        """Memory, uint8 [at least `nbytes`], from which inputs are copied to the GPU without a copy in between.

        It is pinned until nobody holds it any more, or the engine is deactivated; then it stays memory, only slower to
        copy from.
        """
        array = aligned(nbytes)
        session, gpu = self._session, self._gpu
        if session is None or gpu is None:
            return array
        try:
            gpu.call(lambda: session.pin(array), timeout_s=SETUP_TIMEOUT_S)
        except GpuError as error:  # it is memory all the same
            self._told(f"{self.label}: rows are not pinned, {error}")
            return array
        # The base of a view is the memory's owner. This owner is no array of numpy's, so every view keeps it alive.
        owner = _Rows(array)
        let_go = weakref.finalize(owner, _let_go, gpu, weakref.ref(session), array.ctypes.data)
        let_go.atexit = False
        return np.asarray(owner)

    def deactivate(self) -> None:
        """Give back the GPU's memory once the runs in flight have ended; a build under way is given up."""
        build = self._build
        if build is not None:
            build.cancel()
        with self._lock:
            session, gpu, watcher = self._session, self._gpu, self._watcher
            self._session = self._gpu = self._watcher = None
            if session is None or gpu is None or watcher is None:
                return
            taken: list[Slot] = []
            try:
                taken.extend(self._idle.get(timeout=SETUP_TIMEOUT_S) for _ in range(self._options.slots))
            except queue.Empty:
                gpu.lose("a run did not end")
            for slot in taken:  # for those who wait for one: they see that it is of no use any more
                self._idle.put(slot)
            self._release(gpu, session, watcher)
            self._description = f"{self._options.library}/inactive"

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _run(self, session: Session, watcher: Watcher, tensors: Tensors) -> dict[str, Array]:
        timeout_s, idle = self._options.run_timeout_s, self._idle
        try:
            slot = idle.get(timeout=SETUP_TIMEOUT_S)  # whoever holds one is given up on before
        except queue.Empty:
            raise GpuError(f"no slot came free within {SETUP_TIMEOUT_S:.0f} s", "", cause="run-failed") from None
        try:
            if self._session is not session:
                raise EngineError(f"{self.label} is not active", "it was deactivated meanwhile")
            staged = session.stage(slot, tensors)
            is_new = session.is_new(slot, staged)
            watcher.run(
                lambda: session.launch(slot, staged),
                timeout_s=SETUP_TIMEOUT_S if is_new else timeout_s,
                is_slow=is_new,
            )
            return session.results(slot)
        finally:
            idle.put(slot)

    def _activate(self) -> None:
        options = self._options
        device = self._device()
        outline = check_graph(self._model)
        check_external(self._model, external_of(self._model))
        trt = trt_library.load(options.library)
        order = self._order(outline)
        identity = self._identity(trt, device, order)
        plan, from_cache = self._plan(identity, order)
        gpu = self._threads.hold(options.device)
        watcher = None
        try:
            if not (session := self._session_of(gpu, trt, plan, outline, may_fail=from_cache)):
                plan, _ = self._plan(identity, order, again=True)
                session = self._session_of(gpu, trt, plan, outline)
            assert session is not None
            watcher = Watcher(gpu, self.label)
        except BaseException:
            self._threads.release(options.device)
            raise
        self._inputs, self._outputs = specs(outline.inputs), specs(outline.outputs)
        self._description = f"{options.library}-{trt.__version__}/{device.name}"
        self._idle = queue.SimpleQueue()
        for slot in session.slots:
            self._idle.put(slot)
        self._gpu, self._watcher, self._session = gpu, watcher, session

    def _device(self) -> Device:
        found = self._driver()
        if isinstance(found, str):
            raise GpuError(found, cause="no-driver")
        for device in found.devices:
            if device.index == self._options.device:
                return device
        raise GpuError(
            f"there is no GPU {self._options.device}",
            f"this machine has {len(found.devices)}, counted from 0",
            cause="no-driver",
        )

    def _order(self, outline: Outline) -> Order:
        options = self._options
        return Order(
            library=options.library,
            profiles=tuple(profile_shapes(outline, options)),
            workspace_nbytes=options.workspace_nbytes,
            tf32=options.tf32,
            optimisation=options.optimisation,
            version_compatible=options.version_compatible,
            same_capability=options.same_capability,
        )

    def _identity(self, trt: Any, device: Device, order: Order) -> dict[str, object]:
        """Everything that a plan depends on."""
        digest = hashlib.sha256(self._model)
        for name, data in sorted(external_of(self._model).items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return {
            "graph": digest.hexdigest(),
            "library": f"{self._options.library} {trt.__version__}",
            "gpu": device.name,
            "capability": device.capability,
            "memory": device.memory_nbytes,
            "order": order,
        }

    def _plan(self, identity: dict[str, object], order: Order, *, again: bool = False) -> tuple[bytes, bool]:
        """The plan, and whether it came from the cache."""
        cache = PlanCache(self._options.cache) if self._options.cache is not None else None
        why = "there is no cache"
        if cache is not None and not again:
            found = cache.read(identity)
            if isinstance(found, bytes):
                self._told(f"{self.label}: the plan was built here before")
                return found, True
            why = found
        self._told(f"{self.label}: a plan is being built ({'the kept one did not load' if again else why})")
        built = self._built(order, cache, {"timing": identity["library"], "gpu": identity["gpu"]})
        self._told(f"{self.label}: the plan was built in {built.seconds:.1f} s, {len(built.plan) / 1e6:.1f} MB")
        if cache is not None:
            try:
                cache.write(identity, built.plan)
            except EngineError as error:  # it serves all the same; the next start builds again
                self._told(f"{self.label}: {error}")
        return built.plan, False

    def _built(self, order: Order, cache: PlanCache | None, timing_identity: dict[str, object]) -> Built:
        """A new plan; what the builder measured on the way is kept for the next one."""
        known = cache.read(timing_identity) if cache is not None else b""
        with PlanBuild(order, self._model, timing=known if isinstance(known, bytes) else b"") as build:
            self._build = build
            try:
                built = build.run(
                    timeout_s=self._options.build_timeout_s, told=lambda phase: self._told(f"{self.label}: {phase}")
                )
            finally:
                self._build = None
        self.build_s = built.seconds
        if cache is not None and built.timing:
            try:
                cache.write(timing_identity, built.timing)
            except EngineError as error:
                self._told(f"{self.label}: {error}")
        return built

    def _session_of(
        self, gpu: GpuThread, trt: Any, plan: bytes, outline: Outline, *, may_fail: bool = False
    ) -> Session | None:
        """The plan at work; None where it does not load but `may_fail`: it came from the cache and is built again."""

        def make() -> Session:
            return Session(
                trt,
                trt_library.log_of(trt),
                plan,
                gpu.memory,
                inputs=specs(outline.inputs),
                outputs=specs(outline.outputs),
                options=self._options,
                capture=_capture() if self._options.graphs else None,
            )

        try:
            return gpu.call(make, timeout_s=SETUP_TIMEOUT_S)
        except GpuError as error:
            if may_fail and error.cause == "build-failed":
                self._told(f"{self.label}: {error}")
                return None
            raise

    def _release(self, gpu: GpuThread, session: Session, watcher: Watcher) -> None:
        watcher.stop()
        try:
            gpu.call(session.close, timeout_s=SETUP_TIMEOUT_S)
        except GpuError as error:  # the device is gone, and took everything along
            _ABANDONED.append(session)
            self._told(f"{self.label}: {error}")
        self._threads.release(self._options.device)


class _Rows:
    """Stands between pinned memory, which it keeps, and the arrays that look at it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


def _let_go(gpu: GpuThread, session: weakref.ref[Session], address: int) -> None:
    """Have the GPU thread unpin memory that nobody holds any more; the session keeps it until then."""

    def unpin() -> None:
        if (alive := session()) is not None:
            alive.unpin(address)

    gpu.later(unpin)


def _capture() -> Capture | None:
    """What records CUDA graphs, where cuda-python is installed."""
    try:
        from protocol.engines.cuda_runtime import capture
    except ImportError:
        return None
    return capture
