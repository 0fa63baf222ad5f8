"""Where an engine's plan comes from: the cache, or a process that builds it; and what is kept beside it.

    <identity>                      the plan: graph, library, GPU, profiles, flags
    <identity> + "refused"          why it cannot be built so; a remedy with fewer profiles is then taken at once
    <identity> + "compiled"         what the library compiled for this GPU and driver while it ran (TensorRT-RTX)
    library + GPU                   what the builder measured (the timing cache), for all plans

Gateways may share the folder. One of them builds at a time: what is timed on a busy GPU is timed wrongly, and whoever
waited finds the plan there. All of it is sealed alike (`trt_cache`): it is code, or rules what code is chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from protocol.engines.driver import Device, Driver
from protocol.engines.trt_build import Built, PlanBuild
from protocol.engines.trt_cache import PlanCache
from protocol.engines.trt_child import Order
from protocol.engines.trt_options import TrtOptions
from protocol.errors import EngineError
from protocol.graphs import external_of

Told = Callable[[str], None]
Identity = dict[str, object]
MOST_TIMING_NBYTES = 64 << 20  # every build adds to it; one that has grown beyond is begun anew


class Plans:
    """The plans of one graph. `told` hears sentences, without the engine's name."""

    def __init__(self, model: bytes, options: TrtOptions, told: Told) -> None:
        self._model = model
        self._options = options
        self._told = told
        self._build: PlanBuild | None = None
        self._is_given_up = False
        self.build_s: float | None = None  # how long the last plan took; None where it came from the cache

    def begin(self) -> None:
        """From here on `give_up` holds."""
        self._is_given_up = False

    def give_up(self) -> None:
        """A build under way ends, from any thread."""
        self._is_given_up = True
        build = self._build
        if build is not None:
            build.cancel()

    def identity(self, trt: Any, device: Device, order: Order) -> Identity:
        """Everything that a plan depends on."""
        digest = hashlib.sha256(self._model)
        for name, data in sorted(external_of(self._model).items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return {
            "graph": digest.hexdigest(),
            "library": f"{self._options.edition} {trt.__version__}",
            "gpu": device.name,
            "capability": device.capability,
            "memory": device.memory_nbytes,
            "order": order,
        }

    def plan(self, identity: Identity, order: Order, *, again: bool = False) -> tuple[bytes, bool]:
        """The plan, and whether it came from the cache. Raises GpuError, and EngineError of a cache that is open."""
        cache = self._cache()
        if cache is None:
            return self._new(identity, order, None, "there is no cache"), False
        found = "the kept one did not load" if again else cache.read(identity)
        if isinstance(found, bytes):
            self._told("the plan was built here before")
            return found, True
        with cache.turn(self._look_again(), timeout_s=self._options.build_timeout_s) as waited:
            if waited and isinstance(theirs := cache.read(identity), bytes):
                self._told("another process built the plan meanwhile")
                return theirs, True
            return self._new(identity, order, cache, found), False

    def refused(self, identity: Identity) -> str:
        """Why this plan could not be had the last time, or ""."""
        cache = self._cache()
        found = cache.read({**identity, "refused": True}) if cache is not None else ""
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""

    def refuse(self, identity: Identity, reason: str) -> None:
        """Remember it: not to be tried again with the same library, GPU and graph."""
        self._keep({**identity, "refused": True}, reason.encode())

    def compiled(self, identity: Identity, driver: Driver) -> bytes:
        """What was compiled for this GPU before; empty where nothing is kept."""
        cache = self._cache()
        found = cache.read(_of_driver(identity, driver)) if cache is not None else b""
        return found if isinstance(found, bytes) else b""

    def keep_compiled(self, identity: Identity, driver: Driver, data: bytes) -> None:
        self._keep(_of_driver(identity, driver), data)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _look_again(self) -> Callable[[], bool]:
        """Asked whenever another process has its turn: whether to wait no longer. Says once that it waits."""
        said: list[str] = []

        def is_given_up() -> bool:
            if not said:
                said.append("another process is building a plan, which is waited for")
                self._told(said[0])
            return self._is_given_up

        return is_given_up

    def _cache(self) -> PlanCache | None:
        return PlanCache(self._options.cache) if self._options.cache is not None else None

    def _new(self, identity: Identity, order: Order, cache: PlanCache | None, why: str) -> bytes:
        self._told(f"a plan is being built ({why})")
        built = self._built(order, cache, {"timing": identity["library"], "gpu": identity["gpu"]})
        self._told(f"the plan was built in {built.seconds:.1f} s, {len(built.plan) / 1e6:.1f} MB")
        self._keep(identity, built.plan)
        return built.plan

    def _built(self, order: Order, cache: PlanCache | None, timing_identity: Identity) -> Built:
        """A new plan; what the builder measured on the way is kept for the next one."""
        known = cache.read(timing_identity) if cache is not None else b""
        timing = known if isinstance(known, bytes) and len(known) <= MOST_TIMING_NBYTES else b""
        with PlanBuild(order, self._model, timing=timing, device=self._options.device) as build:
            self._build = build
            try:
                if self._is_given_up:
                    build.cancel()
                built = build.run(timeout_s=self._options.build_timeout_s, told=self._told)
            finally:
                self._build = None
        self.build_s = built.seconds
        if built.timing:
            self._keep(timing_identity, built.timing)
        return built

    def _keep(self, identity: Identity, data: bytes) -> None:
        cache = self._cache()
        if cache is None:
            return
        try:
            cache.write(identity, data)
        except EngineError as error:  # it serves all the same; the next start makes it again
            self._told(str(error))


def _of_driver(identity: Identity, driver: Driver) -> Identity:
    """A new driver may compile otherwise."""
    return {**identity, "compiled": driver.cuda}
