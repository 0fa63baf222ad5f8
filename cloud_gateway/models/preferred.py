"""A lane's engine: the best of an order of preference that works, behind the Engine contract.

    activate        what loads quickly is loaded at once, so that something serves; what must be built, in the workshop
    a build ends    the new engine is compared with the one that serves, measured, and used from the next batch on
    a batch fails   TryAnotherError says which engine to run it on instead; whoever holds its requests looks at their
                    deadlines, runs it there, and convicts the first engine if the second one succeeded
    convicted       the next engine serves; the failed one is given back, and loaded again after a rest that grows

Which engine serves is decided in `preference.py`; here its instructions are carried out. Whatever runs stands in the
engine's description, and so in every answer; what does not run, and why, in metrics, on the status page and in the log.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cloud_gateway.models.preference import (
    FIRST_REST_S,
    LONGEST_REST_S,
    Begin,
    Broke,
    Drop,
    Event,
    Instruction,
    Load,
    Loaded,
    NotLoaded,
    Preference,
    RungState,
    Tick,
    Use,
)
from cloud_gateway.models.rungs import Offer, Room, RungLook
from cloud_gateway.models.trial import DisagreesError, Here, TryAnotherError, compare, failure, unlike
from cloud_gateway.models.workshop import Workshop
from protocol.engines.base import ActivationScope, Engine
from protocol.engines.causes import DISAGREES, OWN, THE_REQUESTS, Cause, cause_of, is_final
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError, IsthmusError
from protocol.tensors import Array, Tensors, TensorSpec


class PreferredEngine(ActivationScope):
    """`fit` is asked to measure an engine before it serves for the first time (on the workshop's thread, inside
    `using`); it may raise EngineError. `moved` is told that another engine serves, on the thread that decided it;
    `settled` is told of it later, in the workshop, where there is time.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        *,
        label: str,
        workshop: Workshop,
        first_rest_s: float = FIRST_REST_S,
        longest_rest_s: float = LONGEST_REST_S,
    ) -> None:
        self.label = label
        self.fit: Callable[[], object] = lambda: None
        self.moved: Callable[[], object] = lambda: None
        self.settled: Callable[[], object] = lambda: None
        self.may_be_half = any(offer.precision for offer in offers)  # its answers may be those of the float16 form
        self._offers = {offer.kind: offer for offer in offers}
        self._workshop = workshop
        self._rests_s = first_rest_s, longest_rest_s
        self._needs: dict[str, int] = {}  # bytes of the GPU, once an engine has said so
        self._room: Preference | None = None
        self._lock = threading.RLock()  # guards what follows
        self._engines: dict[str, Engine] = {}
        self._loads: Counter[str] = Counter()  # so often each was made ready to be tried
        self._serving: tuple[str, Engine] | None = None
        self._todo: deque[str] = deque()
        self._given_up: list[tuple[str, Engine]] = []
        self._loading: Engine | None = None
        self._has_moved = False
        self._is_active = False  # something serves: what changes from now on is told
        self._here = Here()

    # ---- the Engine contract ----------------------------------------------------------------------------------------

    @property
    def description(self) -> str:
        serving = self._now()
        return self._offers[serving[0]].described(serving[1]) if serving else f"none of {', '.join(self._offers)}"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        serving = self._now()
        return serving[1].inputs if serving else ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        serving = self._now()
        return serving[1].outputs if serving else ()

    def activate(self) -> None:
        """Returns when something serves. Raises EngineError with every engine's reason where nothing does."""
        with self._lock:
            if self._room is not None:
                return
            absent = {offer.kind: offer.absent for offer in self._offers.values() if offer.absent}
            self._room = Preference(tuple(self._offers), absent, *self._rests_s)
            for kind, reason in absent.items():
                self._workshop.absent(kind, reason)
            self._handle(Begin())
            todo, self._todo = list(self._todo), deque()
        try:
            # The last of the order is the one to trust: what comes before it is compared with it.
            for kind in reversed([kind for kind in todo if not self._offers[kind].is_built]):
                self._load(kind)
            for kind in [kind for kind in todo if self._offers[kind].is_built]:
                if self._serving is None:
                    self._load(kind)
                else:
                    self._todo.append(kind)
            if self._serving is None:
                reasons = "; ".join(f"{look.kind}: {look.reason}" for look in self.look())
                raise EngineError(f"{self.label} runs on none of its engines ({reasons})", "")
        except BaseException:
            self.deactivate()
            raise
        self._is_active = True
        if len(todo) > 1:
            self._workshop.enter(self)

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        here, serving = self._here, self._now()
        if serving is None:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        kind, engine = serving
        try:
            outputs = engine.infer(tensors)
            if wrong := unlike(outputs, engine.outputs):
                raise EngineError(f"{self.label} failed on {kind}: {wrong}", "")
        except Exception as error:
            failed = failure(error, self.label)
            if not here.on_trial:
                self._suspect(kind, engine, failed)
            raise failed from error
        here.ran, here.ran_on = self._offers[kind].described(engine), serving
        return outputs

    def doubt(self, error: EngineError) -> None:
        """What this thread's last run gave is no answer. Raises TryAnotherError if the batch may run elsewhere."""
        if self._here.ran_on is not None and not self._here.on_trial:
            self._suspect(*self._here.ran_on, error)

    def deactivate(self) -> None:
        self._workshop.leave(self)
        with self._lock:
            given_up = [*self._engines.items(), *self._given_up]
            self._engines.clear()
            self._given_up.clear()
            self._todo.clear()
            self._room = self._serving = None
            self._is_active = False
        self.give_up()
        for kind, engine in given_up:  # what is being loaded is given back by whoever loads it
            self._give_back(kind, engine)

    # ---- who runs a batch -------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """What this thread's next batch runs on; "" where nothing is active."""
        serving = self._now()
        return serving[0] if serving else ""

    @property
    def serving(self) -> str:
        """What serves the lane, whatever this thread runs on; "" where nothing is active."""
        serving = self._serving
        return serving[0] if serving else ""

    @property
    def may_hang(self) -> bool:
        """Whether a run of what serves may hang, with nothing to end it."""
        serving = self._serving
        return serving is not None and self._offers[serving[0]].on_gpu

    @property
    def room(self) -> Room | None:
        """Where this thread's next batch should lie, if its engine cares."""
        serving = self._now()
        make = None if serving is None else getattr(serving[1], "rows", None)
        # Another load is another room: what was pinned for the one before is so no longer.
        return None if serving is None or make is None else Room(f"{serving[0]} {self._loads[serving[0]]}", make)

    @property
    def ran(self) -> str:
        """The description of what ran this thread's last batch."""
        return self._here.ran

    @contextmanager
    def using(self, kind: str, *, on_trial: bool = False) -> Iterator[None]:
        """This thread's batches run on `kind` meanwhile. On trial, a failure is whoever tries it to judge."""
        with self._here.asking_for(kind, on_trial=on_trial):
            yield

    def ready(self) -> list[str]:
        """The engines that are loaded and may serve, the best first."""
        with self._lock:
            return [look.kind for look in self.look() if look.state == RungState.READY]

    def look(self) -> tuple[RungLook, ...]:
        """Where each engine stands."""
        with self._lock:
            room = self._room
            if room is None:
                return ()
            return tuple(
                RungLook(
                    r.kind, str(r.state), r.kind == room.in_use, r.reason, r.failures, self._offers[r.kind].precision
                )
                for r in room.rungs.values()
            )

    def convict(self, error: TryAnotherError) -> None:
        """Another engine ran what this one had failed: it was no fault of the request's."""
        self._workshop.ran_instead(error.instead)
        if error.cause not in OWN | THE_REQUESTS:  # the former were convicted at once
            self._break(error.failed, error.culprit, error, error.cause)

    def reject(self, kind: str, error: EngineError) -> None:
        """An engine that was on trial does not run what it is to run."""
        self._break(kind, self._engines.get(kind), error, cause_of(error))

    # ---- for the workshop -------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        with self._lock:
            if self._room is None:
                return False
            self._handle(Tick())
            given_up, self._given_up = self._given_up, []
            has_moved, self._has_moved = self._has_moved, False
            kind = self._todo.popleft() if self._todo else None
        for dropped, engine in given_up:
            self._give_back(dropped, engine)
        if has_moved:
            self.settled()
        if kind is not None:
            self._load(kind)
        return kind is not None

    def give_up(self) -> None:
        """What is being loaded is no longer wanted: a build under way ends."""
        loading = self._loading
        if loading is not None:
            loading.deactivate()

    def next_wake(self) -> float | None:
        with self._lock:
            if self._room is None:
                return None
            return 0.0 if self._todo or self._given_up or self._has_moved else self._room.next_wake()

    # ---- within -----------------------------------------------------------------------------------------------------

    def _now(self) -> tuple[str, Engine] | None:
        """What this thread runs batches on."""
        kind = self._here.kind
        if kind is None:
            return self._serving
        engine = self._engines.get(kind)
        return self._serving if engine is None else (kind, engine)

    def _suspect(self, kind: str, engine: Engine, error: EngineError) -> None:
        """Raises TryAnotherError if the batch may run elsewhere."""
        cause = cause_of(error)
        with self._lock:
            instead = self._room.after(kind) if self._room is not None else None
        if instead is None:
            return
        if cause in OWN:
            self._break(kind, engine, error, cause)
        raise TryAnotherError(error, self, kind, engine, instead) from error

    def _break(self, kind: str, engine: Engine | None, error: EngineError, cause: Cause) -> None:
        with self._lock:
            if self._room is None or self._room.rungs[kind].state is not RungState.READY:
                return  # another thread's batch failed first
            if self._engines.get(kind) is not engine:
                return  # and it was loaded again since
            before = self._serving
            self._handle(Broke(kind, str(error)[:500]))
            serving = self._serving
        self._workshop.failed(kind, cause)
        assert serving is not None
        self._workshop.told("engine", f"{self.label}: {kind} failed ({cause}): {error}; {serving[0]} serves")
        if serving is not before:
            self.moved()
        self._workshop.wake()

    def _load(self, kind: str) -> None:
        """Make it ready and say so, or why not. What cannot be read at all is raised while nothing serves."""
        offer = self._offers[kind]
        began = time.monotonic()
        engine: Engine | None = None
        try:
            if reason := self._workshop.take_memory((id(self), kind), self._needs.get(kind, offer.gpu_nbytes)):
                raise GpuError(f"{self.label}: {reason}", cause="out-of-memory")
            engine = offer.make()
            with self._lock:
                if self._room is None:  # unloaded while its graph was read
                    raise EngineError(f"{self.label} is not wanted any more", "")
                self._loading = engine
            engine.activate()
            if (held := getattr(engine, "gpu_nbytes", None)) is not None:  # what was guessed before is known now
                self._needs[kind] = held
                self._workshop.take_memory((id(self), kind), held)
            self._try_out(kind, engine)
        except Exception as error:
            is_file = engine is None and isinstance(error, IsthmusError | OSError)
            self._loading = None
            self._give_back(kind, engine)
            self._not_loaded(kind, error if is_file else failure(error, self.label), time.monotonic() - began)
            return
        with self._lock:
            self._loading = None
            before = self._serving
            self._handle(Loaded(kind))
            is_gone = self._room is None
        if is_gone:  # unloaded while it was being made
            self._give_back(kind, engine)
            return
        self._workshop.loaded(kind, time.monotonic() - began, ok=True)
        if self._is_active and before is not None and before is not self._serving:
            self._workshop.told("engine", f"{self.label}: {kind} is ready and serves now instead of {before[0]}")
            self.moved()

    def _not_loaded(self, kind: str, error: Exception, seconds: float) -> None:
        why = str(error).removeprefix(f"{self.label}: ")
        with self._lock:
            self._engines.pop(kind, None)
            if self._room is None:  # nobody wants it any more
                return
            self._handle(NotLoaded(kind, why[:500] or type(error).__name__, is_final(error)))
        self._workshop.loaded(kind, seconds, ok=False)
        self._workshop.failed(kind, DISAGREES if isinstance(error, DisagreesError) else cause_of(error))
        self._workshop.told("engine", f"{self.label}: {kind} does not run it: {why}")
        if self._serving is None and not isinstance(error, EngineError):
            raise error  # a damaged file: no engine can run it

    def _try_out(self, kind: str, engine: Engine) -> None:
        """Before it may serve: does it say what those below it say, and what does a batch take? Raises EngineError."""
        with self._lock:
            if self._room is None:
                return
            self._engines[kind] = engine
            self._loads[kind] += 1
            trusted = next(reversed(self.ready()), kind)
            judge = self._engines[trusted] if self._room.is_below(trusted, kind) else None
        if judge is not None and (reason := compare(engine, judge, self._offers[kind].tolerance)):
            raise DisagreesError(f"{self.label}: {kind} {reason}, as {trusted} computes it", "it may not serve")
        while True:
            try:
                with self.using(kind, on_trial=True):
                    self.fit()
            except TryAnotherError as error:  # not the one on trial: another part of its lane
                error.engine.reject(error.failed, error)
            else:
                return

    def _give_back(self, kind: str, engine: Engine | None) -> None:
        """The engine's own memory, then what was reserved for it. One that fails at that ends nobody."""
        try:
            if engine is not None:
                engine.deactivate()
        except Exception as error:
            self._workshop.told("engine", f"{self.label}: {kind} is not given back whole: {failure(error, kind)}")
        finally:
            self._workshop.give_memory_back((id(self), kind))

    def _handle(self, event: Event) -> None:
        """Called with the lock held."""
        if self._room is not None:
            for instruction in self._room.handle(event, now=time.monotonic()):
                self._carry_out(instruction)

    def _carry_out(self, instruction: Instruction) -> None:
        if isinstance(instruction, Load):
            self._todo.append(instruction.kind)
        elif isinstance(instruction, Use):
            before = self._serving
            self._serving = instruction.kind, self._engines[instruction.kind]
            if before is not None and self._is_active:
                self._has_moved = True
                self._workshop.moved(before[0], instruction.kind)
        else:
            assert isinstance(instruction, Drop)
            engine = self._engines.pop(instruction.kind, None)
            if engine is not None:
                self._given_up.append((instruction.kind, engine))
