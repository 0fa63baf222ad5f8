"""TensorRT and TensorRT-RTX behind the Engine contract: gateway tails and whole models, and heads on a Jetson.

    activate:  driver? -> graph taken? -> library? -> plan from the cache, or built in a child process -> loaded
               beside the GPU thread, so that nobody who serves waits for it -> memory of its slots
    infer:     take a slot, copy the inputs into its pinned rows, have the GPU thread enqueue, sleep until the event;
               the first time that a shape comes, its context is made before, beside the GPU thread as well

One code path serves TensorRT 10.3 to 11 and TensorRT-RTX: networks are strongly typed, so precision is a property of
the graph, and tensors are named. Nothing here falls back to anything: every failure is a GpuError with its cause, and
whoever holds the engines chooses the next.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from protocol.engines import trt_library
from protocol.engines.base import ActivationScope
from protocol.engines.driver import Device, Driver, probe
from protocol.engines.gpu_aside import Aside
from protocol.engines.gpu_memory import aligned
from protocol.engines.gpu_thread import THREADS, GpuThread, GpuThreads, Watcher
from protocol.engines.trt_child import Order
from protocol.engines.trt_graphs import check_graph, is_batched, profile_shapes, specs
from protocol.engines.trt_loaded import LoadedPlan
from protocol.engines.trt_options import Cause, GpuError, Span, TrtOptions
from protocol.engines.trt_plans import Identity, Plans
from protocol.engines.trt_rows import pinned
from protocol.engines.trt_session import Capture, Session, Slot
from protocol.errors import EngineError, InputError, ModelError
from protocol.graphs import external_of
from protocol.onnx_outline import Outline
from protocol.onnx_scan import check_external
from protocol.tensors import Array, Tensors, TensorSpec, check_inputs

# What was on a device when it was lost. The libraries would try to free it there, which may end the process.
_ABANDONED: list[Session | LoadedPlan] = []

Told = Callable[[str], None]  # one sentence about how far a build has come
SETUP_TIMEOUT_S = 600.0  # loading a plan, the first run of a shape, giving everything back
# A plan of several profiles that fails of one of these may do with one profile.
_OF_PROFILES: frozenset[Cause] = frozenset({"build-failed", "build-timeout", "out-of-memory", "run-failed"})


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
        self._description = f"{options.edition}/inactive"
        self._gpu: GpuThread | None = None
        self._session: Session | None = None
        self._watcher: Watcher | None = None
        self._idle: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of activate and deactivate
        self._plans = Plans(model, options, lambda sentence: self._told(f"{self.label}: {sentence}"))
        self._loading: Aside[LoadedPlan] | None = None
        self._is_given_up = False
        self._keeping: Aside[None] | None = None  # what was compiled is being written
        self._keeps = threading.Lock()  # of it
        self._identity: Identity = {}
        self._has_driver: Driver | None = None
        self._kept = b""  # digest of what was compiled and is kept
        self.profiles: tuple[Span, ...] = ()  # batch sizes that the plan was built for

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
    def build_s(self) -> float | None:
        """How long the plan took; None where it came from the cache."""
        return self._plans.build_s

    @property
    def gpu_nbytes(self) -> int | None:
        """Bytes of the GPU that the engine holds: the plan, whose weights are most of it, and the memory of its slots.
        None while it is not active. What the library takes for itself (contexts, CUDA graphs) is not counted."""
        session = self._session
        return None if session is None else session.nbytes

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
            self._is_given_up = False
            self._plans.begin()
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
            session.plan.profile_of(tuple(tensors[spec.name].shape for spec in self._inputs))
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
        session, gpu = self._session, self._gpu
        if session is None or gpu is None:
            return aligned(nbytes)
        return pinned(gpu, session, nbytes, SETUP_TIMEOUT_S, lambda why: self._told(f"{self.label}: {why}"))

    def deactivate(self) -> None:
        """Give back the GPU's memory once the runs in flight have ended; what is being built or loaded is given up."""
        self._is_given_up = True
        self._plans.give_up()
        loading = self._loading
        if loading is not None:
            loading.give_up()
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
            self._description = f"{self._options.edition}/inactive"

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
            shapes = tuple(array.shape for array in staged)
            if not session.is_prepared(slot, shapes):
                watcher.gpu.aside(lambda: session.prepare(slot, shapes), timeout_s=SETUP_TIMEOUT_S)
            is_first = session.is_first(slot, shapes)
            watcher.run(
                lambda: session.launch(slot, staged),
                timeout_s=SETUP_TIMEOUT_S if is_first else timeout_s,
                is_slow=is_first,
            )
            if is_first:
                self._keep_compiled(watcher.gpu, session)
            return session.results(slot)
        finally:
            idle.put(slot)

    def _activate(self) -> None:
        options = self._options
        driver, device = self._device()
        outline = check_graph(self._model)
        check_external(self._model, external_of(self._model))
        trt = trt_library.load(options.edition)
        gpu: GpuThread | None = None
        session = watcher = None
        try:
            for spans, is_last in self._choices(outline):
                order = self._order(outline, spans)
                identity = self._plans.identity(trt, device, order)
                if not is_last and (reason := self._plans.refused(identity)):
                    self._told(f"{self.label}: one profile, since several were refused before ({reason})")
                    continue
                try:
                    plan, is_kept = self._plans.plan(identity, order)
                    gpu = gpu or self._threads.hold(options.device)
                    session = self._session_of(gpu, trt, plan, outline, identity, driver, order if is_kept else None)
                except GpuError as error:
                    if is_last or self._is_given_up or error.cause not in _OF_PROFILES:
                        raise
                    self._told(f"{self.label}: one profile instead of {len(spans)}: {error}")
                    if error.cause == "build-timeout":  # not to be waited for at each start
                        self._plans.refuse(identity, error.fact)
                else:
                    self.profiles, self._identity, self._has_driver = spans, identity, driver
                    break
            assert gpu is not None
            assert session is not None
            watcher = Watcher(gpu, self.label)
        except BaseException:
            if gpu is not None:
                if session is not None:
                    self._close(gpu, session)
                self._threads.release(options.device)
            raise
        if session.unpinned:
            self._told(f"{self.label}: copies to and from the GPU are slow, it pins no memory ({session.unpinned})")
        self._inputs, self._outputs = specs(outline.inputs), specs(outline.outputs)
        self._description = f"{options.edition}-{trt.__version__}/{device.name}"
        self._idle = queue.SimpleQueue()
        for slot in session.slots:
            self._idle.put(slot)
        self._gpu, self._watcher, self._session = gpu, watcher, session

    def _choices(self, outline: Outline) -> Iterator[tuple[tuple[Span, ...], bool]]:
        """Profiles to try, the best first, each with whether it is the last."""
        found = self._options.choices()
        if not is_batched(outline, self._options):
            found = found[-1:]  # it runs one size
        for place, spans in enumerate(found, 1):
            yield spans, place == len(found)

    def _device(self) -> tuple[Driver, Device]:
        found = self._driver()
        if isinstance(found, str):
            raise GpuError(found, cause="no-driver")
        for device in found.devices:
            if device.index == self._options.device:
                return found, device
        raise GpuError(
            f"there is no GPU {self._options.device}",
            f"this machine has {len(found.devices)}, counted from 0",
            cause="no-driver",
        )

    def _order(self, outline: Outline, spans: tuple[Span, ...]) -> Order:
        options = self._options
        return Order(
            edition=options.edition,
            profiles=tuple(profile_shapes(outline, options, spans)),
            workspace_nbytes=options.workspace_nbytes,
            tf32=options.tf32,
            optimisation=options.optimisation,
            version_compatible=options.version_compatible,
            same_capability=options.same_capability,
            captured=options.graphs and self._compiles,
        )

    @property
    def _compiles(self) -> bool:
        """Whether the library compiles for the GPU when a plan is at work."""
        return self._options.edition == "tensorrt-rtx"

    def _session_of(
        self,
        gpu: GpuThread,
        trt: Any,
        plan: bytes,
        outline: Outline,
        identity: Identity,
        driver: Driver,
        again: Order | None,
    ) -> Session:
        """The plan at work. One that came from the cache and does not load is built `again`."""
        compiled = self._plans.compiled(identity, driver) if self._compiles else b""

        def load() -> LoadedPlan:
            return LoadedPlan(
                trt,
                trt_library.log_of(trt),
                plan,
                gpu.memory,
                inputs=specs(outline.inputs),
                outputs=specs(outline.outputs),
                compiles=self._compiles,
                compiled=compiled,
                has_host_code=self._options.version_compatible,
            )

        try:
            loaded = self._loaded(gpu, load)
        except GpuError as error:
            if again is None or error.cause != "build-failed" or self._is_given_up:
                raise
            self._told(f"{self.label}: {error}")
            plan, _ = self._plans.plan(identity, again, again=True)
            loaded = self._loaded(gpu, load)
        if compiled:
            fits = "is there" if loaded.took_compiled else "does not fit any more"
            self._told(f"{self.label}: what was compiled for this GPU before {fits}")
        self._kept = hashlib.sha256(compiled).digest() if loaded.took_compiled else b""
        capture = _capture() if self._options.graphs else None
        try:
            return gpu.call(
                lambda: Session(loaded, gpu.memory, options=self._options, capture=capture), timeout_s=SETUP_TIMEOUT_S
            )
        finally:
            if gpu.lost is not None:
                _ABANDONED.append(loaded)

    def _loaded(self, gpu: GpuThread, load: Callable[[], LoadedPlan]) -> LoadedPlan:
        """Raises GpuError, also when `deactivate` gives it up meanwhile: then it is closed where it was loaded."""
        self._loading = loading = gpu.begin_aside(load, discard=LoadedPlan.close)
        try:
            if self._is_given_up:
                loading.give_up()
            return loading.wait(SETUP_TIMEOUT_S)
        finally:
            self._loading = None

    def _keep_compiled(self, gpu: GpuThread, session: Session, *, is_last: bool = False) -> None:
        """Keep what the library compiled: after the first shape, the second, the fourth, and so on, and in the end."""
        driver, made = self._has_driver, session.made
        if not self._compiles or self._options.cache is None or driver is None or (not is_last and made & (made - 1)):
            return
        identity = self._identity

        def keep() -> None:
            data = session.plan.compiled()
            digest = hashlib.sha256(data).digest()
            if data and digest != self._kept:
                self._plans.keep_compiled(identity, driver, data)
                self._kept = digest

        with self._keeps:
            try:
                if self._keeping is not None and (is_last or self._keeping.has_ended):
                    self._keeping.wait(SETUP_TIMEOUT_S)
                    self._keeping = None
                if self._keeping is None:  # else the next one keeps more
                    self._keeping = gpu.begin_aside(keep)
                if is_last:
                    self._keeping.wait(SETUP_TIMEOUT_S)
            except Exception as error:  # it runs all the same; the next start compiles again
                self._told(f"{self.label}: what was compiled is not kept: {error}")

    def _release(self, gpu: GpuThread, session: Session, watcher: Watcher) -> None:
        self._keep_compiled(gpu, session, is_last=True)
        self._keeping = None
        watcher.stop()
        self._close(gpu, session)
        self._threads.release(self._options.device)

    def _close(self, gpu: GpuThread, session: Session) -> None:
        try:
            gpu.call(session.close, timeout_s=SETUP_TIMEOUT_S)
        except GpuError as error:  # the device is gone, and took everything along
            _ABANDONED.append(session)
            self._told(f"{self.label}: {error}")


def _capture() -> Capture | None:
    """What records CUDA graphs, where cuda-python is installed."""
    try:
        from protocol.engines.cuda_runtime import capture
    except ImportError:
        return None
    return capture
